//! Replaces types by spaces, so that code keeps the lines and columns of its author. It need not
//! know all of TypeScript: whoever uses the result compares it with what the compiler made.

use std::collections::HashSet;

use oxc::ast::ast::{
    AccessorProperty, Class, ExportDeclaration, ExportDefaultDeclaration,
    ExportDefaultDeclarationKind, FormalParameter, Function, ImportDeclarationSpecifier,
    MethodDefinition, MethodDefinitionType, Program, PropertyDefinition, PropertyDefinitionType,
    Statement, TSAsExpression, TSIndexSignature, TSInterfaceDeclaration, TSNonNullExpression,
    TSSatisfiesExpression, TSThisParameter, TSTypeAliasDeclaration, TSTypeAnnotation,
    TSTypeAssertion, TSTypeParameterDeclaration, TSTypeParameterInstantiation, VariableDeclaration,
    VariableDeclarator,
};
use oxc::ast_visit::{Visit, walk};
use oxc::span::{GetSpan as _, Span};
use oxc::syntax::scope::ScopeFlags;

/// Words before a class or its members that mean nothing at run time.
const MODIFIERS: [&str; 7] =
    ["abstract", "declare", "override", "private", "protected", "public", "readonly"];

/// What can be erased from a source, found before the compiler has changed its tree.
pub(super) struct Erasable {
    spans: Vec<Span>,
    /// Imports and exports, of which the compiler keeps those with values: each declaration, with
    /// its names.
    links: Vec<(Span, Vec<Span>)>,
}

impl Erasable {
    pub(super) fn of(source: &str, program: &Program<'_>) -> Self {
        let mut finder = Finder { source, spans: Vec::new() };
        finder.visit_program(program);
        Self { spans: finder.spans, links: links(program) }
    }

    /// The source without its types, in the places where it was; `program` is the compiler's tree.
    pub(super) fn erased(mut self, source: &str, program: &Program<'_>) -> String {
        let kept: HashSet<Span> = links(program)
            .into_iter()
            .flat_map(|(span, names)| names.into_iter().chain([span]))
            .collect();
        for (link, names) in &self.links {
            if !kept.contains(link) {
                self.spans.push(*link);
                continue;
            }
            for (at, name) in names.iter().enumerate().filter(|(_, name)| !kept.contains(*name)) {
                self.spans.push(*name);
                let rest =
                    Span::new(name.end, names.get(at + 1).map_or(link.end, |next| next.start));
                let text = source.get(rest.start as usize..rest.end as usize).unwrap_or_default();
                if text.trim_start().starts_with(',') {
                    let comma = rest.start + (text.len() - text.trim_start().len()) as u32;
                    self.spans.push(Span::new(comma, comma + 1));
                }
            }
        }
        self.spans.sort_by_key(|span| span.start);
        let (mut text, mut at) = (String::with_capacity(source.len()), 0);
        for span in self.spans {
            let (start, end) = ((span.start as usize).max(at), span.end as usize);
            if end <= at {
                continue;
            }
            text += source.get(at..start).unwrap_or_default();
            source.get(start..end).unwrap_or_default().chars().for_each(|c| blank(&mut text, c));
            at = end;
        }
        text + source.get(at..).unwrap_or_default()
    }
}

/// As many spaces as a character counts for in a column.
fn blank(text: &mut String, c: char) {
    match c {
        '\n' | '\r' | '\u{2028}' | '\u{2029}' => text.push(c),
        c => text.extend(std::iter::repeat_n(' ', c.len_utf16())),
    }
}

/// The imports of a program and its exports without a declaration.
fn links(program: &Program<'_>) -> Vec<(Span, Vec<Span>)> {
    let link = |statement: &Statement<'_>| match statement {
        Statement::ImportDeclaration(import) => {
            let names = import.specifiers.iter().flatten();
            Some((import.span, names.map(ImportDeclarationSpecifier::span).collect()))
        }
        Statement::ExportNamedDeclaration(export) => {
            Some((export.span, export.specifiers.iter().map(|name| name.span).collect()))
        }
        Statement::ExportFromDeclaration(export) => {
            Some((export.span, export.specifiers.iter().map(|name| name.span).collect()))
        }
        Statement::ExportAllDeclaration(export) => Some((export.span, Vec::new())),
        _ => None,
    };
    program.body.iter().filter_map(link).collect()
}

struct Finder<'s> {
    source: &'s str,
    spans: Vec<Span>,
}

impl Finder<'_> {
    fn erase(&mut self, start: u32, end: u32) {
        self.spans.push(Span::new(start, end));
    }

    fn text(&self, start: u32, end: u32) -> &str {
        self.source.get(start as usize..end as usize).unwrap_or_default()
    }

    /// Erases the modifiers among the words between two places.
    fn modifiers(&mut self, start: u32, end: u32) {
        let text = self.text(start, end);
        let mut found = Vec::new();
        let mut at = 0;
        for word in text.split(|c: char| !c.is_ascii_alphanumeric()) {
            if MODIFIERS.contains(&word) {
                found.push((start + at, start + at + word.len() as u32));
            }
            at += word.len() as u32 + 1;
        }
        found.into_iter().for_each(|(start, end)| self.erase(start, end));
    }

    /// Erases the first `?` or `!` between two places, if it is the first but brackets and spaces.
    fn mark(&mut self, start: u32, end: u32) {
        let text = self.text(start, end);
        let at = text.find(|c: char| c != ']' && !c.is_whitespace());
        if let Some(at) = at.filter(|at| text[*at..].starts_with(['?', '!'])) {
            self.erase(start + at as u32, start + at as u32 + 1);
        }
    }
}

