//! The segments that hold a topic, as runs of offsets: independent of how segments are numbered,
//! and still right when neighbours were merged.

/// Each run goes from the base of its first segment to the base of its last.
#[derive(Debug, Clone, Default)]
pub(crate) struct Runs(Vec<(u64, u64)>);

impl Runs {
    /// The runs when it is unknown which segments hold a topic: any may.
    pub(crate) fn anywhere() -> Self {
        Self(vec![(0, u64::MAX)])
    }

    /// Adds a run after all others.
    pub(super) fn push(&mut self, first: u64, last: u64) {
        self.0.push((first, last));
    }

    /// The part from the segment with this base on.
    pub(crate) fn starting_at(mut self, base: u64) -> Self {
        self.0.retain(|&(_, last)| last >= base);
        if let Some((first, _)) = self.0.first_mut() {
            *first = base.max(*first);
        }
        self
    }

    /// The smallest offset at or after `offset` whose segment holds the topic.
    pub(crate) fn at_or_after(&self, offset: u64) -> Option<u64> {
        let run = self.0.partition_point(|&(_, last)| last < offset);
        self.0.get(run).map(|&(first, _)| first.max(offset))
    }

    /// The greatest offset at or before `offset` known to lie in a segment that holds the topic.
    pub(crate) fn at_or_before(&self, offset: u64) -> Option<u64> {
        let run = self.0.partition_point(|&(first, _)| first <= offset).checked_sub(1)?;
        self.0.get(run).map(|&(_, last)| last.min(offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_find_neighbours() {
        let mut runs = Runs::default();
        [(10, 30), (70, 70), (90, 100)].into_iter().for_each(|(a, b)| runs.push(a, b));
        let after = |n| runs.at_or_after(n);
        let before = |n| runs.at_or_before(n);
        assert_eq!(
            [after(0), after(25), after(40), after(101)],
            [10, 25, 70].map(Some).into_iter().chain([None]).collect::<Vec<_>>()[..]
        );
        assert_eq!(
            [before(9), before(25), before(89), before(999)],
            [None, Some(25), Some(70), Some(100)]
        );
        let left = |base| runs.clone().starting_at(base).0;
        assert_eq!(left(0), [(10, 30), (70, 70), (90, 100)]);
        assert_eq!(left(20), [(20, 30), (70, 70), (90, 100)]);
        assert_eq!((left(31), left(101)), (vec![(70, 70), (90, 100)], vec![]));
    }
}
