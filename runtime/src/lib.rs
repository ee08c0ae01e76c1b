//! JavaScript processors of xs: generators, handlers and commands in deno_core isolates, and the
//! Host that runs them. The only crate that sees deno_core; it owns no data.

mod cron;
pub mod env_file;
mod ext;
pub mod host;
pub mod isolate;
pub mod loader;
pub mod name;
pub mod permissions;
mod remote;
pub mod script;
mod share;
pub mod supervise;
mod time;
pub mod trial;
mod typescript;
#[cfg(feature = "quickjs")]
mod wamr_stubs;

pub use isolate::prepare_by_exec;
pub use name::{Kind, NameError, ProcessorName, Request};
