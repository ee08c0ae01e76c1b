//! Opening a store whose process was killed in the middle of a segment: the time, and the anonymous
//! memory (without a file behind it) afterwards.

use xs_bench::report::{Row, mib};
use xs_bench::scratch;

use crate::Setting;
use crate::job::{self, Answer, Job};

/// How many times the store is opened and killed.
const REPEATS: usize = 5;

pub(crate) fn run(setting: &mut Setting) -> anyhow::Result<()> {
    let frames = setting.frames(10_000_000, 20_000);
    let about = format!(
        "{frames} frames, policy sync, killed with the active segment half full, {REPEATS} times"
    );
    setting.report.begin("open", &about)?;
    for (topics, target) in [(1_000, "100 ms, 64 MiB"), (1_000_000, "100 ms, 160 MiB")] {
        one(setting, (frames, false), topics.min(frames), target)?;
    }
    let frames = setting.frames(500_000, 5_000);
    one(setting, (frames, true), 100, "100 ms")
}

fn one(
    setting: &mut Setting,
    (frames, bodies): (u64, bool),
    topics: u64,
    target: &'static str,
) -> anyhow::Result<()> {
    let scratch = setting.scratch()?;
    let job = Job {
        dir: job::store(scratch.path()),
        sync: "sync".to_owned(),
        segment_bytes: scratch::options(xs_engine::SyncPolicy::Sync).segment_bytes,
        frames,
        bodies,
        topics,
        half_full: !setting.quick,
        reads: false,
    };
    let filled = job.start()?.kill()?;
    let open = Job { frames: 0, ..job };
    let answers = (0..REPEATS).map(|_| open.start()?.kill());
    let mut answers: Vec<Answer> = answers.collect::<anyhow::Result<_>>()?;
    anyhow::ensure!(answers.iter().all(|answer| answer.head > filled.head), "frames were lost");
    let first = answers[0].open;
    answers.sort_by(|a, b| a.open.total_cmp(&b.open));
    let median = &answers[REPEATS / 2];
    let about =
        if bodies { format!(", {frames} frames with bodies of 256 B") } else { String::new() };
    let row = Row::new(format!("{topics} topics{about}"))
        .figure("first", first * 1e3, "ms")
        .figure("median", median.open * 1e3, "ms")
        .figure("on the processor", median.open_busy * 1e3, "ms")
        .figure("RssAnon", mib(median.rss_open), "MiB")
        .figure("of which before", mib(median.rss_before), "MiB")
        .figure("segments", median.segments as f64, "")
        .target(target);
    Ok(setting.report.row(&row)?)
}
