//! The engine's view of a graph: resolves specifiers to paths and paths to code. Knows only the
//! graph.

use std::cell::OnceCell;
use std::path::Path;
use std::sync::Arc;

use deno_core::{
    ModuleLoadOptions, ModuleLoadReferrer, ModuleLoadResponse, ModuleLoader, ModuleResolveResponse,
    ModuleSource, ModuleSourceCode, ModuleSpecifier, ModuleType, RequestedModuleType,
    ResolutionKind,
};
use deno_error::JsErrorBox;

use super::graph::{ModuleFile, ModuleGraph, join};
use crate::ext::{XS_MODULE, XS_SCRIPT_MODULE, XS_TEST_MODULE};

/// The prefix of a file's path in the engine's module names.
pub(super) const SCHEME: &str = "file:///";

/// The module that a script's entry imports. It is not built-in, so other files cannot import it.
pub(super) const SCRIPT_MODULE: &str = "xs/script";

/// The engine's name of a file: characters special in a URL are escaped.
pub(super) fn specifier_of(path: &str) -> Option<ModuleSpecifier> {
    ModuleSpecifier::from_file_path(Path::new("/").join(path)).ok()
}

/// The file with this engine name.
pub(super) fn path_of(specifier: &str) -> Option<String> {
    if !specifier.starts_with(SCHEME) {
        return None;
    }
    let path = ModuleSpecifier::parse(specifier).ok()?.to_file_path().ok()?;
    Some(path.strip_prefix("/").ok()?.to_str()?.to_owned())
}

/// The files of a graph; empty before it is set.
#[derive(Default)]
pub(crate) struct GraphLoader(OnceCell<Arc<ModuleGraph>>);

impl GraphLoader {
    /// Sets the graph, once: a second call has no effect.
    pub(crate) fn give(&self, graph: &Arc<ModuleGraph>) {
        self.0.get_or_init(|| Arc::clone(graph));
    }

    fn file(&self, path: &str) -> Option<&ModuleFile> {
        self.0.get()?.file(path)
    }

    /// The engine's name of a file of the graph.
    pub(crate) fn specifier(path: &str) -> Result<ModuleSpecifier, JsErrorBox> {
        specifier_of(path).ok_or_else(|| JsErrorBox::type_error(format!("{path:?} is not a path")))
    }
}

impl ModuleLoader for GraphLoader {
    fn resolve(
        &self,
        specifier: &str,
        referrer: &str,
        _kind: ResolutionKind,
    ) -> ModuleResolveResponse {
        let parse = |text: &str| {
            ModuleSpecifier::parse(text).map_err(|error| JsErrorBox::type_error(error.to_string()))
        };
        match specifier {
            "xs" => return parse(XS_MODULE),
            "xs/test" => return parse(XS_TEST_MODULE),
            SCRIPT_MODULE => return parse(XS_SCRIPT_MODULE),
            _ => {}
        }
        if path_of(specifier).is_some_and(|path| self.file(&path).is_some()) {
            return parse(specifier);
        }
        let from = path_of(referrer).unwrap_or_default();
        let path = join(&from, specifier).map_err(JsErrorBox::type_error)?;
        if self.file(&path).is_none() {
            return Err(JsErrorBox::type_error(format!(
                "import {specifier:?} was not found when the module was loaded; \
                 a dynamic import takes a literal path"
            )));
        }
        Self::specifier(&path)
    }

    fn load(
        &self,
        specifier: &ModuleSpecifier,
        _referrer: Option<&ModuleLoadReferrer>,
        options: ModuleLoadOptions,
    ) -> ModuleLoadResponse {
        let path = path_of(specifier.as_str()).unwrap_or_default();
        let Some(file) = self.file(&path) else {
            return ModuleLoadResponse::Sync(Err(JsErrorBox::type_error(format!(
                "{specifier} is not part of the module"
            ))));
        };
        let (code, kind) = match &file.compiled {
            Some(compiled) => {
                let code = compiled.code.as_deref().unwrap_or(&file.source);
                (code.to_owned(), ModuleType::JavaScript)
            }
            None if options.requested_module_type == RequestedModuleType::Json => {
                (file.source.to_string(), ModuleType::Json)
            }
            // Without `with { type: "json" }` the file becomes a module with the JSON as default
            // export.
            None => {
                let text = serde_json::Value::from(&*file.source);
                (format!("export default JSON.parse({text});"), ModuleType::JavaScript)
            }
        };
        let code = ModuleSourceCode::String(code.into());
        ModuleLoadResponse::Sync(Ok(ModuleSource::new(kind, code, specifier, None)))
    }
}
