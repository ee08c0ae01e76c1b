//! The JavaScript of the extensions, in the binary instead of at the paths it had on the machine
//! that built it.

use std::path::Path;

use deno_core::{Extension, ExtensionFileSource, ExtensionFileSourceCode};

/// Path at build time and text of every script (made by build.rs).
static SOURCES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/sources.rs"));

fn text_of(source: &ExtensionFileSource) -> Option<&'static str> {
    let ExtensionFileSourceCode::LoadedFromFsDuringSnapshot(path) = &source.code else {
        return None;
    };
    // The crate's directory and the file: what stands before may be a link on one of the two ways.
    let tail = |path: &str| {
        let path = Path::new(path);
        Some((path.parent()?.file_name()?.to_owned(), path.file_name()?.to_owned()))
    };
    let wanted = tail(path)?;
    SOURCES.iter().find(|(known, _)| tail(known).as_ref() == Some(&wanted)).map(|(_, text)| *text)
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
            Some(text) => ExtensionFileSource::new_computed(file.specifier, text.into()),
            None => file.clone(),
        });
        *files = embedded.collect();
    }
    extension
}
