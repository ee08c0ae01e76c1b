//! The files of one module, found by following its imports inside the modules directory.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::Read as _;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;
use xs_engine::BlobHash;

use super::inside::Inside;
use super::location;
use super::resolve::{SCRIPT_MODULE, specifier_of};
use crate::isolate::{FailureKind, ModuleError};
use crate::name::Kind;
use crate::typescript::{self, Compiled, Import};

/// Maximum number of files in one graph.
const FILES_MAX: usize = 256;
/// Maximum bytes of one file.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Maximum bytes of all files of a graph.
const GRAPH_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Extensions of files that can be imported.
const ENDINGS: [&str; 3] = [".js", ".ts", ".json"];
/// Extensions used elsewhere, and their equivalents here.
const OTHER_ENDINGS: [(&str, &str); 2] = [(".mjs", ".js"), (".mts", ".ts")];

/// The entry of a test. It cannot be a file's name: a colon makes a specifier foreign.
const TEST_ENTRY: &str = "xs-test:entry.js";
/// The entry of a script.
const SCRIPT_ENTRY: &str = "xs-script:entry.js";

/// Whether a specifier names a built-in module.
pub(super) fn is_built_in(specifier: &str) -> bool {
    matches!(specifier, "xs" | "xs/test")
}

/// A module and everything it imports, read, checked and with types stripped.
#[derive(Debug, Clone)]
pub struct ModuleGraph {
    entry: String,
    files: BTreeMap<String, ModuleFile>,
}

/// One file of a graph.
#[derive(Debug, Clone)]
pub(super) struct ModuleFile {
    pub(super) source: Arc<str>,
    /// `None` for JSON.
    pub(super) compiled: Option<Arc<Compiled>>,
}

/// The source of files: the directory, or the sources stored from it.
trait Sources {
    fn read(&self, path: &str) -> Result<String, String>;
}

struct Directory<'a>(&'a Path);

impl Sources for Directory<'_> {
    fn read(&self, path: &str) -> Result<String, String> {
        let inside = Inside::of(self.0).map_err(|error| error.to_string())?;
        // Opened once and read from the descriptor: even if links change meanwhile, it stays
        // inside.
        let file = inside.open(path, OFlags::RDONLY | OFlags::NONBLOCK);
        let file = file.map_err(|errno| match errno {
            // Other tools accept either extension.
            Errno::NOENT => {
                match twin(path).filter(|twin| inside.open(twin, OFlags::PATH).is_ok()) {
                    Some(twin) => format!("there is no such file, but there is {twin}"),
                    None => "there is no such file".to_owned(),
                }
            }
            Errno::XDEV | Errno::LOOP => {
                "it is a link to a file outside the modules directory".to_owned()
            }
            other => other.to_string(),
        })?;
        let file = File::from(file);
        let meta = file.metadata().map_err(|error| error.to_string())?;
        if !meta.is_file() {
            return Err("it is not a file".to_owned());
        }
        let mut text = String::new();
        let read = file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text);
        if text.len() as u64 > FILE_BYTES_MAX || meta.len() > FILE_BYTES_MAX {
            return Err(format!("it is larger than {FILE_BYTES_MAX} bytes"));
        }
        read.map(|_| text).map_err(|error| error.to_string())
    }
}

/// A directory that also keeps the texts that are read.
struct Noting<'a> {
    dir: Directory<'a>,
    texts: RefCell<BTreeMap<String, String>>,
}

impl Sources for Noting<'_> {
    fn read(&self, path: &str) -> Result<String, String> {
        let text = self.dir.read(path)?;
        self.texts.borrow_mut().insert(path.to_owned(), text.clone());
        Ok(text)
    }
}

struct Kept(BTreeMap<String, String>);

/// The path with the other source extension.
fn twin(path: &str) -> Option<String> {
    let other = |from: &str, to: &str| path.strip_suffix(from).map(|stem| stem.to_owned() + to);
    other(".js", ".ts").or_else(|| other(".ts", ".js"))
}

impl Sources for Kept {
    fn read(&self, path: &str) -> Result<String, String> {
        self.0.get(path).cloned().ok_or_else(|| "it is not among the stored sources".to_owned())
    }
}

impl ModuleGraph {
    /// Reads `entry` (a path relative to `dir`) with all its imports.
    ///
    /// # Errors
    /// [`ModuleError`] for a syntax error, an import that is not allowed and graphs that are too
    /// large.
    pub fn load(dir: &Path, entry: &str) -> Result<Self, ModuleError> {
        Self::collect(entry, None, &Directory(dir))
    }

    /// Reads a module like [`ModuleGraph::load`], and also returns the texts that were read, by
    /// path. What cannot be read as a module's text is missing among them.
    pub(crate) fn load_with_texts(
        dir: &Path,
        entry: &str,
    ) -> (Result<Self, ModuleError>, BTreeMap<String, String>) {
        let sources = Noting { dir: Directory(dir), texts: RefCell::default() };
        let graph = Self::collect(entry, None, &sources);
        (graph, sources.texts.into_inner())
    }

