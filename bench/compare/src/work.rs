//! The work: groups of rows, each measured on a server that is started for it.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use futures::future::{try_join, try_join_all};
use xs_bench::daemon::PATIENCE;
use xs_bench::histogram::Histogram;
use xs_bench::process::{Times, memory};
use xs_bench::report::{mib, per_second};

use crate::bodies::Bodies;
use crate::load::{closed, count, open};
use crate::sample::{Figures, Sample};
use crate::system::{Feed, Link, Promise, Setup, System, TOPICS};

/// The amounts of work.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Amounts {
    /// How long a row is measured.
    pub(crate) slice: Duration,
    /// Messages of the store that is read.
    pub(crate) messages: u64,
    /// Messages of the log that a handler is given.
    pub(crate) handled: u64,
    /// Blobs of 100 MiB each way.
    pub(crate) large_blobs: u64,
}

/// A group of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Group {
    Append,
    Durable,
    Read,
    Live,
    Blob,
}

impl Group {
    pub(crate) const ALL: [(&'static str, Self); 5] = [
        ("append", Self::Append),
        ("durable", Self::Durable),
        ("read", Self::Read),
        ("live", Self::Live),
        ("blob", Self::Blob),
    ];

    /// What the acknowledgements promise.
    pub(crate) const fn promise(self) -> Promise {
        match self {
            Self::Durable => Promise::Power,
            Self::Append | Self::Read | Self::Live | Self::Blob => Promise::Process,
        }
    }
}

/// Messages of a batch, and batches in flight.
const BATCH: usize = 64;
const BATCHES: usize = 8;
const SUBSCRIBERS: usize = 100;
/// The topic that is read on its own.
const TOPIC: u64 = 7;
const MIB: u64 = 1 << 20;

/// One system at work.
#[derive(Debug)]
pub(crate) struct Run<'a, S: System> {
    system: S,
    link: S::Link,
    setup: &'a Setup,
    amounts: Amounts,
    bodies: RefCell<Bodies>,
    samples: &'a mut Vec<Sample>,
    rep: usize,
    /// Number of messages in the store that is read, if it is smaller than those of other systems.
    fewer: Option<u64>,
}

/// Runs a group of rows on one system.
pub(crate) async fn group<S: System>(
    group: Group,
    setup: &Setup,
    amounts: Amounts,
    rep: usize,
    samples: &mut Vec<Sample>,
) -> anyhow::Result<()> {
    let begun = Instant::now();
    let system = S::start(setup).await?;
    let link = system.link().await?;
    let ready = begun.elapsed();
    let bodies = RefCell::new(Bodies::default());
    let fewer = (amounts.messages > S::MESSAGES_MAX).then_some(S::MESSAGES_MAX);
    let amounts = Amounts { messages: amounts.messages.min(S::MESSAGES_MAX), ..amounts };
    let mut run = Run { system, link, setup, amounts, bodies, samples, rep, fewer };
    match group {
        Group::Append => {
            if !S::IN_PROCESS {
                run.sample("start-empty", Figures::of(ready.as_secs_f64() * 1e3));
            }
            run.append().await
        }
        Group::Durable => run.durable().await,
        Group::Read => run.read().await,
        Group::Live if S::IN_PROCESS => Ok(()),
        Group::Live => run.live().await,
        Group::Blob => run.blobs().await,
    }
}

/// Processor time of server and client.
struct Meter {
    pid: Option<u32>,
    server: Times,
    client: Times,
}

impl Meter {
    fn start<S: System>(system: &S) -> Self {
        let pid = (!S::IN_PROCESS).then(|| system.pid());
        let server = pid.map(Times::of_process).unwrap_or_default();
        Self { pid, server, client: Times::of_this_thread() }
    }

    fn cpu(self, figures: Figures, count: u64) -> Figures {
        let client = Times::of_this_thread().since(self.client).busy;
        let server = self.pid.map(|pid| Times::of_process(pid).since(self.server).busy);
        figures.cpu(client, server, count)
    }
}

