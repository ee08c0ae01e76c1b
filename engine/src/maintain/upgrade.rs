//! Upgrades a store from an older format to the present one, one step per version. There is no
//! version before 1, so there are no steps yet; this is the place for them, and it refuses newer
//! versions of any kind of file.

use std::path::Path;
use std::sync::Arc;

use super::backup::lock;
use super::error::MaintainError;
use crate::error::OpenError;
use crate::format::file::{FILE_HEADER_LEN, FORMAT_VERSION, FileHeader, FormatError, Magic};
use crate::media::{Disk, Files};
use crate::names::{self, BLOB_DIR, LOG_DIR};
use crate::options::MediaChoice;

/// Rewrites a store from one version to the next. It may be interrupted anywhere and repeated.
type Step = fn(&Path, &Arc<dyn Files>) -> Result<(), MaintainError>;

/// The steps, keyed by the version they start from.
const STEPS: &[(u32, Step)] = &[];

/// What an upgrade did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct UpgradeReport {
    /// The version the store had.
    pub from: u32,
    /// The version it has.
    pub to: u32,
}

/// Upgrades the store in `dir`, which must not be open, to the present format version. A store that
/// has it already is left unchanged.
///
/// # Errors
/// [`OpenError::Version`] names the first file of a newer version, or of one that is too old for
/// this program; nothing was changed then.
pub fn upgrade(dir: impl AsRef<Path>) -> Result<UpgradeReport, MaintainError> {
    let dir = dir.as_ref();
    if !names::is_store(dir) {
        return Err(MaintainError::NoStore { dir: dir.to_owned() });
    }
    let _lock = lock(dir)?;
    let files: Arc<dyn Files> = Arc::new(Disk::new(MediaChoice::Positioned, dir));
    upgrade_by(dir, &files, STEPS, FORMAT_VERSION)
}

fn upgrade_by(
    dir: &Path,
    files: &Arc<dyn Files>,
    steps: &[(u32, Step)],
    to: u32,
) -> Result<UpgradeReport, MaintainError> {
    let from = oldest(dir, files, to)?;
    let mut way = Vec::new();
    for version in from..to {
        let step = steps.iter().find(|(begins, _)| *begins == version);
        let too_old = OpenError::Version { path: dir.join(names::MANIFESTS[0]), found: version };
        way.push(step.ok_or(too_old)?.1);
    }
    way.into_iter().try_for_each(|step| step(dir, files))?;
    Ok(UpgradeReport { from, to })
}

/// The oldest version of any file of the store.
fn oldest(dir: &Path, files: &Arc<dyn Files>, to: u32) -> Result<u32, MaintainError> {
    let mut oldest = to;
    for sub in ["", LOG_DIR, BLOB_DIR] {
        let dir = if sub.is_empty() { dir.to_owned() } else { dir.join(sub) };
        let names = files.list(&dir);
        for name in names.map_err(|error| MaintainError::io("list", &dir, error))? {
            let Some(magic) = magic_of(&name) else { continue };
            let path = dir.join(&name);
            let failed = |error| MaintainError::io("read", &path, error);
            let media = files.open_scan(&path).map_err(failed)?;
            let head = media.view(0..media.len().min(FILE_HEADER_LEN as u64)).map_err(failed)?;
            match FileHeader::decode(&head, magic) {
                Err(FormatError::Version { found }) if found > to => {
                    return Err(OpenError::Version { path, found }.into());
                }
                Err(FormatError::Version { found }) => oldest = oldest.min(found),
                Ok(_) => oldest = oldest.min(FORMAT_VERSION),
                // Damage is left to verify and repair.
                Err(_) => {}
            }
        }
    }
    Ok(oldest)
}

/// The kind of a file, by its name.
fn magic_of(name: &str) -> Option<Magic> {
    if names::is_manifest(name) {
        return Some(Magic::Super);
    }
    if name == names::JOURNAL {
        return Some(Magic::Journal);
    }
    if name.starts_with(names::TABLE) {
        return Some(Magic::Table);
    }
    Some(match name.rsplit_once('.')?.1 {
        names::SEGMENT => Magic::Segment,
        names::SPARSE => Magic::Index,
        names::TOPICS => Magic::Topic,
        names::KEYS => Magic::Key,
        names::DEAD => Magic::Dead,
        names::PACK => Magic::Pack,
        names::PACK_INDEX => Magic::PackIndex,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::options::SyncPolicy;
    use crate::testing::{crash, edit, fast_dir, frame, open};

    fn set_version(path: &Path, version: u32) {
        edit(path, |bytes| {
            bytes[8..12].copy_from_slice(&version.to_le_bytes());
            let crc = crc32fast::hash(&bytes[..60]).to_le_bytes();
            bytes[60..64].copy_from_slice(&crc);
        });
    }

    #[test]
    fn every_kind_of_file_refuses_a_newer_version() {
        let dir = fast_dir();
        let store = open(dir.path(), SyncPolicy::None);
        (0..900).for_each(|n| drop(store.append(frame("a", n).into()).unwrap()));
        store.blob_put(&vec![7; 200_000]).unwrap();
        store.close().unwrap();
        assert_eq!(upgrade(dir.path()).unwrap(), UpgradeReport { from: 1, to: 1 });
        let mut kinds = std::collections::BTreeSet::new();
        for sub in ["", LOG_DIR, BLOB_DIR] {
            for entry in fs::read_dir(dir.path().join(sub)).unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                let Some(magic) = magic_of(&name) else { continue };
                kinds.insert(*magic.bytes());
                let image = crash(dir.path());
                let path = image.path().join(sub).join(&name);
                set_version(&path, 2);
                match upgrade(image.path()) {
                    Err(MaintainError::Open(OpenError::Version { path: told, found: 2 })) => {
                        assert_eq!(told, path);
                    }
                    other => panic!("{name}: {other:?}"),
                }
            }
        }
        assert!(kinds.len() >= 6, "{kinds:?}");
    }

    #[test]
    fn steps_are_taken_in_order_and_a_gap_is_refused() {
        let dir = fast_dir();
        let store = open(dir.path(), SyncPolicy::None);
        store.append(frame("a", 1).into()).unwrap();
        store.close().unwrap();
        let files: Arc<dyn Files> = Arc::new(Disk::new(MediaChoice::Positioned, dir.path()));
        let step: Step = |dir, _| {
            let log = dir.join("steps.txt");
            let before = fs::read_to_string(&log).unwrap_or_default();
            fs::write(&log, before + "step ").map_err(|e| MaintainError::io("write", &log, e))
        };
        set_version(&dir.path().join("super.a"), 3);
        let to_5 = |steps: &[(u32, Step)]| upgrade_by(dir.path(), &files, steps, 5);
        // The other copy has version 1, and is the one that counts.
        let gap = to_5(&[(1, step), (3, step), (4, step)]);
        assert!(matches!(gap, Err(MaintainError::Open(OpenError::Version { found: 2, .. }))));
        assert!(!dir.path().join("steps.txt").exists(), "nothing is begun");
        let done = to_5(&[(4, step), (3, step), (2, step), (1, step)]).unwrap();
        assert_eq!(done, UpgradeReport { from: 1, to: 5 });
        assert_eq!(
            fs::read_to_string(dir.path().join("steps.txt")).unwrap(),
            "step step step step "
        );
    }
}
