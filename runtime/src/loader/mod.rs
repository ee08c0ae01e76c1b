//! Module sources: which files belong to a module, read once and kept. The isolate never reads a
//! file to import it; a file outside the graph cannot be imported, statically or dynamically.

mod graph;
mod inside;
pub(crate) mod location;
mod resolve;
mod trace;

pub use graph::ModuleGraph;
pub(crate) use resolve::GraphLoader;
