//! The benches, one per file, and their names.

pub(crate) mod append;
mod blobs;
mod curves;
mod disk;
mod handler;
mod hostile;
mod modules;
mod none;
mod open;
mod overview;
mod prepare;
pub(crate) mod replay;
mod socket;
mod stalled;
mod sync;
mod topics;

use std::fmt::Write as _;

use anyhow::Context as _;

use crate::Setting;

type Run = fn(&mut Setting) -> anyhow::Result<()>;

/// A bench.
#[derive(Debug)]
pub(crate) struct Bench {
    name: &'static str,
    about: &'static str,
    pub(crate) run: Run,
    /// Whether some of its rows measure syncs to the disk.
    pub(crate) is_durable: bool,
}

const fn volatile(name: &'static str, about: &'static str, run: Run) -> Bench {
    Bench { name, about, run, is_durable: false }
}

const fn durable(name: &'static str, about: &'static str, run: Run) -> Bench {
    Bench { name, about, run, is_durable: true }
}

const BENCHES: &[Bench] = &[
    durable("overview", "append, replay, socket and handler, a little of each", overview::run),
    durable("append", "appends in process", append::run),
    volatile("none", "appends without syncs, sustained, and where the time goes", none::run),
    durable("sync", "durable appends beside a bare loop that syncs the same bytes", sync::run),
    durable("prepare", "zero-filling and writing through a map, or not", prepare::run),
    volatile("replay", "reading back in process beside a bare walk", replay::run),
    volatile("topics", "one topic among many, and the newest frame of one", topics::run),
    durable("open", "opening after kill -9, and memory", open::run),
    volatile("blobs", "small blobs in blocks or with a dictionary, in memory", blobs::run),
    volatile("disk", "bytes on disk for each frame", disk::run),
    durable("curves", "costs over frames and segments, as a table and a plot", curves::run),
    durable("socket", "appends and reads over the Unix socket of a server", socket::run),
    durable("handler", "frames through JavaScript handlers of a server", handler::run),
    durable("modules", "starting, replacing and calling modules, and their memory", modules::run),
    durable("stalled", "appends beside 100 subscribers that take nothing", stalled::run),
    volatile("hostile", "appends beside modules that do their worst", hostile::run),
];

/// Returns the bench with this name.
pub(crate) fn find(name: &str) -> anyhow::Result<&'static Bench> {
    let found = BENCHES.iter().find(|bench| bench.name == name);
    found.with_context(|| format!("there is no bench {name:?}\n{}", list()))
}

/// Returns the list of all benches for the help text.
pub(crate) fn list() -> String {
    BENCHES.iter().fold("Benches:\n".to_owned(), |mut text, Bench { name, about, .. }| {
        let _ = writeln!(text, "  {name:<10}{about}");
        text
    })
}
