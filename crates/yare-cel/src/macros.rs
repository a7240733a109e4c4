//! Calls that are no calls: `has`, loops, `cel.bind`, … become trees of what they mean.

use crate::{
    ast::{ACCU, Call, Entry, Expr, Fold, Id, Kind, Literal, OLD_ACCU},
    parser::Parser,
};

/// What becomes of a macro's arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expander {
    Has,
    All,
    Exists,
    ExistsOne,
    Map,
    Filter,
    OptMap,
    OptFlatMap,
    TransformMap,
    TransformMapEntry,
    SortBy,
    Bind,
}

/// A macro: its name, how many arguments it takes, whether it is called on something.
pub(crate) struct Macro {
    name: &'static str,
    args: &'static [usize],
    receiver: bool,
    expander: Expander,
}

const fn on(name: &'static str, args: &'static [usize], expander: Expander) -> Macro {
    Macro { name, args, receiver: true, expander }
}

pub(crate) const STANDARD: &[Macro] = &[
    Macro { name: "has", args: &[1], receiver: false, expander: Expander::Has },
    on("all", &[2], Expander::All),
    on("exists", &[2], Expander::Exists),
    on("exists_one", &[2], Expander::ExistsOne),
    on("existsOne", &[2], Expander::ExistsOne),
    on("map", &[2, 3], Expander::Map),
    on("filter", &[2], Expander::Filter),
];

pub(crate) const OPTIONAL: &[Macro] =
    &[on("optMap", &[2], Expander::OptMap), on("optFlatMap", &[2], Expander::OptFlatMap)];

pub(crate) const TWO_VARIABLES: &[Macro] = &[
    on("all", &[3], Expander::All),
    on("exists", &[3], Expander::Exists),
    on("existsOne", &[3], Expander::ExistsOne),
    on("exists_one", &[3], Expander::ExistsOne),
    // A list of transformed values is a map over two variables.
    on("transformList", &[3, 4], Expander::Map),
    on("transformMap", &[3, 4], Expander::TransformMap),
    on("transformMapEntry", &[3, 4], Expander::TransformMapEntry),
];

pub(crate) const LISTS: &[Macro] = &[on("sortBy", &[2], Expander::SortBy)];

pub(crate) const BINDINGS: &[Macro] = &[on("bind", &[3], Expander::Bind)];

/// The macros of an environment.
#[derive(Clone, Default)]
pub(crate) struct MacroSet(pub Vec<&'static [Macro]>);

impl MacroSet {
    pub(crate) fn find(&self, name: &str, args: usize, receiver: bool) -> Option<&'static Macro> {
        self.0
            .iter()
            .flat_map(|library| library.iter())
            .find(|m| m.name == name && m.receiver == receiver && m.args.contains(&args))
    }
}

/// Iteration variables of [`Expander::Bind`] and its like, which no expression can name.
const UNUSED: &str = "#unused";
const SORT_INPUT: &str = "@__sortBy_input__";

/// Builds nodes that stand where the macro was called.
struct Builder<'b, 'p> {
    parser: &'b mut Parser<'p>,
    offset: u32,
}

impl Builder<'_, '_> {
    fn id(&mut self) -> Id {
        self.parser.id(self.offset)
    }

    fn expr(&mut self, kind: Kind) -> Expr {
        Expr { id: self.id(), kind }
    }

    fn call(&mut self, function: &str, args: Vec<Expr>) -> Expr {
        let id = self.id();
        Expr::call(id, function, args)
    }

    fn method(&mut self, function: &str, target: Expr, args: Vec<Expr>) -> Expr {
        self.expr(Kind::Call(Box::new(Call { function: function.into(), target: Some(target), args })))
    }

    fn ident(&mut self, name: &str) -> Expr {
        let id = self.id();
        Expr::ident(id, name)
    }

    fn accu(&mut self) -> Expr {
        self.ident(ACCU)
    }

    fn literal(&mut self, literal: Literal) -> Expr {
        self.expr(Kind::Literal(literal))
    }

    fn list(&mut self, items: Vec<Expr>) -> Expr {
        self.expr(Kind::List { items, optional: Vec::new() })
    }

