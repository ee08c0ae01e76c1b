//! The JavaScript of the extensions, in the binary instead of at the paths it had on the machine
//! that built it. All isolates of a process share one copy.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use deno_core::{Extension, ExtensionFileSource, ExtensionFileSourceCode};

/// Path at build time and text of every script (made by build.rs).
static SOURCES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/sources.rs"));

/// The crate's directory and the file: what stands before may be a link on one of the two ways.
type Tail<'a> = (&'a OsStr, &'a OsStr);

static TEXTS: LazyLock<HashMap<Tail<'static>, Arc<str>>> = LazyLock::new(|| {
    let texts = SOURCES.iter().filter_map(|(path, text)| Some((tail(path)?, Arc::from(*text))));
    texts.collect()
});

fn tail(path: &str) -> Option<Tail<'_>> {
    let path = Path::new(path);
    Some((path.parent()?.file_name()?, path.file_name()?))
}

fn text_of(source: &ExtensionFileSource) -> Option<Arc<str>> {
    let ExtensionFileSourceCode::LoadedFromFsDuringSnapshot(path) = &source.code else {
        return None;
    };
    TEXTS.get(&tail(path)?).cloned()
}

/// Lets an extension take its scripts from the binary.
pub(super) fn embed(mut extension: Extension) -> Extension {
    for files in [
        &mut extension.js_files,
        &mut extension.esm_files,
        &mut extension.lazy_loaded_js_files,
        &mut extension.lazy_loaded_esm_files,
    ] {
        let embedded = files.iter().map(|file| match text_of(file) {
            Some(text) => ExtensionFileSource::new_computed(file.specifier, text),
            None => file.clone(),
        });
        *files = embedded.collect();
    }
    extension
}
