//! The confirmation before something is destroyed: asked on a terminal, given with `--yes`
//! elsewhere.

use std::io::{self, BufRead as _, IsTerminal as _};

use crate::args::SureArgs;
use crate::exit::{Exit, ExitError};
use crate::output::question;

/// Returns only if the user confirms. `what` completes "about to ...".
pub(super) async fn ask(what: &str, args: SureArgs) -> anyhow::Result<()> {
    if args.yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return ExitError::fail(Exit::Usage, format!("about to {what}: add --yes to do it"));
    }
    question(&format!("About to {what}. Continue? [y/N] "))?;
    // On a separate thread, because Ctrl-C is an answer too.
    let answer = tokio::task::spawn_blocking(|| {
        let mut answer = String::new();
        io::stdin().lock().read_line(&mut answer).map(|_| answer)
    });
    let answer = answer.await??;
    if answer.is_empty() {
        // At the end of the input the cursor is still on the line of the question.
        question("\n")?;
    }
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => ExitError::fail(Exit::Failed, "nothing was done"),
    }
}
