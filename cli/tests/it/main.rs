//! The real binary, run as a user runs it: processes, pipes, signals, exit codes.

// Spelled out for clippy, which takes helpers for tests only below this attribute.
#[cfg(test)]
mod addresses;
#[cfg(test)]
mod apart;
#[cfg(test)]
mod between;
#[cfg(test)]
mod call;
#[cfg(test)]
mod causes;
#[cfg(test)]
mod client;
#[cfg(test)]
mod config;
#[cfg(test)]
mod crash;
#[cfg(test)]
mod crowd;
#[cfg(test)]
mod cursors;
#[cfg(test)]
mod cut;
#[cfg(test)]
mod ends;
#[cfg(test)]
mod errors;
#[cfg(test)]
mod eval;
#[cfg(test)]
mod exits;
#[cfg(test)]
mod filter;
#[cfg(test)]
mod follower;
#[cfg(test)]
mod golden;
#[cfg(test)]
mod handlers;
#[cfg(test)]
mod help;
#[cfg(test)]
mod host;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod kill;
#[cfg(test)]
mod lines;
#[cfg(test)]
mod lost;
#[cfg(test)]
mod maintain;
#[cfg(test)]
mod manager;
#[cfg(test)]
mod many;
#[cfg(test)]
mod metrics;
#[cfg(test)]
mod misplaced;
#[cfg(test)]
mod modules;
#[cfg(test)]
mod network;
#[cfg(test)]
mod newcomer;
#[cfg(test)]
mod outcomes;
#[cfg(test)]
mod pipes;
#[cfg(test)]
mod readme;
#[cfg(test)]
mod replay;
#[cfg(test)]
mod resumes;
#[cfg(test)]
mod room;
#[cfg(test)]
mod secrets;
#[cfg(test)]
mod serve;
#[cfg(test)]
mod stops;
#[cfg(test)]
mod support;
#[cfg(test)]
mod templates;
#[cfg(test)]
mod terminal;
#[cfg(test)]
mod tidy;
#[cfg(test)]
mod transfer;
#[cfg(test)]
mod trials;
#[cfg(test)]
mod tutorial;
#[cfg(test)]
mod waits;
#[cfg(test)]
mod wire;
#[cfg(test)]
mod worst;
