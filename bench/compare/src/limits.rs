//! What the machine can do without any system, measured in the same run: the limits that rows are
//! compared with.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use xs_bench::histogram::Histogram;
use xs_bench::report::per_second;
use xs_bench::{bare, environment};

const SOCKET_PIECE: usize = 64 * 1024;
const MESSAGE: usize = 300;
const FILE_PIECE: usize = 1024 * 1024;
const FILE_BYTES: usize = 256 * 1024 * 1024;

/// The limits. Bytes and messages are per second.
#[derive(Debug, Clone, Default)]
pub(crate) struct Limits {
    pub(crate) memcpy: f64,
    pub(crate) crc32: f64,
    pub(crate) sha256: f64,
    /// Into a new file, in chunks of 1 MiB, without a sync.
    pub(crate) page_cache: f64,
    /// One way over loopback TCP, in chunks of 64 KiB.
    pub(crate) socket: f64,
    /// Messages of 300 B one way over loopback TCP, one write each. Not a limit of any row: a
    /// system that delivers many at a time writes them together.
    pub(crate) sends: f64,
    /// Round trips over loopback TCP, 300 B each way, between blocking threads.
    pub(crate) trips: Histogram,
    /// `fdatasync` after 4 KiB, into space that was written before.
    pub(crate) syncs: Histogram,
}

impl Limits {
    /// Measures the limits, each for about `slice`.
    pub(crate) fn measure(dir: &Path, slice: Duration) -> anyhow::Result<Self> {
        const COUNT: u64 = 500;
        let large = FILE_PIECE as u64;
        let mut syncs = environment::sync_latency(dir)?;
        let begun = Instant::now();
        while begun.elapsed() < slice {
            syncs.merge(&environment::sync_latency(dir)?);
        }
        Ok(Self {
            memcpy: per_second(large * COUNT, bare::copy(FILE_PIECE, COUNT)),
            crc32: per_second(large * COUNT, bare::crc(FILE_PIECE, COUNT)),
            sha256: per_second(large * COUNT / 5, bare::sha256(FILE_PIECE, COUNT / 5)),
            page_cache: page_cache(dir)?,
            socket: one_way(SOCKET_PIECE, slice)? * SOCKET_PIECE as f64,
            sends: one_way(MESSAGE, slice)?,
            trips: round_trips(slice)?,
            syncs,
        })
    }

    /// Returns their names and values, for people.
    pub(crate) fn lines(&self) -> Vec<(&'static str, String)> {
        let gb = |bytes: f64| format!("{:.1} GB/s", bytes / 1e9);
        let times = |times: &Histogram| {
            format!("p50 {:.0} us, p99 {:.0} us", times.micros(0.5), times.micros(0.99))
        };
        vec![
            ("fdatasync after 4 KiB, space written before", times(&self.syncs)),
            ("round trip over loopback TCP, 300 B, blocking threads", times(&self.trips)),
            ("one way over loopback TCP, pieces of 64 KiB", gb(self.socket)),
            ("the same, a write for each 300 B", format!("{:.0} k/s", self.sends / 1e3)),
            ("page cache, new file, pieces of 1 MiB", gb(self.page_cache)),
            ("memcpy, pieces of 1 MiB", gb(self.memcpy)),
            ("CRC-32", gb(self.crc32)),
            ("SHA-256", gb(self.sha256)),
        ]
    }

    pub(crate) fn trip(&self) -> f64 {
        self.trips.micros(0.5)
    }

    pub(crate) fn trips(&self) -> f64 {
        1e6 / self.trip()
    }

    pub(crate) fn sync(&self) -> f64 {
        self.syncs.micros(0.5)
    }

    /// Returns how many messages of a size a socket carries per second.
    pub(crate) fn socket(&self, size: u64) -> f64 {
        self.socket / size as f64
    }

    /// Returns how many messages of a size a socket carries and a file takes per second.
    pub(crate) fn write(&self, size: u64) -> f64 {
        self.socket.min(self.page_cache) / size as f64
    }

    /// Returns how many messages per second become durable in groups of `group`, one sync after the
    /// other.
    pub(crate) fn durable(&self, group: u64) -> f64 {
        (group as f64 * 1e6 / self.sync()).min(self.write(256))
    }

    /// Returns the MB/s of a blob that is put: its name is its SHA-256.
    pub(crate) fn put(&self) -> f64 {
        self.socket.min(self.page_cache).min(self.sha256) / 1e6
    }

    /// Returns the MB/s of a blob that is read.
    pub(crate) fn get(&self) -> f64 {
        self.socket / 1e6
    }
}

fn page_cache(dir: &Path) -> anyhow::Result<f64> {
    let (file, piece) = (tempfile::tempfile_in(dir)?, vec![7; FILE_PIECE]);
    let begun = Instant::now();
    for at in (0..FILE_BYTES).step_by(FILE_PIECE) {
        file.write_all_at(&piece, at as u64)?;
    }
    Ok(per_second(FILE_BYTES as u64, begun.elapsed()))
}

fn pair() -> anyhow::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let here = TcpStream::connect(listener.local_addr()?)?;
    let (there, _) = listener.accept()?;
    here.set_nodelay(true)?;
    there.set_nodelay(true)?;
    Ok((here, there))
}

/// Returns the writes of `len` bytes per second from one thread to another.
fn one_way(len: usize, slice: Duration) -> anyhow::Result<f64> {
    let (mut here, mut there) = pair()?;
    let reader = std::thread::spawn(move || {
        let mut bytes = vec![0; SOCKET_PIECE];
        while there.read(&mut bytes).is_ok_and(|read| read > 0) {}
    });
    let (bytes, begun, mut count) = (vec![7; len], Instant::now(), 0);
    while begun.elapsed() < slice {
        here.write_all(&bytes)?;
        count += 1;
    }
    drop(here);
    // It ends with the stream, which has ended.
    let _ = reader.join();
    Ok(per_second(count, begun.elapsed()))
}

fn round_trips(slice: Duration) -> anyhow::Result<Histogram> {
    let (mut here, mut there) = pair()?;
    let echo = std::thread::spawn(move || {
        let mut bytes = [0; MESSAGE];
        while there.read_exact(&mut bytes).is_ok() && there.write_all(&bytes).is_ok() {}
    });
    let (mut bytes, begun, mut times) = ([7; MESSAGE], Instant::now(), Histogram::default());
    while begun.elapsed() < slice {
        let sent = Instant::now();
        here.write_all(&bytes)?;
        here.read_exact(&mut bytes)?;
        times.record(sent.elapsed());
    }
    drop(here);
    let _ = echo.join();
    Ok(times)
}
