//! Compiles the author's source into what the engine runs: oxc strips the types, imports are
//! listed, and JavaScript is syntax-checked too, so that every syntax error has a position and a
//! code frame. Reads no files.

mod blank;
mod nesting;
mod room;

use std::path::Path;

use oxc::allocator::Allocator;
use oxc::ast::ast::Program;
use oxc::codegen::{Codegen, CodegenOptions, CommentOptions};
use oxc::diagnostics::{Diagnostics, Severity};
use oxc::parser::Parser;
use oxc::semantic::SemanticBuilder;
use oxc::span::{GetSpan as _, SourceType};
use oxc::syntax::module_record::ModuleRecord;
use oxc::transformer::{TransformOptions, Transformer};

use self::blank::Erasable;
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
    /// Ordered by generated position; none when the code has the positions of the source.
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
    let (code, mappings) = erase(file, source)?;
    let imports = imports_left(file, &code, source, TYPESCRIPT)?;
    Ok(Compiled { code: Some(code), mappings, imports })
}

/// The imports of generated code, at their positions in the source. Type-only imports are no longer
/// in the code, and not part of the graph that runs.
pub(crate) fn imports_left(
    file: &str,
    code: &str,
    source: &str,
    kind: SourceType,
) -> Result<Vec<Import>, ModuleError> {
    let mut imports = imports_of(file, code, SourceType::mjs())?;
    if !imports.is_empty() {
        let allocator = Allocator::default();
        let parsed = Parser::new(&allocator, source, kind).parse();
        let written = listed(source, &parsed.module_record);
        for import in &mut imports {
            let is_it = |one: &&Import| {
                (&one.specifier, one.dynamic) == (&import.specifier, import.dynamic)
            };
            import.at = written.iter().find(is_it).map_or(0, |one| one.at);
        }
    }
    Ok(imports)
}

fn imports_of(file: &str, source: &str, kind: SourceType) -> Result<Vec<Import>, ModuleError> {
    let allocator = Allocator::default();
    let parsed = Parser::new(&allocator, source, kind).parse();
    first_error(file, source, &parsed.diagnostics)?;
    let checked = SemanticBuilder::new().with_check_syntax_error(true).build(&parsed.program);
    first_error(file, source, &checked.diagnostics)?;
    Ok(listed(source, &parsed.module_record))
}

/// The imports of a parsed source, in order of position.
fn listed(source: &str, record: &ModuleRecord<'_>) -> Vec<Import> {
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
    imports
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
    let mut program = parsed(&allocator, file, source, kind)?;
    transform(&allocator, file, source, &mut program)?;
    Ok(generated(file, &program))
}

/// Code without types that keeps its positions in the source; if it cannot, as with an `enum`, the
/// code of [`strip`].
fn erase(file: &str, source: &str) -> Result<(String, Vec<Mapping>), ModuleError> {
    let allocator = Allocator::default();
    let mut program = parsed(&allocator, file, source, TYPESCRIPT)?;
    let erasable = Erasable::of(source, &program);
    transform(&allocator, file, source, &mut program)?;
    let erased = erasable.erased(source, &program);
    if reprinted(&erased).is_some_and(|code| is_same(&printed(&program), &code)) {
        return Ok((erased, Vec::new()));
    }
    Ok(generated(file, &program))
}

/// The program of a source.
///
/// # Errors
/// [`FailureKind::Syntax`] with position and code frame.
pub(crate) fn parsed<'a>(
    allocator: &'a Allocator,
    file: &str,
    source: &'a str,
    kind: SourceType,
) -> Result<Program<'a>, ModuleError> {
    let parsed = Parser::new(allocator, source, kind).parse();
    first_error(file, source, &parsed.diagnostics)?;
    Ok(parsed.program)
}

fn transform<'a>(
    allocator: &'a Allocator,
    file: &str,
    source: &str,
    program: &mut Program<'a>,
) -> Result<(), ModuleError> {
    let checked =
        SemanticBuilder::new().with_check_syntax_error(true).with_enum_eval(true).build(program);
    first_error(file, source, &checked.diagnostics)?;
    let scoping = checked.semantic.into_scoping();
    let options = TransformOptions::default();
    let transformed =
        Transformer::new(allocator, Path::new(file), &options).build_with_scoping(scoping, program);
    first_error(file, source, &transformed.diagnostics)
}

/// The code of a program without its comments: equal for equal programs.
fn printed(program: &Program<'_>) -> String {
    let comments = CommentOptions::disabled();
    let options = CodegenOptions { comments, ..CodegenOptions::default() };
    Codegen::new().with_options(options).build(program).code
}

/// Whether code is the compiler's. That marks what has lost its last export as a module.
fn is_same(compiled: &str, code: &str) -> bool {
    compiled.strip_prefix(code).is_some_and(|more| matches!(more, "" | "export {};\n"))
}

