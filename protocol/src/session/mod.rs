//! The rules of a connection without its sockets: bytes and instants in, messages and actions out.
//! Decides nothing about the store and never waits, so that a test runs whole conversations, with
//! any timing, in microseconds.

mod client;
#[cfg(test)]
mod pair;
mod server;

pub(crate) use client::{ClientEvent, ClientSession};
pub(crate) use server::{Action, ServerSession, Ticket};
