//! From a checked tree to a program: names become slots, constants are folded, patterns compiled.
//!
//! The shapes here follow how upstream counts the costs of evaluation. A variable with the fields and
//! indices behind it is one attribute: it costs 1, and 1 for each step. A branch of a conditional that is an
//! attribute costs its steps only.

use std::{collections::HashSet, sync::Arc};

use crate::{
    ast::{Ast, Call, Expr, Fold, Kind, Literal, Name, Reference},
    error::CompileError,
    eval,
    library::{self, Cost, Eval, Overload},
    types::Type,
    value::Value,
};

/// A compiled expression. Share it between threads; evaluate it with [`Program::eval`].
#[derive(Debug)]
pub struct Program {
    pub(crate) root: Node,
    /// How many variables of comprehensions are alive at most.
    pub(crate) slots: usize,
}

pub(crate) enum Node {
    /// Ready when compiled. What a folded call costs is still charged.
    Const {
        value: Value<'static>,
        cost: u64,
    },
    Attr(Box<Attr>),
    And(Box<[Node; 2]>),
    Or(Box<[Node; 2]>),
    /// Anything but `false`, an error included, is `true`.
    NotStrictlyFalse(Box<Node>),
    Call(Box<CallNode>),
    /// `x in [constants]`
    Member {
        value: Box<Node>,
        set: HashSet<SetKey>,
    },
    /// `a.or(b)`, `a.orValue(b)`
    OptionalOr {
        sides: Box<[Node; 2]>,
        unwrap: bool,
    },
    List {
        items: Box<[Node]>,
        optional: Box<[bool]>,
    },
    Map(Box<[MapEntry]>),
    Struct {
        name: Name,
        fields: Box<[StructField]>,
    },
    Fold(Box<FoldNode>),
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Node")
    }
}

pub(crate) struct MapEntry {
    pub key: Node,
    pub value: Node,
    pub optional: bool,
}

pub(crate) struct StructField {
    pub name: Name,
    pub value: Node,
    pub optional: bool,
}

/// A value and steps into it.
pub(crate) struct Attr {
    pub root: Root,
    pub steps: Vec<Step>,
    /// Whether reading it costs 1 besides the steps.
    pub charged: bool,
}

pub(crate) enum Root {
    Var(Name),
    /// A variable of a comprehension. One that is taken is read for the last time before it is set anew.
    Local {
        slot: usize,
        take: bool,
    },
    Operand(Node),
    Conditional(Box<Conditional>),
}

pub(crate) struct Conditional {
    pub condition: Node,
    pub then: Attr,
    pub otherwise: Attr,
}

pub(crate) struct Step {
    pub key: StepKey,
    pub optional: bool,
    /// Only whether it is there is asked.
    pub test: bool,
}

pub(crate) enum StepKey {
    /// A field or key, as written and unescaped.
    Name {
        name: Name,
        plain: Name,
    },
    Const(Value<'static>),
    Computed(Attr),
}

pub(crate) struct CallNode {
    pub function: &'static str,
    pub eval: Eval,
    pub cost: Cost,
    /// Empty when several overloads come into question.
    pub overload: &'static str,
    pub args: Box<[Node]>,
    /// When functions of several libraries come into question: which types each takes.
    pub alternatives: Box<[(Vec<Type>, Eval)]>,
}

pub(crate) struct FoldNode {
    pub range: Node,
    pub init: Node,
    /// `None`: always.
    pub condition: Option<Node>,
    pub step: Node,
    pub result: Node,
    pub accu: usize,
    pub var: usize,
    pub var2: Option<usize>,
}

/// A constant to look up; numbers that are equal are the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum SetKey {
    Bool(bool),
    Whole(i128),
    Fraction(u64),
    Text(Box<str>),
}

impl SetKey {
    pub(crate) fn of(value: &Value<'_>) -> Option<SetKey> {
        Some(match value {
            Value::Bool(value) => SetKey::Bool(*value),
            Value::Int(value) => SetKey::Whole((*value).into()),
            Value::Uint(value) => SetKey::Whole((*value).into()),
            Value::Double(value) if value.fract() == 0.0 && value.abs() < 1e19 => {
                SetKey::Whole(*value as i128)
            }
            Value::Double(value) => SetKey::Fraction(value.to_bits()),
            Value::String(text) => SetKey::Text((&**text).into()),
            _ => return None,
        })
    }
}

struct Planner<'a> {
    ast: &'a Ast,
    locals: Vec<(Name, usize)>,
    slots: usize,
    /// The first of what makes that there is never a value.
    failure: Option<Box<str>>,
}

