//! A store behind a connection, as an isolate uses it. Does not decide which processor it serves,
//! nor what happens to its output and logs.

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt as _, Stream, StreamExt as _, stream};
use tokio_util::io::StreamReader;
use xs_engine::{
    BlobHash, Body, Bound, Condition, Frame, FrameId, IdempotencyKey, Meta, NewFrame, ReadOptions,
    Topic, TopicPatterns,
};
use xs_protocol::{
    AppendRequest, Appended, Class, Client, ClientError, Code, LastRequest, RemoveRequest,
    SubEvent, SubscribeOptions, Subscription,
};

use crate::isolate::{BackendCode, BackendError, ByteStream, CallRequest, FrameStream, TopicInfo};
use crate::share::{Held, STREAM_CREDIT, Share};

/// A future answer of the store, with an isolate's error type.
type Answer<T> = BoxFuture<'static, Result<T, BackendError>>;

/// The store, for one module. Each method does what the method of
/// [`Backend`](crate::isolate::Backend) with the same name documents.
#[derive(Clone)]
pub(crate) struct Remote {
    pub(crate) client: Client,
    share: Share,
}

/// The `Backend` methods that just forward to a [`Remote`] in this field.
macro_rules! asks_remote {
    ($remote:ident) => {
        fn remove(
            &self,
            frames: Vec<FrameId>,
            within: Option<TopicPatterns>,
        ) -> BoxFuture<'static, Result<(), BackendError>> {
            self.$remote.remove(frames, within)
        }

        fn topics(
            &self,
            topics: TopicPatterns,
        ) -> BoxFuture<'static, Result<Vec<TopicInfo>, BackendError>> {
            self.$remote.topics(&topics)
        }

        fn blob_put(&self, bytes: Bytes) -> BoxFuture<'static, Result<BlobHash, BackendError>> {
            self.$remote.blob_put(bytes)
        }

        fn blob_get(
            &self,
            hash: BlobHash,
            max: u64,
        ) -> BoxFuture<'static, Result<Option<Bytes>, BackendError>> {
            self.$remote.blob_get(hash, max)
        }

        fn blob_chunks(
            &self,
            hash: BlobHash,
        ) -> BoxFuture<'static, Result<Option<ByteStream>, BackendError>> {
            self.$remote.blob_chunks(hash)
        }

        fn blob_put_from(
            &self,
            pieces: ByteStream,
        ) -> BoxFuture<'static, Result<BlobHash, BackendError>> {
            self.$remote.blob_put_from(pieces)
        }
    };
}
pub(crate) use asks_remote;

impl Remote {
    pub(crate) fn new(client: Client) -> Self {
        Self { client, share: Share::default() }
    }

