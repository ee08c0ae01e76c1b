//! What programs write, until somebody reads it. An output is no stream of the module's before it
//! is read, and holds nothing of the machine once its program has ended: what is left in the pipe
//! is taken in then, and kept for those programs that ended last.

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

/// Bytes read from a program at once.
const READ_BYTES: usize = 64 * 1024;
/// Bytes taken in of an output whose program has ended: what a pipe holds unless it was told to
/// hold more, and then the rest stays in the pipe.
const KEPT_BYTES_MAX: usize = 64 * 1024;
/// Programs that have ended and whose outputs are kept.
const KEPT_MAX: usize = 64;

/// The outputs of one isolate's programs that nobody has begun to read, by the number of the
/// program and the descriptor that it writes to.
#[derive(Default)]
pub(super) struct Pipes {
    unread: RefCell<HashMap<(u32, u32), Rc<Pipe>>>,
    /// Programs that have ended and have such outputs, the first to end first.
    ended: RefCell<VecDeque<u32>>,
}

/// The descriptors that a program writes to.
const OUTPUTS: [u32; 2] = [1, 2];

struct Pipe {
    rest: tokio::sync::Mutex<Rest>,
    /// Fires when somebody reads it, or nobody will.
    settled: CancellationToken,
}

struct Rest {
    /// Until its end was read.
    pipe: Option<Box<dyn AsyncRead + Unpin>>,
    taken: BytesMut,
}

impl Pipes {
    /// Takes the outputs of a program that begins.
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

    /// Takes in what a program has left that has ended.
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

    /// An output is read from here on, or by nobody.
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
    /// Reads what is there and will be, until somebody else does.
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
                // Whoever reads on has the same error.
                read = rest.read(room) => if !matches!(read, Ok(true)) { return },
            }
        }
    }
}

impl Rest {
    /// Takes what comes next, at most `max` bytes; whether anything came.
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

/// An output that is read.
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

/// Begins to read an output; gives the number of its bytes.
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
            "what the program wrote is not kept any more: {KEPT_MAX} others have ended since whose \
             outputs nobody reads"
        );
        JsErrorBox::generic(text)
    })?;
    let bytes = bridge.bytes.open(Box::new(Output(pipe)))?;
    bridge.pipes.settle(number, output);
    Ok(bytes)
}

/// An output is not wanted: the program cannot write to it any more.
#[op2(fast)]
pub(super) fn op_xs_child_unwanted(state: &mut OpState, number: u32, output: u32) {
    state.borrow::<Rc<Bridge>>().pipes.settle(number, output);
}
