//! Admission: a Host runs a limited number of processors at a time, and the others wait until one
//! ends. Running an admitted processor is left to its keeper.

use xs_engine::{Bound, Frame, FrameId};

use super::keeper::Order;
use super::lifecycle::{Event, Key, Slots};
use super::{Host, HostError, driver, version};
use crate::isolate::{FailureKind, ModuleError};
use crate::name::{Kind, thread_name};

impl Host {
    /// Updates which processors are admitted and which wait.
    pub(super) fn count(&mut self, key: &Key, event: Event) {
        let Some(slots) = self.lifecycle.get(key) else { return };
        let is_end = match event {
            Event::Invalid | Event::FinOk | Event::FinError | Event::FinTerm => true,
            // A `term` is answered with a `fin.term` once the processor has ended.
            _ => false,
        };
        let runs_on = slots.wants_to_run() && !slots.is_down();
        if is_end && !runs_on && slots.told_to_end().is_none() {
            self.admitted.remove(key);
            if key.kind == Kind::Command {
                self.shared.cancels.forget(&key.name);
            }
        }
        let waits = slots.waits().is_some() && !self.admitted.contains(key);
        if waits && self.shared.part.has(&key.name) {
            self.waiting.insert(key.clone());
        } else {
            self.waiting.remove(key);
        }
    }

    /// Starts waiting processors while there is room.
    pub(super) async fn fill(&mut self) -> Result<(), HostError> {
        while self.admitted.len() < self.processors_max && !self.keepers.is_behind() {
            let Some(key) = self.waiting.pop_first() else { break };
            let id = self.lifecycle.get(&key).and_then(Slots::waits);
            match self.bring_up(key.clone(), id).await {
                Ok(()) => {}
                Err(HostError::Store(error)) if !driver::is_lost(&error) => {
                    tracing::warn!(%error, "a version cannot be read now; it keeps waiting");
                    self.waiting.insert(key);
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Orders a version to run, or refuses it if there is an obstacle.
    pub(super) fn create(&mut self, key: Key, frame: Frame) {
        let order = match self.obstacle(&key, &frame) {
            Some(error) => Order::Refuse(frame, error),
            None => {
                // A version with a known error does not run.
                if version::told_error(&frame).is_none() {
                    self.admit(&key);
                }
                Order::Create(frame)
            }
        };
        self.order(key, order);
    }

    /// Runs the version to try, or else the confirmed one, unless there is an obstacle.
    async fn bring_up(&mut self, key: Key, tried: Option<FrameId>) -> Result<(), HostError> {
        let slots = self.lifecycle.get(&key);
        let newest = slots.and_then(Slots::newest);
        let confirmed = slots.and_then(Slots::confirmed);
        let mut pending = self.create_frame(tried).await?;
        let confirmed = self.create_frame(confirmed.filter(|id| Some(*id) != tried)).await?;
        let wrong = pending.take_if(|frame| version::told_error(frame).is_some());
        let obstacle = match (&pending, &confirmed) {
            (Some(frame), _) => self.obstacle(&key, frame),
            (None, Some(_)) => self.no_room(&key),
            (None, None) => {
                wrong.into_iter().for_each(|frame| self.order(key.clone(), Order::Create(frame)));
                return Ok(());
            }
        };
        let order = match (obstacle, pending, confirmed) {
            (Some(error), Some(frame), _) | (Some(error), None, Some(frame)) => {
                wrong.into_iter().for_each(|frame| self.order(key.clone(), Order::Create(frame)));
                Order::Refuse(frame, error)
            }
            (_, pending, confirmed) => {
                self.admit(&key);
                // Its error is reported, and then the confirmed version is tried.
                Order::Resume { pending: pending.or(wrong), confirmed, newest }
            }
        };
        self.order(key, order);
        Ok(())
    }

    /// Admits a processor and removes it from the waiting ones, or it would be started twice.
    fn admit(&mut self, key: &Key) {
        self.waiting.remove(key);
        self.admitted.insert(key.clone());
    }

    /// Why a processor may not be started, although its source may be valid.
    fn obstacle(&self, key: &Key, frame: &Frame) -> Option<ModuleError> {
        if version::told_error(frame).is_some() {
            return None;
        }
        if let Some(rival) = self.lifecycle.rival(key) {
            let text = format!("the name {} is taken by a {}; rename one", key.name, rival.kind);
            return Some(ModuleError::new(FailureKind::Definition, text));
        }
        self.no_room(key)
    }

    /// Why a processor has no room, unless it is admitted already.
    fn no_room(&self, key: &Key) -> Option<ModuleError> {
        let is_full = self.admitted.len() >= self.processors_max && !self.admitted.contains(key);
        is_full.then(|| {
            let max = self.processors_max;
            let text =
                format!("a Host runs at most {max} processors; this one starts when another ends");
            ModuleError::new(FailureKind::Full, text)
        })
    }

    /// Starts what the log says should run, and answers each `term` that is still open.
    pub(super) async fn resume(&mut self) -> Result<(), HostError> {
        let own = self.lifecycle.iter().filter(|(key, _)| self.shared.part.has(&key.name));
        let mut own: Vec<_> = own.map(|(key, slots)| (key.clone(), slots.clone())).collect();
        // Processors that ran come before those that waited.
        own.sort_by_key(|(_, slots)| (!slots.wants_to_run(), slots.waits().is_some()));
        for (key, slots) in own {
            if let Some(told) = slots.told_to_end() {
                self.order(key.clone(), Order::Term(told));
            }
            let tried = slots.pending().or_else(|| slots.denied()).or_else(|| slots.waits());
            self.bring_up(key, tried).await?;
        }
        Ok(())
    }

    /// The `create` frame of a version, unless that version crashed the previous Host.
    async fn create_frame(&self, id: Option<FrameId>) -> Result<Option<Frame>, HostError> {
        match id.filter(|id| !self.culprits.contains(&thread_name(*id))) {
            Some(id) => Ok(self.shared.client.get(Bound::Id(id)).await?),
            None => Ok(None),
        }
    }
}
