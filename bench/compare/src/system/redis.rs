//! Redis Streams through the crate `redis`, one multiplexed connection per link. All messages are
//! in one stream, which gives them an order. A topic that is read has a stream of its own, filled
//! separately.

use std::cell::Cell;
use std::future::Future;
use std::iter::repeat;
use std::process::Command;

use anyhow::Context as _;
use bytes::Bytes;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Cmd, Pipeline, Value, cmd, pipe};
use xs_bench::daemon::Daemon;

use super::{Feed, Link, Promise, Setup, System, free_port, topics_from, until};

/// The stream of all messages.
const STREAM: &str = "bench";
/// Messages per page.
const PAGE: usize = 1000;
/// Requests that a connection queues.
const QUEUE: usize = 1024;

#[derive(Debug)]
pub(crate) struct Redis {
    daemon: Daemon,
    url: String,
    client: Client,
}

#[derive(Debug, Clone)]
pub(crate) struct RedisLink {
    pub(crate) connection: MultiplexedConnection,
}

#[derive(Debug)]
pub(crate) struct RedisFeed {
    connection: MultiplexedConnection,
    after: String,
}

impl Redis {
    /// Its address.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }
}

impl System for Redis {
    type Link = RedisLink;
    const NAME: &'static str = "Redis";

    fn settings(promise: Promise) -> &'static str {
        match promise {
            Promise::Process => "--appendonly yes --appendfsync everysec --save \"\"",
            Promise::Power => "--appendonly yes --appendfsync always --save \"\"",
        }
    }

    async fn start(setup: &Setup) -> anyhow::Result<Self> {
        let address = free_port()?;
        let sync = if setup.promise == Promise::Power { "always" } else { "everysec" };
        let data = setup.dir.join("redis");
        std::fs::create_dir_all(&data)?;
        let mut command = Command::new(&setup.program);
        command.args(["--bind", "127.0.0.1", "--port", &address.port().to_string()]);
        command.arg("--dir").arg(&data);
        command.args(["--appendonly", "yes", "--appendfsync", sync, "--save", ""]);
        let mut daemon = Daemon::start(command, setup.log())?;
        let url = format!("redis://{address}/");
        let client = Client::open(&url[..])?;
        // It listens before it has loaded its data, and refuses commands until then.
        until(&mut daemon, || async {
            let mut connection = connect(&client).await?;
            Ok(cmd("PING").query_async::<()>(&mut connection).await?)
        })
        .await?;
        Ok(Self { daemon, url, client })
    }

    fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    async fn link(&self) -> anyhow::Result<RedisLink> {
        Ok(RedisLink { connection: connect(&self.client).await? })
    }

    fn kill(self) -> anyhow::Result<()> {
        Ok(self.daemon.kill()?)
    }
}

async fn connect(client: &Client) -> anyhow::Result<MultiplexedConnection> {
    let config = AsyncConnectionConfig::new()
        .set_response_timeout(None)
        .set_connection_timeout(None)
        .set_pipeline_buffer_size(QUEUE);
    Ok(client.get_multiplexed_async_connection_with_config(&config).await?)
}

/// The stream of one topic.
fn own_stream(topic: u64) -> String {
    format!("{STREAM}.t{topic}")
}

fn xadd(stream: &str, topic: u64, body: &[u8]) -> Cmd {
    let mut add = cmd("XADD");
    add.arg(stream).arg("*").arg("t").arg(topic).arg("b").arg(body);
    add
}

fn xadds(stream: &str, topics: impl Iterator<Item = u64>, bodies: &[Bytes]) -> Pipeline {
    let mut pipeline = pipe();
    topics.zip(bodies).for_each(|(topic, body)| {
        pipeline.add_command(xadd(stream, topic, body)).ignore();
    });
    pipeline
}

/// Id and body of an entry of a stream.
fn entry(value: &Value) -> anyhow::Result<(&[u8], &[u8])> {
    let strange = || format!("not an entry of a stream: {value:?}");
    let Value::Array(parts) = value else { anyhow::bail!(strange()) };
    let [Value::BulkString(id), Value::Array(fields)] = &parts[..] else {
        anyhow::bail!(strange())
    };
    match fields.last() {
        Some(Value::BulkString(body)) => Ok((id, body)),
        _ => anyhow::bail!(strange()),
    }
}

