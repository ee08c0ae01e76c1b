//! The real binary, run as a user runs it: processes, pipes, signals, exit codes.

mod addresses;
mod call;
mod client;
mod exits;
mod follower;
mod golden;
mod handlers;
mod hostile;
mod kill;
mod pipes;
mod serve;
mod support;
mod tidy;
