//! Suggests the name that was most likely meant by an unknown one.

/// Names longer than this many characters get no suggestion.
const CHARS_MAX: usize = 64;

/// The name among `names` at the smallest edit distance from `typed`, if that is small: a missing,
/// extra or wrong letter, two swapped letters, or a missing ending.
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

/// The edit distance between two names.
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
