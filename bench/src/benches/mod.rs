//! The benches, one file each, and their names.

mod append;
mod handler;
mod overview;
mod replay;
mod socket;

use std::fmt::Write as _;

use anyhow::bail;

use crate::Setting;

type Bench = fn(&mut Setting) -> anyhow::Result<()>;

/// Names, what is measured, how.
const BENCHES: &[(&str, &str, Bench)] = &[
    ("overview", "append, replay, socket and handler, a little of each", overview::run),
    ("append", "appends in process", append::run),
    ("replay", "reading back in process", replay::run),
    ("socket", "appends and reads over the Unix socket of a server", socket::run),
    ("handler", "frames through JavaScript handlers of a server", handler::run),
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