/// JavaScript as [`printed`] prints it; `None` when it is none.
fn reprinted(code: &str) -> Option<String> {
    let allocator = Allocator::default();
    let parsed = Parser::new(&allocator, code, SourceType::mjs()).parse();
    let is_right = parsed.diagnostics.iter().all(|found| found.severity != Severity::Error);
    is_right.then(|| printed(&parsed.program))
}

fn generated(file: &str, program: &Program<'_>) -> (String, Vec<Mapping>) {
    let options =
        CodegenOptions { source_map_path: Some(file.into()), ..CodegenOptions::default() };
    let made = Codegen::new().with_options(options).build(program);
    let tokens = made.map.iter().flat_map(|map| map.get_tokens());
    let mappings = tokens.map(|token| Mapping {
        made: (token.get_dst_line(), token.get_dst_col()),
        written: (token.get_src_line(), token.get_src_col()),
    });
    (made.code, mappings.collect())
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Each keeps the places of all its words, and loses its types.
    #[test]
    fn types_become_spaces() {
        for (source, code) in [
            ("let a: number = 1, b!: string;", "let a         = 1, b         ;"),
            ("f(a as any, b!, <T>c, d satisfies E);", "f(a       , b ,    c, d            );"),
            (
                "type A = { b: 1 };\nexport interface C {}\na;",
                "                  \n                     \na;",
            ),
            (
                "import { type A, b, C } from './x.js';\nlet d: C = b;",
                "import {         b,   } from './x.js';\nlet d    = b;",
            ),
            ("import type { A } from 'xs';\nlet b: A;", "                            \nlet b   ;"),
            ("export type { A } from './x.ts';\n1;", "                                \n1;"),
            (
                "function f<T>(this: T, a?: number, ...b: T[]): asserts a is 1 {}",
                "function f   (         a         , ...b     )                 {}",
            ),
            ("function f(a: 1): 1;\nfunction f(a) {}", "                    \nfunction f(a) {}"),
            (
                "const f = async <T,>(a: T): Promise<T> => a;",
                "const f = async     (a   )             => a;",
            ),
            (
                concat!(
                    "abstract class A<T> extends B<T> implements C, D<T> { ",
                    "private readonly a?: T = 1; b!: T; static c = 1; ",
                    "abstract d(): void; declare e: 1; ",
                    "override f?(): T {} [k: string]: T }",
                ),
                concat!(
                    "         class A    extends B                       { ",
                    "                 a     = 1; b    ; static c = 1; ",
                    "                                  ",
                    "         f ()    {}                }",
                ),
            ),
            (
                "try {} catch (e: unknown) {}\nf<T>(1); new F<T>();",
                "try {} catch (e         ) {}\nf   (1); new F   ();",
            ),
            (
                "declare const a: 1; declare function f(): 1;\nf(a);",
                "                                            \nf(a);",
            ),
            ("let a: '\u{1f600}' = 1;", "let a       = 1;"),
        ] {
            let (erased, mappings) = erase("a.ts", source).unwrap();
            assert!(mappings.is_empty(), "{source}: {erased}");
            assert_eq!(erased, code, "{source}");
        }
    }

    #[test]
    fn what_people_write_keeps_its_places() {
        let mut dirs = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples")];
        let mut count = 0;
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    dirs.push(path);
                } else if path.extension().is_some_and(|ending| ending == "ts")
                    && !path.to_str().unwrap().ends_with(".d.ts")
                {
                    let source = std::fs::read_to_string(&path).unwrap();
                    let (code, mappings) = erase("a.ts", &source).unwrap();
                    assert!(mappings.is_empty() && code.len() <= source.len(), "{path:?}");
                    count += 1;
                }
            }
        }
        assert!(count > 9, "{count} examples");
    }

    #[test]
    fn imports_are_where_they_are_written() {
        let source = "// Needs ./a.js and \"./b.js\".\nconst c = '\u{1f600}./a.js';\n\
                      import { a } from './a.js'; // value\n\
                      import type { T } from './t.ts';\nawait import(\"./b.js\");\na;";
        for code in [source.to_owned(), format!("{source}\nenum E {{}}\n")] {
            let imports = compile("a.ts", &code).unwrap().imports;
            let found: Vec<_> = imports.iter().map(|one| &code[one.at as usize..][..8]).collect();
            assert_eq!(found, ["'./a.js'", "\"./b.js\""]);
        }
    }

    /// These need code of their own, or would mean something else.
    #[test]
    fn what_is_more_than_a_type_is_compiled() {
        for source in [
            "enum A { B }\nA.B;",
            "namespace A { export const b = 1 }",
            "class A { constructor(private a: number) {} }",
            "let a = b as T\n(c)",
            "const f = (a: 1):\n  T => a;",
        ] {
            let (code, mappings) = erase("a.ts", source).unwrap();
            assert!(!mappings.is_empty() && code.len() != source.len(), "{source}: {code}");
        }
    }
}
