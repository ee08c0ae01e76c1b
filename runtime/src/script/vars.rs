//! The `var`s inside the blocks and loops of a prompt's line. They belong to the whole line, so
//! they become global like its other declarations.

use oxc::ast::ast::{
    ArrowFunctionExpression, Class, ForStatementInit, ForStatementLeft, Function, Statement,
    VariableDeclaration,
};
use oxc::ast_visit::Visit;
use oxc::span::GetSpan as _;
use oxc::syntax::scope::ScopeFlags;

use super::edits::{Edits, Piece};

/// Turns the declarations inside of a statement into assignments; returns code that declares them.
pub(super) fn lift(edits: &mut Edits<'_>, statement: &Statement<'_>) -> String {
    let mut lifting = Lifting { edits, declared: String::new() };
    lifting.visit_statement(statement);
    lifting.declared
}

struct Lifting<'e, 's> {
    edits: &'e mut Edits<'s>,
    declared: String,
}

impl Lifting<'_, '_> {
    /// Declares the names, which keep their values if they are known already.
    fn declare(&mut self, variables: &VariableDeclaration<'_>) {
        for variable in &variables.declarations {
            for name in variable.id.get_binding_identifiers() {
                let name = name.name;
                self.declared +=
                    &format!("typeof {name} === 'undefined' && ({name} = undefined); ");
            }
        }
    }

    /// The assignments of a declaration as one expression. It begins with a word, so that it does
    /// not continue a line without a semicolon.
    fn assign(&mut self, variables: &VariableDeclaration<'_>, end: &str) {
        self.declare(variables);
        let mut by: Vec<Piece> = vec!["void (".into()];
        for variable in &variables.declarations {
            let Some(value) = &variable.init else { continue };
            by.extend([variable.id.span().into(), " = ".into(), value.span().into(), ", ".into()]);
        }
        by.push(format!("0){end}").as_str().into());
        self.edits.replace(variables.span, by);
    }
}

fn is_lifted(variables: &VariableDeclaration<'_>) -> bool {
    variables.kind.is_var() && !variables.declare
}

impl<'a> Visit<'a> for Lifting<'_, '_> {
    fn visit_variable_declaration(&mut self, variables: &VariableDeclaration<'a>) {
        if is_lifted(variables) {
            self.assign(variables, ";");
        }
    }

    fn visit_for_statement_init(&mut self, init: &ForStatementInit<'a>) {
        match init {
            ForStatementInit::VariableDeclaration(variables) if is_lifted(variables) => {
                self.assign(variables, "");
            }
            _ => {}
        }
    }

    fn visit_for_statement_left(&mut self, left: &ForStatementLeft<'a>) {
        let ForStatementLeft::VariableDeclaration(variables) = left else { return };
        if !is_lifted(variables) {
            return;
        }
        self.declare(variables);
        if let Some(variable) = variables.declarations.first() {
            self.edits.replace(variables.span, vec![variable.id.span().into()]);
        }
    }

    // These have `var`s of their own.
    fn visit_function(&mut self, _: &Function<'a>, _: ScopeFlags) {}
    fn visit_arrow_function_expression(&mut self, _: &ArrowFunctionExpression<'a>) {}
    fn visit_class(&mut self, _: &Class<'a>) {}
}
