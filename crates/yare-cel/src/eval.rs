//! Evaluation, and what it costs on the way.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    cost::{Budget, LIST_CREATE, MAP_CREATE, SELECT, STRUCT_CREATE},
    error::EvalError,
    library::{go_type, mismatch},
    plan::{Attr, CallNode, FoldNode, MapEntry, Node, Program, Root, SetKey, Step, StepKey, StructField},
    types::Type,
    value::{Key, Map, Struct, Value},
    vars::{Binding, Lazy, Vars},
};

type Res<'a> = Result<Value<'a>, EvalError>;

/// How many turns of a loop pass between questions whether to go on.
const CANCEL_EVERY: u32 = 100;

/// A variable of a comprehension.
enum Slot<'a, 'p> {
    Empty,
    /// Evaluated when it is first read.
    Lazy(&'p Node),
    Ready(Res<'a>),
}

struct Frame<'a, 'p> {
    vars: &'p Vars<'a>,
    locals: Vec<Slot<'a, 'p>>,
    cost: u64,
    /// What variables cost that were evaluated for this one; it does not count against the limit of a call.
    lazy_cost: u64,
    budget: Budget,
    turns: u32,
}

impl Program {
    /// Evaluates, and takes what it cost from the budget, also when it fails.
    ///
    /// # Errors
    /// The expression failed, cost more than it may, or was cancelled.
    pub fn eval<'a>(&self, vars: &Vars<'a>, budget: &mut Budget) -> Res<'a> {
        let mut frame = Frame {
            vars,
            locals: (0..self.slots).map(|_| Slot::Empty).collect(),
            cost: 0,
            lazy_cost: 0,
            budget: *budget,
            turns: 0,
        };
        let result = frame.node(&self.root);
        let spent = frame.cost.saturating_add(frame.lazy_cost);
        if spent > budget.remaining {
            budget.remaining = 0;
            return Err(EvalError::OutOfBudget);
        }
        budget.remaining -= spent;
        result
    }
}

/// The value of a node that reads nothing.
pub(crate) fn constant(node: &Node) -> Res<'static> {
    let vars = Vars::new();
    let mut frame = Frame {
        vars: &vars,
        locals: Vec::new(),
        cost: 0,
        lazy_cost: 0,
        budget: Budget::unlimited(),
        turns: 0,
    };
    frame.node(node)
}

fn no_such_key(key: &Value<'_>) -> EvalError {
    EvalError::failed(format!("no such key: {key}"))
}

/// The index that a value is, if it can be one.
fn index_of(key: &Value<'_>) -> Result<i64, EvalError> {
    match key {
        Value::Int(index) => Ok(*index),
        Value::Uint(index) => Ok(i64::try_from(*index).unwrap_or(i64::MAX)),
        Value::Double(index) if index.fract() == 0.0 => Ok(*index as i64),
        Value::Double(_) => Err(EvalError::failed(format!("unsupported index value {key} in list"))),
        other => Err(EvalError::failed(format!("unsupported index type '{}' in list", other.type_name()))),
    }
}

/// What a key leads to in a container; `None` when there is nothing.
fn find<'a>(container: &Value<'a>, key: &StepValue<'_>) -> Result<Option<Value<'a>>, EvalError> {
    match container {
        Value::Map(map) => match key {
            StepValue::Name { name, plain } => match map {
                Map::Json(..) => map.find_name(name, plain),
                Map::Made(_) | Map::Domains(_) => map.find(&Value::String(crate::value::Str::Borrowed(name))),
            },
            StepValue::Value(value) => map.find(value),
        },
        Value::List(list) => {
            let index = match key {
                StepValue::Value(value) => index_of(value)?,
                StepValue::Name { .. } => {
                    return Err(EvalError::failed("unsupported index type 'string' in list"));
                }
            };
            usize::try_from(index).ok().and_then(|index| list.get(index)).transpose()
        }
        Value::Struct(object) => match key {
            StepValue::Name { name, .. } => Ok(object.fields.get(*name).cloned()),
            StepValue::Value(Value::String(name)) => Ok(object.fields.get(&**name).cloned()),
            StepValue::Value(_) => Ok(None),
        },
        _ => Ok(None),
    }
}

