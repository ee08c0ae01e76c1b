//! Selects the segments that are rewritten together.

use std::ops::Range;

use super::Which;
use super::survey::Survey;
use crate::index::Candidate;

/// Maximum segments merged at a time.
const INPUTS_MAX: usize = 64;
/// Maximum offsets that one segment may span: offset deltas are kept as 32 bits.
const SPAN_MAX: u64 = 1 << 31;

fn live(candidate: &Candidate) -> u64 {
    candidate.segment.published_len().saturating_sub(candidate.dead)
}

/// The segments to rewrite, grouped by the segment they become. `target` is the size of a full
/// segment; the survey leaves out what exceeds it, as dead bytes are only estimated here.
pub(super) fn plan(candidates: &[Candidate], which: &Which<'_>, target: u64) -> Vec<Range<usize>> {
    let percent = match which {
        Which::Dead(percent) => u64::from(*percent),
        Which::Holding(offsets) => {
            let holds = |of: &Candidate| {
                let range = of.segment.base()..of.segment.end();
                of.usable && offsets.iter().any(|offset| range.contains(offset))
            };
            let held = candidates.iter().zip(0..).filter(|(of, _)| holds(of));
            return held.map(|(_, at)| at..at + 1).collect();
        }
    };
    let is_rotten = |of: &Candidate| {
        of.dead > 0 && of.dead.saturating_mul(100) >= of.segment.published_len() * percent
    };
    let is_small = |of: &Candidate| live(of) <= target / 4;
    let mut jobs = Vec::new();
    let mut at = 0;
    while at < candidates.len() {
        let (mut end, mut sum, mut rotten) = (at, 0, false);
        while let Some(of) = candidates.get(end)
            && of.usable
            && end - at < INPUTS_MAX
            && (is_rotten(of) || is_small(of))
            && (end == at || sum + live(of) <= target)
            && of.segment.end().saturating_sub(candidates[at].segment.base()) <= SPAN_MAX
        {
            sum += live(of);
            rotten |= is_rotten(of);
            end += 1;
        }
        if rotten || end - at > 1 {
            jobs.push(at..end);
        }
        at = end.max(at + 1);
    }
    jobs
}

/// Whether the survey justifies the rewrite that an estimate suggested: several segments become
/// one, or enough of a single one is dead.
pub(super) fn is_worth_it(survey: &Survey, which: &Which<'_>) -> bool {
    let (before, after) = (survey.input_len(), survey.file_len());
    match which {
        Which::Dead(percent) if survey.inputs.len() == 1 => {
            before.saturating_sub(after).saturating_mul(100) >= before * u64::from(*percent)
        }
        Which::Dead(_) | Which::Holding(_) => true,
    }
}
