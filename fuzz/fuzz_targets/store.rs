//! A whole store with changed bytes in its files: opening and reading it gives what was stored or
//! an error, never other frames or bodies, and never a panic.
#![no_main]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;
use xs_engine::{
    Batch, BlobHash, Body, Frame, JournalOptions, Meta, NewFrame, ReadOptions, Store, StoreOptions,
    SyncPolicy, Topic,
};

/// Maximum number of changes to one store.
const EDITS_MAX: usize = 16;

/// A store as files in memory, and its frames.
struct Template {
    files: Vec<(PathBuf, Vec<u8>)>,
    frames: HashMap<u64, Frame>,
}

/// One store that was closed properly, and one that was not.
static TEMPLATES: LazyLock<[Template; 2]> = LazyLock::new(|| [template(true), template(false)]);

fn directory() -> TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.expect("a directory for a store")
}

fn open(dir: &Path) -> Option<Store> {
    let small = 64 * 1024;
    let options = StoreOptions {
        segment_bytes: small,
        pack_bytes: small,
        sync: SyncPolicy::Sync,
        journal: JournalOptions { half_bytes: small, after_groups: 0 },
        ..StoreOptions::default()
    };
    Store::open(dir, options).ok()
}

fn template(closed: bool) -> Template {
    let dir = directory();
    let store = open(dir.path()).expect("a new store opens");
    for n in 0..300_u32 {
        let topic = Topic::parse(["a", "a.b", "metrics.cpu"][n as usize % 3]).expect("a topic");
        let body = format!("{n} {}", "body ".repeat(n as usize % 90));
        let frame = NewFrame {
            meta: Meta::parse(format!("{{\"n\":{n}}}")).expect("JSON"),
            body: if n % 2 == 0 { Body::Inline(Bytes::from(body)) } else { Body::None },
            ..NewFrame::new(topic)
        };
        let batch = Batch { frames: vec![frame], ..Batch::default() };
        store.append(batch).expect("a good disk");
    }
    let mut files = Vec::new();
    if closed {
        store.close().expect("a good disk");
        collect(dir.path(), dir.path(), &mut files);
        drop(store);
    } else {
        collect(dir.path(), dir.path(), &mut files);
    }
    let image = directory();
    restore(&files, image.path());
    let store = open(image.path()).expect("what was copied opens");
    let frames = store.read(&ReadOptions::default()).expect("it is readable");
    let frames = frames.map(|frame| frame.expect("it is whole"));
    let frames: HashMap<_, _> = frames.filter_map(|f| Some((f.offset()?, f))).collect();
    assert_eq!(frames.len(), 300);
    files.sort();
    Template { files, frames }
}

fn collect(root: &Path, dir: &Path, files: &mut Vec<(PathBuf, Vec<u8>)>) {
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(root, &path, files);
        } else if path.file_name().is_some_and(|name| name != "LOCK") {
            let name = path.strip_prefix(root).expect("a path below the root").to_owned();
            files.push((name, fs::read(&path).expect("a file")));
        }
    }
}

fn restore(files: &[(PathBuf, Vec<u8>)], dir: &Path) {
    for (name, bytes) in files {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
        fs::write(path, bytes).expect("a file");
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((mode, edits)) = input.split_first() else { return };
    let template = &TEMPLATES[usize::from(mode & 1)];
    let mut files = template.files.clone();
    for edit in edits.chunks_exact(6).take(EDITS_MAX) {
        let count = files.len();
        let (_, bytes) = &mut files[usize::from(edit[0]) % count];
        // Most bytes of a file are zeros that nothing has written to yet.
        let used = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 9);
        let at = u32::from_le_bytes([edit[1], edit[2], edit[3], 0]) as usize % used.max(1);
        match edit[4] % 4 {
            0 => bytes.truncate(at),
            // A previous edit may have truncated the file.
            1 => bytes.iter_mut().skip(at).for_each(|byte| *byte = edit[5]),
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= edit[5];
                }
            }
        }
    }
    let dir = directory();
    restore(&files, dir.path());
    let Some(store) = open(dir.path()) else { return };
    check(&store, template);
    // A store that was changed by opening must open again with the same contents.
    drop(store);
    if let Some(store) = open(dir.path()) {
        check(&store, template);
    }
});

fn check(store: &Store, template: &Template) {
    let Ok(frames) = store.read(&ReadOptions::default()) else { return };
    for frame in frames.filter_map(Result::ok).take(1000) {
        let known = frame.offset().and_then(|offset| template.frames.get(&offset));
        assert_eq!(known, Some(&frame), "a frame that was never stored");
        let Some(hash) = frame.hash() else { continue };
        let Ok(Some(blob)) = store.blob(&hash) else { continue };
        if let Ok(bytes) = blob.bytes(1 << 20) {
            assert_eq!(BlobHash::of(&bytes), hash, "a body that was never stored");
        }
    }
}
