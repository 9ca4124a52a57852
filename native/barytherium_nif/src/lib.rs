//! The NIF under `Barytherium.Native`: sockets, terms and scheduling around the protocol in the
//! `stomp` crate. `native/README.md` draws how they work together.
//!
//! * [`nifs`]: the functions that Elixir calls;
//! * [`connection`]: a connection's resource and its life cycle;
//! * [`call`]: what it does in one call and keeps for the next one, and [`next`]: what it answers;
//! * [`transport`]: what it reads from; [`undecoded`]: what it has read and not decoded;
//! * [`budget`]: how much it does in one call; [`turn`]: which connections may read now;
//! * [`delivery`] and [`batches`]: frames to messages; [`recipients`] and [`routes`]: who gets them;
//!   [`account`]: what each of them has not taken yet;
//! * [`terms`]: frames as terms, with the `unsafe` calls in `terms/raw.rs`;
//! * [`tls`] and [`websocket`]: what lies between the sockets of connections and STOMP;
//! * [`socket`] and [`port`]: a socket's descriptor, and the VM's port, with all of the other `unsafe` code;
//! * [`halt`]: connections that the VM closed while it halts;
//! * [`parse_state`] and [`codec`]: parsing and formatting without a connection;
//! * [`file_lock`]: for what is kept in files;
//! * [`clock`], [`lock`], [`options`], [`stats`] and [`atoms`].
#![deny(unsafe_code)]

mod account;
mod atoms;
mod batches;
mod budget;
mod call;
mod clock;
mod codec;
mod connection;
mod delivery;
mod feed;
mod file_lock;
mod halt;
mod inflating;
mod lock;
mod next;
// Rustler's attribute expands to the `extern "C"` functions that the VM calls.
#[allow(unsafe_code)]
mod nifs;
mod options;
mod parse_state;
#[allow(unsafe_code)]
mod port;
mod recipients;
mod routes;
#[allow(unsafe_code)]
mod socket;
mod stats;
mod terms;
mod tls;
mod transport;
mod turn;
mod undecoded;
mod websocket;

/// `schedulers` is how many the VM has online.
fn load(env: rustler::Env, schedulers: rustler::Term) -> bool {
    terms::init();
    turn::init(schedulers.decode().unwrap_or(1));
    socket::register(env)
}

rustler::init!("Elixir.Barytherium.Native", load = load);
