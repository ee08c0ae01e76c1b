//! The JavaScript of the extensions, in the binary instead of at the paths it had on the machine
//! that built it.

use deno_core::{Extension, ExtensionFileSource, ExtensionFileSourceCode};

/// Path at build time and text of every script (made by build.rs).
static SOURCES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/sources.rs"));

fn text_of(source: &ExtensionFileSource) -> Option<&'static str> {
    let ExtensionFileSourceCode::LoadedFromFsDuringSnapshot(path) = &source.code else {
        return None;
    };
    SOURCES.iter().find(|(known, _)| known == path).map(|(_, text)| *text)
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
