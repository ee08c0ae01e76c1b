//! xs over TCP, through its Rust client.

use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use xs_bench::server::Server;
use xs_bench::workload::topic;
use xs_engine::{BlobHash, Body, NewFrame, ReadOptions, Start, SyncPolicy, Topic, TopicPatterns};
use xs_protocol::{Address, AppendRequest, Client, SubEvent, SubscribeOptions, Subscription};

use super::{Feed, Link, Promise, Setup, System, TOPICS, free_port, topics_from};

/// Bodies up to this many bytes are delivered with their frames.
const BODIES_UP_TO: u32 = 64 * 1024;

#[derive(Debug)]
pub(crate) struct Xs {
    server: Server,
}

#[derive(Debug, Clone)]
pub(crate) struct XsLink {
    client: Client,
    topics: Rc<[Topic]>,
}

impl Promise {
    /// The sync policy of a store that keeps the promise.
    pub(crate) fn policy(self) -> anyhow::Result<SyncPolicy> {
        Ok(match self {
            Self::Process => "interval:1000ms".parse()?,
            Self::Power => SyncPolicy::Sync,
        })
    }
}

impl System for Xs {
    type Link = XsLink;
    const NAME: &'static str = "xs";

    fn settings(promise: Promise) -> &'static str {
        match promise {
            Promise::Process => "xs serve --listen --sync interval:1000ms",
            Promise::Power => "xs serve --listen --sync sync",
        }
    }

    async fn start(setup: &Setup) -> anyhow::Result<Self> {
        let (policy, address) = (setup.promise.policy()?, Address::Tcp(free_port()?));
        let mut server = Server::start_at(&setup.program, &setup.dir, policy, None, address)?;
        server.connect().await?;
        Ok(Self { server })
    }

    fn pid(&self) -> u32 {
        self.server.pid()
    }

    async fn link(&self) -> anyhow::Result<XsLink> {
        let topics = (0..TOPICS).map(topic).collect();
        Ok(XsLink { client: self.server.connect_now().await?, topics })
    }

    fn kill(self) -> anyhow::Result<()> {
        Ok(self.server.into_daemon().kill()?)
    }
}

impl XsLink {
    fn frame(&self, topic: u64, body: Bytes) -> NewFrame {
        let topic = self.topics[topic as usize].clone();
        NewFrame { body: Body::Inline(body), ..NewFrame::new(topic) }
    }

    fn patterns(&self, topic: Option<u64>) -> anyhow::Result<TopicPatterns> {
        let Some(topic) = topic else { return Ok(TopicPatterns::all()) };
        Ok(TopicPatterns::parse(self.topics[topic as usize].as_str())?)
    }

    async fn subscribe(&self, options: ReadOptions) -> anyhow::Result<Subscription> {
        let how = SubscribeOptions { bodies_up_to: BODIES_UP_TO, ..SubscribeOptions::default() };
        Ok(self.client.subscribe(&options, how).await?)
    }
}

impl Link for XsLink {
    type Feed = Subscription;
    type Name = BlobHash;

    fn append(&self, topic: u64, body: Bytes) -> impl Future<Output = anyhow::Result<()>> {
        self.append_all(topic, vec![body])
    }

    fn append_all(
        &self,
        topic: u64,
        bodies: Vec<Bytes>,
    ) -> impl Future<Output = anyhow::Result<()>> {
        let frames = topics_from(topic).zip(bodies);
        let frames = frames.map(|(topic, body)| self.frame(topic, body)).collect();
        let reply = self.client.append(&AppendRequest::frames(frames));
        async move { Ok(reply.await.map(drop)?) }
    }

    async fn read(&self, topic: Option<u64>, seen: &Cell<u64>) -> anyhow::Result<()> {
        let topics = self.patterns(topic)?;
        let mut frames = self.subscribe(ReadOptions { topics, ..ReadOptions::default() }).await?;
        while let Some(event) = frames.next().await {
            if let SubEvent::Frames { frames, .. } = event? {
                let whole = frames.iter().filter(|one| one.body.is_some()).count();
                seen.set(seen.get() + whole as u64);
            }
        }
        Ok(())
    }

    async fn last(&self, topic: u64) -> anyhow::Result<()> {
        let topics = self.patterns(Some(topic))?;
        let options = ReadOptions { topics, start: Start::Last(1), ..ReadOptions::default() };
        let mut frames = self.subscribe(options).await?;
        let mut whole = 0;
        while let Some(event) = frames.next().await {
            if let SubEvent::Frames { frames, .. } = event? {
                whole += frames.iter().filter(|one| one.body.is_some()).count();
            }
        }
        ensure!(whole == 1, "{whole} frames with a body are the last of a topic");
        Ok(())
    }

    async fn follow(&self) -> anyhow::Result<Subscription> {
        let options = ReadOptions { start: Start::New, follow: true, ..ReadOptions::default() };
        self.subscribe(options).await
    }

    async fn put(&self, _number: u64, blob: Bytes) -> anyhow::Result<BlobHash> {
        Ok(self.client.blob_put_bytes(blob).await?)
    }

    async fn get(&self, name: &BlobHash) -> anyhow::Result<u64> {
        let mut blob = self.client.blob_get(name).await?.context("a blob that was put")?;
        let mut len = 0;
        while let Some(piece) = blob.chunk().await {
            len += piece?.len() as u64;
        }
        Ok(len)
    }
}

impl Feed for Subscription {
    async fn next(&mut self, each: &mut dyn FnMut(&[u8])) -> anyhow::Result<()> {
        match Self::next(self).await {
            Some(Ok(SubEvent::Frames { frames, .. })) => {
                frames.iter().filter_map(|one| one.body.as_ref()).for_each(|body| each(body));
                Ok(())
            }
            Some(Ok(_)) => Ok(()),
            Some(Err(error)) => Err(error.into()),
            None => bail!("a subscription ended"),
        }
    }
}
