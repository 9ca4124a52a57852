//! The NIF under `Barytherium.Native`: sockets, readiness, terms and delivery around the
//! protocol in the `stomp` crate.
//!
//! * [`nifs`]: the functions that Elixir calls, one line each;
//! * [`connection`]: a connection's resource, its slices and its life cycle;
//! * [`state`]: what a slice reads, decodes and delivers;
//! * [`account`]: what each listener has not taken yet;
//! * [`halt`]: connections that the VM closed while it halts;
//! * [`parse_state`] and [`codec`]: parsing and formatting without a connection;
//! * [`busy`]: how much a slice does;
//! * [`delivery`]: frames to messages, and who gets them;
//! * [`socket`] and [`terms`]: all of the `unsafe` code.
#![deny(unsafe_code)]

mod account;
mod atoms;
mod busy;
mod codec;
mod connection;
mod delivery;
mod halt;
// Rustler's attribute expands to the `extern "C"` functions that the VM calls.
#[allow(unsafe_code)]
mod nifs;
mod options;
mod parse_state;
#[allow(unsafe_code)]
mod socket;
mod state;
mod stats;
#[allow(unsafe_code)]
mod terms;

fn load(env: rustler::Env, _info: rustler::Term) -> bool {
    terms::init();
    env.register::<connection::Connection>().is_ok() && socket::register(env)
}

rustler::init!("Elixir.Barytherium.Native", load = load);
