//! How files are made ready and written: filled with zeros or only allocated, through a map or with
//! `pwrite`. Sustained rates and the latencies that few appends see.

use std::time::Instant;

use xs_engine::{MediaChoice, StoreOptions, SyncPolicy};

use crate::benches::append::fill;
use crate::report::Row;
use crate::workload::{Frames, Shape};
use crate::{Setting, scratch};

const BATCH: usize = 64;
/// Frames of a synced run, as a share of those of one that is not.
const SYNC_SHARE: u64 = 10;

pub(crate) fn run(setting: &mut Setting) -> anyhow::Result<()> {
    let frames = setting.frames(10_000_000, 20_000);
    let about = format!("{frames} frames (sync: a tenth) in batches of {BATCH}, closing included");
    setting.report.begin("prepare", &about)?;
    for policy in [SyncPolicy::None, SyncPolicy::Sync] {
        for shape in Shape::ALL {
            for media in [MediaChoice::Mapped, MediaChoice::Positioned] {
                for zero in [false, true] {
                    let options =
                        StoreOptions { media, zero_ahead: Some(zero), ..scratch::options(policy) };
                    one(setting, shape, options, frames)?;
                }
            }
        }
    }
    Ok(())
}

fn one(
    setting: &mut Setting,
    shape: Shape,
    options: StoreOptions,
    frames: u64,
) -> anyhow::Result<()> {
    let scratch = setting.scratch()?;
    let way = match options.media {
        MediaChoice::Positioned => "positioned",
        _ => "mapped",
    };
    let zeros = if options.zero_ahead == Some(true) { "zeroed" } else { "allocated" };
    let name = format!("{}, {}, {way}, {zeros}", options.sync, shape.name());
    let frames = match options.sync {
        SyncPolicy::None => frames,
        _ => (frames / SYNC_SHARE).max(BATCH as u64),
    };
    let store = scratch::open(scratch.path(), options)?;
    let begun = Instant::now();
    let times = fill(&store, &mut Frames::common(shape), BATCH, frames)?;
    store.close()?;
    let row = Row::new(name).rate("frames", frames, begun.elapsed()).latency(&times).figure(
        "worst",
        times.quantile(1.0).as_nanos() as f64 / 1e3,
        "us",
    );
    Ok(setting.report.row(&row)?)
}
