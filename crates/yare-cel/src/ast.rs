//! The tree of an expression, and what callers ask of it after checking.

use std::{collections::BTreeSet, sync::Arc};

use crate::{
    cost::{CostEstimate, SizeEstimator},
    deep::{may_be_deep, with_room},
    env::Env,
    error::CompileError,
    plan::Program,
    types::Type,
};

/// Identifies a node within its tree, for positions and types.
pub(crate) type Id = u32;
pub(crate) type Name = Arc<str>;

/// A literal of the source.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Literal {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Arc<str>),
    Bytes(Arc<[u8]>),
}

#[derive(Clone, Debug)]
pub(crate) struct Expr {
    pub id: Id,
    pub kind: Kind,
}

#[derive(Clone, Debug)]
pub(crate) enum Kind {
    /// What stands where the source had a mistake.
    Unspecified,
    Literal(Literal),
    Ident(Name),
    Select {
        operand: Box<Expr>,
        field: Name,
        test_only: bool,
    },
    Call(Box<Call>),
    List {
        items: Vec<Expr>,
        /// Indices of the items written with `?`.
        optional: Vec<usize>,
    },
    Map(Vec<Entry>),
    Struct {
        name: Name,
        fields: Vec<FieldInit>,
    },
    Fold(Box<Fold>),
}

#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub function: Name,
    pub target: Option<Expr>,
    pub args: Vec<Expr>,
}

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub key: Expr,
    pub value: Expr,
    pub optional: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct FieldInit {
    pub id: Id,
    pub name: Name,
    pub value: Expr,
    pub optional: bool,
}

/// A comprehension: what all loop macros become.
#[derive(Clone, Debug)]
pub(crate) struct Fold {
    pub range: Expr,
    pub var: Name,
    pub var2: Option<Name>,
    pub accu: Name,
    pub init: Expr,
    pub condition: Expr,
    pub step: Expr,
    pub result: Expr,
}

/// The accumulator of macros: no identifier of the source can be called that.
pub(crate) const ACCU: &str = "@result";
/// How older expressions could have called it; iteration variables still may not.
pub(crate) const OLD_ACCU: &str = "__result__";

impl Expr {
    pub(crate) fn call(id: Id, function: &str, args: Vec<Expr>) -> Expr {
        Expr { id, kind: Kind::Call(Box::new(Call { function: function.into(), target: None, args })) }
    }

    pub(crate) fn ident(id: Id, name: &str) -> Expr {
        Expr { id, kind: Kind::Ident(name.into()) }
    }

    pub(crate) fn literal(id: Id, literal: Literal) -> Expr {
        Expr { id, kind: Kind::Literal(literal) }
    }

    /// `a.b.c` when the expression is nothing but names.
    pub(crate) fn qualified_name(&self) -> Option<String> {
        match &self.kind {
            Kind::Ident(name) => Some(name.to_string()),
            Kind::Select { operand, field, test_only: false } => {
                let mut name = operand.qualified_name()?;
                name.push('.');
                name.push_str(field);
                Some(name)
            }
            _ => None,
        }
    }

    /// Calls `visit` for each child.
    pub(crate) fn children<'e>(&'e self, visit: &mut impl FnMut(&'e Expr)) {
        match &self.kind {
            Kind::Unspecified | Kind::Literal(_) | Kind::Ident(_) => {}
            Kind::Select { operand, .. } => visit(operand),
            Kind::Call(call) => {
                call.target.iter().for_each(&mut *visit);
                call.args.iter().for_each(visit);
            }
            Kind::List { items, .. } => items.iter().for_each(visit),
            Kind::Map(entries) => entries.iter().for_each(|entry| {
                visit(&entry.key);
                visit(&entry.value);
            }),
            Kind::Struct { fields, .. } => fields.iter().for_each(|field| visit(&field.value)),
            Kind::Fold(fold) => {
                for part in [&fold.range, &fold.init, &fold.condition, &fold.step, &fold.result] {
                    visit(part);
                }
            }
        }
    }

    /// Calls `visit` for each child.
    pub(crate) fn children_mut(&mut self, visit: &mut impl FnMut(&mut Expr)) {
        match &mut self.kind {
            Kind::Unspecified | Kind::Literal(_) | Kind::Ident(_) => {}
            Kind::Select { operand, .. } => visit(operand),
            Kind::Call(call) => {
                call.target.iter_mut().for_each(&mut *visit);
                call.args.iter_mut().for_each(visit);
            }
            Kind::List { items, .. } => items.iter_mut().for_each(visit),
            Kind::Map(entries) => entries.iter_mut().for_each(|entry| {
                visit(&mut entry.key);
                visit(&mut entry.value);
            }),
            Kind::Struct { fields, .. } => fields.iter_mut().for_each(|field| visit(&mut field.value)),
            Kind::Fold(fold) => {
                for part in
                    [&mut fold.range, &mut fold.init, &mut fold.condition, &mut fold.step, &mut fold.result]
                {
                    visit(part);
                }
            }
        }
    }
}

/// Places of nodes: the offset in code points, by id.
#[derive(Clone, Debug, Default)]
pub(crate) struct Positions {
    pub offsets: Vec<u32>,
    line_starts: Vec<u32>,
}

