//! The output of programs until it is read. An output does not count as a stream of the module
//! before it is read, and holds no system resource once its program has ended: the rest of the pipe
//! is buffered then, and kept for the programs that ended last.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use bytes::{BufMut as _, Bytes, BytesMut};
use deno_core::{OpState, op2};
use deno_error::JsErrorBox;
use futures::FutureExt as _;
use futures::future::LocalBoxFuture;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio_util::sync::CancellationToken;

use super::bridge::Bridge;
use super::streams::Source;

/// Bytes per read from a program.
const READ_BYTES: usize = 64 * 1024;
/// Bytes buffered of an output whose program has ended: the default capacity of a pipe. If the pipe
/// was made larger, the rest stays in it.
const KEPT_BYTES_MAX: usize = 64 * 1024;
/// Ended programs whose outputs are kept.
const KEPT_MAX: usize = 64;

/// The unread outputs of one isolate's programs, by program number and file descriptor.
#[derive(Default)]
pub(super) struct Pipes {
    unread: RefCell<HashMap<(u32, u32), Rc<Pipe>>>,
    /// Ended programs with unread outputs, oldest end first.
    ended: RefCell<VecDeque<u32>>,
}

/// The file descriptors that a program writes to.
const OUTPUTS: [u32; 2] = [1, 2];

struct Pipe {
    rest: tokio::sync::Mutex<Rest>,
    /// Fires when the output is read by the module, or never will be.
    settled: CancellationToken,
}

struct Rest {
    /// `None` once its end was read.
    pipe: Option<Box<dyn AsyncRead + Unpin>>,
    taken: BytesMut,
}

impl Pipes {
    /// Adds the outputs of a new program.
    pub(super) fn add(
        &self,
        program: u32,
        stdout: impl AsyncRead + Unpin + 'static,
        stderr: impl AsyncRead + Unpin + 'static,
    ) {
        let pipes: [Box<dyn AsyncRead + Unpin>; 2] = [Box::new(stdout), Box::new(stderr)];
        for (output, pipe) in OUTPUTS.into_iter().zip(pipes) {
            let rest = Rest { pipe: Some(pipe), taken: BytesMut::new() };
            let pipe = Pipe { rest: rest.into(), settled: CancellationToken::new() };
            self.unread.borrow_mut().insert((program, output), Rc::new(pipe));
        }
    }

    /// Buffers the remaining output of a program that has ended.
    pub(super) fn ended(&self, program: u32) {
        for output in OUTPUTS {
            if let Some(pipe) = self.unread.borrow().get(&(program, output)).cloned() {
                drop(deno_core::unsync::spawn(async move { pipe.take_in().await }));
            }
        }
        if self.has_unread(program) {
            self.ended.borrow_mut().push_back(program);
        }
        while self.ended.borrow().len() > KEPT_MAX {
            let Some(first) = self.ended.borrow_mut().pop_front() else { return };
            OUTPUTS.into_iter().for_each(|output| self.settle(first, output));
        }
    }

    fn has_unread(&self, program: u32) -> bool {
        OUTPUTS.into_iter().any(|output| self.unread.borrow().contains_key(&(program, output)))
    }

    /// Ends the buffering of an output: from now on the module reads it, or it is discarded.
    fn settle(&self, program: u32, output: u32) {
        if let Some(pipe) = self.unread.borrow_mut().remove(&(program, output)) {
            pipe.settled.cancel();
        }
        if !self.has_unread(program) {
            self.ended.borrow_mut().retain(|ended| *ended != program);
        }
    }
}

impl Pipe {
    /// Buffers the output until the module reads it itself.
    async fn take_in(&self) {
        let mut rest = self.rest.lock().await;
        loop {
            let room = KEPT_BYTES_MAX.saturating_sub(rest.taken.len());
            if room == 0 {
                return;
            }
            tokio::select! {
                biased;
                () = self.settled.cancelled() => return,
                // The next reader gets the same error.
                read = rest.read(room) => if !matches!(read, Ok(true)) { return },
            }
        }
    }
}

impl Rest {
    /// Reads the next bytes, at most `max`; returns whether any came.
    async fn read(&mut self, max: usize) -> std::io::Result<bool> {
        let Some(pipe) = &mut self.pipe else { return Ok(false) };
        self.taken.reserve(max);
        let count = pipe.read_buf(&mut (&mut self.taken).limit(max)).await?;
        if count == 0 {
            self.pipe = None;
        }
        Ok(count > 0)
    }
}

/// An output being read.
struct Output(Rc<Pipe>);

impl Source<Bytes> for Output {
    fn next(&mut self) -> LocalBoxFuture<'_, Result<Option<Bytes>, JsErrorBox>> {
        async move {
            let mut rest = self.0.rest.lock().await;
            if rest.taken.is_empty() {
                let read = rest.read(READ_BYTES).await;
                read.map_err(|error| JsErrorBox::generic(error.to_string()))?;
            }
            let piece = rest.taken.split().freeze();
            Ok((!piece.is_empty()).then_some(piece))
        }
        .boxed_local()
    }
}

/// Starts reading an output and returns the number of its byte source.
#[op2(fast)]
pub(super) fn op_xs_child_output(
    state: &mut OpState,
    number: u32,
    output: u32,
) -> Result<u32, JsErrorBox> {
    let bridge = state.borrow::<Rc<Bridge>>();
    let pipe = bridge.pipes.unread.borrow().get(&(number, output)).cloned();
    let pipe = pipe.ok_or_else(|| {
        let text = format!(
            "the output of the program is no longer kept, because {KEPT_MAX} others have ended \
             since and were not read; read outputs sooner"
        );
        JsErrorBox::generic(text)
    })?;
    let bytes = bridge.bytes.open(Box::new(Output(pipe)))?;
    bridge.pipes.settle(number, output);
    Ok(bytes)
}

/// Discards an output: the program can no longer write to it.
#[op2(fast)]
pub(super) fn op_xs_child_unwanted(state: &mut OpState, number: u32, output: u32) {
    state.borrow::<Rc<Bridge>>().pipes.settle(number, output);
}
