//! Rewrites what a user typed into what an isolate runs. A script becomes the body of a function
//! that returns its last expression; declarations of a prompt's line become global. Positions are
//! those of the original source.

use std::fmt::Write as _;

use oxc::allocator::Allocator;
use oxc::ast::ast::{
    Declaration, ImportDeclaration, ImportDeclarationSpecifier, Program, Statement,
    VariableDeclaration,
};
use oxc::diagnostics::{Diagnostics, Severity};
use oxc::parser::Parser;
use oxc::semantic::SemanticBuilder;
use oxc::span::{GetSpan as _, SourceType, Span};

use super::edits::{Edits, Piece, Places};
use super::vars;
use crate::isolate::{FailureKind, ModuleError};
use crate::loader::location;
use crate::typescript::{
    Compiled, Mapping, TYPESCRIPT, first_error, imports_left, parsed, strip, with_room,
};

/// Inserted before a script's value.
const RETURN: &str = "return (";
/// The file name of a prompt's line in its errors.
const PROMPT: &str = "prompt";

/// Why a line of a prompt cannot be run.
#[derive(Debug)]
pub(super) enum LineError {
    /// It is incomplete.
    Unfinished,
    /// It is invalid.
    Wrong(ModuleError),
}

impl From<ModuleError> for LineError {
    fn from(error: ModuleError) -> Self {
        Self::Wrong(error)
    }
}

/// A script as a module whose default export is a function of `ctx` that runs it.
///
/// # Errors
/// [`FailureKind::Syntax`] with position and code frame.
pub(super) fn main(file: &str, source: &str) -> Result<Compiled, ModuleError> {
    with_room(file, source, || body(file, source))
}

fn body(file: &str, source: &str) -> Result<Compiled, ModuleError> {
    let js = [".js", ".mjs"].iter().any(|ending| file.ends_with(ending));
    let kind = if js { SourceType::mjs() } else { TYPESCRIPT };
    let allocator = Allocator::default();
    let mut edits = Edits::of(source);
    let mut header = String::new();
    let mut value = object(source, kind);
    if value.is_none() {
        let program = checked(&allocator, file, source, kind)?;
        value = last_value(&program);
        edits.blank(program.hashbang.as_ref().map(|hashbang| hashbang.span));
        for statement in &program.body {
            match statement {
                Statement::ImportDeclaration(import) => {
                    let _ = writeln!(header, "{}", edits.text(import.span));
                    edits.blank(Some(import.span));
                }
                statement if statement.is_module_declaration() => {
                    return Err(no_export(file, source, statement.span()));
                }
                _ => {}
            }
        }
    }
    if let Some(value) = value {
        edits.wrap(value, RETURN, ")");
    }
    let returned = value.map(|value| column(source, value.start));
    header += "export default async function main(ctx) {\n";
    assembled(file, source, kind, &header, &edits.done(Vec::new()).text, "\n}\n", returned)
}

/// An expression over `f` as a module whose default export is a function of `f`.
///
/// # Errors
/// [`FailureKind::Syntax`] with position and code frame.
pub(super) fn expression(file: &str, source: &str) -> Result<Compiled, ModuleError> {
    with_room(file, source, || function(file, source))
}

fn function(file: &str, source: &str) -> Result<Compiled, ModuleError> {
    let allocator = Allocator::default();
    let kind = SourceType::mjs();
    let parsed = Parser::new(&allocator, source, kind).parse_expression();
    if let Err(found) = parsed {
        first_error(file, source, &found)?;
    }
    assembled(file, source, kind, "export default (f) => (\n", source, "\n);\n", None)
}

/// Rewrites a line of a prompt into an expression for an async function that takes the exports of
/// "xs". The line's declarations become global variables; the function returns the value of its
/// last expression. Positions map back to the source.
pub(super) fn line(source: &str) -> Result<Compiled, LineError> {
    with_room(PROMPT, source, || called(source))
}

