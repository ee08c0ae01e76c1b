//! NATS JetStream through the crate `async-nats`: one stream in files, one replica, one subject per
//! topic.

use std::cell::Cell;
use std::fs;
use std::future::Future;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull, push};
use async_nats::jetstream::object_store::{self, ObjectStore};
use async_nats::jetstream::{self, context::Context, stream};
use async_nats::{Client, Subject};
use bytes::Bytes;
use futures::StreamExt as _;
use tokio::io::AsyncReadExt as _;
use tokio::sync::OnceCell;
use xs_bench::daemon::Daemon;

use super::{Feed, Link, Promise, Setup, System, TOPICS, free_port, topics_from, until};

const STREAM: &str = "bench";
const SUBJECTS: &str = "bench.>";
const BUCKET: &str = "blobs";
/// Messages of one request of a pull consumer.
const PAGE: usize = 5000;
/// Consumers of readers are deleted after this time.
const FORGET: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(crate) struct Nats {
    daemon: Daemon,
    address: String,
}

#[derive(Clone)]
pub(crate) struct NatsLink {
    client: Client,
    context: Context,
    subjects: Rc<[Subject]>,
    stream: stream::Stream<()>,
    blobs: OnceCell<ObjectStore>,
}

pub(crate) struct NatsFeed {
    messages: push::Ordered,
}

/// Writes a configuration.
fn configure(dir: &Path, port: u16, promise: Promise) -> anyhow::Result<std::path::PathBuf> {
    let sync = if promise == Promise::Power { "\n  sync_interval: always" } else { "" };
    let data = dir.join("nats");
    let text = format!(
        "listen: 127.0.0.1:{port}\nmax_payload: 8MB\njetstream {{\n  store_dir: {data:?}\n  \
         max_file_store: 60GB{sync}\n}}\n"
    );
    let path = dir.join("nats.conf");
    fs::write(&path, text)?;
    Ok(path)
}

impl Nats {
    /// Whether a program cannot keep a promise.
    pub(crate) fn cannot(program: &Path, dir: &Path, promise: Promise) -> anyhow::Result<bool> {
        let path = configure(dir, 4222, promise)?;
        let check = Command::new(program).arg("-t").arg("-c").arg(path).output()?;
        Ok(!check.status.success())
    }
}

impl System for Nats {
    type Link = NatsLink;
    const NAME: &'static str = "NATS";

    fn settings(promise: Promise) -> &'static str {
        match promise {
            Promise::Process => "JetStream, file storage, 1 replica; syncs every 2 min",
            Promise::Power => "JetStream, file storage, 1 replica, sync_interval: always",
        }
    }

    async fn start(setup: &Setup) -> anyhow::Result<Self> {
        let address = free_port()?;
        let config = configure(&setup.dir, address.port(), setup.promise)?;
        let mut command = Command::new(&setup.program);
        command.arg("-c").arg(config);
        let mut daemon = Daemon::start(command, setup.log())?;
        let address = address.to_string();
        until(&mut daemon, || link(&address)).await?;
        Ok(Self { daemon, address })
    }

    fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    async fn link(&self) -> anyhow::Result<NatsLink> {
        link(&self.address).await
    }

    fn kill(self) -> anyhow::Result<()> {
        Ok(self.daemon.kill()?)
    }
}

async fn link(address: &str) -> anyhow::Result<NatsLink> {
    let client = async_nats::connect(address).await?;
    let context = jetstream::new(client.clone());
    let config = stream::Config {
        name: STREAM.to_owned(),
        subjects: vec![SUBJECTS.to_owned()],
        storage: stream::StorageType::File,
        allow_direct: true,
        ..stream::Config::default()
    };
    context.get_or_create_stream(config).await?;
    let stream = context.get_stream_no_info(STREAM).await?;
    let subjects = (0..TOPICS).map(|topic| Subject::from(format!("bench.t{topic}"))).collect();
    Ok(NatsLink { client, context, subjects, stream, blobs: OnceCell::new() })
}

