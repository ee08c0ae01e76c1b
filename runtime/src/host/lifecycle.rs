//! The state that the lifecycle frames in the log describe: which version of each processor is
//! confirmed, which is pending, and what was last taken from which file. A pure fold over
//! `xs.<kind>.<name>.<event>`; nothing is started or stopped here.
//!
//! Two slots per name decide what starts after a restart: the pending version if there is one, else
//! the confirmed one. So a broken replacement falls back, a stopped processor stays stopped, and a
//! running one keeps running. In addition, a `term` is remembered until a `fin.term` answers it,
//! whichever Host appends that.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use parking_lot::RwLock;
use serde::Deserialize;
use xs_engine::{Frame, FrameId};
pub use xs_protocol::lifecycle::Event;

use crate::isolate::FailureKind;
use crate::name::{Kind, ProcessorName};

/// A processor, independent of its version.
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

/// Parses a lifecycle topic; `None` when it is not one.
#[must_use]
pub fn parse_topic(topic: &str) -> Option<(Key, Event)> {
    let (kind, rest) = topic.strip_prefix("xs.")?.split_once('.')?;
    let kind = Kind::of(kind)?;
    Event::ALL.into_iter().find_map(|event| {
        let name = rest.strip_suffix(event.as_str())?.strip_suffix('.')?;
        // For `a.fin.term` the shorter event `term` leaves `a.fin`, which is not a valid name.
        let name = ProcessorName::parse(name).ok()?;
        Some((Key { kind, name }, event))
    })
}

/// The fields of a lifecycle frame's meta that affect the state.
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
    /// The kind of failure it reports.
    #[serde(default)]
    pub code: Option<String>,
    /// In `invalid`: nothing runs now, because no version up to this `create` frame could start.
    #[serde(default)]
    pub down: Option<String>,
}

impl Notes {
    /// Reads the meta of a frame; what does not parse counts as absent.
    #[must_use]
    pub fn of(frame: &Frame) -> Self {
        serde_json::from_slice(frame.meta()).unwrap_or_default()
    }

    fn create_id(&self) -> Option<FrameId> {
        self.create.as_deref().and_then(|text| FrameId::parse(text).ok())
    }

    fn down_id(&self) -> Option<FrameId> {
        self.down.as_deref().and_then(|text| FrameId::parse(text).ok())
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

/// The state of one processor according to the log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Slots {
    confirmed: Option<FrameId>,
    pending: Option<FrameId>,
    newest: Option<FrameId>,
    told_to_end: Option<FrameId>,
    taken: Option<Taken>,
    denied: Option<FrameId>,
    waits: Option<FrameId>,
    is_down: bool,
}

impl Slots {
    /// The last version that ran and was not stopped.
    #[must_use]
    pub const fn confirmed(&self) -> Option<FrameId> {
        self.confirmed
    }

    /// The requested version that has neither run nor failed yet.
    #[must_use]
    pub const fn pending(&self) -> Option<FrameId> {
        self.pending
    }

    /// The version that was newest when a `term` arrived that is still unanswered.
    #[must_use]
    pub const fn told_to_end(&self) -> Option<FrameId> {
        self.told_to_end
    }

    /// The newest version, if it was denied a permission: a Host started with other options may
    /// grant it.
    #[must_use]
    pub const fn denied(&self) -> Option<FrameId> {
        self.denied
    }

    /// The newest version, or the confirmed one, if its Host had no room for it: it runs once there
    /// is room.
    #[must_use]
    pub const fn waits(&self) -> Option<FrameId> {
        self.waits
    }

    /// Whether nothing runs although a version is confirmed: neither that version nor a newer one
    /// could start. The next Host tries it again.
    #[must_use]
    pub const fn is_down(&self) -> bool {
        self.is_down && self.confirmed.is_some() && self.pending.is_none()
    }

    /// The newest version, whatever became of it.
    #[must_use]
    pub const fn newest(&self) -> Option<FrameId> {
        self.newest
    }

    /// What was last taken from a file.
    #[must_use]
    pub const fn taken(&self) -> Option<&Taken> {
        self.taken.as_ref()
    }

    /// Whether any version should run.
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
                // The file was deleted: if it comes back unchanged, it counts as new. A stop that
                // does not name the file leaves it taken, and so the processor stays stopped.
                if self.taken.as_ref().is_some_and(|taken| notes.file.as_ref() == Some(&taken.file))
                {
                    self.taken = None;
                }
            }
            // A version activated before its Host saw the `term` is not kept.
            Event::Active if create > self.told_to_end => {
                self.confirmed = create;
                self.pending = self.pending.filter(|pending| create != Some(*pending));
                self.denied = self.denied.filter(|denied| create != Some(*denied));
                self.waits = self.waits.filter(|waits| create != Some(*waits));
                self.told_to_end = None;
                self.is_down = false;
            }
            Event::Invalid => {
                let down = notes.down_id();
                self.is_down = down.is_some();
                // A reader of the newest frame of each event does not see why an older one failed.
                self.pending = self.pending.filter(|id| create != Some(*id) && Some(*id) > down);
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
                // The end of one version does not affect a newer one requested meanwhile.
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

/// The state of every processor according to the log.
#[derive(Debug, Default)]
pub struct Lifecycle {
    slots: BTreeMap<Key, Slots>,
}

impl Lifecycle {
    /// Applies one frame; frames that are not about a processor's lifecycle change nothing. Returns
    /// the processor and the event.
    pub fn apply(&mut self, frame: &Frame) -> Option<(Key, Event)> {
        let (key, event) = parse_topic(frame.topic())?;
        self.slots.entry(key.clone()).or_default().apply(event, frame.id(), Notes::of(frame));
        Some((key, event))
    }

    /// The state of one processor.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<&Slots> {
        self.slots.get(key)
    }

    /// Every processor the log knows, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Slots)> {
        self.slots.iter()
    }

    /// The processor of another kind that already uses this name.
    #[must_use]
    pub fn rival(&self, key: &Key) -> Option<Key> {
        let others = Kind::ALL.into_iter().filter(|kind| *kind != key.kind);
        others
            .map(|kind| Key { kind, name: key.name.clone() })
            .find(|other| self.get(other).is_some_and(Slots::wants_to_run))
    }
}

/// Maps each `create` frame to its processor's name: an origin names a version by that frame.
/// Shared by all drivers.
#[derive(Debug, Clone, Default)]
pub struct Versions(Arc<RwLock<HashMap<FrameId, ProcessorName>>>);

impl Versions {
    /// Records a `create` frame.
    pub fn insert(&self, create: FrameId, name: ProcessorName) {
        self.0.write().insert(create, name);
    }

    /// The name of the processor in an origin.
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