impl Positions {
    pub(crate) fn new(source: &str) -> Positions {
        let mut line_starts = vec![0];
        line_starts.extend(source.chars().zip(1..).filter(|(c, _)| *c == '\n').map(|(_, next)| next));
        // Id 0 is no node.
        Positions { offsets: vec![0], line_starts }
    }

    pub(crate) fn next_id(&mut self, offset: u32) -> Id {
        self.offsets.push(offset);
        (self.offsets.len() - 1) as Id
    }

    /// Line from 1, column from 0.
    pub(crate) fn locate(&self, offset: u32) -> (u32, u32) {
        let line = self.line_starts.partition_point(|start| *start <= offset);
        (line as u32, offset - self.line_starts[line - 1])
    }

    pub(crate) fn of(&self, id: Id) -> (u32, u32) {
        self.locate(self.offsets.get(id as usize).copied().unwrap_or(0))
    }
}

/// What the checker found a node to mean.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Reference {
    /// The overloads that a call may come to.
    Overloads(Vec<&'static str>),
    /// A variable, by its full name.
    Variable(Name),
    /// The name of a type.
    TypeName(Type),
}

/// An expression that parses and type-checks in its environment.
#[derive(Clone, Debug)]
pub struct Ast {
    pub(crate) root: Expr,
    pub(crate) types: Vec<Type>,
    pub(crate) references: Vec<Option<Reference>>,
    pub(crate) positions: Positions,
    pub(crate) source: Arc<str>,
    pub(crate) env: Env,
}

impl Ast {
    pub(crate) fn type_of(&self, expr: &Expr) -> &Type {
        self.types.get(expr.id as usize).unwrap_or(&Type::Dyn)
    }

    pub(crate) fn reference(&self, expr: &Expr) -> Option<&Reference> {
        self.references.get(expr.id as usize)?.as_ref()
    }

    pub(crate) fn overloads(&self, expr: &Expr) -> &[&'static str] {
        match self.reference(expr) {
            Some(Reference::Overloads(ids)) => ids,
            _ => &[],
        }
    }

    /// What the expression evaluates to.
    pub fn output_type(&self) -> &Type {
        self.type_of(&self.root)
    }

    /// The text it was compiled from.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// What evaluating it may cost.
    pub fn estimate(&self, sizes: &dyn SizeEstimator) -> CostEstimate {
        with_room(may_be_deep(&self.source), || crate::estimate::estimate(self, sizes))
    }

    /// Which variables it reads.
    pub fn references(&self) -> References {
        let mut references = References::default();
        self.collect(&self.root, &mut references);
        references
    }

    fn collect(&self, expr: &Expr, into: &mut References) {
        // A chain of fields over a variable is told whole.
        let mut path = Vec::new();
        let mut at = expr;
        let variable = loop {
            if let Some(Reference::Variable(name)) = self.reference(at) {
                break Some(name);
            }
            match &at.kind {
                Kind::Select { operand, field, .. } => {
                    path.push(field.clone());
                    at = operand;
                }
                _ => break None,
            }
        };
        if let Some(name) = variable {
            let mut full = name.to_string();
            for field in path.iter().rev() {
                full.push('.');
                full.push_str(field);
            }
            into.variables.insert(name.to_string());
            into.paths.insert(full);
            return;
        }
        expr.children(&mut |child| self.collect(child, into));
    }

    /// Whether `variable.field` or `variable.?field` stands anywhere in it, within `has` too. An index with the
    /// field's name is something else.
    pub fn selects(&self, variable: &str, field: &str) -> bool {
        fn is_variable(expr: &Expr, variable: &str) -> bool {
            matches!(&expr.kind, Kind::Ident(name) if **name == *variable)
        }
        fn walk(expr: &Expr, variable: &str, field: &str) -> bool {
            let here = match &expr.kind {
                Kind::Select { operand, field: name, .. } => {
                    **name == *field && is_variable(operand, variable)
                }
                Kind::Call(call) if &*call.function == "_?._" => match call.args.as_slice() {
                    [operand, Expr { kind: Kind::Literal(Literal::String(name)), .. }] => {
                        **name == *field && is_variable(operand, variable)
                    }
                    _ => false,
                },
                _ => false,
            };
            let mut found = here;
            expr.children(&mut |child| found = found || walk(child, variable, field));
            found
        }
        with_room(may_be_deep(&self.source), || walk(&self.root, variable, field))
    }

    /// Makes it ready to be evaluated.
    ///
    /// # Errors
    /// A constant that is none: an invalid regular expression or timestamp.
    pub fn program(&self) -> Result<Program, CompileError> {
        with_room(may_be_deep(&self.source), || crate::plan::plan(self))
    }
}

/// What an expression reads from outside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct References {
    /// Variables, by name.
    pub variables: BTreeSet<String>,
    /// Chains of fields from variables, as far as they are written out: `object.spec.replicas`.
    pub paths: BTreeSet<String>,
}

impl References {
    /// Whether the variable is read.
    pub fn reads(&self, variable: &str) -> bool {
        self.variables.contains(variable)
    }
}
