//! The store from outside: what it promises whatever is done to it. One binary, so that it links
//! once. Randomized tests print the seed that repeats them.

mod follow;
mod kill;
mod lock;
mod model;
mod support;
