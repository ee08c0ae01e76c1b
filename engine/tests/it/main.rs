//! The store from outside: what it promises whatever is done to it. One binary, so that it links
//! once. Randomized tests print the seed that repeats them.

mod damage;
mod follow;
mod golden;
mod kill;
mod lock;
mod model;
mod support;
mod tail_cut;
