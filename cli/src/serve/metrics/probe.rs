//! Whether a server is alive, and whether it is ready: recovered, not stopping, and able to take
//! appends. A store that cannot be written still serves reads, and reports why it is not ready.

use std::sync::Arc;

use parking_lot::RwLock;
use xs_engine::Health;

use super::Served;

/// The server's phase.
#[derive(Default)]
enum State {
    #[default]
    Recovering,
    Serving(Arc<Served>),
    Stopping,
}

/// The state behind the health and readiness pages.
#[derive(Default)]
pub(in crate::serve) struct Probe(RwLock<State>);

/// One condition.
pub(super) struct Check {
    pub(super) name: &'static str,
    pub(super) failure: Option<String>,
}

impl Probe {
    /// Records that the store is open and the server listens.
    pub(in crate::serve) fn serving(&self, served: Served) {
        *self.0.write() = State::Serving(Arc::new(served));
    }

    /// Records that the server is stopping.
    pub(in crate::serve) fn stopping(&self) {
        *self.0.write() = State::Stopping;
    }

    /// What is served, during the serving phase.
    pub(super) fn served(&self) -> Option<Arc<Served>> {
        match &*self.0.read() {
            State::Serving(served) => Some(Arc::clone(served)),
            State::Recovering | State::Stopping => None,
        }
    }

    /// The conditions for the process to be healthy.
    pub(super) fn health(&self) -> Vec<Check> {
        let served = self.served();
        let failure = match served.map(|served| served.store.health()) {
            Some(Health::Poisoned(why)) => {
                Some(format!("a write failed; restart the server: {why}"))
            }
            _ => None,
        };
        vec![Check { name: "alive", failure }]
    }

    /// The conditions for accepting appends.
    pub(super) fn readiness(&self) -> Vec<Check> {
        let (recovered, stopping) = match &*self.0.read() {
            State::Recovering => (false, false),
            State::Serving(_) => (true, false),
            State::Stopping => (true, true),
        };
        let failure = |failed: bool, why: &str| failed.then(|| why.to_owned());
        let mut checks = vec![
            Check { name: "recovered", failure: failure(!recovered, "the store is opening") },
            Check { name: "serving", failure: failure(stopping, "the server is stopping") },
        ];
        if let Some(served) = self.served() {
            let writable = match served.store.health() {
                Health::Writable => None,
                Health::ReadOnly(reason) => Some(format!("read-only: {reason}")),
                Health::Poisoned(why) => Some(format!("a write failed: {why}")),
            };
            checks.push(Check { name: "writable", failure: writable });
            served.fullness.refresh();
            let failure = served.fullness.shortage().map(|shortage| shortage.to_string());
            checks.push(Check { name: "room", failure });
        }
        checks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(checks: &[Check]) -> Vec<&'static str> {
        checks.iter().filter(|check| check.failure.is_some()).map(|check| check.name).collect()
    }

    #[test]
    fn a_server_is_alive_before_it_is_ready_and_after() {
        let probe = Probe::default();
        assert_eq!(failed(&probe.readiness()), ["recovered"]);
        assert!(failed(&probe.health()).is_empty());
        probe.stopping();
        assert_eq!(failed(&probe.readiness()), ["serving"]);
        assert!(failed(&probe.health()).is_empty());
    }
}
