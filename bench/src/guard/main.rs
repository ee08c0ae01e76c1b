//! Counts the instructions of fixed work under valgrind and compares them with
//! `bench/instructions.toml`: a guard against slower code that does not depend on the clock. A
//! count that fell too far fails as well: until the file contains the gain, losing it again would
//! go unnoticed. The file changes only with `--update`.

#![forbid(unsafe_code)]

mod cases;
mod service;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, bail};
use clap::Parser;
use serde::{Deserialize, Serialize};
use xs_bench::report::{Report, human};

use crate::cases::{CASES, Case, FRAMES, Work};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/instructions.toml");
const HEAD: &str = "# Instructions for each frame of the work of xs-guard, which `scripts/instructions` \
                    compares\n# and `scripts/instructions --update` writes.\n\n";
/// Maximum difference of a count with the same compiler, valgrind and machine, and with others.
/// Repeated runs differ by at most 0.2 %, but the same source built in another directory is split
/// into other codegen units: differences of 9 % were observed.
const TOLERANCE_PERCENT: f64 = 10.0;
const TOLERANCE_ELSEWHERE_PERCENT: f64 = 20.0;
/// Frames that a handler gets before the counted ones.
const START: usize = 1_000;

/// Counts instructions and compares them.
#[derive(Debug, Parser)]
#[command(name = "xs-guard")]
struct Args {
    /// Write what is counted now instead of comparing it.
    #[arg(long)]
    update: bool,
    /// Do the work of one case: what valgrind is given.
    #[arg(long, hide = true)]
    case: Option<String>,
}