pub(crate) fn plan(ast: &Ast) -> Result<Program, CompileError> {
    let mut planner = Planner { ast, locals: Vec::new(), slots: 0, failure: None };
    let root = planner.node(&ast.root);
    match planner.failure {
        None => Ok(Program { root, slots: planner.slots }),
        Some(why) => Err(CompileError::of_plan(why)),
    }
}

fn constant(value: Value<'static>) -> Node {
    Node::Const { value, cost: 0 }
}

fn literal(literal: &Literal) -> Value<'static> {
    match literal {
        Literal::Null => Value::Null,
        Literal::Bool(value) => Value::Bool(*value),
        Literal::Int(value) => Value::Int(*value),
        Literal::Uint(value) => Value::Uint(*value),
        Literal::Double(value) => Value::Double(*value),
        Literal::String(text) => Value::string(text.clone()),
        Literal::Bytes(bytes) => Value::Bytes(bytes.clone()),
    }
}

/// The value, if it is there and free.
fn known(node: &Node) -> Option<&Value<'static>> {
    match node {
        Node::Const { value, cost: 0 } => Some(value),
        _ => None,
    }
}

fn attr(root: Root, charged: bool) -> Attr {
    Attr { root, steps: Vec::new(), charged }
}

/// As an attribute, whose own cost is not charged unless it already was one that is.
fn into_attr(node: Node) -> Attr {
    match node {
        Node::Attr(attr) => *attr,
        other => attr(Root::Operand(other), true),
    }
}

fn push(attr: &mut Attr, step: impl Fn() -> Step) {
    match &mut attr.root {
        Root::Conditional(conditional) => {
            push(&mut conditional.then, &step as &dyn Fn() -> Step);
            push(&mut conditional.otherwise, &step as &dyn Fn() -> Step);
        }
        _ => attr.steps.push(step()),
    }
}

const CONVERSIONS: &[&str] =
    &["bool", "bytes", "double", "duration", "dyn", "int", "string", "timestamp", "type", "uint"];

impl CallNode {
    /// Whether the second operand is a pattern that was compiled before. Upstream then has nothing to evaluate, nor to
    /// charge, once the first has failed.
    pub fn is_precompiled(&self) -> bool {
        matches!(self.args.get(1), Some(Node::Const { value: Value::Opaque(_), .. }))
            && matches!(self.function, "matches" | "find" | "findAll")
    }
}

