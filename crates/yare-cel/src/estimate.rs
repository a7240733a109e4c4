//! The static cost of an expression: a range, from what is known of sizes.

use std::collections::HashMap;

use crate::{
    ast::{Ast, Call, Expr, Fold, Id, Kind, Literal, Name, OLD_ACCU},
    cost::{
        CostEstimate, LIST_CREATE, MAP_CREATE, PathStep, REGEX, SELECT, STRUCT_CREATE, SizeEstimate,
        SizeEstimator, TRAVERSAL,
    },
    library::{CallEstimate, Operand},
    types::Type,
};

/// Sizes of what a container holds.
#[derive(Clone, Copy)]
struct EntrySize {
    is_list: bool,
    key: SizeEstimate,
    value: SizeEstimate,
}

fn union(a: Option<EntrySize>, b: Option<EntrySize>) -> Option<EntrySize> {
    let (a, b) = (a?, b?);
    Some(EntrySize { is_list: a.is_list, key: a.key.union(b.key), value: a.value.union(b.value) })
}

#[derive(Clone)]
struct Local {
    path: Vec<PathStep>,
    size: Option<SizeEstimate>,
    entry: Option<EntrySize>,
}

struct Coster<'a> {
    ast: &'a Ast,
    sizes: &'a dyn SizeEstimator,
    paths: HashMap<Id, Vec<PathStep>>,
    locals: Vec<(Name, Local)>,
    known: HashMap<Id, SizeEstimate>,
    entries: HashMap<Id, EntrySize>,
}

pub(crate) fn estimate(ast: &Ast, sizes: &dyn SizeEstimator) -> CostEstimate {
    let mut coster = Coster {
        ast,
        sizes,
        paths: HashMap::new(),
        locals: Vec::new(),
        known: HashMap::new(),
        entries: HashMap::new(),
    };
    coster.cost(&ast.root)
}

const NOTHING: CostEstimate = CostEstimate { min: 0, max: 0 };
/// Grows to what is united with it.
const EMPTY_RANGE: SizeEstimate = SizeEstimate { min: u64::MAX, max: 0 };