fn called(source: &str) -> Result<Compiled, LineError> {
    let kind = TYPESCRIPT;
    let allocator = Allocator::default();
    let mut edits = Edits::of(source);
    let mut head: Vec<Piece> = vec!["(async ($xs) => { ".into()];
    let mut value = object(source, kind);
    if value.is_none() {
        let parser = Parser::new(&allocator, source, kind);
        let program = parser.parse();
        if is_unfinished(source, &program.diagnostics) {
            return Err(LineError::Unfinished);
        }
        let program = checked(&allocator, PROMPT, source, kind)?;
        value = last_value(&program);
        for statement in &program.body {
            declare(&mut edits, &mut head, statement)?;
        }
    }
    if let Some(value) = value {
        edits.wrap(value, RETURN, ")");
    }
    let mut edited = edits.done(head);
    edited.add(source, "\n})".into());
    let (code, mappings) = strip(PROMPT, &edited.text, kind)?;
    let (from, to) = (Places::of(&edited.text), Places::of(source));
    let back = |mapping: Mapping| {
        let written = to.place(edited.origin(from.byte(mapping.written)?)?);
        Some(Mapping { written, ..mapping })
    };
    let mappings = mappings.into_iter().filter_map(back).collect();
    Ok(Compiled { code: Some(code), mappings, imports: Vec::new() })
}

/// The program of a source, checked for what the parser alone does not see.
fn checked<'a>(
    allocator: &'a Allocator,
    file: &str,
    source: &'a str,
    kind: SourceType,
) -> Result<Program<'a>, ModuleError> {
    let program = parsed(allocator, file, source, kind)?;
    let checked = SemanticBuilder::new().with_check_syntax_error(true).build(&program);
    first_error(file, source, &checked.diagnostics)?;
    Ok(program)
}

/// The span of a source that is a single object literal, which would parse as a block.
fn object(source: &str, kind: SourceType) -> Option<Span> {
    if !source.trim_start().starts_with('{') {
        return None;
    }
    let allocator = Allocator::default();
    let found = Parser::new(&allocator, source, kind).parse_expression().ok()?;
    Some(found.span())
}

/// The last expression of a program, if it is the last statement.
fn last_value(program: &Program<'_>) -> Option<Span> {
    match program.body.last() {
        Some(Statement::ExpressionStatement(statement)) => Some(statement.expression.span()),
        Some(_) => None,
        // A lone string literal parses as a directive.
        None => program.directives.last().map(|directive| directive.expression.span),
    }
}

/// Makes the declarations of a statement global.
fn declare(
    edits: &mut Edits<'_>,
    head: &mut Vec<Piece>,
    statement: &Statement<'_>,
) -> Result<(), ModuleError> {
    match statement {
        Statement::ImportDeclaration(import) => {
            let assigned = imported(edits.source, import)?;
            edits.replace(import.span, vec![Piece::Text(assigned)]);
        }
        statement if statement.is_module_declaration() => {
            return Err(no_export(PROMPT, edits.source, statement.span()));
        }
        _ => {}
    }
    match statement.as_declaration() {
        Some(Declaration::VariableDeclaration(variables)) if !variables.declare => {
            edits.replace(variables.span, assigned(variables));
        }
        Some(Declaration::FunctionDeclaration(function)) if function.body.is_some() => {
            if let Some(name) = &function.id {
                let begin = Piece::Text(format!("{} = ", name.name));
                head.extend([begin, function.span.into(), "; ".into()]);
                edits.blank(Some(function.span));
            }
        }
        Some(Declaration::ClassDeclaration(class))
            if edits.text(class.span).starts_with("class") =>
        {
            if let Some(name) = &class.id {
                let begin = Piece::Text(format!("{} = ", name.name));
                edits.replace(class.span, vec![begin, class.span.into(), ";".into()]);
            }
        }
        Some(_) => {}
        None => head.push(Piece::Text(vars::lift(edits, statement))),
    }
    Ok(())
}

/// The assignments that replace declarations.
fn assigned(variables: &VariableDeclaration<'_>) -> Vec<Piece> {
    let each = variables.declarations.iter().flat_map(|variable| {
        let value = variable.init.as_ref().map(|init| init.span().into());
        let value = value.unwrap_or_else(|| "undefined".into());
        ["(".into(), variable.id.span().into(), " = ".into(), value, "); ".into()]
    });
    each.collect()
}

