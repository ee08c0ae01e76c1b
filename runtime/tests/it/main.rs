//! Tests of the runtime against its public face, in one binary.

// Spelled out for clippy, which takes helpers for tests only below this attribute.
#[cfg(test)]
mod host;
#[cfg(test)]
mod isolate;
#[cfg(test)]
mod trial;
#[cfg(test)]
mod tsc;
