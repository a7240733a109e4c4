//! Unification: what type parameters must stand for so that one type fits another.

use std::{collections::HashMap, sync::Arc};

use crate::{ast::Name, types::Type};

/// What type parameters stand for. Additions can be taken back when an attempt fails.
#[derive(Default)]
pub(super) struct Bindings {
    map: HashMap<Name, Type>,
    journal: Vec<(Name, Option<Type>)>,
}

impl Bindings {
    pub(super) fn bind(&mut self, param: &Name, to: Type) {
        let before = self.map.insert(param.clone(), to);
        self.journal.push((param.clone(), before));
    }

    fn roll_back(&mut self, mark: usize) {
        while self.journal.len() > mark {
            if let Some((param, before)) = self.journal.pop() {
                match before {
                    Some(of) => self.map.insert(param, of),
                    None => self.map.remove(&param),
                };
            }
        }
    }

    /// With all bound parameters replaced; the others become dynamic if `close`.
    pub(super) fn substitute(&self, of: &Type, close: bool) -> Type {
        match of {
            Type::Param(name) => match self.map.get(name) {
                Some(bound) => self.substitute(bound, close),
                None if close => Type::Dyn,
                None => of.clone(),
            },
            Type::List(elem) => Type::list(self.substitute(elem, close)),
            Type::Map(kv) => Type::map(self.substitute(&kv.0, close), self.substitute(&kv.1, close)),
            Type::Opaque(name, params) if !params.is_empty() => {
                Type::Opaque(name.clone(), params.iter().map(|param| self.substitute(param, close)).collect())
            }
            Type::Type(Some(inner)) => Type::Type(Some(Arc::new(self.substitute(inner, close)))),
            other => other.clone(),
        }
    }

    fn occurs(&self, param: &Name, within: &Type) -> bool {
        match within {
            Type::Param(name) => {
                name == param || self.map.get(name).is_some_and(|bound| self.occurs(param, bound))
            }
            Type::List(elem) => self.occurs(param, elem),
            Type::Map(kv) => self.occurs(param, &kv.0) || self.occurs(param, &kv.1),
            Type::Opaque(_, params) => params.iter().any(|of| self.occurs(param, of)),
            Type::Type(Some(inner)) => self.occurs(param, inner),
            _ => false,
        }
    }

    /// Whether `param` can stand for `of`, and whether it already stood for something.
    fn bind_to(&mut self, of: &Type, param: &Name) -> (bool, bool) {
        if matches!(of, Type::Param(name) if name == param) {
            return (true, true);
        }
        if let Some(bound) = self.map.get(param).cloned() {
            if *of == bound {
                return (true, true);
            }
            if self.assignable_inner(of, &bound) {
                let general = if equal_or_wider(of, &bound) { of.clone() } else { bound };
                if !self.occurs(param, &general) {
                    self.bind(param, general);
                }
                return (true, true);
            }
            return (false, true);
        }
        if self.occurs(param, of) {
            return (false, false);
        }
        self.bind(param, of.clone());
        (true, false)
    }

    fn assignable_inner(&mut self, left: &Type, right: &Type) -> bool {
        if let Type::Param(param) = right {
            let (valid, bound) = self.bind_to(left, param);
            if valid || bound {
                return valid;
            }
        }
        if let Type::Param(param) = left {
            return self.bind_to(right, param).0;
        }
        if left.is_dyn_or_error() || right.is_dyn_or_error() {
            return true;
        }
        match (left, right) {
            (Type::Null, other) | (other, Type::Null) => nullable(other),
            (Type::List(a), Type::List(b)) => self.assignable_inner(a, b),
            (Type::Map(a), Type::Map(b)) => {
                self.assignable_inner(&a.0, &b.0) && self.assignable_inner(&a.1, &b.1)
            }
            (Type::Opaque(a, a_params), Type::Opaque(b, b_params)) => {
                a == b
                    && a_params.len() == b_params.len()
                    && a_params.iter().zip(b_params.iter()).all(|(a, b)| self.assignable_inner(a, b))
            }
            (Type::Type(_), Type::Type(_)) => true,
            (a, b) => a == b,
        }
    }

    pub(super) fn assignable(&mut self, left: &Type, right: &Type) -> bool {
        let mark = self.journal.len();
        let fits = self.assignable_inner(left, right);
        if !fits {
            self.roll_back(mark);
        }
        fits
    }

    pub(super) fn all_assignable(&mut self, left: &[Type], right: &[Type]) -> bool {
        let mark = self.journal.len();
        let fits =
            left.len() == right.len() && left.iter().zip(right).all(|(a, b)| self.assignable_inner(a, b));
        if !fits {
            self.roll_back(mark);
        }
        fits
    }
}

fn nullable(of: &Type) -> bool {
    matches!(of, Type::Null | Type::Opaque(..) | Type::Object(_) | Type::Duration | Type::Timestamp)
}

/// Whether `a` covers all that `b` does.
pub(super) fn equal_or_wider(a: &Type, b: &Type) -> bool {
    match (a, b) {
        (Type::Dyn | Type::Any | Type::Param(_), _) => true,
        (_, Type::Dyn | Type::Any | Type::Param(_)) => false,
        (Type::List(a), Type::List(b)) => equal_or_wider(a, b),
        (Type::Map(a), Type::Map(b)) => equal_or_wider(&a.0, &b.0) && equal_or_wider(&a.1, &b.1),
        (Type::Opaque(a, a_params), Type::Opaque(b, b_params)) => {
            a == b
                && a_params.len() == b_params.len()
                && a_params.iter().zip(b_params.iter()).all(|(a, b)| equal_or_wider(a, b))
        }
        (Type::Type(_), Type::Type(_)) => true,
        (a, b) => a == b,
    }
}

/// The type parameters in a type, each once.
pub(super) fn params_of(of: &Type, names: &mut Vec<Name>) {
    match of {
        Type::Param(name) if !names.contains(name) => names.push(name.clone()),
        Type::List(elem) => params_of(elem, names),
        Type::Map(kv) => {
            params_of(&kv.0, names);
            params_of(&kv.1, names);
        }
        Type::Opaque(_, params) => params.iter().for_each(|param| params_of(param, names)),
        Type::Type(Some(inner)) => params_of(inner, names),
        _ => {}
    }
}
