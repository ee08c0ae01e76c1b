//! What the lifecycle frames in the log say: which version of each processor is confirmed, which
//! is pending, and what was last taken from which file. A pure fold over
//! `xs.<kind>.<name>.<event>`; nothing is started or stopped here.
//!
//! Two slots per name decide what starts after a restart: the pending version if there is one,
//! else the confirmed one. So a broken replacement falls back, a stop stays and a run stays. Beside
//! them a `term` is kept in mind until a `fin.term` answers it, whichever Host says so.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use parking_lot::RwLock;
use serde::Deserialize;
use xs_engine::{Frame, FrameId};
pub use xs_protocol::lifecycle::Event;

use crate::isolate::FailureKind;
use crate::name::{Kind, ProcessorName};

/// A processor, whichever version of it runs.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: ProcessorName,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Splits a lifecycle topic; `None` when it is not one.
#[must_use]
pub fn parse_topic(topic: &str) -> Option<(Key, Event)> {
    let (kind, rest) = topic.strip_prefix("xs.")?.split_once('.')?;
    let kind = Kind::of(kind)?;
    Event::ALL.into_iter().find_map(|event| {
        let name = rest.strip_suffix(event.as_str())?.strip_suffix('.')?;
        // Of `a.fin.term` the shorter event leaves `a.fin`, which no processor is called.
        let name = ProcessorName::parse(name).ok()?;
        Some((Key { kind, name }, event))
    })
}

/// The part of a lifecycle frame's meta that decides something.
#[derive(Debug, Default, Clone, PartialEq, Eq, Deserialize)]
pub struct Notes {
    /// The id of the `create` frame it is about.
    #[serde(default)]
    pub create: Option<String>,
    /// The file it was taken from, relative to the directory of the modules.
    #[serde(default)]
    pub file: Option<String>,
    /// The hash over the file's import graph and config.
    #[serde(default)]
    pub hash: Option<String>,
    /// What kind of failure it tells of.
    #[serde(default)]
    pub code: Option<String>,
}

impl Notes {
    /// Reads the meta of a frame; what is not understood is as if it was absent.
    #[must_use]
    pub fn of(frame: &Frame) -> Self {
        serde_json::from_slice(frame.meta()).unwrap_or_default()
    }

    fn create_id(&self) -> Option<FrameId> {
        self.create.as_deref().and_then(|text| FrameId::parse(text).ok())
    }
}

/// What was last taken from a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// The file, relative to the directory of the modules.
    pub file: String,
    /// The hash over its import graph and config.
    pub hash: String,
}

/// What the log says about one processor.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Slots {
    confirmed: Option<FrameId>,
    pending: Option<FrameId>,
    newest: Option<FrameId>,
    told_to_end: Option<FrameId>,
    taken: Option<Taken>,
    denied: Option<FrameId>,
    waits: Option<FrameId>,
}

impl Slots {
    /// The version that ran last and was not stopped.
    #[must_use]
    pub const fn confirmed(&self) -> Option<FrameId> {
        self.confirmed
    }

    /// The version that was asked for and has neither run nor failed yet.
    #[must_use]
    pub const fn pending(&self) -> Option<FrameId> {
        self.pending
    }

    /// The version that was the newest when a `term` came which nobody has answered yet.
    #[must_use]
    pub const fn told_to_end(&self) -> Option<FrameId> {
        self.told_to_end
    }

    /// The newest version, when it was denied what it asks for: a Host that is started in another
    /// way may grant it.
    #[must_use]
    pub const fn denied(&self) -> Option<FrameId> {
        self.denied
    }

    /// The newest version, or the confirmed one, when its Host had no room for it: it is to run
    /// once there is some.
    #[must_use]
    pub const fn waits(&self) -> Option<FrameId> {
        self.waits
    }

    /// What was last taken from a file.
    #[must_use]
    pub const fn taken(&self) -> Option<&Taken> {
        self.taken.as_ref()
    }

    /// Whether anything is to run.
    #[must_use]
    pub const fn wants_to_run(&self) -> bool {
        self.confirmed.is_some() || self.pending.is_some()
    }

