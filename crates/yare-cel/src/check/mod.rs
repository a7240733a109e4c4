//! The type checker: names resolved, overloads chosen, types unified.

mod unify;

use std::sync::Arc;

use crate::{
    ast::{Ast, Call, Entry, Expr, FieldInit, Fold, Id, Kind, Literal, Name, Positions, Reference},
    env::Env,
    error::{CompileError, Issue},
    library::Overload,
    parser::Parsed,
    types::{OPTIONAL, Type},
};
use unify::{Bindings, equal_or_wider, params_of};

struct Checker<'e> {
    env: &'e Env,
    types: Vec<Type>,
    references: Vec<Option<Reference>>,
    bindings: Bindings,
    free: u32,
    /// Variables of comprehensions, innermost last.
    locals: Vec<(Name, Type)>,
    issues: Vec<Issue>,
    positions: &'e Positions,
}

pub(crate) fn check(parsed: Parsed, source: &str, env: &Env) -> Result<Ast, CompileError> {
    let Parsed { mut root, positions } = parsed;
    let nodes = positions.offsets.len();
    let mut checker = Checker {
        env,
        types: vec![Type::Dyn; nodes],
        references: vec![None; nodes],
        bindings: Bindings::default(),
        free: 0,
        locals: Vec::new(),
        issues: Vec::new(),
        positions: &positions,
    };
    checker.expr(&mut root);
    let Checker { types, references, bindings, issues, .. } = checker;
    if !issues.is_empty() {
        return Err(CompileError::new(issues, source));
    }
    let types = types.iter().map(|of| bindings.substitute(of, true)).collect();
    let ast = Ast { root, types, references, positions, source: source.into(), env: env.clone() };
    let issues = crate::validate::validate(&ast);
    if issues.is_empty() { Ok(ast) } else { Err(CompileError::new(issues, source)) }
}

