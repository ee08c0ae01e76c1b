//! CALL: ask a command, get its results as a stream.

use std::time::Duration;

use bytes::Bytes;
use xs_engine::{Meta, Topic};

/// A call of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallRequest {
    /// The command's name.
    pub name: Topic,
    /// Arguments: JSON, `{}` or nothing when there are none.
    pub args: Meta,
    /// Bytes for the command; empty when there are none.
    pub body: Bytes,
    /// Time for the whole call; `None` leaves it to the command.
    pub deadline: Option<Duration>,
    /// Bodies of results up to so many bytes travel with their frames.
    pub bodies_up_to: u32,
}

impl CallRequest {
    /// A call without arguments, body or deadline.
    #[must_use]
    pub fn new(name: Topic) -> Self {
        Self { name, args: Meta::none(), body: Bytes::new(), deadline: None, bodies_up_to: 0 }
    }
}