impl<S: System> Run<'_, S> {
    fn sample(&mut self, row: &'static str, figures: Figures) {
        self.samples.push(Sample { row, system: S::NAME, rep: self.rep, figures });
    }

    fn body(&self, size: usize) -> Bytes {
        self.bodies.borrow_mut().next(size)
    }

    fn turn(&self) -> u64 {
        self.bodies.borrow().made() % TOPICS
    }

    async fn rate(
        &mut self,
        row: &'static str,
        size: usize,
        in_flight: usize,
    ) -> anyhow::Result<()> {
        let meter = Meter::start(&self.system);
        let next = || self.link.append(self.turn(), self.body(size));
        let load = closed(self.amounts.slice, in_flight, next).await?;
        let figures = meter.cpu(Figures::rate(&load, 1.0), load.times.count());
        self.sample(row, figures);
        Ok(())
    }

    async fn batches(&mut self, row: &'static str, size: usize) -> anyhow::Result<()> {
        let meter = Meter::start(&self.system);
        let in_flight = if S::IN_PROCESS { 1 } else { BATCHES };
        let next = || {
            let bodies = (0..BATCH).map(|_| self.body(size)).collect();
            self.link.append_all(self.turn(), bodies)
        };
        let load = closed(self.amounts.slice, in_flight, next).await?;
        let count = load.times.count() * BATCH as u64;
        let figures = meter.cpu(Figures::rate(&load, BATCH as f64), count);
        self.sample(row, figures);
        Ok(())
    }

    async fn paced(&mut self, row: &'static str, per_second: u32) -> anyhow::Result<()> {
        let meter = Meter::start(&self.system);
        let next = |_| self.link.append(self.turn(), self.body(256));
        let count = count(self.amounts.slice * 2, per_second);
        let load = open(count, per_second, next).await?;
        let figures = meter.cpu(Figures::latency(&load.times), count);
        self.sample(row, figures);
        Ok(())
    }

    async fn append(&mut self) -> anyhow::Result<()> {
        self.rate("append-256-1", 256, 1).await?;
        self.rate("append-1024-1", 1024, 1).await?;
        self.rate("append-16384-1", 16384, 1).await?;
        if !S::IN_PROCESS {
            self.rate("append-256-64", 256, 64).await?;
            self.rate("append-1024-64", 1024, 64).await?;
            self.rate("append-16384-64", 16384, 64).await?;
        }
        if S::BATCHES {
            self.batches("batch-256", 256).await?;
            self.batches("batch-1024", 1024).await?;
            self.batches("batch-16384", 16384).await?;
        }
        self.paced("append-paced", 1000).await
    }

    async fn durable(&mut self) -> anyhow::Result<()> {
        self.rate("durable-1", 256, 1).await?;
        if !S::IN_PROCESS {
            self.rate("durable-8", 256, 8).await?;
            self.rate("durable-64", 256, 64).await?;
            self.rate("durable-512", 256, 512).await?;
        }
        self.paced("durable-paced", 200).await
    }

    async fn fill(&self) -> anyhow::Result<()> {
        let (mut left, mut running) = (self.amounts.messages, Vec::new());
        while left > 0 {
            let size = left.min(BATCH as u64);
            let bodies = (0..size).map(|_| self.bodies.borrow_mut().unlike()).collect();
            running.push(self.link.append_all(self.amounts.messages - left, bodies));
            left -= size;
            if running.len() == BATCHES || left == 0 {
                try_join_all(running.drain(..)).await?;
            }
        }
        Ok(())
    }

    async fn read(mut self) -> anyhow::Result<()> {
        self.fill().await?;
        let bodies = (0..self.amounts.messages / TOPICS).map(|_| self.body(256)).collect();
        let mut stored = self.amounts.messages + self.link.prepare_topic(TOPIC, bodies).await?;
        self.catch_up("read", None, self.amounts.messages).await?;
        self.catch_up("read-topic", Some(TOPIC), self.amounts.messages / TOPICS).await?;
        let newest = || self.link.last(TOPIC);
        let load = closed(self.amounts.slice, 1, newest).await?;
        self.sample("last", Figures::latency(&load.times));
        if !S::IN_PROCESS {
            stored += self.mixed().await?;
            let pid = self.system.pid().to_string();
            for (row, name) in [("memory", "VmRSS"), ("memory-own", "RssAnon")] {
                let figures = Figures::of(mib(memory(&pid, name)?));
                self.sample(row, figures.of_store(self.fewer));
            }
        }
        // The server's own log is not part of the store.
        let said = fs::metadata(self.setup.log()).map_or(0, |data| data.blocks() * 512);
        let disk = allocated(&self.setup.dir)? - said;
        self.sample("disk", Figures::of(disk as f64 / stored as f64));
        if S::IN_PROCESS { Ok(()) } else { self.restart().await }
    }

    async fn catch_up(
        &mut self,
        row: &'static str,
        topic: Option<u64>,
        expected: u64,
    ) -> anyhow::Result<()> {
        let meter = Meter::start(&self.system);
        let (begun, mut total) = (Instant::now(), 0);
        while total == 0 || begun.elapsed() < self.amounts.slice {
            let seen = Cell::new(0);
            self.link.read(topic, &seen).await?;
            ensure!(seen.get() == expected, "{} of {expected} were read", seen.get());
            total += expected;
        }
        let figures = Figures::of(per_second(total, begun.elapsed()));
        let figures = meter.cpu(figures, total);
        self.sample(row, figures);
        Ok(())
    }

    /// Appends while readers read. Returns the number of appends.
    async fn mixed(&mut self) -> anyhow::Result<u64> {
        let links = [self.system.link().await?, self.system.link().await?];
        let seen = Cell::new(0);
        let readers = links.each_ref().map(|link| read_on(link, &seen));
        let count = count(self.amounts.slice * 2, 1000);
        let append = |_| self.link.append(self.turn(), self.body(256));
        let load = tokio::select! {
            load = open(count, 1000, append) => load?,
            failed = try_join_all(readers) => bail!("readers ended: {:?}", failed.err()),
        };
        let rate = Figures::of(per_second(seen.get(), load.time));
        self.sample("mixed-append", Figures::latency(&load.times));
        self.sample("mixed-read", rate);
        Ok(count)
    }

    async fn restart(self) -> anyhow::Result<()> {
        let Self { system, link, setup, samples, rep, fewer, .. } = self;
        drop(link);
        system.kill()?;
        let begun = Instant::now();
        let system = S::start(setup).await?;
        system.link().await?.last(TOPIC).await?;
        let figures = Figures::of(begun.elapsed().as_secs_f64() * 1e3).of_store(fewer);
        samples.push(Sample { row: "restart", system: S::NAME, rep, figures });
        Ok(())
    }

    async fn live(&mut self) -> anyhow::Result<()> {
        self.deliver("live", &mut self.feeds(1).await?, 1000).await?;
        let mut feeds = self.feeds(SUBSCRIBERS).await?;
        self.deliver("fan-out", &mut feeds, 20).await?;
        let count = count(self.amounts.slice, 1500).min(S::MESSAGES_MAX / SUBSCRIBERS as u64);
        let (begun, mut left) = (Instant::now(), count);
        let meter = Meter::start(&self.system);
        let append = async {
            while left > 0 {
                let size = left.min(BATCH as u64);
                let appends = (0..size).map(|_| self.link.append(TOPIC, self.body(256)));
                try_join_all(appends).await?;
                left -= size;
            }
            Ok(())
        };
        try_join(append, received(&mut feeds, count, &self.bodies)).await?;
        let total = count * SUBSCRIBERS as u64;
        let figures = meter.cpu(Figures::of(per_second(total, begun.elapsed())), total);
        self.sample("fan-out-rate", figures);
        Ok(())
    }

    /// Subscribers, each with a connection of its own.
    async fn feeds(&self, count: usize) -> anyhow::Result<Vec<<S::Link as Link>::Feed>> {
        let mut feeds = Vec::new();
        for _ in 0..count {
            feeds.push(self.system.link().await?.follow().await?);
        }
        Ok(feeds)
    }

    async fn deliver(
        &mut self,
        row: &'static str,
        feeds: &mut [<S::Link as Link>::Feed],
        rate: u32,
    ) -> anyhow::Result<()> {
        let meter = Meter::start(&self.system);
        let count = count(self.amounts.slice * 2, rate);
        let append = open(count, rate, |due| {
            let body = self.bodies.borrow_mut().due(256, due);
            self.link.append(TOPIC, body)
        });
        let (_, times) = try_join(append, received(feeds, count, &self.bodies)).await?;
        let figures = meter.cpu(Figures::latency(&times), times.count());
        self.sample(row, figures);
        Ok(())
    }

    async fn blobs(&mut self) -> anyhow::Result<()> {
        let slice = self.amounts.slice;
        self.blob(["put-1", "get-1"], MIB, |done, begun| done == 0 || begun.elapsed() < slice)
            .await?;
        let large = self.amounts.large_blobs;
        self.blob(["put-100", "get-100"], 100 * MIB, |done, _| done < large).await
    }

    /// Puts blobs of `len` bytes, then gets them, one at a time, as long as `go_on` says.
    async fn blob(
        &mut self,
        rows: [&'static str; 2],
        len: u64,
        go_on: impl Fn(u64, Instant) -> bool,
    ) -> anyhow::Result<()> {
        let (mut names, mut times) = (Vec::new(), [Histogram::default(), Histogram::default()]);
        let begun = Instant::now();
        let meter = Meter::start(&self.system);
        while go_on(names.len() as u64, begun) {
            let number = self.bodies.borrow().made();
            let blob = self.bodies.borrow_mut().blob(len as usize);
            let at = Instant::now();
            names.push(self.link.put(number, blob).await?);
            times[0].record(at.elapsed());
        }
        let put = meter.cpu(Figures::latency(&times[0]), times[0].count());
        let (begun, meter) = (Instant::now(), Meter::start(&self.system));
        while go_on(times[1].count(), begun) {
            let name = &names[times[1].count() as usize % names.len()];
            let at = Instant::now();
            ensure!(self.link.get(name).await? == len, "a blob came back with another length");
            times[1].record(at.elapsed());
        }
        let get = meter.cpu(Figures::latency(&times[1]), times[1].count());
        for (row, figures) in rows.into_iter().zip([put, get]) {
            // The rate at the median, which excludes the making of blobs.
            let value = len as f64 / figures.value;
            self.sample(row, Figures { value, ..figures });
        }
        Ok(())
    }
}

async fn read_on(link: &impl Link, seen: &Cell<u64>) -> anyhow::Result<Infallible> {
    loop {
        link.read(None, seen).await?;
    }
}

/// Takes `count` messages from each feed. Returns how old they were on arrival.
async fn received<F: Feed>(
    feeds: &mut [F],
    count: u64,
    bodies: &RefCell<Bodies>,
) -> anyhow::Result<Histogram> {
    let each = feeds.iter_mut().map(|feed| async move {
        let mut times = Histogram::default();
        while times.count() < count {
            feed.next(&mut |body| times.record(bodies.borrow().age(body))).await?;
        }
        anyhow::Ok(times)
    });
    let all = tokio::time::timeout(PATIENCE, try_join_all(each)).await;
    let all = all.context("not all messages reached all subscribers")??;
    Ok(all.iter().fold(Histogram::default(), |mut sum, times| {
        sum.merge(times);
        sum
    }))
}

/// Returns the bytes that the files of a directory take on the disk.
fn allocated(dir: &Path) -> anyhow::Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let data = entry.metadata()?;
        sum += if data.is_dir() { allocated(&entry.path())? } else { data.blocks() * 512 };
    }
    Ok(sum)
}
