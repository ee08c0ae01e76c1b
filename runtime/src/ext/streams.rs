//! Streams that JavaScript pulls from: frames of a read or a call, lines of a file. Each next()
//! takes what is ready, up to a bound, as one text; the end is an empty text.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use deno_error::JsErrorBox;
use futures::future::LocalBoxFuture;
use tokio_util::sync::CancellationToken;

use crate::isolate::limits::STREAMS_MAX;

/// One source of texts.
pub(super) trait Source {
    /// The next items as one text, `None` at the end.
    fn next(&mut self) -> LocalBoxFuture<'_, Result<Option<String>, JsErrorBox>>;
}

#[derive(Default)]
pub(super) struct Streams {
    open: RefCell<HashMap<u32, Open>>,
    next: Cell<u32>,
}

#[derive(Clone)]
struct Open {
    source: Rc<tokio::sync::Mutex<Box<dyn Source>>>,
    closed: CancellationToken,
}

impl Streams {
    /// Keeps a source under a new number.
    pub(super) fn open(&self, source: Box<dyn Source>) -> Result<u32, JsErrorBox> {
        let mut open = self.open.borrow_mut();
        if open.len() >= STREAMS_MAX {
            return Err(JsErrorBox::range_error(format!(
                "{STREAMS_MAX} reads, tails and calls are open at once; end one first (break out of its loop)"
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

    /// The next text; empty once the stream has ended or was closed.
    pub(super) async fn next(&self, number: u32) -> Result<String, JsErrorBox> {
        let Some(open) = self.open.borrow().get(&number).cloned() else {
            return Ok(String::new());
        };
        let text = tokio::select! {
            biased;
            () = open.closed.cancelled() => Ok(None),
            text = async { open.source.lock().await.next().await } => text,
        };
        if !matches!(text, Ok(Some(_))) {
            self.open.borrow_mut().remove(&number);
        }
        text.map(Option::unwrap_or_default)
    }

    /// Ends a stream, also one that is being waited for.
    pub(super) fn close(&self, number: u32) {
        if let Some(open) = self.open.borrow_mut().remove(&number) {
            open.closed.cancel();
        }
    }
}
