//! The most requested figures, in about a minute.

use crate::Setting;
use crate::benches::{append, handler, replay, socket};

pub(crate) fn run(setting: &mut Setting) -> anyhow::Result<()> {
    append::rates(setting, setting.amount(2_000_000, 20_000))?;
    replay::rates(setting, setting.amount(2_000_000, 20_000))?;
    socket::rates(setting, setting.amount(300_000, 5_000))?;
    handler::rates(setting, setting.amount(100_000, 2_000))
}
