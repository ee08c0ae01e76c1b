//! Load: a number of operations in flight for some time, or operations at a fixed rate, whatever
//! becomes of earlier ones. The latencies of the second kind count from when an operation was due,
//! so that they include delays caused by late answers.

use std::future::Future;
use std::io::ErrorKind;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::net::unix::pipe::Receiver;
use xs_bench::histogram::Histogram;

/// The results of a load.
#[derive(Debug, Default)]
pub(crate) struct Load {
    pub(crate) time: Duration,
    pub(crate) times: Histogram,
}

/// Keeps this many operations in flight until the time is over, then waits for the last.
pub(crate) async fn closed<F>(
    slice: Duration,
    in_flight: usize,
    mut operation: impl FnMut() -> F,
) -> anyhow::Result<Load>
where
    F: Future<Output = anyhow::Result<()>>,
{
    let mut times = Histogram::default();
    let mut running = FuturesUnordered::new();
    let begun = Instant::now();
    loop {
        while running.len() < in_flight && begun.elapsed() < slice {
            let (at, done) = (Instant::now(), operation());
            running.push(async move { done.await.map(|()| at.elapsed()) });
        }
        match running.next().await {
            Some(time) => times.record(time?),
            None => return Ok(Load { time: begun.elapsed(), times }),
        }
    }
}

/// Returns how many operations a rate yields in a time.
pub(crate) fn count(slice: Duration, per_second: u32) -> u64 {
    (slice.as_secs_f64() * f64::from(per_second)).max(1.0) as u64
}

/// Starts `count` operations at a rate; each gets the time when it was due.
pub(crate) async fn open<F>(
    count: u64,
    per_second: u32,
    mut operation: impl FnMut(Instant) -> F,
) -> anyhow::Result<Load>
where
    F: Future<Output = anyhow::Result<()>>,
{
    let mut times = Histogram::default();
    let mut running = FuturesUnordered::new();
    let mut left = count;
    let mut pace = Pace::new(per_second)?;
    let begun = Instant::now();
    while left > 0 || !running.is_empty() {
        tokio::select! {
            biased;
            due = pace.due(), if left > 0 => for due in due? {
                if left > 0 {
                    let done = operation(due);
                    running.push(async move { done.await.map(|()| due.elapsed()) });
                    left -= 1;
                }
            },
            Some(time) = running.next(), if !running.is_empty() => times.record(time?),
        }
    }
    Ok(Load { time: begun.elapsed(), times })
}

/// Ticks at a rate, as precisely as the kernel's timers, unlike tokio's.
#[derive(Debug)]
struct Pace {
    /// A timer, read like a pipe.
    timer: Receiver,
    next: Instant,
    interval: Duration,
}

impl Pace {
    fn new(per_second: u32) -> anyhow::Result<Self> {
        let interval = Duration::from_secs(1) / per_second.max(2);
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let time = Timespec { tv_sec: 0, tv_nsec: interval.subsec_nanos().into() };
        let every = Itimerspec { it_interval: time, it_value: time };
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &every)?;
        let next = Instant::now() + interval;
        Ok(Self { timer: Receiver::from_owned_fd_unchecked(timer)?, next, interval })
    }

    /// Waits for the next tick. Returns the times of all that are due.
    async fn due(&mut self) -> anyhow::Result<Vec<Instant>> {
        let mut count = [0; 8];
        loop {
            self.timer.readable().await?;
            match self.timer.try_read(&mut count) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                read => {
                    read?;
                    break;
                }
            }
        }
        let first = self.next;
        let ticks = u32::try_from(u64::from_ne_bytes(count))?;
        self.next += self.interval * ticks;
        Ok((0..ticks).map(|tick| first + self.interval * tick).collect())
    }
}