/// Assigns the names imported from "xs" out of the function's argument.
fn imported(source: &str, import: &ImportDeclaration<'_>) -> Result<String, ModuleError> {
    if import.source.value != "xs" {
        let message = "at the prompt only \"xs\" can be imported; run a file that imports others \
                       with xs eval --file";
        let at = import.source.span.start as usize;
        let message = message.to_owned();
        return Err(location::error_at(FailureKind::Import, message, PROMPT, source, at));
    }
    let mut text = String::new();
    for specifier in import.specifiers.iter().flatten() {
        if import.import_kind.is_type() {
            continue;
        }
        let _ = match specifier {
            ImportDeclarationSpecifier::ImportSpecifier(one) if !one.import_kind.is_type() => {
                write!(text, "({} = $xs[{:?}]); ", one.local.name, one.imported.name().as_str())
            }
            ImportDeclarationSpecifier::ImportSpecifier(_) => Ok(()),
            ImportDeclarationSpecifier::ImportNamespaceSpecifier(all) => {
                write!(text, "({} = $xs); ", all.local.name)
            }
            ImportDeclarationSpecifier::ImportDefaultSpecifier(none) => {
                let at = none.span.start as usize;
                let message = "\"xs\" has no default export".to_owned();
                return Err(location::error_at(FailureKind::Import, message, PROMPT, source, at));
            }
        };
    }
    Ok(text)
}

fn no_export(file: &str, source: &str, span: Span) -> ModuleError {
    let message = "SyntaxError: a script cannot export; its last expression is its value";
    let at = span.start as usize;
    location::error_at(FailureKind::Syntax, message.to_owned(), file, source, at)
}

/// Whether a source is only incomplete.
fn is_unfinished(source: &str, found: &Diagnostics) -> bool {
    let end = source.trim_end().len();
    let Some(error) = found.iter().find(|found| found.severity == Severity::Error) else {
        return false;
    };
    let at = error.labels.first().map_or(0, |label| label.offset() as usize);
    // Of the unterminated tokens only a template and a comment may continue on the next line.
    match error.message.as_ref() {
        "Unterminated multiline comment" => true,
        "Unterminated string" => source[at..].starts_with(['`', '}']),
        _ => at >= end,
    }
}

/// Compiles a source between a header and a footer. Positions map back to the source; `returned` is
/// where a `return (` was inserted.
fn assembled(
    file: &str,
    source: &str,
    kind: SourceType,
    header: &str,
    body: &str,
    footer: &str,
    returned: Option<(u32, u32)>,
) -> Result<Compiled, ModuleError> {
    let whole = format!("{header}{body}{footer}");
    let lines = u32::try_from(header.matches('\n').count()).unwrap_or(u32::MAX);
    let (code, mappings) =
        strip(file, &whole, kind).map_err(|error| moved(error, source, lines))?;
    let count = source.matches('\n').count();
    let back = |mapping: Mapping| {
        let (line, mut column) = (mapping.written.0.checked_sub(lines)?, mapping.written.1);
        if line as usize > count {
            return None;
        }
        if let Some((_, from)) = returned.filter(|(at, from)| *at == line && column > *from) {
            column = column.saturating_sub(RETURN.len() as u32).max(from);
        }
        Some(Mapping { made: mapping.made, written: (line, column) })
    };
    let mappings = mappings.into_iter().filter_map(back).collect();
    let imports = imports_left(file, &code, source, kind)?;
    Ok(Compiled { code: Some(code), mappings, imports })
}

/// Moves an error's position from after the header to the source.
fn moved(error: ModuleError, source: &str, lines: u32) -> ModuleError {
    let (Some(line), Some(column)) = (error.line, error.column) else { return error };
    let line = line.saturating_sub(lines).max(1);
    ModuleError {
        line: Some(line),
        code_frame: location::code_frame(source, line, column),
        ..error
    }
}