    /// The text of one file, read like [`ModuleGraph::load`] does.
    pub(crate) fn text(dir: &Path, entry: &str) -> String {
        Directory(dir).read(entry).unwrap_or_default()
    }

    /// Builds the graph of a script with all its imports, and an entry that passes its default
    /// export to `runner`, a function of the built-in module for scripts. `path` is relative to
    /// `dir` and need not be a file: `source` is the compiled text.
    ///
    /// # Errors
    /// The errors of [`ModuleGraph::load`].
    pub(crate) fn of_script(
        dir: &Path,
        path: &str,
        source: &str,
        compiled: Compiled,
        runner: &str,
    ) -> Result<Self, ModuleError> {
        let mut graph = Self::collect(path, Some((source, compiled)), &Directory(dir))?;
        let main = specifier_of(path).map_or_else(String::new, String::from);
        let main = serde_json::Value::from(main);
        graph.enter(
            SCRIPT_ENTRY,
            format!(
                "import {{ {runner} }} from \"{SCRIPT_MODULE}\";\nimport main from {main};\n\
                 export default {runner}(main);\n"
            ),
        );
        Ok(graph)
    }

    /// A graph with only an entry that calls `runner`, a function of the built-in module for
    /// scripts.
    pub(crate) fn of_runner(runner: &str) -> Self {
        let mut graph = Self { entry: String::new(), files: BTreeMap::new() };
        let source = format!(
            "import {{ {runner} }} from \"{SCRIPT_MODULE}\";\nexport default {runner}();\n"
        );
        graph.enter(SCRIPT_ENTRY, source);
        graph
    }

    /// Adds a generated file and makes it the entry.
    fn enter(&mut self, entry: &str, source: String) {
        let compiled = Compiled { code: None, mappings: Vec::new(), imports: Vec::new() };
        self.add(entry, &source, compiled);
        self.entry = entry.to_owned();
    }

    /// Adds code that the engine gets in another way, so that its errors have positions.
    pub(crate) fn add(&mut self, path: &str, source: &str, compiled: Compiled) {
        let file = ModuleFile { source: source.into(), compiled: Some(Arc::new(compiled)) };
        self.files.insert(path.to_owned(), file);
    }

    /// Removes what [`ModuleGraph::add`] has added.
    pub(crate) fn remove(&mut self, path: &str) {
        self.files.remove(path);
    }

    /// Reads a test file with all its imports, and an entry that runs its tests.
    ///
    /// # Errors
    /// The errors of [`ModuleGraph::load`].
    pub fn of_test(dir: &Path, test: &str) -> Result<Self, ModuleError> {
        let mut graph = Self::load(dir, test)?;
        let quoted = |path: &str| serde_json::Value::from(format!("./{path}")).to_string();
        let modules = graph.files.iter().filter(|(path, file)| {
            let first = path.split('/').next().unwrap_or_default();
            let defines = Kind::ALL.iter().any(|kind| kind.dir() == first);
            file.compiled.is_some() && *path != test && defines
        });
        let mut source = String::from("import { register, suite } from \"xs/test\";\n");
        let mut registered = String::new();
        for (number, (path, _)) in modules.enumerate() {
            source += &format!("import * as m{number} from {};\n", quoted(path));
            let path = serde_json::Value::from(path.as_str());
            registered += &format!("register({path}, m{number}.default);\n");
        }
        source += &format!("import {};\n{registered}export default suite();\n", quoted(test));
        graph.enter(TEST_ENTRY, source);
        Ok(graph)
    }