    fn apply(&mut self, event: Event, id: FrameId, notes: Notes) {
        let create = notes.create_id();
        match event {
            Event::Create => {
                self.pending = Some(id);
                self.newest = Some(id);
                (self.denied, self.waits) = (None, None);
                if let (Some(file), Some(hash)) = (notes.file, notes.hash) {
                    self.taken = Some(Taken { file, hash });
                }
            }
            Event::Term => {
                self.confirmed = None;
                self.pending = None;
                (self.denied, self.waits) = (None, None);
                self.told_to_end = self.newest;
                // The file is gone: should it come back unchanged, it is new. A stop that does not
                // name the file leaves it taken, and so stays a stop.
                if self.taken.as_ref().is_some_and(|taken| notes.file.as_ref() == Some(&taken.file))
                {
                    self.taken = None;
                }
            }
            // One that began to run before its Host had heard of the `term` does not stay.
            Event::Active if create > self.told_to_end => {
                self.confirmed = create;
                self.pending = self.pending.filter(|pending| create != Some(*pending));
                self.denied = self.denied.filter(|denied| create != Some(*denied));
                self.waits = self.waits.filter(|waits| create != Some(*waits));
                self.told_to_end = None;
            }
            Event::Invalid => {
                self.pending = self.pending.filter(|id| create != Some(*id));
                let is_for = |kind: FailureKind| notes.code.as_deref() == Some(kind.as_str());
                if create == self.newest {
                    self.denied =
                        if is_for(FailureKind::Permission) { create } else { self.denied };
                    self.waits = create.filter(|_| is_for(FailureKind::Full));
                } else if create == self.confirmed && is_for(FailureKind::Full) {
                    self.waits = create;
                }
            }
            Event::FinOk | Event::FinError | Event::FinTerm => {
                // The end of one version says nothing about a newer one asked for meanwhile.
                let ended = |slot: &FrameId| create.is_none_or(|create| create == *slot);
                self.confirmed = self.confirmed.filter(|slot| !ended(slot));
                self.pending = self.pending.filter(|slot| !ended(slot));
                if event == Event::FinTerm {
                    self.told_to_end = None;
                }
            }
            Event::Active
            | Event::Retrying
            | Event::Replaced
            | Event::Stopped
            | Event::Parked
            | Event::Log => {}
        }
    }
}

/// What the log says about every processor.
#[derive(Debug, Default)]
pub struct Lifecycle {
    slots: BTreeMap<Key, Slots>,
}

impl Lifecycle {
    /// Takes one frame in; frames that are not about a processor's life change nothing. Returns
    /// what the frame is about.
    pub fn apply(&mut self, frame: &Frame) -> Option<(Key, Event)> {
        let (key, event) = parse_topic(frame.topic())?;
        self.slots.entry(key.clone()).or_default().apply(event, frame.id(), Notes::of(frame));
        Some((key, event))
    }

    /// What the log says about one processor.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<&Slots> {
        self.slots.get(key)
    }

    /// Every processor the log knows, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Slots)> {
        self.slots.iter()
    }

    /// The processor of another kind that already holds this name.
    #[must_use]
    pub fn rival(&self, key: &Key) -> Option<Key> {
        let others = Kind::ALL.into_iter().filter(|kind| *kind != key.kind);
        others
            .map(|kind| Key { kind, name: key.name.clone() })
            .find(|other| self.get(other).is_some_and(Slots::wants_to_run))
    }
}

/// Which `create` frame belongs to whom: an origin names a version by it. Shared by all drivers.
#[derive(Debug, Clone, Default)]
pub struct Versions(Arc<RwLock<HashMap<FrameId, ProcessorName>>>);

impl Versions {
    /// Notes a `create` frame.
    pub fn insert(&self, create: FrameId, name: ProcessorName) {
        self.0.write().insert(create, name);
    }

    /// The name behind an origin's processor.
    #[must_use]
    pub fn name(&self, create: FrameId) -> Option<ProcessorName> {
        self.0.read().get(&create).cloned()
    }

    /// Whether a frame was made by any version of `name`.
    #[must_use]
    pub fn made_by(&self, frame: &Frame, name: &ProcessorName) -> bool {
        frame.origin().is_some_and(|origin| self.0.read().get(&origin.processor) == Some(name))
    }
}

#[cfg(test)]
mod tests;