/// Whether a declaration has no code.
fn is_nothing(function: &Function<'_>) -> bool {
    function.declare || function.body.is_none()
}

impl<'a> Visit<'a> for Finder<'_> {
    fn visit_ts_type_annotation(&mut self, it: &TSTypeAnnotation<'a>) {
        self.spans.push(it.span);
    }
    fn visit_ts_type_parameter_declaration(&mut self, it: &TSTypeParameterDeclaration<'a>) {
        self.spans.push(it.span);
    }
    fn visit_ts_type_parameter_instantiation(&mut self, it: &TSTypeParameterInstantiation<'a>) {
        self.spans.push(it.span);
    }
    fn visit_ts_interface_declaration(&mut self, it: &TSInterfaceDeclaration<'a>) {
        self.spans.push(it.span);
    }
    fn visit_ts_type_alias_declaration(&mut self, it: &TSTypeAliasDeclaration<'a>) {
        self.spans.push(it.span);
    }
    fn visit_ts_index_signature(&mut self, it: &TSIndexSignature<'a>) {
        self.spans.push(it.span);
    }

    fn visit_ts_as_expression(&mut self, it: &TSAsExpression<'a>) {
        self.erase(it.expression.span().end, it.span.end);
        self.visit_expression(&it.expression);
    }
    fn visit_ts_satisfies_expression(&mut self, it: &TSSatisfiesExpression<'a>) {
        self.erase(it.expression.span().end, it.span.end);
        self.visit_expression(&it.expression);
    }
    fn visit_ts_non_null_expression(&mut self, it: &TSNonNullExpression<'a>) {
        self.erase(it.expression.span().end, it.span.end);
        self.visit_expression(&it.expression);
    }
    fn visit_ts_type_assertion(&mut self, it: &TSTypeAssertion<'a>) {
        self.erase(it.span.start, it.expression.span().start);
        self.visit_expression(&it.expression);
    }

    fn visit_ts_this_parameter(&mut self, it: &TSThisParameter<'a>) {
        self.spans.push(it.span);
        let rest = self.text(it.span.end, self.source.len() as u32);
        let comma = rest.len() - rest.trim_start().len();
        if rest[comma..].starts_with(',') {
            let comma = it.span.end + comma as u32;
            self.erase(comma, comma + 1);
        }
    }

    fn visit_formal_parameter(&mut self, it: &FormalParameter<'a>) {
        self.mark(it.pattern.span().end, it.span.end);
        walk::walk_formal_parameter(self, it);
    }
    fn visit_variable_declarator(&mut self, it: &VariableDeclarator<'a>) {
        self.mark(it.id.span().end, it.span.end);
        walk::walk_variable_declarator(self, it);
    }
    fn visit_variable_declaration(&mut self, it: &VariableDeclaration<'a>) {
        match it.declare {
            true => self.spans.push(it.span),
            false => walk::walk_variable_declaration(self, it),
        }
    }
    fn visit_function(&mut self, it: &Function<'a>, flags: ScopeFlags) {
        match is_nothing(it) {
            true => self.spans.push(it.span),
            false => walk::walk_function(self, it, flags),
        }
    }

    fn visit_export_declaration(&mut self, it: &ExportDeclaration<'a>) {
        let before = self.spans.len();
        self.visit_declaration(&it.declaration);
        // What is declared is a type.
        if self.spans.get(before) == Some(&it.declaration.span()) {
            self.spans.push(it.span);
        }
    }
    fn visit_export_default_declaration(&mut self, it: &ExportDefaultDeclaration<'a>) {
        match &it.declaration {
            ExportDefaultDeclarationKind::TSInterfaceDeclaration(_) => self.spans.push(it.span),
            ExportDefaultDeclarationKind::FunctionDeclaration(function) if is_nothing(function) => {
                self.spans.push(it.span);
            }
            _ => walk::walk_export_default_declaration(self, it),
        }
    }

    fn visit_class(&mut self, it: &Class<'a>) {
        if it.declare {
            return self.spans.push(it.span);
        }
        let name = it.id.as_ref().map_or(it.span.start, |id| id.span.start);
        if it.r#abstract {
            self.modifiers(it.span.start, name);
        }
        if let (Some(first), Some(last)) = (it.implements.first(), it.implements.last()) {
            let head = self.text(it.span.start, first.span.start);
            if let Some(at) = head.rfind("implements") {
                self.erase(it.span.start + at as u32, last.span.end);
            }
        }
        walk::walk_class(self, it);
    }
    fn visit_method_definition(&mut self, it: &MethodDefinition<'a>) {
        let is_abstract = it.r#type == MethodDefinitionType::TSAbstractMethodDefinition;
        if is_abstract || is_nothing(&it.value) {
            return self.spans.push(it.span);
        }
        self.modifiers(it.span.start, it.key.span().start);
        self.mark(it.key.span().end, it.value.span.start);
        walk::walk_method_definition(self, it);
    }
    fn visit_property_definition(&mut self, it: &PropertyDefinition<'a>) {
        if it.declare || it.r#type == PropertyDefinitionType::TSAbstractPropertyDefinition {
            return self.spans.push(it.span);
        }
        self.modifiers(it.span.start, it.key.span().start);
        self.mark(it.key.span().end, it.span.end);
        walk::walk_property_definition(self, it);
    }
    fn visit_accessor_property(&mut self, it: &AccessorProperty<'a>) {
        self.modifiers(it.span.start, it.key.span().start);
        self.mark(it.key.span().end, it.span.end);
        walk::walk_accessor_property(self, it);
    }
}
