//! What a subcommand needs before it can work on a store, and how it may be stopped. Decides; opens
//! nothing.

use std::time::Duration;

use super::eval;
use super::input::Input;
use crate::args::{CasSubcommand, ModulesStoreSubcommand, StoreSubcommand};
use crate::connect::Need;

/// The requirements of a subcommand that works on a store.
pub(super) struct Plan {
    need: Need,
    /// The body to read ahead, if the subcommand reads one. It then decides the need.
    pub(super) input: Option<Input>,
    /// Time limit of the whole subcommand.
    pub(super) limit: Option<Duration>,
    /// Whether Ctrl-C is handled by the subcommand itself.
    pub(super) ignores_interrupt: bool,
    /// Whether it waits for a server instead of opening a store that is not served.
    pub(super) awaits_server: bool,
    /// Whether it must save a position, store lines it has read, or tell what it did, before it
    /// ends.
    pub(super) has_to_finish: bool,
}

impl Plan {
    const fn new(need: Need) -> Self {
        Self {
            need,
            input: None,
            limit: None,
            ignores_interrupt: false,
            awaits_server: false,
            has_to_finish: false,
        }
    }

    /// The plan of a subcommand.
    pub(super) fn of(subcommand: &StoreSubcommand) -> Self {
        let plan = match subcommand {
            StoreSubcommand::Append(append) if append.lines => {
                Self { has_to_finish: true, ..Self::new(Need::Feed) }
            }
            StoreSubcommand::Import(_) => Self { has_to_finish: true, ..Self::new(Need::Create) },
            StoreSubcommand::Append(_) | StoreSubcommand::Cas(CasSubcommand::Put { .. }) => {
                Self::new(Need::Create)
            }
            StoreSubcommand::Call(call) if !call.help => {
                Self { limit: call.timeout, ..Self::new(Need::Server) }
            }
            StoreSubcommand::Each(each) => {
                let awaits_server = each.reconnect;
                Self { has_to_finish: true, awaits_server, ..Self::new(Need::Follow) }
            }
            StoreSubcommand::Tail(tail) => {
                let has_to_finish = tail.cursor.is_some();
                let awaits_server = tail.reconnect;
                Self { has_to_finish, awaits_server, ..Self::new(Need::Follow) }
            }
            StoreSubcommand::Cat(cat) => {
                let need = if cat.follows() { Need::Follow } else { Need::Existing };
                let has_to_finish = cat.cursor.is_some();
                Self { has_to_finish, awaits_server: cat.reconnect, ..Self::new(need) }
            }
            StoreSubcommand::Eval(eval) => {
                Self { ignores_interrupt: eval::is_prompt(eval), ..Self::new(Need::Follow) }
            }
            StoreSubcommand::Top(_) => Self::new(Need::Follow),
            _ => Self::new(Need::Existing),
        };
        Self { input: Input::of(subcommand), ..plan }
    }

    /// The plan of a subcommand about modules.
    pub(super) const fn of_modules(subcommand: &ModulesStoreSubcommand) -> Self {
        match subcommand {
            ModulesStoreSubcommand::Logs { follow: true, .. } => Self::new(Need::Follow),
            _ => Self::new(Need::Existing),
        }
    }

    /// What is needed of a store that is not served. Reads ahead what fits in memory.
    pub(super) async fn need(&mut self) -> anyhow::Result<Need> {
        match &mut self.input {
            Some(input) => input.need().await,
            None => Ok(self.need),
        }
    }
}
