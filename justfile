# Short names for what scripts/ does; `just` without a word lists them.
default:
    @just --list

# Everything the gate checks.
test *options:
    scripts/test {{options}}

# What the gate needs beyond Rust and a C compiler.
setup:
    scripts/setup

# The whole idea on this machine, in about a minute.
quickstart:
    scripts/quickstart

# Format, then lint.
lint:
    cargo fmt --all
    cargo clippy --release --locked --workspace --all-targets -- -D warnings
