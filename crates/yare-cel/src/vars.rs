//! The variables of one evaluation.

use std::cell::RefCell;

use serde_json::Value as Json;

use crate::{Program, decl::Decl, error::EvalError, value::Value};

/// A variable's value.
pub(crate) enum Binding<'a> {
    Value(Value<'a>),
    Json(&'a Json, &'a Decl),
    Lazy(&'a Lazy<'a>),
}

/// Variables by name, borrowing what they are for `'a`. A variable that is declared and not bound fails
/// with `no such attribute(s): name` when it is read.
#[derive(Default)]
pub struct Vars<'a> {
    pub(crate) bound: Vec<(&'a str, Binding<'a>)>,
    pub(crate) cancel: Option<&'a (dyn Fn() -> bool + 'a)>,
}

impl<'a> Vars<'a> {
    /// None.
    pub fn new() -> Vars<'a> {
        Vars::default()
    }

    fn set(&mut self, name: &'a str, binding: Binding<'a>) {
        match self.bound.iter_mut().find(|(bound, _)| *bound == name) {
            Some(slot) => slot.1 = binding,
            None => self.bound.push((name, binding)),
        }
    }

    /// Binds a value.
    pub fn bind(&mut self, name: &'a str, value: Value<'a>) {
        self.set(name, Binding::Value(value));
    }

    /// Binds JSON, to be read as `decl` says. Nothing is looked at before an expression does.
    pub fn bind_json(&mut self, name: &'a str, json: &'a Json, decl: &'a Decl) {
        self.set(name, Binding::Json(json, decl));
    }

    /// Binds an object whose fields are expressions, evaluated when they are first read: `variables.x`.
    pub fn bind_lazy(&mut self, name: &'a str, fields: &'a Lazy<'a>) {
        self.set(name, Binding::Lazy(fields));
    }

    /// Asked now and then inside of loops; `true` ends the evaluation with [`EvalError::Interrupted`].
    pub fn cancel_when(&mut self, cancelled: &'a (dyn Fn() -> bool + 'a)) {
        self.cancel = Some(cancelled);
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Binding<'a>> {
        self.bound.iter().find(|(bound, _)| *bound == name).map(|(_, binding)| binding)
    }
}

/// Expressions by name, each evaluated at most once per request, with the variables given here.
///
/// They may read each other through the same `Lazy`, in the order they were added (an admission policy's
/// `variables`). What one costs is charged to the budget of the evaluation that reads it first, and never
/// again. They see the variables of the evaluation that reads them. A failure is kept like a value.
#[derive(Default)]
pub struct Lazy<'a> {
    pub(crate) fields: Vec<(&'a str, &'a Program)>,
    pub(crate) done: RefCell<Vec<Option<Result<Value<'a>, EvalError>>>>,
}

impl<'a> Lazy<'a> {
    /// None.
    pub fn new() -> Lazy<'a> {
        Lazy::default()
    }

    /// Adds an expression.
    pub fn push(&mut self, name: &'a str, program: &'a Program) {
        self.fields.push((name, program));
        self.done.get_mut().push(None);
    }
}
