//! The name that was most likely meant by one that is not there.

/// Characters of a name; about a longer one nothing is guessed.
const CHARS_MAX: usize = 64;

/// The one of `names` that is told from `typed` by the fewest slips, when those are few: a letter
/// that is missing, too much or another, two that changed places, an end that was left out.
pub(crate) fn nearest<'a>(typed: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let most = (typed.chars().count() / 3).max(1);
    let near = names.filter_map(|name| {
        let slips = match name.strip_prefix(typed) {
            Some(_) if typed.len() >= 3 => 1,
            _ => slips(typed, name)?,
        };
        (slips <= most && name != typed).then_some((slips, name))
    });
    near.min_by_key(|(slips, _)| *slips).map(|(_, name)| name)
}

/// How many slips lead from one name to another.
fn slips(one: &str, other: &str) -> Option<usize> {
    let (one, other) = (one.to_lowercase(), other.to_lowercase());
    let chars = one.chars().count().max(other.chars().count());
    (chars <= CHARS_MAX).then(|| strsim::osa_distance(&one, &other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_found_and_a_stranger_is_not() {
        let names = ["count", "country", "disk.usage", "sum"];
        for (typed, meant) in [
            ("cuont", Some("count")),
            ("coutn", Some("count")),
            ("Count", Some("count")),
            ("countr", Some("count")),
            ("disk", Some("disk.usage")),
            ("disk.usgae", Some("disk.usage")),
            ("sun", Some("sum")),
            ("nosuch", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(nearest(typed, names.into_iter()), meant, "{typed}");
        }
        assert_eq!(nearest(&"a".repeat(65), ["a"].into_iter()), None);
    }
}
