//! The protocol over real sockets and in-memory streams, served from a store in memory.

#[cfg(test)]
mod alone;
#[cfg(test)]
mod closing;
#[cfg(test)]
mod flow;
#[cfg(test)]
mod follow;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod hosting;
#[cfg(test)]
mod limits;
#[cfg(test)]
mod memory;
#[cfg(test)]
mod moving;
#[cfg(test)]
mod once;
#[cfg(test)]
mod ops;
#[cfg(test)]
mod raw;
#[cfg(test)]
mod readme;
#[cfg(test)]
mod relay;
#[cfg(test)]
mod rig;
#[cfg(test)]
mod slow;
#[cfg(test)]
mod tls;
#[cfg(test)]
mod tokens;
#[cfg(test)]
mod turns;
#[cfg(test)]
mod waiting;