impl Checker<'_> {
    fn issue(&mut self, id: Id, message: String) {
        let (line, column) = self.positions.of(id);
        self.issues.push(Issue { message, line, column });
    }

    fn set(&mut self, id: Id, of: Type) {
        self.types[id as usize] = of;
    }

    fn get(&self, expr: &Expr) -> Type {
        self.types[expr.id as usize].clone()
    }

    fn fresh(&mut self) -> Type {
        self.free += 1;
        Type::Param(format!("_var{}", self.free - 1).into())
    }

    fn undeclared(&mut self, id: Id, name: &str) {
        let message = format!("undeclared reference to '{name}' (in container '{}')", self.env.container());
        self.issue(id, message);
        self.set(id, Type::Error);
    }

    /// What a name is: a local or declared variable, or a type.
    fn lookup(&self, name: &str) -> Option<(Reference, Type)> {
        if let Some((local, of)) = self.locals.iter().rev().find(|(local, _)| &**local == name) {
            // A local shadows: it has no reference, the planner knows its slot by scope.
            return Some((Reference::Variable(local.clone()), of.clone()));
        }
        for candidate in self.env.candidates(name) {
            if let Some((name, of)) = self.env.variable(&candidate) {
                return Some((Reference::Variable(name.clone()), of.clone()));
            }
            if let Some(of) = self.env.type_named(&candidate) {
                return Some((Reference::TypeName(of.clone()), Type::Type(Some(Arc::new(of)))));
            }
        }
        None
    }

    fn resolve(&mut self, expr: &mut Expr, name: &str) -> bool {
        let Some((reference, of)) = self.lookup(name) else { return false };
        self.set(expr.id, of);
        let full = match &reference {
            Reference::Variable(name) => name.clone(),
            _ => name.trim_start_matches('.').into(),
        };
        let local = self.locals.iter().any(|(local, _)| &**local == name);
        if !local {
            self.references[expr.id as usize] = Some(reference);
        }
        expr.kind = Kind::Ident(full);
        true
    }

    fn expr(&mut self, expr: &mut Expr) {
        let id = expr.id;
        match &mut expr.kind {
            Kind::Unspecified => self.set(id, Type::Error),
            Kind::Literal(literal) => {
                let of = match literal {
                    Literal::Null => Type::Null,
                    Literal::Bool(_) => Type::Bool,
                    Literal::Int(_) => Type::Int,
                    Literal::Uint(_) => Type::Uint,
                    Literal::Double(_) => Type::Double,
                    Literal::String(_) => Type::String,
                    Literal::Bytes(_) => Type::Bytes,
                };
                self.set(id, of);
            }
            Kind::Ident(name) => {
                let name = name.clone();
                if !self.resolve(expr, &name) {
                    self.undeclared(id, &name);
                }
            }
            Kind::Select { .. } => self.select(expr),
            Kind::Call(call) => {
                if &*call.function == "_?._" {
                    self.optional_select(id, call);
                } else {
                    self.call(expr);
                }
            }
            Kind::List { items, optional } => {
                let optional = optional.clone();
                self.list(id, items, &optional);
            }
            Kind::Map(entries) => self.map(id, entries),
            Kind::Struct { name, fields } => {
                let name = name.clone();
                if let Some(full) = self.message(id, &name, fields) {
                    expr.kind = match std::mem::replace(&mut expr.kind, Kind::Unspecified) {
                        Kind::Struct { fields, .. } => Kind::Struct { name: full, fields },
                        other => other,
                    };
                }
            }
            Kind::Fold(fold) => self.fold(id, fold),
        }
    }

    fn select(&mut self, expr: &mut Expr) {
        // A dotted name may be one variable.
        if let Some(name) = expr.qualified_name()
            && !self.locals.iter().any(|(local, _)| name.split('.').next() == Some(&**local))
            && self.resolve(expr, &name)
        {
            return;
        }
        let id = expr.id;
        if let Kind::Select { operand, field, test_only } = &mut expr.kind {
            let (field, test_only) = (field.clone(), *test_only);
            let of = self.field(id, operand, &field, false);
            self.set(id, if test_only { Type::Bool } else { self.bindings.substitute(&of, false) });
        }
    }

    fn optional_select(&mut self, id: Id, call: &mut Call) {
        let [operand, field] = call.args.as_mut_slice() else {
            let message = format!(
                "unsupported optional field selection: incorrect signature. argument count: {}",
                call.args.len()
            );
            return self.issue(id, message);
        };
        let Kind::Literal(Literal::String(name)) = &field.kind else {
            return self.issue(field.id, "unsupported optional field selection".into());
        };
        let name = name.clone();
        self.set(field.id, Type::String);
        let of = self.field(id, operand, &name, true);
        let of = self.bindings.substitute(&of, false);
        self.set(id, of);
        self.references[id as usize] = Some(Reference::Overloads(vec!["select_optional_field"]));
    }

    fn field(&mut self, id: Id, operand: &mut Expr, field: &str, optional: bool) -> Type {
        self.expr(operand);
        let of = self.bindings.substitute(&self.get(operand), false);
        let target = of.as_optional().unwrap_or(&of);
        let result = match target {
            Type::Map(kv) => kv.1.clone(),
            Type::Object(name) => self.field_type(id, &name.clone(), field).unwrap_or(Type::Error),
            Type::Param(_) => {
                self.bindings.assignable(&Type::Dyn, target);
                Type::Dyn
            }
            other => {
                if !other.is_dyn_or_error() {
                    let message = format!("type '{other}' does not support field selection");
                    self.issue(id, message);
                }
                Type::Dyn
            }
        };
        if optional || of.as_optional().is_some() { Type::optional(result) } else { result }
    }

    fn field_type(&mut self, id: Id, object: &str, field: &str) -> Option<Type> {
        let Some(declared) = self.env.object(object) else {
            self.issue(id, format!("unexpected failed resolution of '{object}'"));
            return None;
        };
        if let Some(of) = declared.fields.get(field) {
            return Some(of.clone());
        }
        if declared.open {
            return Some(Type::Dyn);
        }
        self.issue(id, format!("undefined field '{field}'"));
        None
    }

    fn function(&self, name: &str) -> Option<(&'static str, Vec<Overload>)> {
        self.env.candidates(name).iter().find_map(|candidate| {
            let (name, overloads) = self.env.functions().get_key_value(candidate.as_str())?;
            Some((*name, overloads.clone()))
        })
    }

    fn call(&mut self, expr: &mut Expr) {
        let id = expr.id;
        let Kind::Call(call) = &mut expr.kind else { return };
        for arg in &mut call.args {
            self.expr(arg);
        }
        if let Some(target) = &mut call.target {
            // `a.b.c()` may be the function `a.b.c`.
            if let Some(prefix) = target.qualified_name()
                && let Some((name, overloads)) = self.function(&format!("{prefix}.{}", call.function))
            {
                call.target = None;
                call.function = name.into();
                return self.overload(id, call, name, &overloads);
            }
            self.expr(target);
        }
        match self.function(&call.function.clone()) {
            Some((name, overloads)) => {
                if call.target.is_none() {
                    call.function = name.into();
                }
                self.overload(id, call, name, &overloads);
            }
            None => {
                let name = call.function.clone();
                self.undeclared(id, &name);
            }
        }
    }

    fn overload(&mut self, id: Id, call: &Call, name: &str, overloads: &[Overload]) {
        let member = call.target.is_some();
        let args: Vec<Type> = call.target.iter().chain(&call.args).map(|arg| self.get(arg)).collect();
        if name == "_&&_" || name == "_||_" {
            let mut fits = true;
            for (arg, of) in call.args.iter().zip(&args) {
                if !self.bindings.assignable(of, &Type::Bool) {
                    fits = false;
                    let of = self.bindings.substitute(of, true);
                    self.issue(arg.id, format!("expected type 'bool' but found '{of}'"));
                }
            }
            self.set(id, if fits { Type::Bool } else { Type::Error });
            self.references[id as usize] = Some(Reference::Overloads(vec![overloads[0].id]));
            return;
        }
        let mut ids = Vec::new();
        let mut result: Option<Type> = None;
        for overload in overloads.iter().filter(|overload| overload.member == member) {
            let (params, returns);
            if overload.generic {
                let mut renamed = Bindings::default();
                let mut names = Vec::new();
                overload.params.iter().chain([&overload.result]).for_each(|of| params_of(of, &mut names));
                for name in names {
                    let fresh = self.fresh();
                    renamed.bind(&name, fresh);
                }
                params = overload.params.iter().map(|of| renamed.substitute(of, false)).collect();
                returns = renamed.substitute(&overload.result, false);
            } else {
                params = overload.params.clone();
                returns = overload.result.clone();
            }
            if !self.bindings.all_assignable(&args, &params) {
                continue;
            }
            ids.push(overload.id);
            let returns = self.bindings.substitute(&returns, false);
            result = match result {
                None => Some(returns),
                Some(before) if !before.is_dyn() && before != returns => Some(Type::Dyn),
                same => same,
            };
        }
        match result {
            Some(of) => {
                self.set(id, of);
                self.references[id as usize] = Some(Reference::Overloads(ids));
            }
            None => {
                let args: Vec<String> =
                    args.iter().map(|of| self.bindings.substitute(of, true).to_string()).collect();
                let (target, args) =
                    if member { (format!("{}.", args[0]), &args[1..]) } else { ("".into(), &args[..]) };
                let signature = format!("{target}({})", args.join(", "));
                self.issue(id, format!("found no matching overload for '{name}' applied to '{signature}'"));
                self.set(id, Type::Error);
            }
        }
    }

    /// The type of an element written with `?`.
    fn unwrap_optional(&mut self, expr: &Expr, of: Type) -> Type {
        if let Some(inner) = of.as_optional() {
            return inner.clone();
        }
        if !of.is_dyn() {
            self.issue(expr.id, format!("expected type '{OPTIONAL}({of})' but found '{of}'"));
        }
        of
    }

    fn join(&mut self, before: Option<Type>, of: Type) -> Type {
        match before {
            None => of,
            Some(before) if self.bindings.assignable(&before, &of) => {
                if equal_or_wider(&before, &of) {
                    before
                } else {
                    of
                }
            }
            Some(_) => Type::Dyn,
        }
    }

    fn list(&mut self, id: Id, items: &mut [Expr], optional: &[usize]) {
        let mut joined = None;
        for (index, item) in items.iter_mut().enumerate() {
            self.expr(item);
            let mut of = self.get(item);
            if optional.contains(&index) {
                of = self.unwrap_optional(item, of);
            }
            joined = Some(self.join(joined, of));
        }
        let elem = joined.unwrap_or_else(|| self.fresh());
        self.set(id, Type::list(elem));
    }

    fn map(&mut self, id: Id, entries: &mut [Entry]) {
        let (mut key, mut value) = (None, None);
        for entry in entries {
            self.expr(&mut entry.key);
            let of = self.get(&entry.key);
            key = Some(self.join(key, of));
            self.expr(&mut entry.value);
            let mut of = self.get(&entry.value);
            if entry.optional {
                of = self.unwrap_optional(&entry.value, of);
            }
            value = Some(self.join(value, of));
        }
        let key = key.unwrap_or_else(|| self.fresh());
        let value = value.unwrap_or_else(|| self.fresh());
        self.set(id, Type::map(key, value));
    }

    fn message(&mut self, id: Id, name: &str, fields: &mut [FieldInit]) -> Option<Name> {
        let found = self.env.candidates(name).into_iter().find_map(|candidate| {
            let of = self.env.type_named(&candidate)?;
            Some((candidate, of))
        });
        let Some((full, of)) = found else {
            self.undeclared(id, name);
            return None;
        };
        let made = match &of {
            Type::Object(object) if self.env.object(object).is_some_and(|object| object.constructible) => {
                true
            }
            Type::Object(object) => {
                self.issue(id, format!("'{object}' cannot be constructed"));
                false
            }
            other => {
                self.issue(id, format!("'{}' is not a message type", other.name()));
                false
            }
        };
        self.set(id, if made { of } else { Type::Error });
        for field in fields {
            self.expr(&mut field.value);
            let declared = if made { self.field_type(field.id, &full, &field.name) } else { None };
            let mut of = self.get(&field.value);
            if field.optional {
                of = self.unwrap_optional(&field.value, of);
            }
            let declared = declared.unwrap_or(Type::Error);
            if !self.bindings.assignable(&declared, &of) {
                let of = self.bindings.substitute(&of, true);
                let message = format!(
                    "expected type of field '{}' is '{declared}' but provided type is '{of}'",
                    field.name
                );
                self.issue(field.id, message);
            }
        }
        Some(full.into())
    }

    fn fold(&mut self, id: Id, fold: &mut Fold) {
        self.expr(&mut fold.range);
        self.expr(&mut fold.init);
        let range = self.bindings.substitute(&self.get(&fold.range), false);
        let accu = self.get(&fold.init);
        let outer = self.locals.len();
        self.locals.push((fold.accu.clone(), accu.clone()));
        let two = fold.var2.is_some();
        let (first, second) = match &range {
            Type::List(elem) if two => (Type::Int, (**elem).clone()),
            Type::List(elem) => ((**elem).clone(), Type::Error),
            Type::Map(kv) => (kv.0.clone(), kv.1.clone()),
            Type::Dyn | Type::Error | Type::Param(_) => {
                self.bindings.assignable(&Type::Dyn, &range);
                (Type::Dyn, Type::Dyn)
            }
            other => {
                let message = format!(
                    "expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                self.issue(fold.range.id, message);
                (Type::Error, Type::Error)
            }
        };
        self.locals.push((fold.var.clone(), first));
        if let Some(var2) = &fold.var2 {
            self.locals.push((var2.clone(), second));
        }
        self.expr(&mut fold.condition);
        self.assert(&fold.condition, &Type::Bool);
        self.expr(&mut fold.step);
        self.assert(&fold.step, &accu);
        self.locals.truncate(outer + 1);
        self.expr(&mut fold.result);
        self.locals.truncate(outer);
        let of = self.bindings.substitute(&self.get(&fold.result), false);
        self.set(id, of);
    }

    fn assert(&mut self, expr: &Expr, expected: &Type) {
        let of = self.get(expr);
        if !self.bindings.assignable(expected, &of) {
            let (expected, of) =
                (self.bindings.substitute(expected, false), self.bindings.substitute(&of, false));
            self.issue(expr.id, format!("expected type '{expected}' but found '{of}'"));
        }
    }
}
