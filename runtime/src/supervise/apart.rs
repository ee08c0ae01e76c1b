//! Which Hosts run: one for the modules together, and one for each module that `xs.toml` gives its
//! own process. When the file changes, the Hosts concerned end before others start: no module ever
//! runs twice.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::way::Way;
use super::{SuperviseOptions, keep};
use crate::host::config::{Config, ModuleConfig};

/// How often the file is read.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// The option that names a module the shared Host leaves out.
pub const APART: &str = "--apart";
/// The option that names the only module a Host runs.
pub const ONLY: &str = "--only";

/// The module of a Host, or `None` for the shared Host.
type Whose = Option<String>;
/// The modules with their own process, with the settings of these processes.
type Apart = BTreeMap<String, ModuleConfig>;

/// One supervised Host.
struct Kept {
    /// The plan it was started with; a changed plan needs another Host.
    plan: Plan,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// How a Host is started.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Plan {
    /// The only module it runs, if it is not the shared Host.
    pub(super) alone: Option<String>,
    /// Arguments in addition to those of all Hosts.
    pub(super) words: Vec<OsString>,
    /// The environment variables it gets; the shared Host gets all of the server's.
    pub(super) env: Option<Vec<String>>,
    config: Option<ModuleConfig>,
}

/// Keeps the Hosts running until `stop` fires, and returns when all have ended.
pub(super) async fn run(options: SuperviseOptions, way: Arc<Way>, stop: CancellationToken) {
    let options = Arc::new(options);
    let mut hosts: BTreeMap<Whose, Kept> = BTreeMap::new();
    let mut apart = Apart::new();
    loop {
        apart = look(&options, apart).await;
        let wanted = plans(&apart);
        end(&mut hosts, |whose, plan| wanted.get(whose) != Some(plan)).await;
        for (whose, plan) in wanted {
            hosts.entry(whose).or_insert_with(|| {
                let stop = CancellationToken::new();
                let kept = keep(Arc::clone(&options), plan.clone(), Arc::clone(&way), stop.clone());
                Kept { plan, stop, task: tokio::spawn(kept) }
            });
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
    end(&mut hosts, |_, _| true).await;
}

/// Ends all matching Hosts, concurrently.
async fn end(hosts: &mut BTreeMap<Whose, Kept>, meant: impl Fn(&Whose, &Plan) -> bool) {
    let mut ends = JoinSet::new();
    for (_, kept) in hosts.extract_if(.., |whose, kept| meant(whose, &kept.plan)) {
        kept.stop.cancel();
        ends.spawn(kept.task);
    }
    while let Some(ended) = ends.join_next().await {
        if let Ok(Err(error)) | Err(error) = ended {
            tracing::error!(%error, "the supervisor of a Host failed");
        }
    }
}

/// The file's current contents; the previous ones while the file is invalid.
async fn look(options: &SuperviseOptions, before: Apart) -> Apart {
    let Some(dir) = options.modules.clone() else { return before };
    let loaded = tokio::task::spawn_blocking(move || Config::load(&dir)).await;
    match loaded {
        Ok(Ok(config)) => config.apart(),
        // The Host reports what is wrong with the file.
        Ok(Err(_)) | Err(_) => before,
    }
}

fn plans(apart: &Apart) -> BTreeMap<Whose, Plan> {
    let words = |word: &str, name: &str| [OsString::from(word), OsString::from(name)];
    let together = Plan {
        alone: None,
        words: apart.keys().flat_map(|name| words(APART, name)).collect(),
        env: None,
        config: None,
    };
    let alone = apart.iter().map(|(name, config)| {
        let plan = Plan {
            alone: Some(name.clone()),
            words: words(ONLY, name).to_vec(),
            env: Some(config.env.clone()),
            config: Some(config.clone()),
        };
        (Some(name.clone()), plan)
    });
    alone.chain([(None, together)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apart(text: &str) -> Apart {
        Config::parse(text).unwrap().apart()
    }

    #[test]
    fn a_module_that_is_set_apart_changes_two_hosts_and_no_other() {
        let none = plans(&apart(""));
        assert_eq!(none.keys().collect::<Vec<_>>(), [&None]);
        assert!(none[&None].words.is_empty() && none[&None].env.is_none());
        let text = "[modules.a]\nisolation = \"process\"\nenv = [\"TOKEN\"]\n\
                    [modules.b]\nisolation = \"process\"\n[modules.c]\nallow = [\"run\"]\n";
        let two = plans(&apart(text));
        let a = Some("a".to_owned());
        assert_eq!(two.len(), 3);
        assert_eq!(two[&None].words, ["--apart", "a", "--apart", "b"]);
        assert_eq!(two[&a].words, ["--only", "a"]);
        assert_eq!(two[&a].env.as_deref(), Some(&["TOKEN".to_owned()][..]));
        let changed = plans(&apart(&text.replace("env", "read = [\"/var/log\"]\nenv")));
        assert!(changed[&a] != two[&a]);
        assert!(changed.iter().filter(|(whose, plan)| two.get(*whose) != Some(*plan)).count() == 1);
        // The configuration passed to a module does not affect its process.
        let told = plans(&apart(&format!("{text}[modules.a.config]\nn = 1\n")));
        assert_eq!(told, two);
    }
}
