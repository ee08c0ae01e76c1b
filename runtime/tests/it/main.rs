//! Tests of the runtime through its public API, in one binary.

// Spelled out for clippy, which allows test helpers only below this attribute.
#[cfg(test)]
mod host;
#[cfg(test)]
mod isolate;
#[cfg(test)]
mod trial;
#[cfg(test)]
mod tsc;