    /// Sends a request when the module's share allows it.
    fn ask<T: Send + 'static, R>(
        &self,
        request: impl FnOnce(Client) -> R + Send + 'static,
    ) -> Answer<T>
    where
        R: Future<Output = Result<T, ClientError>> + Send,
    {
        let (client, share) = (self.client.clone(), self.share.clone());
        Box::pin(async move {
            let _turn = share.request().await?;
            request(client).await.map_err(refused)
        })
    }

    /// Sent before the future is polled, so that outputs are stored in the order they were made.
    pub(crate) fn append(&self, frames: Vec<NewFrame>) -> Answer<Vec<Frame>> {
        let request = AppendRequest::frames(frames);
        let reply = self.client.append(&request);
        Box::pin(async move { stored(&request.frames, &reply.await.map_err(refused)?) })
    }

    pub(crate) fn append_if(
        &self,
        frames: Vec<NewFrame>,
        conditions: Vec<Condition>,
        key: Option<IdempotencyKey>,
    ) -> Answer<Vec<Frame>> {
        let batch =
            AppendRequest { frames: frames.clone(), conditions, key, ..AppendRequest::default() };
        let appended = self.ask(move |client| client.append(&batch));
        Box::pin(async move { stored(&frames, &appended.await?) })
    }

    pub(crate) fn remove(&self, frames: Vec<FrameId>, within: Option<TopicPatterns>) -> Answer<()> {
        let frames = frames.into_iter().map(Bound::Id).collect();
        let request = RemoveRequest { frames, within, ..RemoveRequest::default() };
        self.ask(async move |client| client.remove(&request).await.map(|_| ()))
    }

    pub(crate) fn read(&self, options: ReadOptions) -> FrameStream {
        if !options.follow {
            return self.client.fetch(&options).map(|frame| frame.map_err(refused)).boxed();
        }
        let (client, share) = (self.client.clone(), self.share.clone());
        let how = SubscribeOptions { credit: STREAM_CREDIT, ..SubscribeOptions::default() };
        opened(async move {
            let held = share.stream()?;
            let subscription = client.subscribe(&options, how).await.map_err(refused)?;
            Ok(holding(frames_of(subscription), held).boxed())
        })
    }

    pub(crate) fn get(&self, id: FrameId) -> Answer<Option<Frame>> {
        self.ask(move |client| client.get(Bound::Id(id)))
    }

    pub(crate) fn last(&self, topics: TopicPatterns) -> Answer<Option<Frame>> {
        let request = LastRequest { topics, n: 1, per_topic: false };
        let newest = self.ask(move |client| client.last(&request));
        Box::pin(async move { Ok(newest.await?.pop()) })
    }

    pub(crate) fn last_per_topic(&self, topics: TopicPatterns) -> Answer<Vec<Frame>> {
        let request = LastRequest { topics, n: 1, per_topic: true };
        self.ask(move |client| client.last(&request))
    }

    pub(crate) fn topics(&self, topics: &TopicPatterns) -> Answer<Vec<TopicInfo>> {
        let topics = topics.clone();
        let found = self.ask(move |client| client.topics(&topics));
        Box::pin(async move {
            let infos = found.await?.into_iter().map(|summary| TopicInfo {
                topic: summary.topic.as_str().to_owned(),
                count: summary.count,
                bytes: summary.bytes,
                first: summary.first,
                last: summary.last,
            });
            Ok(infos.collect())
        })
    }

    pub(crate) fn blob_put(&self, bytes: Bytes) -> Answer<BlobHash> {
        let (client, share) = (self.client.clone(), self.share.clone());
        Box::pin(async move {
            let _turn = share.blob_of(bytes.len()).await?;
            client.blob_put_bytes(bytes).await.map_err(refused)
        })
    }

    pub(crate) fn blob_get(&self, hash: BlobHash, max: u64) -> Answer<Option<Bytes>> {
        let (client, share) = (self.client.clone(), self.share.clone());
        Box::pin(async move {
            let _turn = share.blob().await?;
            let Some(blob) = client.blob_get(&hash).await.map_err(refused)? else {
                return Ok(None);
            };
            let max = usize::try_from(max).unwrap_or(usize::MAX);
            blob.bytes(max).await.map(Some).map_err(refused)
        })
    }

    pub(crate) fn blob_chunks(&self, hash: BlobHash) -> Answer<Option<ByteStream>> {
        let client = self.client.clone().with_credit(STREAM_CREDIT);
        let share = self.share.clone();
        Box::pin(async move {
            let held = share.stream()?;
            let Some(blob) = client.blob_get(&hash).await.map_err(refused)? else {
                return Ok(None);
            };
            let pieces = stream::unfold(blob, |mut blob| async move {
                let piece = blob.chunk().await?;
                Some((piece.map_err(refused), blob))
            });
            Ok(Some(holding(pieces, held).boxed()))
        })
    }

    pub(crate) fn blob_put_from(&self, pieces: ByteStream) -> Answer<BlobHash> {
        let (client, share) = (self.client.clone(), self.share.clone());
        let source = StreamReader::new(pieces.map(|piece| piece.map_err(std::io::Error::other)));
        Box::pin(async move {
            let _held = share.stream()?;
            client.blob_put(source).await.map(|(hash, _)| hash).map_err(refused)
        })
    }

    pub(crate) fn call(&self, request: CallRequest) -> FrameStream {
        let client = self.client.clone().with_credit(STREAM_CREDIT);
        let share = self.share.clone();
        opened(async move {
            let request = call_request(request)?;
            let held = share.stream()?;
            let results = client.call(&request).await.map_err(refused)?;
            let results = results.map(|result| result.map(|one| one.frame).map_err(refused));
            Ok(holding(results, held).boxed())
        })
    }
}