    fn fold(&mut self, fold: Fold) -> Expr {
        self.expr(Kind::Fold(Box::new(fold)))
    }

    /// `name = value` for `body`: a loop that does not run.
    fn bind(&mut self, name: &str, value: Expr, body: Expr) -> Expr {
        let range = self.list(Vec::new());
        let condition = self.literal(Literal::Bool(false));
        let step = self.ident(name);
        self.fold(Fold {
            range,
            var: UNUSED.into(),
            var2: None,
            accu: name.into(),
            init: value,
            condition,
            step,
            result: body,
        })
    }

    /// A copy whose nodes are nodes of their own.
    fn copy(&mut self, expr: &Expr) -> Expr {
        fn renew(expr: &mut Expr, parser: &mut Parser<'_>) {
            let offset = parser.positions.offsets[expr.id as usize];
            expr.id = parser.id(offset);
            expr.children_mut(&mut |child| renew(child, parser));
        }
        let mut copy = expr.clone();
        renew(&mut copy, self.parser);
        copy
    }
}

/// What is wrong with an argument, and its node.
type Mistake = (Id, String);

fn variable(expr: &Expr, otherwise: &str) -> Result<String, Mistake> {
    match &expr.kind {
        Kind::Ident(name) if !name.starts_with('.') => {
            if &**name == ACCU || &**name == OLD_ACCU {
                return Err((expr.id, "iteration variable overwrites accumulator variable".into()));
            }
            Ok(name.to_string())
        }
        _ => Err((expr.id, otherwise.into())),
    }
}

/// Expands a macro call, or, if it turns out to be none (`x.bind(…)` where `x` is not `cel`), leaves it.
pub(crate) fn expand(
    parser: &mut Parser<'_>,
    macro_: &Macro,
    id: Id,
    offset: u32,
    function: &str,
    target: Option<Expr>,
    args: Vec<Expr>,
) -> Expr {
    if macro_.expander == Expander::Bind
        && !matches!(&target, Some(Expr { kind: Kind::Ident(name), .. }) if &**name == "cel")
    {
        return Expr { id, kind: Kind::Call(Box::new(Call { function: function.into(), target, args })) };
    }
    let mut builder = Builder { parser, offset };
    match build(&mut builder, macro_, function, target, args) {
        Ok(expr) => expr,
        Err((at, message)) => {
            let place = parser.positions.offsets[at as usize];
            parser.mistake(place, message)
        }
    }
}

fn build(
    b: &mut Builder<'_, '_>,
    macro_: &Macro,
    function: &str,
    target: Option<Expr>,
    mut args: Vec<Expr>,
) -> Result<Expr, Mistake> {
    if macro_.expander == Expander::Has {
        let arg = args.remove(0);
        return match arg.kind {
            Kind::Select { operand, field, .. } => {
                Ok(b.expr(Kind::Select { operand, field, test_only: true }))
            }
            _ => Err((arg.id, "invalid argument to has() macro".into())),
        };
    }
    // All others are called on something.
    let Some(target) = target else {
        return Err((0, format!("{function} needs a receiver")));
    };
    match macro_.expander {
        Expander::Has => Err((0, String::new())),
        Expander::OptMap | Expander::OptFlatMap => {
            let name = match &args[0].kind {
                Kind::Ident(name) => name.to_string(),
                _ => {
                    return Err((
                        args[0].id,
                        format!("{function}() variable name must be a simple identifier"),
                    ));
                }
            };
            let body = args.remove(1);
            let copy = b.copy(&target);
            let present = b.method("hasValue", target, vec![]);
            let value = b.method("value", copy, vec![]);
            let mut then = b.bind(&name, value, body);
            if macro_.expander == Expander::OptMap {
                then = b.call("optional.of", vec![then]);
            }
            let none = b.call("optional.none", vec![]);
            Ok(b.call("_?_:_", vec![present, then, none]))
        }
        Expander::Bind => {
            let name = match &args[0].kind {
                Kind::Ident(name) => name.to_string(),
                _ => return Err((args[0].id, "cel.bind() variable names must be simple identifiers".into())),
            };
            let body = args.remove(2);
            let value = args.remove(1);
            Ok(b.bind(&name, value, body))
        }
        Expander::SortBy => {
            if matches!(
                target.kind,
                Kind::Literal(_) | Kind::Map(_) | Kind::Struct { .. } | Kind::Unspecified
            ) {
                let message = "sortBy can only be applied to a list, identifier, comprehension, call or select expression";
                return Err((target.id, message.into()));
            }
            let input = b.ident(SORT_INPUT);
            let keys = build(b, &STANDARD[5], "map", Some(input), args)?;
            let input = b.ident(SORT_INPUT);
            let sorted = b.method("@sortByAssociatedKeys", input, vec![keys]);
            Ok(b.bind(SORT_INPUT, target, sorted))
        }
        expander => build_loop(b, expander, function, target, args),
    }
}

