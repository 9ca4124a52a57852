//! Atoms that cross between Rust and Elixir.

use rustler::Atom;
use stomp::{Command, Rule};

rustler::atoms! {
    gen_cast = "$gen_cast",
    barytherium,
    frames,
    messages,
    first_message,
    disconnect,
    // Reasons of a disconnect.
    closed,
    no_listener,
    timeout,
    parse_error,
    econnreset,
    etimedout,
    ehostunreach,
    enetunreach,
    enetdown,
    emfile,
    ebadf,
    enolck,
    locked,
    // What comes next.
    read_dirty,
    read_inline,
    await_turn,
    await_input,
    look,
    await_room,
    connected_frame,
    stop,
    // What wakes a process.
    turn,
    room,
    // Other answers.
    used,
    dirty,
    relay,
    owed,
    infinity,
    panic,
    refused,
    unfinished_error,
    truncated,
    trace,
    received,
    websocket,
    protocol_error,
    tls,
    // Why a body is as it was sent.
    compressed,
    too_large,
    damaged,
    several_members,
    trailing_bytes,
    // TLS.
    established,
    r#continue = "continue",
    more,
    busy,
    options,
    internal_error,
    // The struct.
    struct_key = "__struct__",
    frame_module = "Elixir.Barytherium.Frame",
    command,
    headers,
    body,
    // Commands.
    message,
    receipt,
    error,
    connected,
    connect,
    stomp,
    send,
    subscribe,
    unsubscribe,
    begin,
    commit,
    abort,
    ack,
    nack,
    // Rules.
    unknown_command,
    bare_carriage_return,
    header_without_colon,
    empty_header_name,
    undefined_escape,
    invalid_content_length,
    body_not_terminated,
    header_line_too_long,
    too_many_headers,
    body_too_large,
    unexpected_first_frame,
    unescapable,
}

pub fn of_command(command: Command) -> Atom {
    match command {
        Command::Message => message(),
        Command::Receipt => receipt(),
        Command::Error => error(),
        Command::Connected => connected(),
        Command::Connect => connect(),
        Command::Stomp => stomp(),
        Command::Send => send(),
        Command::Subscribe => subscribe(),
        Command::Unsubscribe => unsubscribe(),
        Command::Begin => begin(),
        Command::Commit => commit(),
        Command::Abort => abort(),
        Command::Ack => ack(),
        Command::Nack => nack(),
        Command::Disconnect => disconnect(),
    }
}

pub fn to_command(atom: Atom) -> Option<Command> {
    Command::ALL
        .iter()
        .copied()
        .find(|&command| of_command(command) == atom)
}

/// None if the body is one that never was compressed.
pub fn of_inflate_failure(failure: inflate::Failure) -> Option<Atom> {
    match failure {
        inflate::Failure::TooLarge => Some(too_large()),
        inflate::Failure::Damaged => Some(damaged()),
        inflate::Failure::SeveralMembers => Some(several_members()),
        inflate::Failure::TrailingBytes => Some(trailing_bytes()),
        inflate::Failure::NotCompressed => None,
    }
}

pub fn of_rule(rule: Rule) -> Atom {
    match rule {
        Rule::UnknownCommand => unknown_command(),
        Rule::BareCarriageReturn => bare_carriage_return(),
        Rule::HeaderWithoutColon => header_without_colon(),
        Rule::EmptyHeaderName => empty_header_name(),
        Rule::UndefinedEscape => undefined_escape(),
        Rule::InvalidContentLength => invalid_content_length(),
        Rule::BodyNotTerminated => body_not_terminated(),
        Rule::HeaderLineTooLong => header_line_too_long(),
        Rule::TooManyHeaders => too_many_headers(),
        Rule::BodyTooLarge => body_too_large(),
        Rule::UnexpectedFirstFrame => unexpected_first_frame(),
    }
}
