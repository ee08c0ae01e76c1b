//! The benches, one file each, and their names.

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

use anyhow::bail;

use crate::Setting;

type Bench = fn(&mut Setting) -> anyhow::Result<()>;

/// Names, what is measured, how.
const BENCHES: &[(&str, &str, Bench)] = &[
    ("overview", "append, replay, socket and handler, a little of each", overview::run),
    ("append", "appends in process", append::run),
    ("none", "appends without syncs, sustained, and where the time goes", none::run),
    ("sync", "durable appends beside a bare loop that syncs the same bytes", sync::run),
    ("prepare", "zero-filling and writing through a map, or not", prepare::run),
    ("replay", "reading back in process beside a bare walk", replay::run),
    ("topics", "one topic among many, and the newest frame of one", topics::run),
    ("open", "opening after kill -9, and memory", open::run),
    ("blobs", "small blobs in blocks or with a dictionary, in memory", blobs::run),
    ("disk", "bytes on disk for each frame", disk::run),
    ("curves", "costs over frames and segments, as a table and a plot", curves::run),
    ("socket", "appends and reads over the Unix socket of a server", socket::run),
    ("handler", "frames through JavaScript handlers of a server", handler::run),
    ("modules", "starting, replacing and calling modules, and their memory", modules::run),
    ("stalled", "appends beside 100 subscribers that take nothing", stalled::run),
    ("hostile", "appends beside modules that do their worst", hostile::run),
];

/// The bench with a name.
pub(crate) fn find(name: &str) -> anyhow::Result<Bench> {
    match BENCHES.iter().find(|(known, ..)| *known == name) {
        Some((.., bench)) => Ok(*bench),
        None => bail!("there is no bench {name:?}\n{}", list()),
    }
}

/// All of them, for who asks for help.
pub(crate) fn list() -> String {
    BENCHES.iter().fold("Benches:\n".to_owned(), |mut text, (name, about, _)| {
        let _ = writeln!(text, "  {name:<10}{about}");
        text
    })
}
