//! The answer to a request, as a future.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use super::core::{Answered, Awaited, Handle};
use crate::error::{ClientError, ProtocolError};
use crate::message::{Request, Response};

/// The pending answer to a request. Dropping it does not cancel the request.
#[must_use = "a request that is not awaited may have failed unseen"]
pub struct Reply<T> {
    awaited: Awaited,
    convert: fn(Response) -> Option<T>,
    /// Keeps the connection open while an answer is awaited.
    _handle: Arc<Handle>,
}

impl<T> fmt::Debug for Reply<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply").finish_non_exhaustive()
    }
}

impl<T> Reply<T> {
    pub(super) fn ask(
        handle: &Arc<Handle>,
        request: &Request,
        convert: fn(Response) -> Option<T>,
    ) -> Self {
        Self::of(handle, handle.request(request), convert)
    }

    pub(super) fn failed(handle: &Arc<Handle>, error: ClientError) -> Self {
        Self::of(handle, Err(error), |_| None)
    }

    pub(super) fn of(
        handle: &Arc<Handle>,
        asked: Result<Answered, ClientError>,
        convert: fn(Response) -> Option<T>,
    ) -> Self {
        let awaited = match asked {
            Ok(answer) => Awaited::Waiting(answer),
            Err(error) => Awaited::Failed(Some(error)),
        };
        Self { awaited, convert, _handle: Arc::clone(handle) }
    }

    pub(super) fn poll_reply(&mut self, cx: &mut Context<'_>) -> Poll<Result<T, ClientError>> {
        let response = ready!(self.awaited.poll(cx))?;
        let other = || ProtocolError::Unexpected("the answer to another request").into();
        Poll::Ready((self.convert)(response).ok_or_else(other))
    }
}

impl<T> Future for Reply<T> {
    type Output = Result<T, ClientError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.poll_reply(cx)
    }
}
