//! Compares ways to compress small blobs: several in one block, or each alone with a dictionary.
//! Works on bytes in memory, without a store; docs/adr/0020-small-blobs-in-blocks.md holds the
//! decision that was based on it.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use xs_bench::report::Row;
use xs_bench::workload::{Frames, Random, Shape};
use xs_engine::Body;
use xs_engine::format::pack::ENTRY_HEADER_LEN;
use zstd::bulk::{Compressor, Decompressor};

use crate::Setting;

const LEVEL: i32 = 1;
const BLOCK_LEN: usize = 32 * 1024;
/// Number of samples to train a dictionary.
const SAMPLES: usize = 20_000;
/// From docs/format.md: for each blob in a block its length, its index entry and its share of the
/// filter; for each block its index entry.
const LENGTH: usize = 2;
const INDEXED: usize = 13;
const BLOCK_INDEXED: usize = 8;
/// Minimum bytes of framing for a blob that is compressed alone.
const FRAME_HEADER: usize = 7;

/// What one way costs.
#[derive(Debug, Default)]
struct Cost {
    frames: usize,
    stored: usize,
    training: Duration,
    compress: Duration,
    random: Duration,
    in_order: Duration,
}

pub(crate) fn run(setting: &mut Setting) -> anyhow::Result<()> {
    let count = setting.frames(200_000, 5_000) as usize;
    let about =
        format!("{count} JSON bodies of 256 B in memory, zstd level {LEVEL} unless told, per body");
    setting.report.begin("blobs", &about)?;
    let mut frames = Frames::common(Shape::Body256);
    let bodies: Vec<Bytes> = (0..count)
        .filter_map(|_| match frames.frame().body {
            Body::Inline(bytes) => Some(bytes),
            _ => None,
        })
        .collect();
    let mut random = Random::default();
    let gets = setting.amount(20_000, 500);
    let asked: Vec<usize> = (0..gets).map(|_| (random.next() % count as u64) as usize).collect();
    for level in [LEVEL, 3] {
        let name = format!("blocks of 32 KiB, level {level}");
        row(setting, &name, &blocks(&bodies, &asked, level)?, &asked, count)?;
    }
    for kib in [16, 112] {
        let name = format!("a dictionary of {kib} KiB, each alone");
        row(setting, &name, &dictionary(&bodies, &asked, kib * 1024)?, &asked, count)?;
    }
    Ok(())
}

fn row(
    setting: &mut Setting,
    name: &str,
    cost: &Cost,
    asked: &[usize],
    count: usize,
) -> anyhow::Result<()> {
    let each = |time: Duration, count: usize| time.as_nanos() as f64 / count as f64 / 1e3;
    let row = Row::new(name)
        .figure("zstd frames", cost.frames as f64 / count as f64, "B")
        .figure("stored", cost.stored as f64 / count as f64, "B")
        .figure("get at random", each(cost.random, asked.len()), "us")
        .figure("each in order", each(cost.in_order, count), "us")
        .figure("compress", each(cost.compress, count), "us")
        .figure("training", cost.training.as_secs_f64(), "s");
    Ok(setting.report.row(&row)?)
}

fn blocks(bodies: &[Bytes], asked: &[usize], level: i32) -> anyhow::Result<Cost> {
    let each = BLOCK_LEN / bodies[0].len();
    let mut compressor = Compressor::new(level)?;
    let mut decompressor = Decompressor::new()?;
    let (begun, mut packed) = (Instant::now(), Vec::new());
    for block in bodies.chunks(each) {
        packed.push(compressor.compress(&block.concat())?);
    }
    let mut cost = Cost { compress: begun.elapsed(), ..Cost::default() };
    cost.frames = packed.iter().map(Vec::len).sum();
    let per_block = ENTRY_HEADER_LEN + BLOCK_INDEXED;
    cost.stored = cost.frames + packed.len() * per_block + bodies.len() * (LENGTH + INDEXED);
    let begun = Instant::now();
    for &at in asked {
        let block = decompressor.decompress(&packed[at / each], BLOCK_LEN)?;
        let len = bodies[at].len();
        let from = at % each * len;
        anyhow::ensure!(block[from..from + len] == bodies[at], "a blob is another one");
    }
    cost.random = begun.elapsed();
    let begun = Instant::now();
    for block in &packed {
        std::hint::black_box(decompressor.decompress(block, BLOCK_LEN)?);
    }
    cost.in_order = begun.elapsed();
    Ok(cost)
}

fn dictionary(bodies: &[Bytes], asked: &[usize], len: usize) -> anyhow::Result<Cost> {
    let step = bodies.len().div_ceil(SAMPLES);
    let samples: Vec<&Bytes> = bodies.iter().step_by(step).collect();
    let begun = Instant::now();
    let trained = zstd::dict::from_samples(&samples, len).context("train a dictionary")?;
    let mut cost = Cost { training: begun.elapsed(), ..Cost::default() };
    let mut compressor = Compressor::with_dictionary(LEVEL, &trained)?;
    let mut decompressor = Decompressor::with_dictionary(&trained)?;
    let begun = Instant::now();
    let packed = bodies.iter().map(|body| compressor.compress(body));
    let packed = packed.collect::<std::io::Result<Vec<_>>>()?;
    cost.compress = begun.elapsed();
    cost.frames = packed.iter().map(Vec::len).sum();
    cost.stored = cost.frames + trained.len() + bodies.len() * (FRAME_HEADER + INDEXED);
    let begun = Instant::now();
    for &at in asked {
        let body = decompressor.decompress(&packed[at], bodies[at].len())?;
        anyhow::ensure!(body == bodies[at], "a blob is another one");
    }
    cost.random = begun.elapsed();
    let begun = Instant::now();
    for (packed, body) in packed.iter().zip(bodies) {
        std::hint::black_box(decompressor.decompress(packed, body.len())?);
    }
    cost.in_order = begun.elapsed();
    Ok(cost)
}