fn text(id: &[u8]) -> anyhow::Result<String> {
    Ok(std::str::from_utf8(id).context("an id is text")?.to_owned())
}

impl Link for RedisLink {
    type Feed = RedisFeed;
    type Name = String;

    fn append(&self, topic: u64, body: Bytes) -> impl Future<Output = anyhow::Result<()>> {
        let mut connection = self.connection.clone();
        let add = xadd(STREAM, topic, &body);
        async move { Ok(add.query_async(&mut connection).await?) }
    }

    fn append_all(
        &self,
        topic: u64,
        bodies: Vec<Bytes>,
    ) -> impl Future<Output = anyhow::Result<()>> {
        let mut connection = self.connection.clone();
        let pipeline = xadds(STREAM, topics_from(topic), &bodies);
        async move { Ok(pipeline.query_async(&mut connection).await?) }
    }

    async fn read(&self, topic: Option<u64>, seen: &Cell<u64>) -> anyhow::Result<()> {
        let mut connection = self.connection.clone();
        let stream = topic.map_or_else(|| STREAM.to_owned(), own_stream);
        let mut from = "-".to_owned();
        loop {
            let mut range = cmd("XRANGE");
            range.arg(&stream).arg(&from).arg("+").arg("COUNT").arg(PAGE);
            let page: Vec<Value> = range.query_async(&mut connection).await?;
            let Some(last) = page.last() else { return Ok(()) };
            for one in &page {
                std::hint::black_box(entry(one)?);
            }
            seen.set(seen.get() + page.len() as u64);
            from = format!("({}", text(entry(last)?.0)?);
        }
    }

    async fn prepare_topic(&self, topic: u64, bodies: Vec<Bytes>) -> anyhow::Result<u64> {
        let mut connection = self.connection.clone();
        for part in bodies.chunks(PAGE) {
            let pipeline = xadds(&own_stream(topic), repeat(topic), part);
            pipeline.query_async::<()>(&mut connection).await?;
        }
        Ok(bodies.len() as u64)
    }

    async fn last(&self, topic: u64) -> anyhow::Result<()> {
        let mut connection = self.connection.clone();
        let mut newest = cmd("XREVRANGE");
        newest.arg(own_stream(topic)).arg("+").arg("-").arg("COUNT").arg(1);
        let newest: Vec<Value> = newest.query_async(&mut connection).await?;
        entry(newest.first().context("a topic without messages")?).map(drop)
    }

    async fn follow(&self) -> anyhow::Result<RedisFeed> {
        let mut connection = self.connection.clone();
        let mut newest = cmd("XREVRANGE");
        newest.arg(STREAM).arg("+").arg("-").arg("COUNT").arg(1);
        let newest: Vec<Value> = newest.query_async(&mut connection).await?;
        let after = match newest.first() {
            Some(newest) => text(entry(newest)?.0)?,
            None => "0".to_owned(),
        };
        Ok(RedisFeed { connection, after })
    }

    async fn put(&self, number: u64, blob: Bytes) -> anyhow::Result<String> {
        let mut connection = self.connection.clone();
        let name = format!("blob.{number}");
        let mut set = cmd("SET");
        set.arg(&name).arg(&blob[..]).query_async::<()>(&mut connection).await?;
        Ok(name)
    }

    async fn get(&self, name: &String) -> anyhow::Result<u64> {
        let mut connection = self.connection.clone();
        let blob: Value = cmd("GET").arg(name).query_async(&mut connection).await?;
        match blob {
            Value::BulkString(bytes) => Ok(bytes.len() as u64),
            _ => anyhow::bail!("a blob that was set is gone"),
        }
    }
}

impl Feed for RedisFeed {
    async fn next(&mut self, each: &mut dyn FnMut(&[u8])) -> anyhow::Result<()> {
        let mut read = cmd("XREAD");
        read.arg("COUNT").arg(PAGE).arg("BLOCK").arg(0).arg("STREAMS").arg(STREAM).arg(&self.after);
        let streams: Vec<(String, Vec<Value>)> = read.query_async(&mut self.connection).await?;
        let entries = streams.first().map(|(_, entries)| &entries[..]).unwrap_or_default();
        for one in entries {
            each(entry(one)?.1);
        }
        if let Some(last) = entries.last() {
            self.after = text(entry(last)?.0)?;
        }
        Ok(())
    }
}