impl Planner<'_> {
    fn nodes(&mut self, exprs: &[Expr]) -> Box<[Node]> {
        exprs.iter().map(|expr| self.node(expr)).collect()
    }

    fn node(&mut self, expr: &Expr) -> Node {
        match &expr.kind {
            Kind::Unspecified => constant(Value::Null),
            Kind::Literal(value) => constant(literal(value)),
            Kind::Ident(name) => match self.ast.reference(expr) {
                Some(Reference::TypeName(of)) => constant(Value::Type(of.clone())),
                _ => Node::Attr(Box::new(self.ident(expr, name))),
            },
            Kind::Select { operand, field, test_only } => {
                let mut attr = into_attr(self.node(operand));
                let name = field.clone();
                let plain: Name = crate::escape::unescape(field).map_or_else(|| field.clone(), Into::into);
                let test = *test_only;
                if test {
                    attr.charged = false;
                }
                push(&mut attr, || Step {
                    key: StepKey::Name { name: name.clone(), plain: plain.clone() },
                    optional: false,
                    test,
                });
                Node::Attr(Box::new(attr))
            }
            Kind::Call(call) => self.call(expr, call),
            Kind::List { items, optional } => {
                let optional: Box<[bool]> = (0..items.len()).map(|index| optional.contains(&index)).collect();
                let items = self.nodes(items);
                fold_constant(Node::List { items, optional }, self.ast.env.folds_constants())
            }
            Kind::Map(entries) => {
                let entries = entries
                    .iter()
                    .map(|entry| MapEntry {
                        key: self.node(&entry.key),
                        value: self.node(&entry.value),
                        optional: entry.optional,
                    })
                    .collect();
                fold_constant(Node::Map(entries), self.ast.env.folds_constants())
            }
            Kind::Struct { name, fields } => Node::Struct {
                name: name.clone(),
                fields: fields
                    .iter()
                    .map(|field| StructField {
                        name: field.name.clone(),
                        value: self.node(&field.value),
                        optional: field.optional,
                    })
                    .collect(),
            },
            Kind::Fold(fold) => self.fold(fold),
        }
    }

    fn ident(&mut self, expr: &Expr, name: &Name) -> Attr {
        let root = match self.ast.reference(expr) {
            Some(Reference::Variable(name)) => Root::Var(name.clone()),
            _ => match self.locals.iter().rev().find(|(local, _)| local == name) {
                Some((_, slot)) => Root::Local { slot: *slot, take: false },
                None => Root::Var(name.clone()),
            },
        };
        attr(root, true)
    }

    fn call(&mut self, expr: &Expr, call: &Call) -> Node {
        let mut args: Vec<Node> = call.target.iter().chain(&call.args).map(|arg| self.node(arg)).collect();
        let pair = |args: &mut Vec<Node>| {
            let mut drain = args.drain(..);
            let mut next = || drain.next().unwrap_or(constant(Value::Null));
            Box::new([next(), next()])
        };
        let overloads = self.ast.overloads(expr);
        match &*call.function {
            "_&&_" => return Node::And(pair(&mut args)),
            "_||_" => return Node::Or(pair(&mut args)),
            "@not_strictly_false" => {
                return Node::NotStrictlyFalse(Box::new(args.pop().unwrap_or(constant(Value::Null))));
            }
            "_?_:_" => return self.conditional(args),
            "_[_]" => return self.index(args, false),
            "_[?_]" | "_?._" => return self.index(args, true),
            "or" if overloads == ["optional_or_optional"] => {
                return Node::OptionalOr { sides: pair(&mut args), unwrap: false };
            }
            "orValue" if overloads == ["optional_orValue_value"] => {
                return Node::OptionalOr { sides: pair(&mut args), unwrap: true };
            }
            "@in" if overloads == ["in_list"] => {
                if let Some(node) = member_of_constants(&mut args) {
                    return node;
                }
            }
            "matches" | "find" | "findAll" => self.precompile(&mut args),
            _ => {}
        }
        if matches!(&*call.function, "_+_" | "cel.@mapInsert") {
            self.take_accumulator(&mut args);
        }
        let functions = self.ast.env.functions();
        let rows: Vec<&Overload> = match functions.get(&*call.function) {
            Some(rows) => rows.iter().filter(|row| overloads.contains(&row.id)).collect(),
            None => Vec::new(),
        };
        let Some(first) = rows.first() else {
            // The checker lets no call through that has no overload.
            return constant(Value::Null);
        };
        let overload = if rows.len() == 1 { first.id } else { "" };
        let mixed = rows.iter().any(|row| !std::ptr::eq(row.function, first.function));
        let alternatives = if mixed {
            rows.iter().map(|row| (row.params.clone(), row.function.eval)).collect()
        } else {
            Box::default()
        };
        let free = self.ast.env.folds_constants() && CONVERSIONS.contains(&&*call.function);
        let node = CallNode {
            function: first.function.name,
            eval: first.function.eval,
            cost: first.function.cost,
            overload,
            args: args.into(),
            alternatives,
        };
        if (free || first.function.constant) && node.args.iter().all(|arg| known(arg).is_some()) {
            let values: Vec<Value<'_>> = node.args.iter().filter_map(known).cloned().collect();
            let cost = if free { 0 } else { node.cost.charge(overload, &values) };
            let node = Node::Call(Box::new(node));
            return match eval::constant(&node) {
                Ok(value) => Node::Const { value, cost },
                Err(error) => {
                    // Upstream converts constants when it plans, and then tells what is wrong with them.
                    if free {
                        self.failure.get_or_insert_with(|| error.to_string().into());
                    }
                    node
                }
            };
        }
        Node::Call(Box::new(node))
    }

    /// A constant pattern is compiled now. Its size, by which it is charged, is kept.
    fn precompile(&mut self, args: &mut [Node]) {
        let Some(Node::Const { value, .. }) = args.get_mut(1) else { return };
        let Some(pattern) = value.as_str() else { return };
        match library::precompile(pattern) {
            Ok(regex) => *value = regex,
            Err(message) => {
                self.failure.get_or_insert_with(|| message.into());
            }
        }
    }

    /// `accumulator + [x]` must not copy the accumulator for each turn.
    fn take_accumulator(&mut self, args: &mut [Node]) {
        let Some((first, rest)) = args.split_first_mut() else { return };
        let Node::Attr(attr) = first else { return };
        if let Root::Local { slot, take } = &mut attr.root
            && attr.steps.is_empty()
            && self.locals.iter().any(|(name, local)| local == slot && &**name == crate::ast::ACCU)
            && !rest.iter().any(|node| reads(node, *slot))
        {
            *take = true;
        }
    }

    fn conditional(&mut self, args: Vec<Node>) -> Node {
        let mut args = args.into_iter();
        let mut next = || args.next().unwrap_or(constant(Value::Null));
        let condition = next();
        let branch = |node: Node| Attr { charged: false, ..into_attr(node) };
        let (then, otherwise) = (branch(next()), branch(next()));
        Node::Attr(Box::new(attr(
            Root::Conditional(Box::new(Conditional { condition, then, otherwise })),
            false,
        )))
    }

    fn index(&mut self, args: Vec<Node>, optional: bool) -> Node {
        let mut args = args.into_iter();
        let mut next = || args.next().unwrap_or(constant(Value::Null));
        let mut attr = into_attr(next());
        let index = next();
        match &index {
            Node::Const { value, cost: 0 } => {
                let value = value.clone();
                push(&mut attr, || {
                    let key = match &value {
                        Value::String(text) => {
                            let name: Name = Arc::from(&**text);
                            let plain =
                                crate::escape::unescape(&name).map_or_else(|| name.clone(), Into::into);
                            StepKey::Name { name, plain }
                        }
                        other => StepKey::Const(other.clone()),
                    };
                    Step { key, optional, test: false }
                });
                Node::Attr(Box::new(attr))
            }
            _ => {
                if matches!(attr.root, Root::Conditional(_)) {
                    // One computed index serves whichever branch is taken.
                    attr = Attr {
                        root: Root::Operand(Node::Attr(Box::new(attr))),
                        steps: Vec::new(),
                        charged: false,
                    };
                }
                attr.steps.push(Step { key: StepKey::Computed(into_attr(index)), optional, test: false });
                Node::Attr(Box::new(attr))
            }
        }
    }

    fn fold(&mut self, fold: &Fold) -> Node {
        let range = self.node(&fold.range);
        let init = self.node(&fold.init);
        let outer = self.locals.len();
        let slot = |planner: &mut Self, name: &Name| {
            let slot = planner.locals.len();
            planner.locals.push((name.clone(), slot));
            planner.slots = planner.slots.max(slot + 1);
            slot
        };
        let accu = slot(self, &fold.accu);
        let var = slot(self, &fold.var);
        let var2 = fold.var2.as_ref().map(|name| slot(self, name));
        let condition = match self.node(&fold.condition) {
            Node::Const { value: Value::Bool(true), .. } => None,
            node => Some(node),
        };
        let step = self.node(&fold.step);
        // The result does not see the iteration variables, but their slots must stay apart.
        for (name, _) in &mut self.locals[outer + 1..] {
            *name = "".into();
        }
        let result = self.node(&fold.result);
        self.locals.truncate(outer);
        Node::Fold(Box::new(FoldNode { range, init, condition, step, result, accu, var, var2 }))
    }
}