/// A key that is known by now.
enum StepValue<'k> {
    Name { name: &'k str, plain: &'k str },
    Value(&'k Value<'k>),
}

impl StepValue<'_> {
    fn missing(&self, container: &Value<'_>) -> EvalError {
        match (container, self) {
            (Value::List(_), StepValue::Value(index)) => {
                EvalError::failed(format!("index out of bounds: {index}"))
            }
            (_, StepValue::Name { name, .. }) => EvalError::failed(format!("no such key: {name}")),
            (_, StepValue::Value(key)) => no_such_key(key),
        }
    }
}

impl<'a, 'p> Frame<'a, 'p> {
    fn charge(&mut self, cost: u64) -> Result<(), EvalError> {
        self.cost = self.cost.saturating_add(cost);
        if self.cost > self.budget.per_call {
            return Err(if self.cost > self.budget.remaining {
                EvalError::OutOfBudget
            } else {
                EvalError::CostLimit
            });
        }
        if self.cost > self.budget.remaining {
            return Err(EvalError::OutOfBudget);
        }
        Ok(())
    }

    fn node(&mut self, node: &'p Node) -> Res<'a> {
        match node {
            Node::Const { value, cost } => {
                if *cost > 0 {
                    self.charge(*cost)?;
                }
                Ok(value.clone())
            }
            Node::Attr(attr) => self.attr(attr),
            Node::And(sides) => self.logical(sides, false),
            Node::Or(sides) => self.logical(sides, true),
            Node::NotStrictlyFalse(inner) => {
                let value = self.node(inner);
                self.charge(1)?;
                match value {
                    Ok(Value::Bool(false)) => Ok(Value::Bool(false)),
                    Err(error) if !error.absorbable() => Err(error),
                    _ => Ok(Value::Bool(true)),
                }
            }
            Node::Call(call) => self.call(call),
            Node::Member { value, set } => {
                let value = self.node(value)?;
                Ok(Value::Bool(SetKey::of(&value).is_some_and(|key| set.contains(&key))))
            }
            Node::OptionalOr { sides, unwrap } => match self.node(&sides[0])? {
                Value::Optional(Some(value)) if *unwrap => Ok((*value).clone()),
                Value::Optional(None) => self.node(&sides[1]),
                other => Ok(other),
            },
            Node::List { items, optional } => self.list(items, optional),
            Node::Map(entries) => self.map(entries),
            Node::Struct { name, fields } => self.made(name, fields),
            Node::Fold(fold) => self.fold(fold),
        }
    }

    /// `||` ends at `true`, `&&` at `false`; an error on the other side does not matter then.
    fn logical(&mut self, sides: &'p [Node; 2], end: bool) -> Res<'a> {
        let mut failed = None;
        for side in sides {
            match self.node(side) {
                Ok(Value::Bool(value)) if value == end => return Ok(Value::Bool(end)),
                Ok(Value::Bool(_)) => {}
                Ok(_) => failed = failed.or_else(|| Some(EvalError::no_such_overload())),
                Err(error) if error.absorbable() => failed = failed.or(Some(error)),
                Err(error) => return Err(error),
            }
        }
        failed.map_or(Ok(Value::Bool(!end)), Err)
    }

    fn attr(&mut self, attr: &'p Attr) -> Res<'a> {
        let value = self.resolve(attr);
        if attr.charged {
            self.charge(SELECT)?;
        }
        value
    }

    fn resolve(&mut self, attr: &'p Attr) -> Res<'a> {
        let mut steps = &attr.steps[..];
        let base = match &attr.root {
            Root::Var(name) => match self.vars.get(name) {
                Some(Binding::Value(value)) => value.clone(),
                Some(Binding::Json(json, decl)) => Value::from_json(json, decl)?,
                Some(Binding::Lazy(lazy)) => {
                    let (value, rest) = self.lazy(lazy, steps)?;
                    steps = rest;
                    value
                }
                None => return Err(EvalError::failed(format!("no such attribute(s): {name}"))),
            },
            Root::Local { slot, take } => self.local(*slot, *take)?,
            Root::Operand(node) => self.node(node)?,
            Root::Conditional(parts) => match self.node(&parts.condition)? {
                Value::Bool(true) => self.resolve(&parts.then)?,
                Value::Bool(false) => self.resolve(&parts.otherwise)?,
                _ => return Err(EvalError::no_such_overload()),
            },
        };
        if steps.is_empty() { Ok(base) } else { self.walk(base, steps) }
    }

    fn walk(&mut self, base: Value<'a>, steps: &'p [Step]) -> Res<'a> {
        let mut at = base;
        let mut optional = false;
        match at {
            Value::Optional(None) => {
                let test = steps.last().is_some_and(|step| step.test);
                return Ok(if test { Value::Bool(false) } else { Value::Optional(None) });
            }
            Value::Optional(Some(inner)) => {
                optional = true;
                at = (*inner).clone();
            }
            _ => {}
        }
        for step in steps {
            optional |= step.optional;
            let found = match &step.key {
                StepKey::Name { name, plain } => {
                    let key = StepValue::Name { name, plain };
                    self.step(&at, &key, optional, step.test)?
                }
                StepKey::Const(value) => self.step(&at, &StepValue::Value(value), optional, step.test)?,
                // An index is an attribute whose own reading is not charged, or anything else.
                StepKey::Computed(attr) => match self.resolve(attr) {
                    Ok(value) => self.step(&at, &StepValue::Value(&value), optional, step.test)?,
                    Err(error) => {
                        if !optional {
                            self.charge(SELECT)?;
                        }
                        return Err(error);
                    }
                },
            };
            if step.test {
                return Ok(Value::Bool(found.is_some()));
            }
            match found {
                Some(value) => at = value,
                None if steps.last().is_some_and(|step| step.test) => return Ok(Value::Bool(false)),
                None => return Ok(Value::Optional(None)),
            }
        }
        Ok(if optional { Value::some(at) } else { at })
    }

    /// One step. `None`: nothing is there, and that is no error.
    fn step(
        &mut self,
        at: &Value<'a>,
        key: &StepValue<'_>,
        optional: bool,
        test: bool,
    ) -> Result<Option<Value<'a>>, EvalError> {
        let found = find(at, key);
        if optional {
            // Charged when it is there.
            if matches!(found, Ok(Some(_))) {
                self.charge(SELECT)?;
            }
            return found;
        }
        self.charge(SELECT)?;
        match found? {
            None if !test => Err(key.missing(at)),
            found => Ok(found),
        }
    }

    fn local(&mut self, slot: usize, take: bool) -> Res<'a> {
        if let Slot::Lazy(init) = self.locals[slot] {
            let value = self.node(init);
            self.locals[slot] = Slot::Ready(value);
        }
        match &mut self.locals[slot] {
            Slot::Ready(value) if take => std::mem::replace(value, Ok(Value::Null)),
            Slot::Ready(value) => value.clone(),
            _ => Err(EvalError::failed("no such attribute(s)")),
        }
    }

    /// A field of a group of expressions, and the steps that remain.
    fn lazy(&mut self, lazy: &Lazy<'a>, steps: &'p [Step]) -> Result<(Value<'a>, &'p [Step]), EvalError> {
        let Some((Step { key: StepKey::Name { name, .. }, test, .. }, rest)) = steps.split_first() else {
            // The group as a whole: all of it.
            let mut entries = BTreeMap::new();
            for (name, _) in &lazy.fields {
                entries.insert(Key::String(crate::value::Str::Borrowed(name)), self.lazy_field(lazy, name)?);
            }
            return Ok((Value::map(entries), steps));
        };
        self.charge(SELECT)?;
        if *test {
            return Ok((Value::Bool(lazy.fields.iter().any(|(field, _)| *field == &**name)), rest));
        }
        Ok((self.lazy_field(lazy, name)?, rest))
    }

    fn lazy_field(&mut self, lazy: &Lazy<'a>, name: &str) -> Res<'a> {
        let Some(index) = lazy.fields.iter().position(|(field, _)| *field == name) else {
            return Err(EvalError::failed(format!("no such key: {name}")));
        };
        if let Some(done) = &lazy.done.borrow()[index] {
            return done.clone();
        }
        let mut budget = self.budget;
        let spent = self.cost.saturating_add(self.lazy_cost);
        budget.remaining = budget.remaining.saturating_sub(spent);
        let before = budget.remaining;
        let result = match lazy.fields[index].1.eval(self.vars, &mut budget) {
            Err(error) if error != EvalError::OutOfBudget && error != EvalError::Interrupted => {
                Err(EvalError::failed(format!("composited variable {name:?} fails to evaluate: {error}")))
            }
            other => other,
        };
        self.lazy_cost = self.lazy_cost.saturating_add(before - budget.remaining);
        lazy.done.borrow_mut()[index] = Some(result.clone());
        result
    }

    fn call(&mut self, call: &'p CallNode) -> Res<'a> {
        match call.args.len() {
            0 => self.invoke(call, &mut [], None),
            // One and two operands are all evaluated, and charged for, even if one fails.
            1 => {
                let (value, failed) = self.operand(&call.args[0])?;
                self.invoke(call, &mut [value], failed)
            }
            2 => {
                let (left, left_failed) = self.operand(&call.args[0])?;
                if let Some(error) = &left_failed
                    && call.is_precompiled()
                {
                    return Err(error.clone());
                }
                let (right, right_failed) = self.operand(&call.args[1])?;
                self.invoke(call, &mut [left, right], left_failed.or(right_failed))
            }
            count => {
                let mut values = Vec::with_capacity(count);
                for arg in &call.args {
                    match self.operand(arg)? {
                        (value, None) => values.push(value),
                        (value, Some(error)) if values.len() + 1 == count => {
                            values.push(value);
                            return self.invoke(call, &mut values, Some(error));
                        }
                        (_, Some(error)) => return Err(error),
                    }
                }
                self.invoke(call, &mut values, None)
            }
        }
    }

    fn operand(&mut self, node: &'p Node) -> Result<(Value<'a>, Option<EvalError>), EvalError> {
        match self.node(node) {
            Ok(value) => Ok((value, None)),
            Err(error) if error.absorbable() => Ok((Value::Null, Some(error))),
            Err(error) => Err(error),
        }
    }

    fn invoke(&mut self, call: &CallNode, args: &mut [Value<'a>], failed: Option<EvalError>) -> Res<'a> {
        self.charge(call.cost.charge(call.overload, args))?;
        let result = match failed {
            Some(error) => Err(error),
            None if call.alternatives.is_empty() => (call.eval)(args),
            None => match call.alternatives.iter().find(|(params, _)| accepts(params, args)) {
                Some((_, eval)) => eval(args),
                None => Err(EvalError::NoSuchOverload),
            },
        };
        let result = match result {
            Err(EvalError::NoSuchOverload) => Err(mismatch(call.function, args)),
            other => other,
        };
        let more = call.cost.charge_result(call.overload, result.as_ref().ok());
        if more > 0 {
            self.charge(more)?;
        }
        result
    }

    fn present(value: Value<'a>, what: impl FnOnce() -> String) -> Result<Option<Value<'a>>, EvalError> {
        match value {
            Value::Optional(inner) => Ok(inner.map(|inner| (*inner).clone())),
            other => Err(EvalError::failed(format!(
                "cannot initialize optional {} from non-optional value {other}",
                what()
            ))),
        }
    }

    fn list(&mut self, items: &'p [Node], optional: &[bool]) -> Res<'a> {
        let mut values = Vec::with_capacity(items.len());
        let mut failed = None;
        for (item, optional) in items.iter().zip(optional) {
            let value = self.node(item).and_then(|value| {
                if *optional { Self::present(value, || "list element".into()) } else { Ok(Some(value)) }
            });
            match value {
                Ok(value) => values.extend(value),
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        self.charge(LIST_CREATE)?;
        failed.map_or_else(|| Ok(Value::list(values)), Err)
    }

    fn map(&mut self, entries: &'p [MapEntry]) -> Res<'a> {
        let mut map = BTreeMap::new();
        let mut failed = None;
        for entry in entries {
            match self.map_entry(entry) {
                Ok((key, Some(value))) => {
                    map.insert(key, value);
                }
                Ok((key, None)) => {
                    map.remove(&key);
                }
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        self.charge(MAP_CREATE)?;
        failed.map_or_else(|| Ok(Value::map(map)), Err)
    }

    fn map_entry(&mut self, entry: &'p MapEntry) -> Result<(Key<'a>, Option<Value<'a>>), EvalError> {
        let key = self.node(&entry.key)?;
        let value = self.node(&entry.value)?;
        let shown = key.clone();
        let key = into_key(key)?;
        if entry.optional {
            return Ok((key, Self::present(value, || format!("entry '{shown}'"))?));
        }
        Ok((key, Some(value)))
    }

    fn made(&mut self, name: &'p Arc<str>, fields: &'p [StructField]) -> Res<'a> {
        let mut made = BTreeMap::new();
        let mut failed = None;
        for field in fields {
            let value = self.node(&field.value).and_then(|value| {
                if field.optional {
                    Self::present(value, || format!("entry '{}'", field.name))
                } else {
                    Ok(Some(value))
                }
            });
            match value {
                Ok(Some(value)) => {
                    made.insert(Box::from(&*field.name), value);
                }
                Ok(None) => {}
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        self.charge(STRUCT_CREATE)?;
        match failed {
            Some(error) => Err(error),
            None => Ok(Value::Struct(Arc::new(Struct { type_name: name.clone(), fields: made }))),
        }
    }

    fn fold(&mut self, fold: &'p FoldNode) -> Res<'a> {
        let range = self.node(&fold.range)?;
        self.locals[fold.accu] = Slot::Lazy(&fold.init);
        match &range {
            Value::List(list) => {
                for index in 0..list.len() {
                    let item = list.get(index).unwrap_or(Ok(Value::Null));
                    let go_on = match fold.var2 {
                        Some(var2) => {
                            self.locals[var2] = Slot::Ready(item);
                            self.turn(fold, Ok(Value::Int(index as i64)))?
                        }
                        None => self.turn(fold, item)?,
                    };
                    if !go_on {
                        break;
                    }
                }
            }
            Value::Map(map) => {
                for key in map.keys() {
                    let key = Value::from(key);
                    if let Some(var2) = fold.var2 {
                        let value = map.find(&key).and_then(|value| value.ok_or_else(|| no_such_key(&key)));
                        self.locals[var2] = Slot::Ready(value);
                    }
                    if !self.turn(fold, Ok(key))? {
                        break;
                    }
                }
            }
            other => {
                let of = go_type(other);
                return Err(EvalError::failed(match fold.var2 {
                    Some(_) => format!("unsupported comprehension range type: {of}"),
                    None => format!("got '{of}', expected iterable type"),
                }));
            }
        }
        let result = self.node(&fold.result);
        self.locals[fold.accu] = Slot::Empty;
        result
    }

    /// One turn of a loop; whether there may be another.
    fn turn(&mut self, fold: &'p FoldNode, item: Res<'a>) -> Result<bool, EvalError> {
        self.locals[fold.var] = Slot::Ready(item);
        if let Some(condition) = &fold.condition {
            match self.node(condition) {
                Ok(Value::Bool(false)) => return Ok(false),
                Err(error) if !error.absorbable() => return Err(error),
                _ => {}
            }
        }
        let value = self.node(&fold.step);
        if let Err(error) = &value
            && !error.absorbable()
        {
            return value.map(|_| false);
        }
        self.locals[fold.accu] = Slot::Ready(value);
        self.turns += 1;
        if self.turns.is_multiple_of(CANCEL_EVERY)
            && let Some(cancelled) = self.vars.cancel
            && cancelled()
        {
            return Err(EvalError::Interrupted);
        }
        Ok(true)
    }
}

/// The key of a map that is being made.
pub(crate) fn into_key(value: Value<'_>) -> Result<Key<'_>, EvalError> {
    match value {
        Value::Bool(value) => Ok(Key::Bool(value)),
        Value::Int(value) => Ok(Key::Int(value)),
        Value::Uint(value) => Ok(Key::Uint(value)),
        Value::String(text) => Ok(Key::String(text)),
        other => Err(EvalError::failed(format!("unsupported key type: {}", other.type_name()))),
    }
}

/// Whether values can go where these types are wanted.
fn accepts(params: &[Type], args: &[Value<'_>]) -> bool {
    params.len() == args.len()
        && params.iter().zip(args).all(|(param, arg)| match param {
            Type::Dyn | Type::Any | Type::Param(_) => true,
            Type::List(_) => matches!(arg, Value::List(_)),
            Type::Map(_) => matches!(arg, Value::Map(_)),
            other => other.name() == arg.type_name(),
        })
}