impl NatsLink {
    async fn blobs(&self) -> anyhow::Result<&ObjectStore> {
        let open = || async {
            if let Ok(blobs) = self.context.get_object_store(BUCKET).await {
                return Ok(blobs);
            }
            let config = object_store::Config { bucket: BUCKET.to_owned(), ..Default::default() };
            Ok(self.context.create_object_store(config).await?)
        };
        self.blobs.get_or_try_init(open).await
    }
}

impl Link for NatsLink {
    type Feed = NatsFeed;
    type Name = String;

    fn append(&self, topic: u64, body: Bytes) -> impl Future<Output = anyhow::Result<()>> {
        let (context, subject) = (self.context.clone(), self.subjects[topic as usize].clone());
        async move {
            context.publish(subject, body).await?.await?;
            Ok(())
        }
    }

    fn append_all(
        &self,
        topic: u64,
        bodies: Vec<Bytes>,
    ) -> impl Future<Output = anyhow::Result<()>> {
        let (context, subjects) = (self.context.clone(), Rc::clone(&self.subjects));
        async move {
            let mut acks = Vec::with_capacity(bodies.len());
            for (topic, body) in topics_from(topic).zip(bodies) {
                acks.push(context.publish(subjects[topic as usize].clone(), body).await?);
            }
            for ack in acks {
                ack.await?;
            }
            Ok(())
        }
    }

    async fn read(&self, topic: Option<u64>, seen: &Cell<u64>) -> anyhow::Result<()> {
        let filter = topic.map(|topic| self.subjects[topic as usize].to_string());
        let config = pull::Config {
            deliver_policy: DeliverPolicy::All,
            ack_policy: AckPolicy::None,
            filter_subject: filter.unwrap_or_default(),
            inactive_threshold: FORGET,
            memory_storage: true,
            ..pull::Config::default()
        };
        let consumer = self.stream.create_consumer(config).await?;
        let mut left = consumer.cached_info().num_pending;
        let mut messages = consumer.stream().max_messages_per_batch(PAGE).messages().await?;
        while left > 0 {
            let message = messages.next().await.context("a consumer ended")??;
            std::hint::black_box(&message.payload);
            seen.set(seen.get() + 1);
            left -= 1;
        }
        Ok(())
    }

    async fn last(&self, topic: u64) -> anyhow::Result<()> {
        let subject = self.subjects[topic as usize].to_string();
        self.stream.direct_get_last_for_subject(subject).await?;
        Ok(())
    }

    async fn follow(&self) -> anyhow::Result<NatsFeed> {
        let config = push::OrderedConfig {
            deliver_subject: self.client.new_inbox(),
            deliver_policy: DeliverPolicy::New,
            ..push::OrderedConfig::default()
        };
        let consumer = self.stream.create_consumer(config).await?;
        Ok(NatsFeed { messages: consumer.messages().await? })
    }

    async fn put(&self, number: u64, blob: Bytes) -> anyhow::Result<String> {
        let name = number.to_string();
        self.blobs().await?.put(name.as_str(), &mut &blob[..]).await?;
        Ok(name)
    }

    async fn get(&self, name: &String) -> anyhow::Result<u64> {
        let mut blob = self.blobs().await?.get(name).await?;
        let (mut len, mut piece) = (0, vec![0; 256 * 1024]);
        loop {
            match blob.read(&mut piece).await? {
                0 => return Ok(len),
                read => len += read as u64,
            }
        }
    }
}

impl Feed for NatsFeed {
    async fn next(&mut self, each: &mut dyn FnMut(&[u8])) -> anyhow::Result<()> {
        let message = self.messages.next().await.context("a consumer ended")?;
        each(&message.map_err(|error| anyhow!(error))?.payload);
        Ok(())
    }
}
