//! The store from outside: it keeps its promises whatever is done to it. One binary, so that it is
//! linked once. Randomized tests print the seed that repeats them.

#[cfg(test)]
mod append;
#[cfg(test)]
mod damage;
#[cfg(test)]
mod follow;
#[cfg(test)]
mod full_disk;
#[cfg(test)]
mod golden;
#[cfg(test)]
mod import;
#[cfg(test)]
mod keys;
#[cfg(test)]
mod kill;
#[cfg(test)]
mod layers;
#[cfg(test)]
mod limits;
#[cfg(test)]
mod lock;
#[cfg(test)]
mod maintain;
#[cfg(test)]
mod memory;
#[cfg(test)]
mod model;
#[cfg(test)]
mod power;
#[cfg(test)]
mod reader;
#[cfg(test)]
mod remove;
#[cfg(test)]
mod segments;
#[cfg(test)]
mod support;
#[cfg(test)]
mod syscalls;
#[cfg(test)]
mod tail_cut;