/// Lists and maps of constants are constants, and cost nothing.
fn fold_constant(node: Node, fold: bool) -> Node {
    let constants = fold
        && match &node {
            Node::List { items, .. } => items.iter().all(|item| known(item).is_some()),
            Node::Map(entries) => {
                entries.iter().all(|entry| known(&entry.key).is_some() && known(&entry.value).is_some())
            }
            _ => false,
        };
    if constants && let Ok(value) = eval::constant(&node) {
        return constant(value);
    }
    node
}

fn member_of_constants(args: &mut Vec<Node>) -> Option<Node> {
    let Value::List(list) = known(args.get(1)?)? else { return None };
    if list.is_empty() {
        return Some(constant(Value::Bool(false)));
    }
    let set = list.values().ok()?.iter().map(SetKey::of).collect::<Option<HashSet<_>>>()?;
    Some(Node::Member { value: Box::new(args.swap_remove(0)), set })
}

fn attr_reads(attr: &Attr, slot: usize) -> bool {
    let root = match &attr.root {
        Root::Local { slot: local, .. } => *local == slot,
        Root::Operand(node) => reads(node, slot),
        Root::Conditional(parts) => {
            reads(&parts.condition, slot)
                || attr_reads(&parts.then, slot)
                || attr_reads(&parts.otherwise, slot)
        }
        Root::Var(_) => false,
    };
    root || attr
        .steps
        .iter()
        .any(|step| matches!(&step.key, StepKey::Computed(attr) if attr_reads(attr, slot)))
}

/// Whether a node reads a slot.
fn reads(node: &Node, slot: usize) -> bool {
    let any = |nodes: &[Node]| nodes.iter().any(|node| reads(node, slot));
    match node {
        Node::Const { .. } => false,
        Node::Attr(attr) => attr_reads(attr, slot),
        Node::And(sides) | Node::Or(sides) | Node::OptionalOr { sides, .. } => any(&**sides),
        Node::NotStrictlyFalse(inner) => reads(inner, slot),
        Node::Member { value, .. } => reads(value, slot),
        Node::Call(call) => any(&call.args),
        Node::List { items, .. } => any(items),
        Node::Map(entries) => {
            entries.iter().any(|entry| reads(&entry.key, slot) || reads(&entry.value, slot))
        }
        Node::Struct { fields, .. } => fields.iter().any(|field| reads(&field.value, slot)),
        Node::Fold(fold) => {
            [&fold.range, &fold.init, &fold.step, &fold.result].into_iter().any(|node| reads(node, slot))
                || fold.condition.as_ref().is_some_and(|node| reads(node, slot))
        }
    }
}