/// Line and column of a byte offset, from 0, as in source maps.
fn column(source: &str, at: u32) -> (u32, u32) {
    let before = source.get(..at as usize).unwrap_or_default();
    let line = before.matches('\n').count();
    let begin = before.rfind('\n').map_or(0, |at| at + 1);
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    (count(line), count(before[begin..].encode_utf16().count()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(source: &str) -> String {
        main("a.ts", source).unwrap().code.unwrap()
    }

    #[test]
    fn the_last_expression_is_the_value() {
        for (source, value) in [
            ("1 + 1", "return 1 + 1;"),
            ("let a: number = 1;\na // it", "return a;"),
            ("{ a: 1, b: [2] }", "return {"),
            ("'text'", "return \"text\";"),
            ("import { sse } from \"xs\";\nsse", "return sse;"),
        ] {
            let code = code(source);
            assert!(code.contains(value), "{code}");
        }
        for none in ["", "let a = 1", "{ let a = 1; a }", "if (1) 2"] {
            assert!(!code(none).contains("return"), "{none}");
        }
        assert!(code("import { sse } from \"xs\";\nsse").starts_with("import"));
    }

    #[test]
    fn errors_are_where_they_were_written() {
        for (source, place) in [
            ("let a = 1;\nlet b = a c;", (2, 10)),
            ("1 +", (1, 4)),
            ("let b = 1;\nexport { b };", (2, 1)),
            ("await 1;\nreturn 2", (2, 1)),
        ] {
            let error = main("a.ts", source).unwrap_err();
            let found = (error.line.unwrap(), error.column.unwrap());
            assert_eq!(found, place, "{error}");
        }
        let error = main("a.ts", "import x from 'lodash';\nx").unwrap();
        assert_eq!(error.imports[0].at, 14);
    }

    #[test]
    fn places_lead_back() {
        let compiled = main("a.ts", "import \"xs\";\nlet a: any = 1;\n  a.b.c").unwrap();
        let written: Vec<_> = compiled.mappings.iter().map(|mapping| mapping.written).collect();
        assert!(written.contains(&(1, 4)) && written.contains(&(2, 2)), "{written:?}");
        assert!(written.iter().all(|(line, column)| *line < 3 && *column < 14), "{written:?}");
    }

    #[test]
    fn an_expression_is_one() {
        assert!(expression("--where", "f.meta.value > 9 // much").is_ok());
        for wrong in ["", "f.", "f; f", "1) + (2", "await f.text()", "import 'a'", "let a"] {
            let error = expression("--where", wrong).unwrap_err();
            assert_eq!(error.kind, FailureKind::Syntax, "{wrong}");
            assert!(error.line.unwrap() <= 1, "{wrong}: {error}");
        }
    }

    #[test]
    fn what_a_line_declares_is_global() {
        for (source, made) in [
            ("const a = 1, { b, c: [d] } = x", "({b, c: [d]} = x);"),
            ("let e", "e = undefined;"),
            ("function f() { return 1 }\nf()", "f = function f()"),
            ("class G {}", "G = class G {}"),
            ("import { sse as s, lines } from 'xs'", "s = $xs[\"sse\"];"),
            ("type T = number; const h: T = 1 as T", "h = 1;"),
            ("if (x) { f()\nvar i: T = 1, [j] = y; }", "f(); void (i = 1, [j] = y, 0);"),
            ("{ var k }", "typeof k === \"undefined\" && (k = undefined);"),
            ("for (var l = 0; l < 9; l++);", "for (void (l = 0, 0); l < 9; l++);"),
            ("for (var { m } of x) {}", "for ({m} of x) {}"),
            ("for (var n in x) {}", "for (n in x) {}"),
            ("{ (() => { var o = 1 })() }", "var o = 1;"),
            ("{ let p = 1 }", "let p = 1;"),
        ] {
            let code = line(source).unwrap().code.unwrap();
            let squeezed = code.replace(['\n', '\t', ' '], "");
            assert!(squeezed.contains(&made.replace(' ', "")), "{code}");
        }
        for open in ["f(", "for (;;) {", "`a", "/* a", "{ a: 1,", "let a ="] {
            assert!(matches!(line(open), Err(LineError::Unfinished)), "{open}");
        }
        for wrong in ["\"a", "let 1", "f())", "import a from 'b'", "export default 1"] {
            assert!(matches!(line(wrong), Err(LineError::Wrong(_))), "{wrong}");
        }
    }
    #[test]
    fn places_of_a_line_lead_back() {
        let compiled = line("let a = 1; function f() {\n  b.c;\n}\nif (a) { var d = e }").unwrap();
        let code = compiled.code.unwrap();
        for (made, written) in [("b.c", (1, 2)), ("e,", (3, 17)), ("a) {", (3, 4))] {
            let at = code.find(made).unwrap();
            let before = &code[..at];
            let line = before.matches('\n').count() as u32;
            let column = before.len() - before.rfind('\n').map_or(0, |at| at + 1);
            let made = (line, column as u32);
            let found = compiled.mappings.iter().find(|mapping| mapping.made == made);
            assert_eq!(found.map(|mapping| mapping.written), Some(written), "{code}");
        }
    }
}
