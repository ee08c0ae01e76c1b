//! What part of a sample is shown, and in which order: the state that keys change. Knows no
//! terminal.

use std::cmp::Reverse;

use super::keys::Key;
use super::sample::{Look, Module, Topic};
use crate::args::TopSort;

/// Maximum characters of a filter.
const FILTER_MAX: usize = 64;
/// Rows per page.
const PAGE: usize = 10;

/// The request that a key stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    Nothing,
    End,
    Interrupt,
}

/// The display settings.
#[derive(Debug, Clone)]
pub(super) struct View {
    pub(super) sort: TopSort,
    pub(super) filter: String,
    /// Whether keys are typed into the filter.
    pub(super) typing: bool,
    /// The first topic row shown.
    pub(super) first: usize,
}

impl View {
    pub(super) const fn new(sort: TopSort, filter: String) -> Self {
        Self { sort, filter, typing: false, first: 0 }
    }

    /// Handles a key.
    pub(super) fn press(&mut self, key: Key) -> Asked {
        if key == Key::Interrupt {
            return Asked::Interrupt;
        }
        if self.typing {
            self.type_filter(key);
            return Asked::Nothing;
        }
        match key {
            Key::Char('q') => return Asked::End,
            Key::Char('n') => self.sort = TopSort::Name,
            Key::Char('c') => self.sort = TopSort::Count,
            Key::Char('r') => self.sort = TopSort::Rate,
            Key::Char('b') => self.sort = TopSort::Bytes,
            Key::Char('s') => self.sort = TopSort::Seen,
            Key::Char('/') => self.typing = true,
            Key::Escape => self.filter.clear(),
            Key::Down => self.first = self.first.saturating_add(1),
            Key::Up => self.first = self.first.saturating_sub(1),
            Key::PageDown => self.first = self.first.saturating_add(PAGE),
            Key::PageUp => self.first = self.first.saturating_sub(PAGE),
            Key::Home => self.first = 0,
            _ => {}
        }
        Asked::Nothing
    }

    fn type_filter(&mut self, key: Key) {
        self.first = 0;
        match key {
            Key::Enter => self.typing = false,
            Key::Escape => {
                self.typing = false;
                self.filter.clear();
            }
            Key::Backspace => drop(self.filter.pop()),
            Key::Char(c) if self.filter.chars().count() < FILTER_MAX => self.filter.push(c),
            _ => {}
        }
    }

    /// The modules to show.
    pub(super) fn modules<'a>(&'a self, look: &'a Look) -> impl Iterator<Item = &'a Module> {
        look.modules.iter().filter(|module| module.name.contains(&self.filter))
    }

    /// The topics to show, in order.
    pub(super) fn topics<'a>(&self, look: &'a Look) -> Vec<&'a Topic> {
        let mut topics: Vec<_> =
            look.topics.iter().filter(|topic| topic.name.contains(&self.filter)).collect();
        topics.sort_by(|one, other| {
            let largest = match self.sort {
                TopSort::Name => std::cmp::Ordering::Equal,
                TopSort::Count => other.count.cmp(&one.count),
                TopSort::Rate => other.rate.total_cmp(&one.rate),
                TopSort::Bytes => other.bytes.cmp(&one.bytes),
                TopSort::Seen => Reverse(one.seen_ms).cmp(&Reverse(other.seen_ms)),
            };
            largest.then_with(|| one.name.cmp(&other.name))
        });
        topics
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look() -> Look {
        let topic = |name: &str, count, rate, bytes, seen_ms| Topic {
            name: name.to_owned(),
            count,
            rate,
            bytes,
            seen_ms,
        };
        let topics =
            vec![topic("a.b", 1, 0.5, 30, 7), topic("c", 3, 0.5, 10, 9), topic("a", 2, 9.0, 20, 8)];
        Look { topics, ..Look::default() }
    }

    fn names(view: &View) -> Vec<String> {
        view.topics(&look()).iter().map(|topic| topic.name.clone()).collect()
    }

    fn press(view: &mut View, keys: &[Key]) -> Asked {
        keys.iter().fold(Asked::Nothing, |_, key| view.press(*key))
    }

    #[test]
    fn keys_sort_filter_and_end() {
        let mut view = View::new(TopSort::Rate, String::new());
        for (key, order) in [
            ('r', ["a", "a.b", "c"]),
            ('n', ["a", "a.b", "c"]),
            ('c', ["c", "a", "a.b"]),
            ('b', ["a.b", "a", "c"]),
            ('s', ["c", "a", "a.b"]),
        ] {
            assert_eq!(press(&mut view, &[Key::Char(key)]), Asked::Nothing);
            assert_eq!(names(&view), order, "{key}");
        }
        let typed = [Key::Char('/'), Key::Char('q'), Key::Backspace, Key::Char('.')];
        assert_eq!(press(&mut view, &typed), Asked::Nothing, "letters of a filter do nothing else");
        assert_eq!(names(&view), ["a.b"]);
        assert_eq!(press(&mut view, &[Key::Enter, Key::Char('q')]), Asked::End);
        press(&mut view, &[Key::Escape]);
        assert_eq!(names(&view).len(), 3);
        view.typing = true;
        assert_eq!(view.press(Key::Interrupt), Asked::Interrupt);
    }
}