impl Coster<'_> {
    fn local(&self, name: &str) -> Option<&Local> {
        self.locals.iter().rev().find(|(local, _)| &**local == name).map(|(_, local)| local)
    }

    fn path(&self, expr: &Expr) -> Vec<PathStep> {
        if let Kind::Ident(name) = &expr.kind
            && let Some(local) = self.local(name)
        {
            return local.path.clone();
        }
        self.paths.get(&expr.id).cloned().unwrap_or_default()
    }

    fn extend_path(&mut self, expr: &Expr, from: &Expr, step: PathStep) {
        let mut path = self.path(from);
        path.push(step);
        self.paths.insert(expr.id, path);
    }

    fn size(&mut self, expr: &Expr) -> Option<SizeEstimate> {
        if let Some(size) = self.known.get(&expr.id) {
            return Some(*size);
        }
        match &expr.kind {
            Kind::Literal(literal) => {
                let size = match literal {
                    Literal::String(text) => text.chars().count() as u64,
                    Literal::Bytes(bytes) => bytes.len() as u64,
                    _ => 1,
                };
                return Some(SizeEstimate::fixed(size));
            }
            Kind::List { items, .. } => return Some(SizeEstimate::fixed(items.len() as u64)),
            Kind::Map(entries) => return Some(SizeEstimate::fixed(entries.len() as u64)),
            _ => {}
        }
        let path = self.path(expr);
        let of = self.ast.type_of(expr);
        if let Some(size) = self.sizes.size(&path, of) {
            self.known.insert(expr.id, size);
            return Some(size);
        }
        if of.is_scalar() {
            return Some(SizeEstimate::fixed(1));
        }
        match &expr.kind {
            Kind::Ident(name) => self.local(name)?.size,
            _ => None,
        }
    }

    fn size_or_unknown(&mut self, expr: &Expr) -> SizeEstimate {
        self.size(expr).unwrap_or(SizeEstimate::UNKNOWN)
    }

    fn entry(&self, expr: &Expr) -> Option<EntrySize> {
        if let Some(entry) = self.entries.get(&expr.id) {
            return Some(*entry);
        }
        match &expr.kind {
            Kind::Ident(name) => self.local(name)?.entry,
            _ => None,
        }
    }

    fn set_size(&mut self, expr: &Expr, size: Option<SizeEstimate>) {
        if let Some(size) = size {
            self.known.insert(expr.id, size);
        }
    }

    fn set_entry(&mut self, expr: &Expr, entry: Option<EntrySize>) {
        if let Some(entry) = entry {
            self.entries.insert(expr.id, entry);
        }
    }

    fn copy_sizes(&mut self, to: &Expr, from: &Expr) {
        let size = self.size(from);
        self.set_size(to, size);
        self.set_entry(to, self.entry(from));
    }

    fn cost(&mut self, expr: &Expr) -> CostEstimate {
        match &expr.kind {
            Kind::Unspecified | Kind::Literal(_) => NOTHING,
            Kind::Ident(name) => {
                let path = match self.local(name) {
                    Some(local) => local.path.clone(),
                    None => vec![PathStep::Field((&**name).into())],
                };
                self.paths.insert(expr.id, path);
                CostEstimate::fixed(SELECT)
            }
            Kind::Select { operand, field, test_only } => {
                let mut sum = self.cost(operand);
                // Asking whether a field is there is free, as it was before it was counted.
                if *test_only {
                    return sum;
                }
                if matches!(self.ast.type_of(operand), Type::Map(_) | Type::Object(_) | Type::Param(_)) {
                    sum = sum.plus(CostEstimate::fixed(SELECT));
                }
                self.extend_path(expr, operand, PathStep::Field((&**field).into()));
                sum
            }
            Kind::Call(call) => self.call(expr, call),
            Kind::List { items, .. } => {
                let mut value = if items.is_empty() { SizeEstimate { min: 0, max: 0 } } else { EMPTY_RANGE };
                let mut sum = NOTHING;
                for item in items {
                    sum = sum.plus(self.cost(item));
                    value = value.union(self.size_or_unknown(item));
                }
                self.set_entry(expr, Some(EntrySize { is_list: true, key: SizeEstimate::fixed(1), value }));
                sum.plus(CostEstimate::fixed(LIST_CREATE))
            }
            Kind::Map(entries) => {
                let start = if entries.is_empty() { SizeEstimate { min: 0, max: 0 } } else { EMPTY_RANGE };
                let (mut key, mut value) = (start, start);
                let mut sum = NOTHING;
                for entry in entries {
                    sum = sum.plus(self.cost(&entry.key)).plus(self.cost(&entry.value));
                    key = key.union(self.size_or_unknown(&entry.key));
                    value = value.union(self.size_or_unknown(&entry.value));
                }
                self.set_entry(expr, Some(EntrySize { is_list: false, key, value }));
                sum.plus(CostEstimate::fixed(MAP_CREATE))
            }
            Kind::Struct { fields, .. } => {
                let sum = fields.iter().fold(NOTHING, |sum, field| sum.plus(self.cost(&field.value)));
                sum.plus(CostEstimate::fixed(STRUCT_CREATE))
            }
            Kind::Fold(fold) if is_bind(fold) => {
                let sum = self.cost(&fold.range).plus(self.cost(&fold.init));
                self.push_init(fold);
                let sum = sum.plus(self.cost(&fold.result));
                self.locals.pop();
                self.copy_sizes(expr, &fold.result);
                sum
            }
            Kind::Fold(fold) => self.fold(expr, fold),
        }
    }

    fn push_init(&mut self, fold: &Fold) {
        let local =
            Local { path: self.path(&fold.init), size: self.size(&fold.init), entry: self.entry(&fold.init) };
        self.locals.push((fold.accu.clone(), local));
    }

    fn push_iteration(&mut self, name: &Name, range: &Expr, key: bool, single: bool) {
        let entry = self.entry(range);
        let is_list = match entry {
            Some(entry) => entry.is_list,
            None => matches!(self.ast.type_of(range), Type::List(_)),
        };
        let (step, size) = match (is_list, key) {
            (true, true) if single => (PathStep::Items, entry.map(|entry| entry.value)),
            (true, true) => (PathStep::Indices, entry.map(|entry| entry.key)),
            (true, false) => (PathStep::Items, entry.map(|entry| entry.value)),
            (false, true) => (PathStep::Keys, entry.map(|entry| entry.key)),
            (false, false) => (PathStep::Values, entry.map(|entry| entry.value)),
        };
        let mut path = self.path(range);
        path.push(step);
        self.locals.push((name.clone(), Local { path, size, entry: None }));
    }

    fn fold(&mut self, expr: &Expr, fold: &Fold) -> CostEstimate {
        let mut sum = self.cost(&fold.range).plus(self.cost(&fold.init));
        self.push_init(fold);
        let inner = self.locals.len();
        self.push_iteration(&fold.var, &fold.range, true, fold.var2.is_none());
        if let Some(var2) = &fold.var2 {
            self.push_iteration(var2, &fold.range, false, false);
        }
        let each = self.cost(&fold.condition);
        let each = self.cost(&fold.step).plus(each);
        self.locals.truncate(inner);
        sum = sum.plus(self.cost(&fold.result));
        self.locals.pop();
        let count = self.size_or_unknown(&fold.range);
        sum = sum.plus(count.times(each));
        match &fold.init.kind {
            Kind::Literal(_) => {
                let size = self.size(&fold.init);
                self.set_size(expr, size);
            }
            Kind::List { .. } | Kind::Map(_) => {
                self.set_size(expr, Some(count));
                let entry = self.entry(&fold.step);
                self.set_entry(expr, entry);
            }
            _ => {}
        }
        sum
    }

    fn operand<'e>(&mut self, expr: &'e Expr) -> Operand<'e> {
        let mut path = self.path(expr);
        if matches!(path.first(), Some(PathStep::Field(name)) if &**name == OLD_ACCU || name.starts_with('@'))
        {
            path.clear();
        }
        let literal = match &expr.kind {
            Kind::Literal(literal) => Some(literal),
            _ => None,
        };
        Operand { path, of: self.ast.type_of(expr).clone(), literal, size: self.size(expr) }
    }

    fn call(&mut self, expr: &Expr, call: &Call) -> CostEstimate {
        if &*call.function == "dyn"
            && let [arg] = call.args.as_slice()
        {
            let cost = self.cost(arg);
            self.copy_sizes(expr, arg);
            return cost.plus(CostEstimate::fixed(1));
        }
        let mut costs = Vec::with_capacity(call.args.len());
        let mut args = Vec::with_capacity(call.args.len() + 1);
        for arg in &call.args {
            costs.push(self.cost(arg));
            args.push(self.operand(arg));
        }
        let overloads = self.ast.overloads(expr);
        if overloads.is_empty() {
            return NOTHING;
        }
        let mut sum = NOTHING;
        if let Some(target) = &call.target {
            sum = self.cost(target);
            args.insert(0, self.operand(target));
        }
        let arg_sum = costs.iter().fold(NOTHING, |sum, cost| sum.plus(*cost));
        let rows = self.ast.env.functions().get(&*call.function);
        let mut total = CostEstimate { min: u64::MAX, max: 0 };
        let mut result: Option<SizeEstimate> = None;
        for id in overloads {
            let row = rows.and_then(|rows| rows.iter().find(|row| row.id == *id));
            let own = row.and_then(|row| row.function.cost.estimate(id, &args, self.sizes));
            let estimate = match own {
                Some(own) => CallEstimate { cost: own.cost.plus(arg_sum), result: own.result },
                None => self.standard(expr, id, call, &args, &costs, arg_sum),
            };
            total = total.union(estimate.cost);
            if let Some(size) = estimate.result {
                result = Some(result.map_or(size, |before| before.union(size)));
            }
            let step = match *id {
                "index_list" => Some(PathStep::Items),
                "index_map" => Some(PathStep::Values),
                _ => None,
            };
            if let (Some(step), Some(container)) = (step, call.args.first()) {
                result = self.entry(container).map(|entry| entry.value);
                self.extend_path(expr, container, step);
            }
            if result.is_none() {
                result = self.size(expr);
            }
        }
        self.set_size(expr, result);
        sum.plus(total)
    }

    /// The specification's functions, by overload.
    fn standard(
        &mut self,
        expr: &Expr,
        overload: &str,
        call: &Call,
        operands: &[Operand<'_>],
        costs: &[CostEstimate],
        arg_sum: CostEstimate,
    ) -> CallEstimate {
        let size = |index: usize| operands.get(index).map_or(SizeEstimate::UNKNOWN, Operand::size_or_unknown);
        let with = |cost: CostEstimate, result: Option<SizeEstimate>| CallEstimate {
            cost: cost.plus(arg_sum),
            result,
        };
        match overload {
            "string_format" => with(size(0).scale(TRAVERSAL), None),
            // A character takes one to four bytes.
            "string_to_bytes" => {
                let of = size(0);
                with(of.scale(TRAVERSAL), Some(SizeEstimate { min: of.min, max: of.max.wrapping_mul(4) }))
            }
            "bytes_to_string" => {
                let of = size(0);
                with(of.scale(TRAVERSAL), Some(SizeEstimate { min: of.min / 4, max: of.max }))
            }
            "strings_quote" => {
                let of = size(0);
                let result =
                    SizeEstimate { min: of.min.wrapping_add(2), max: of.max.wrapping_mul(2).wrapping_add(2) };
                with(of.scale(TRAVERSAL), Some(result))
            }
            "starts_with_string" | "ends_with_string" => with(size(1).scale(TRAVERSAL), None),
            "in_list" => with(size(1).scale(1.0), None),
            "matches_string" => {
                let text = size(0).plus(SizeEstimate::fixed(1)).scale(TRAVERSAL);
                with(text.times(size(1).scale(REGEX)), None)
            }
            "contains_string" => with(size(0).scale(TRAVERSAL).times(size(1).scale(TRAVERSAL)), None),
            "logical_or" | "logical_and" => {
                // At least the left side is evaluated.
                let (left, right) = (costs[0], costs[1]);
                let cost = CostEstimate { min: left.min, max: left.plus(right).max };
                CallEstimate { cost, result: None }
            }
            "conditional" => {
                let result = size(1).union(size(2));
                let entry = union(self.entry(&call.args[1]), self.entry(&call.args[2]));
                self.set_entry(expr, entry);
                CallEstimate { cost: costs[0].plus(costs[1].union(costs[2])), result: Some(result) }
            }
            "add_string" | "add_bytes" | "add_list" => {
                let result = size(0).plus(size(1));
                let entry = union(self.entry(&call.args[0]), self.entry(&call.args[1]));
                self.set_entry(expr, entry);
                let cost =
                    if overload == "add_list" { CostEstimate::fixed(1) } else { result.scale(TRAVERSAL) };
                with(cost, Some(result))
            }
            "less_string"
            | "greater_string"
            | "less_equals_string"
            | "greater_equals_string"
            | "less_bytes"
            | "greater_bytes"
            | "less_equals_bytes"
            | "greater_equals_bytes"
            | "equals"
            | "not_equals" => {
                let max = size(0).max.min(size(1).max);
                with(CostEstimate { min: u64::from(max > 0), max }.scale(TRAVERSAL), None)
            }
            _ => with(CostEstimate::fixed(1), None),
        }
    }
}

/// `cel.bind` and its like: a loop over nothing, whose body is its result.
fn is_bind(fold: &Fold) -> bool {
    matches!(&fold.range.kind, Kind::List { items, .. } if items.is_empty())
        && matches!(&fold.condition.kind, Kind::Literal(Literal::Bool(false)))
        && &*fold.accu != OLD_ACCU
}
