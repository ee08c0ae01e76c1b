//! Streams that JavaScript pulls from: frames of a read or a call, lines of a file, bytes. Each
//! next() returns what is ready, up to a bound, as one item; the end is not an item.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use deno_error::JsErrorBox;
use futures::future::LocalBoxFuture;
use tokio_util::sync::CancellationToken;

use crate::isolate::limits::STREAMS_MAX;

/// One source of texts or bytes.
pub(super) trait Source<T> {
    /// The next item, `None` at the end.
    fn next(&mut self) -> LocalBoxFuture<'_, Result<Option<T>, JsErrorBox>>;
}

pub(super) struct Streams<T> {
    open: RefCell<HashMap<u32, Open<T>>>,
    next: Cell<u32>,
}

struct Open<T> {
    source: Rc<tokio::sync::Mutex<Box<dyn Source<T>>>>,
    closed: CancellationToken,
}

impl<T> Clone for Open<T> {
    fn clone(&self) -> Self {
        Self { source: Rc::clone(&self.source), closed: self.closed.clone() }
    }
}

impl<T> Default for Streams<T> {
    fn default() -> Self {
        Self { open: RefCell::default(), next: Cell::new(0) }
    }
}

impl<T> Streams<T> {
    /// Registers a source under a new number.
    pub(super) fn open(&self, source: Box<dyn Source<T>>) -> Result<u32, JsErrorBox> {
        let mut open = self.open.borrow_mut();
        if open.len() >= STREAMS_MAX {
            return Err(JsErrorBox::range_error(format!(
                "{STREAMS_MAX} reads, tails and calls are already open; end one first \
                 (break out of its loop)"
            )));
        }
        let number = self.next.get();
        self.next.set(number.wrapping_add(1));
        open.insert(
            number,
            Open {
                source: Rc::new(tokio::sync::Mutex::new(source)),
                closed: CancellationToken::new(),
            },
        );
        Ok(number)
    }

    /// The next item; `None` once the stream has ended or was closed.
    pub(super) async fn next(&self, number: u32) -> Result<Option<T>, JsErrorBox> {
        let Some(open) = self.open.borrow().get(&number).cloned() else { return Ok(None) };
        let item = tokio::select! {
            biased;
            () = open.closed.cancelled() => Ok(None),
            item = async { open.source.lock().await.next().await } => item,
        };
        if !matches!(item, Ok(Some(_))) {
            self.open.borrow_mut().remove(&number);
        }
        item
    }

    /// Closes a stream, even one with a pending next().
    pub(super) fn close(&self, number: u32) {
        if let Some(open) = self.open.borrow_mut().remove(&number) {
            open.closed.cancel();
        }
    }
}
