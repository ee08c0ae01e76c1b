//! Tests of the runtime against its public face, in one binary.

mod host;
mod isolate;