/// The frames of a stream that is being opened, or its error as the only item.
fn opened(
    opening: impl Future<Output = Result<FrameStream, BackendError>> + Send + 'static,
) -> FrameStream {
    let opened = opening.map(|opened| match opened {
        Ok(frames) => frames,
        Err(error) => stream::iter([Err(error)]).boxed(),
    });
    stream::once(opened).flatten().boxed()
}

/// A stream that holds its slot for as long as it lives.
fn holding<S: Stream>(stream: S, held: Held) -> impl Stream<Item = S::Item> {
    stream.inspect(move |_| {
        let _held = &held;
    })
}

/// The frames of a batch as stored.
pub(crate) fn stored(frames: &[NewFrame], appended: &Appended) -> Result<Vec<Frame>, BackendError> {
    let pairs = frames.iter().zip(&appended.frames);
    let made = pairs.map(|(new, stamp)| {
        let body = match &new.body {
            Body::Inline(bytes) if !bytes.is_empty() => {
                Some((bytes.len() as u64, BlobHash::of(bytes)))
            }
            Body::Stored(hash) => Some((0, *hash)),
            Body::Inline(_) | Body::None => None,
        };
        Frame::assemble(new, stamp.id, stamp.offset, body)
            .map_err(|error| BackendError::new(BackendCode::Refused, error.to_string()))
    });
    made.collect()
}

fn call_request(request: CallRequest) -> Result<xs_protocol::CallRequest, BackendError> {
    let invalid =
        |error: xs_engine::ValueError| BackendError::new(BackendCode::Refused, error.to_string());
    let mut call = xs_protocol::CallRequest::new(Topic::parse(&request.name).map_err(invalid)?);
    call.args = Meta::parse(request.args).map_err(invalid)?;
    call.body = request.body;
    call.origin = request.origin;
    call.deadline = request.timeout_ms.map(std::time::Duration::from_millis);
    Ok(call)
}

/// The frames of a subscription, one by one; events that a module cannot act on are dropped.
fn frames_of(
    subscription: Subscription,
) -> impl futures::Stream<Item = Result<Frame, BackendError>> + Send {
    stream::unfold(subscription, |mut subscription| async move {
        let event = subscription.next().await?;
        let items = match event {
            Ok(SubEvent::Frames { frames, .. }) => {
                frames.into_iter().map(|delivered| Ok(delivered.frame)).collect()
            }
            Ok(SubEvent::Dropped { refusal, .. }) => vec![Err(refused(refusal.into()))],
            Ok(SubEvent::CaughtUp { .. } | SubEvent::Pulse | SubEvent::Gap(_)) => Vec::new(),
            Err(error) => vec![Err(refused(error))],
        };
        Some((stream::iter(items), subscription))
    })
    .flatten()
}

/// Converts a client's error for an isolate.
pub(crate) fn refused(error: ClientError) -> BackendError {
    let code = match (error.code(), error.class()) {
        (Some(Code::DeadlinePassed), _) => BackendCode::TimedOut,
        (_, Class::Absent) => BackendCode::NotFound,
        (_, Class::Busy | Class::Storage | Class::Unknown) => BackendCode::Unavailable,
        (_, Class::Condition) => BackendCode::Conflict,
        (_, Class::Protocol | Class::Access | Class::Invalid) => BackendCode::Refused,
    };
    BackendError::new(code, error.to_string())
}
