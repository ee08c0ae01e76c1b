//! The rules of a connection without its sockets: bytes and moments in, messages and actions out.
//! Decides nothing about the store and waits for nothing, so that whole conversations run in a test
//! in microseconds with any timing.

mod client;
#[cfg(test)]
mod pair;
mod server;

pub(crate) use client::{ClientEvent, ClientSession};
pub(crate) use server::{Action, ServerSession, Ticket};