/// The counts, and the tools they were made with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Counts {
    rustc: String,
    valgrind: String,
    machine: String,
    frame: BTreeMap<String, f64>,
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    if let Some(name) = args.case {
        let case = CASES.iter().find(|case| case.name == name).context("no such case")?;
        let Work::Function(_, run) = case.work else { bail!("{name} is another program") };
        run()?;
        return Ok(ExitCode::SUCCESS);
    }
    let now = count()?;
    let mut report = Report::new(None)?;
    if args.update {
        fs::write(FILE, format!("{HEAD}{}", toml::to_string(&now)?))?;
        report.line(&format!("wrote {FILE}"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let text = fs::read_to_string(FILE).with_context(|| format!("read {FILE}"))?;
    let before: Counts = toml::from_str(&text).with_context(|| format!("read {FILE}"))?;
    let (lines, differ) = compare(&before, &now);
    for line in lines {
        report.line(&line)?;
    }
    if differ.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    report.line(&format!(
        "beyond the tolerance: {}; if that is meant, or a gain: scripts/instructions --update",
        differ.join(", ")
    ))?;
    Ok(ExitCode::FAILURE)
}

/// Returns a line for each case, and the cases that differ too much: those that grew, fell or are
/// new.
fn compare(before: &Counts, now: &Counts) -> (Vec<String>, Vec<String>) {
    let tools =
        |counts: &Counts| (counts.rustc.clone(), counts.valgrind.clone(), counts.machine.clone());
    let same = tools(before) == tools(now);
    let tolerance = if same { TOLERANCE_PERCENT } else { TOLERANCE_ELSEWHERE_PERCENT };
    let (mut lines, mut differ) = (Vec::new(), Vec::new());
    for Case { name, about, .. } in CASES {
        let count = now.frame.get(*name).copied().unwrap_or_default();
        let grown = before.frame.get(*name).map(|before| (count / before - 1.0) * 100.0);
        let far = grown.is_none_or(|grown| grown.abs() > tolerance);
        let grown = grown.map_or_else(|| "new".to_owned(), |grown| format!("{grown:+.2} %"));
        let count = human(count, "");
        lines.push(format!("counted: {name}: {count} instructions a frame, {grown} ({about})"));
        if far {
            differ.push(format!("{name} {grown}"));
        }
    }
    if !same {
        lines.push(format!(
            "counted with {}, {}, {}; the file was with {}, {}, {}: up to {tolerance} % may differ",
            now.rustc, now.valgrind, now.machine, before.rustc, before.valgrind, before.machine
        ));
    }
    (lines, differ)
}

fn count() -> anyhow::Result<Counts> {
    let frame = CASES.iter().map(|case| Ok((case.name.to_owned(), instructions(case)?)));
    Ok(Counts {
        rustc: says("rustc")?,
        valgrind: says("valgrind")?,
        machine: machine(),
        frame: frame.collect::<anyhow::Result<_>>()?,
    })
}

/// Returns what decides which variants of memcpy and similar functions are used.
fn machine() -> String {
    #[cfg(target_arch = "x86_64")]
    let wide = std::arch::is_x86_feature_detected!("avx2");
    #[cfg(not(target_arch = "x86_64"))]
    let wide = false;
    format!("{}{}", std::env::consts::ARCH, if wide { " with AVX2" } else { "" })
}

fn says(program: &str) -> anyhow::Result<String> {
    let run = Command::new(program).arg("--version").output();
    let run = run.with_context(|| format!("run {program}"))?;
    Ok(String::from_utf8_lossy(&run.stdout).trim().to_owned())
}

/// Returns the instructions per frame of a case.
fn instructions(case: &Case) -> anyhow::Result<f64> {
    let this: PathBuf = std::env::current_exe().context("find this binary")?;
    let total = match case.work {
        Work::Function(counted, _) => {
            let only = format!("--toggle-collect=xs_guard::cases::{counted}");
            collected(
                Command::new("valgrind")
                    .args(callgrind(Some(only)))
                    .arg(this)
                    .args(["--case", case.name]),
            )?
        }
        Work::Handler(handler) => {
            let program = this.with_file_name("examples").join("crossing");
            if !program.is_file() {
                bail!("{} is missing: scripts/instructions builds it", program.display());
            }
            let frames = |count: usize| {
                let mut run = Command::new("valgrind");
                run.args(callgrind(None)).arg(&program).args([handler, &count.to_string()]);
                // Without this, the program would start itself again outside of valgrind.
                collected(run.env("V82JSC_NO_BC_CACHE", "1"))
            };
            let (start, all) = (frames(START)?, frames(START + FRAMES)?);
            all.checked_sub(start).context("more frames took fewer instructions")?
        }
    };
    Ok(total as f64 / FRAMES as f64)
}

fn callgrind(only: Option<String>) -> impl Iterator<Item = String> {
    let always = ["--tool=callgrind", "--callgrind-out-file=/dev/null"];
    always.into_iter().map(str::to_owned).chain(only)
}

/// Runs valgrind and returns the number of instructions it counted.
fn collected(valgrind: &mut Command) -> anyhow::Result<u64> {
    let run = valgrind.stdin(Stdio::null()).output().context("run valgrind")?;
    let said = String::from_utf8_lossy(&run.stderr);
    let total = said.lines().find_map(|line| line.split_once("Collected :"));
    let total = total.and_then(|(_, count)| count.trim().parse().ok());
    match total {
        Some(total) if run.status.success() && total > 0 => Ok(total),
        _ => bail!("{valgrind:?} counted nothing:\n{said}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grew_or_fell_too_far_is_told() {
        let counts = |factors: [f64; 2]| {
            let frame = CASES.iter().enumerate().map(|(at, case)| {
                (case.name.to_owned(), 1000.0 * factors.get(at).copied().unwrap_or(1.0))
            });
            Counts {
                rustc: "1".to_owned(),
                valgrind: "1".to_owned(),
                machine: "x".to_owned(),
                frame: frame.collect(),
            }
        };
        let before = counts([1.0, 1.0]);
        assert!(compare(&before, &counts([1.09, 0.91])).1.is_empty());
        let (lines, differ) = compare(&before, &counts([1.11, 0.89]));
        let [grew, fell] =
            [(0, "+11.00 %"), (1, "-11.00 %")].map(|(at, by)| format!("{} {by}", CASES[at].name));
        assert_eq!(differ, [grew, fell]);
        assert!(lines[0].contains("+11.00 %"), "{}", lines[0]);
        let elsewhere = |factors| Counts { rustc: "2".to_owned(), ..counts(factors) };
        assert!(compare(&before, &elsewhere([1.19, 0.81])).1.is_empty());
        assert_eq!(compare(&before, &elsewhere([1.21, 0.79])).1.len(), 2);
    }

    #[test]
    fn the_file_has_every_case() {
        let counts: Counts = toml::from_str(&fs::read_to_string(FILE).unwrap()).unwrap();
        let names: Vec<_> = counts.frame.keys().map(String::as_str).collect();
        let mut cases: Vec<_> = CASES.iter().map(|case| case.name).collect();
        cases.sort_unstable();
        assert_eq!(names, cases);
    }
}
