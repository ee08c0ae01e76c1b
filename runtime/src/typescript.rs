//! Compiles the author's source into what the engine runs: oxc strips the types, imports are
//! listed, and JavaScript is syntax-checked too, so that every syntax error has a position and a
//! code frame. Reads no files.

mod nesting;
mod room;

use std::path::Path;

use oxc::allocator::Allocator;
use oxc::codegen::{Codegen, CodegenOptions};
use oxc::diagnostics::{Diagnostics, Severity};
use oxc::parser::Parser;
use oxc::semantic::SemanticBuilder;
use oxc::span::{GetSpan as _, SourceType};
use oxc::transformer::{TransformOptions, Transformer};

use crate::isolate::{FailureKind, ModuleError};
use crate::loader::location;

pub(crate) use room::{avoid, with_room};

/// TypeScript in modules, even in a file without imports.
pub(crate) const TYPESCRIPT: SourceType = SourceType::ts().with_module(true);

/// A position in generated code and its origin in the author's source; lines and columns from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mapping {
    pub(crate) made: (u32, u32),
    pub(crate) written: (u32, u32),
}

/// An import with a literal specifier and its position in the author's source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Import {
    pub(crate) specifier: String,
    /// Byte offset in the parsed source.
    pub(crate) at: u32,
    pub(crate) dynamic: bool,
}

/// The compiler's output for one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Compiled {
    /// The code; `None` when the source runs unchanged.
    pub(crate) code: Option<String>,
    /// Ordered by generated position.
    pub(crate) mappings: Vec<Mapping>,
    pub(crate) imports: Vec<Import>,
}

/// Checks a `.js` source or compiles a `.ts` one. `file` is used in messages.
///
/// # Errors
/// [`FailureKind::Syntax`] with position and code frame.
pub(crate) fn compile(file: &str, source: &str) -> Result<Compiled, ModuleError> {
    with_room(file, source, || compiled(file, source))
}

fn compiled(file: &str, source: &str) -> Result<Compiled, ModuleError> {
    if !file.ends_with(".ts") {
        let imports = imports_of(file, source, SourceType::mjs())?;
        return Ok(Compiled { code: None, mappings: Vec::new(), imports });
    }
    let (code, mappings) = strip(file, source, TYPESCRIPT)?;
    let imports = imports_left(file, &code, source)?;
    Ok(Compiled { code: Some(code), mappings, imports })
}

/// The imports of generated code, at their positions in the source. Type-only imports are no longer
/// in the code, and not part of the graph that runs.
pub(crate) fn imports_left(
    file: &str,
    code: &str,
    source: &str,
) -> Result<Vec<Import>, ModuleError> {
    let mut imports = imports_of(file, code, SourceType::mjs())?;
    for import in &mut imports {
        let found = source.find(&import.specifier).and_then(|at| u32::try_from(at).ok());
        import.at = found.unwrap_or(0);
    }
    Ok(imports)
}

fn imports_of(file: &str, source: &str, kind: SourceType) -> Result<Vec<Import>, ModuleError> {
    let allocator = Allocator::default();
    let parsed = Parser::new(&allocator, source, kind).parse();
    first_error(file, source, &parsed.diagnostics)?;
    let checked = SemanticBuilder::new().with_check_syntax_error(true).build(&parsed.program);
    first_error(file, source, &checked.diagnostics)?;
    let record = &parsed.module_record;
    let mut imports: Vec<Import> = Vec::new();
    for (specifier, requests) in &record.requested_modules {
        let at = requests.iter().map(|request| request.span.start).min().unwrap_or(0);
        imports.push(Import { specifier: specifier.to_string(), at, dynamic: false });
    }
    for import in &record.dynamic_imports {
        let span = import.module_request.span();
        let text = source.get(span.start as usize..span.end as usize).unwrap_or_default();
        let quoted = text.len() >= 2 && matches!(text.as_bytes()[0], b'"' | b'\'');
        if quoted && text.ends_with(&text[..1]) {
            let specifier = text[1..text.len() - 1].to_owned();
            imports.push(Import { specifier, at: span.start, dynamic: true });
        }
    }
    imports.sort_by_key(|import| import.at);
    Ok(imports)
}

/// Code without types, and the mappings of its positions.
///
/// # Errors
/// [`FailureKind::Syntax`] with position and code frame.
pub(crate) fn strip(
    file: &str,
    source: &str,
    kind: SourceType,
) -> Result<(String, Vec<Mapping>), ModuleError> {
    let allocator = Allocator::default();
    let parsed = Parser::new(&allocator, source, kind).parse();
    first_error(file, source, &parsed.diagnostics)?;
    let mut program = parsed.program;
    let checked =
        SemanticBuilder::new().with_check_syntax_error(true).with_enum_eval(true).build(&program);
    first_error(file, source, &checked.diagnostics)?;
    let scoping = checked.semantic.into_scoping();
    let options = TransformOptions::default();
    let transformed = Transformer::new(&allocator, Path::new(file), &options)
        .build_with_scoping(scoping, &mut program);
    first_error(file, source, &transformed.diagnostics)?;
    let options =
        CodegenOptions { source_map_path: Some(file.into()), ..CodegenOptions::default() };
    let made = Codegen::new().with_options(options).build(&program);
    let tokens = made.map.iter().flat_map(|map| map.get_tokens());
    let mappings = tokens.map(|token| Mapping {
        made: (token.get_dst_line(), token.get_dst_col()),
        written: (token.get_src_line(), token.get_src_col()),
    });
    let mappings = mappings.collect();
    Ok((made.code, mappings))
}

/// Converts the first error among the diagnostics, with its position.
///
/// # Errors
/// [`FailureKind::Syntax`] when there is one.
pub(crate) fn first_error(
    file: &str,
    source: &str,
    found: &Diagnostics,
) -> Result<(), ModuleError> {
    let Some(error) = found.iter().find(|found| found.severity == Severity::Error) else {
        return Ok(());
    };
    let at = error.labels.first().map_or(0, |label| label.offset() as usize);
    let mut message = format!("SyntaxError: {}", error.message);
    if let Some(help) = &error.help {
        message.push_str(&format!(" ({help})"));
    }
    Err(location::error_at(FailureKind::Syntax, message, file, source, at))
}