fn build_loop(
    b: &mut Builder<'_, '_>,
    expander: Expander,
    function: &str,
    range: Expr,
    mut args: Vec<Expr>,
) -> Result<Expr, Mistake> {
    // `map` takes a filter as its third argument; all others of three have two variables.
    let two = function.starts_with("transform") || (args.len() == 3 && expander != Expander::Map);
    let one_name = matches!(expander, Expander::Map | Expander::Filter) && !two;
    let otherwise = if one_name { "argument is not an identifier" } else { "argument must be a simple name" };
    let var = variable(&args[0], otherwise)?;
    let var2 = if two {
        let name = variable(&args[1], otherwise)?;
        if name == var {
            return Err((args[1].id, format!("duplicate variable name: {var}")));
        }
        Some(name)
    } else {
        None
    };
    let first = args.remove(0);
    if two {
        args.remove(0);
    }
    let last = args.pop().unwrap_or_else(|| first.clone());
    let filter = args.pop();

    let (init, condition, mut step, result);
    match expander {
        Expander::All | Expander::Exists => {
            let all = expander == Expander::All;
            init = b.literal(Literal::Bool(all));
            let mut go_on = b.accu();
            if !all {
                go_on = b.call("!_", vec![go_on]);
            }
            condition = b.call("@not_strictly_false", vec![go_on]);
            let accu = b.accu();
            step = b.call(if all { "_&&_" } else { "_||_" }, vec![accu, last]);
            result = b.accu();
        }
        Expander::ExistsOne => {
            init = b.literal(Literal::Int(0));
            condition = b.literal(Literal::Bool(true));
            let (accu, one) = (b.accu(), b.literal(Literal::Int(1)));
            let more = b.call("_+_", vec![accu, one]);
            let same = b.accu();
            step = b.call("_?_:_", vec![last, more, same]);
            let (accu, one) = (b.accu(), b.literal(Literal::Int(1)));
            result = b.call("_==_", vec![accu, one]);
        }
        Expander::TransformMap | Expander::TransformMapEntry => {
            init = b.expr(Kind::Map(Vec::<Entry>::new()));
            condition = b.literal(Literal::Bool(true));
            let accu = b.accu();
            let insert = if expander == Expander::TransformMap {
                let key = b.ident(&var);
                vec![accu, key, last]
            } else {
                vec![accu, last]
            };
            step = b.call("cel.@mapInsert", insert);
            if let Some(filter) = filter {
                let same = b.accu();
                step = b.call("_?_:_", vec![filter, step, same]);
            }
            result = b.accu();
        }
        _ => {
            init = b.list(vec![]);
            condition = b.literal(Literal::Bool(true));
            let accu = b.accu();
            let (item, filter) =
                if expander == Expander::Filter { (first, Some(last)) } else { (last, filter) };
            let item = b.list(vec![item]);
            step = b.call("_+_", vec![accu, item]);
            if let Some(filter) = filter {
                let same = b.accu();
                step = b.call("_?_:_", vec![filter, step, same]);
            }
            result = b.accu();
        }
    }
    Ok(b.fold(Fold {
        range,
        var: var.into(),
        var2: var2.map(Into::into),
        accu: ACCU.into(),
        init,
        condition,
        step,
        result,
    }))
}