    /// Builds a graph from the sources kept in the store.
    ///
    /// # Errors
    /// The errors of [`ModuleGraph::load`], and when the bytes are not such a blob.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ModuleError> {
        let (entry, files): (String, BTreeMap<String, String>) = serde_json::from_slice(bytes)
            .map_err(|error| {
                ModuleError::new(
                    FailureKind::Import,
                    format!("the stored source is not [entry, {{path: source}}]: {error}"),
                )
            })?;
        Self::collect(&entry, None, &Kept(files))
    }

    /// Follows the imports of `entry`, whose text and compiled form may be `given`.
    fn collect(
        entry: &str,
        given: Option<(&str, Compiled)>,
        sources: &dyn Sources,
    ) -> Result<Self, ModuleError> {
        let mut given = given;
        let mut files = BTreeMap::new();
        let mut bytes = 0;
        let mut wanted = VecDeque::from([(entry.to_owned(), None)]);
        while let Some((path, importer)) = wanted.pop_front() {
            if files.contains_key(&path) {
                continue;
            }
            let fail = |message: String| import_error(&files, importer.as_ref(), message);
            let given = given.take();
            let source = match &given {
                Some((source, _)) => Ok((*source).to_owned()),
                None => sources.read(&path),
            };
            let source = source.map_err(|why| fail(format!("cannot load {path:?}: {why}")))?;
            // Editors may write a byte order mark; JSON does not allow one.
            let source = match source.strip_prefix('\u{feff}') {
                Some(rest) => rest.to_owned(),
                None => source,
            };
            bytes += source.len() as u64;
            if files.len() >= FILES_MAX || bytes > GRAPH_BYTES_MAX {
                return Err(fail(format!(
                    "the module imports more than {FILES_MAX} files or {GRAPH_BYTES_MAX} bytes"
                )));
            }
            let compiled = match given {
                Some((_, compiled)) => Some(Arc::new(compiled)),
                None if path.ends_with(".json") => check_json(&path, &source).map(|()| None)?,
                None => Some(Arc::new(typescript::compile(&path, &source)?)),
            };
            let source: Arc<str> = Arc::from(source);
            let imports = compiled.as_ref().map_or(&[][..], |compiled| &compiled.imports);
            for import in imports.iter().filter(|import| !is_built_in(&import.specifier)) {
                let error = |message| {
                    let at = import.at as usize;
                    location::error_at(FailureKind::Import, message, &path, &source, at)
                };
                match join(&path, &import.specifier) {
                    Ok(target) => wanted.push_back((target, Some((path.clone(), import.clone())))),
                    // A dynamic import that cannot be resolved throws when it is reached.
                    Err(_) if import.dynamic => {}
                    Err(message) => return Err(error(message)),
                }
            }
            files.insert(path, ModuleFile { source, compiled });
        }
        Ok(Self { entry: entry.to_owned(), files })
    }

    /// The path of the module itself, relative to the modules directory.
    #[must_use]
    pub fn entry(&self) -> &str {
        &self.entry
    }

    /// Paths of all files, relative to the modules directory, in order.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    /// Hash over the paths and sources of all files.
    #[must_use]
    pub fn hash(&self) -> BlobHash {
        BlobHash::of(&self.to_bytes())
    }

    /// The sources as one blob, from which [`ModuleGraph::from_bytes`] rebuilds the graph.
    ///
    /// # Panics
    /// Never: a map of texts is JSON.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let files: BTreeMap<&str, &str> =
            self.files.iter().map(|(path, file)| (path.as_str(), &*file.source)).collect();
        serde_json::to_vec(&(&self.entry, files)).expect("a map of texts is JSON")
    }

    pub(super) fn file(&self, path: &str) -> Option<&ModuleFile> {
        self.files.get(path)
    }
}

/// An error at the import that led to a file, or about the module itself.
fn import_error(
    files: &BTreeMap<String, ModuleFile>,
    importer: Option<&(String, Import)>,
    message: String,
) -> ModuleError {
    match importer.and_then(|(path, import)| Some((path, import, files.get(path)?))) {
        Some((path, import, file)) => {
            let at = import.at as usize;
            location::error_at(FailureKind::Import, message, path, &file.source, at)
        }
        None => ModuleError::new(FailureKind::Import, message),
    }
}

/// Finds an error in JSON at its own position: the engine would report a position in the code that
/// parses it.
fn check_json(path: &str, source: &str) -> Result<(), ModuleError> {
    let Err(error) = serde_json::from_str::<serde::de::IgnoredAny>(source) else { return Ok(()) };
    let before = source.split_inclusive('\n').take(error.line().saturating_sub(1));
    let at = before.map(str::len).sum::<usize>() + error.column().saturating_sub(1);
    let shown = error.to_string();
    let what = shown.rsplit_once(" at line ").map_or(&*shown, |(what, _)| what);
    let message = format!("this is not JSON: {what}");
    Err(location::error_at(FailureKind::Syntax, message, path, source, at))
}

/// The path that `specifier` resolves to in the file `from`, both relative to the modules
/// directory.
pub(super) fn join(from: &str, specifier: &str) -> Result<String, String> {
    if !(specifier.starts_with("./") || specifier.starts_with("../")) {
        return Err(foreign(specifier));
    }
    let mut path = PathBuf::from(from);
    path.pop();
    for part in Path::new(specifier).components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                if !path.pop() {
                    return Err(format!(
                        "import {specifier:?} points outside the modules directory"
                    ));
                }
            }
            Component::Normal(name) => path.push(name),
            Component::RootDir | Component::Prefix(_) => return Err(foreign(specifier)),
        }
    }
    let path = path.to_string_lossy().into_owned();
    if ENDINGS.iter().any(|ending| path.ends_with(ending)) {
        return Ok(path);
    }
    let other = OTHER_ENDINGS.iter().find(|(other, _)| path.ends_with(other));
    Err(match other {
        Some((other, ending)) => {
            format!("import {specifier:?} ends in {other}; rename it to {ending}")
        }
        None => format!("import {specifier:?} needs a file extension: .js, .ts or .json"),
    })
}

fn foreign(specifier: &str) -> String {
    if specifier.starts_with('/') || specifier.contains(':') {
        return format!(
            "import {specifier:?} is not allowed: modules import \"xs\" and relative files"
        );
    }
    if specifier.eq_ignore_ascii_case("xs") || specifier.eq_ignore_ascii_case("xs/test") {
        return format!("there is no {specifier:?}; did you mean {:?}?", specifier.to_lowercase());
    }
    let (file, package) = (specifier.replace(['/', '@'], "-"), specifier);
    let file = file.trim_matches('-');
    format!(
        "import {package:?} is a package; bundle it into lib/ and import that: \
         npx esbuild {package} --bundle --format=esm --outfile=lib/{file}.js"
    )
}
