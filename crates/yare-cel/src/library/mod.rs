//! The functions of the language, by library: one file each, each a table.
//!
//! A row says a function's name, what it costs, how it is evaluated, and its overloads. An overload is an
//! id, by which upstream's costs know it, and a signature: `.list(A), A -> int` is a method (the dot) on
//! lists; capital letters are type parameters; `#net.IP` is an opaque type, other names are objects.

pub mod authz;
mod cost;
mod devices;
mod format;
mod lists;
mod mismatch;
mod network;
mod operators;
mod optional;
mod quantity;
mod regex;
mod semver;
mod sets;
mod standard;
mod strings;
mod strings_format;
mod url;

use std::collections::HashMap;

pub(crate) use cost::{CallEstimate, Cost, Operand};
pub(crate) use mismatch::{go_type, mismatch};
pub(crate) use quantity::value as quantity_value;
pub(crate) use regex::precompile;
pub(crate) use semver::value as semver_value;
pub(crate) use strings_format::check_format;

use crate::{
    env::Version,
    error::EvalError,
    macros::{self, Macro},
    types::Type,
    value::Value,
};

/// Evaluates a call; the receiver, if there is one, is the first argument. Arguments may be taken.
pub(crate) type Eval = for<'a> fn(&mut [Value<'a>]) -> Result<Value<'a>, EvalError>;

/// A row of a library's table.
pub(crate) struct Function {
    pub name: &'static str,
    pub cost: Cost,
    pub eval: Eval,
    /// Id and signature.
    pub overloads: &'static [(&'static str, &'static str)],
    /// Whether a call of constants may be evaluated when compiling. It is charged all the same.
    pub constant: bool,
}

pub(crate) const fn row(
    name: &'static str,
    cost: Cost,
    eval: Eval,
    overloads: &'static [(&'static str, &'static str)],
) -> Function {
    Function { name, cost, eval, overloads, constant: false }
}

/// A row whose calls with constants are evaluated once.
pub(crate) const fn constant(
    name: &'static str,
    cost: Cost,
    eval: Eval,
    overloads: &'static [(&'static str, &'static str)],
) -> Function {
    Function { name, cost, eval, overloads, constant: true }
}

/// What a library brings.
pub(crate) struct Definition {
    pub library: Library,
    /// The minor version of Kubernetes 1 that has it in its base environment, if any does.
    pub since: Option<u32>,
    pub functions: &'static [&'static [Function]],
    pub macros: &'static [Macro],
    /// Names of types that expressions may use, with their types' signatures.
    pub types: &'static [&'static str],
}

/// A function library.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Library {
    /// The specification's own.
    Standard,
    /// Optional values and their syntax.
    Optional,
    /// `charAt`, `split`, `format`, …
    Strings,
    /// Kubernetes' `isSorted`, `sum`, `min`, `max`, `indexOf`.
    ListWalks,
    /// `slice`, `flatten`, `sort`, `distinct`, `lists.range`, …
    Lists,
    /// `sets.contains`, …
    Sets,
    /// `find`, `findAll`
    Regex,
    /// `url`, `getHost`, …
    Url,
    /// `quantity`, …
    Quantity,
    /// `ip`, …
    Ip,
    /// `cidr`, …
    Cidr,
    /// `format.named`, `validate`
    Format,
    /// `semver`, …
    Semver,
    /// `authorizer`
    Authz,
    /// `fieldSelector`, `labelSelector` of authorization checks.
    AuthzSelectors,
    /// Loops over two variables.
    TwoVariables,
    /// `jsonpatch.escapeKey`, and `JSONPatch{…}`: where patches are made.
    JsonPatch,
    /// `cel.bind`. Only selectors of devices have it in Kubernetes.
    Bindings,
    /// `includes`, of attributes of devices that may be lists.
    Devices,
}

/// All libraries.
pub(crate) const LIBRARIES: &[Definition] = &[
    Definition {
        library: Library::Standard,
        since: Some(0),
        functions: &[operators::OPERATORS, standard::FUNCTIONS],
        macros: macros::STANDARD,
        types: &[],
    },
    Definition {
        library: Library::Optional,
        since: Some(28),
        functions: &[optional::FUNCTIONS],
        macros: macros::OPTIONAL,
        types: &["optional(dyn)"],
    },
    Definition {
        library: Library::Strings,
        since: Some(0),
        functions: &[strings::FUNCTIONS],
        macros: &[],
        types: &[],
    },
    Definition {
        library: Library::ListWalks,
        since: Some(0),
        functions: &[lists::WALKS],
        macros: &[],
        types: &[],
    },
    Definition {
        library: Library::Lists,
        since: Some(34),
        functions: &[lists::FUNCTIONS],
        macros: macros::LISTS,
        types: &[],
    },
    Definition {
        library: Library::Sets,
        since: Some(29),
        functions: &[sets::FUNCTIONS],
        macros: &[],
        types: &[],
    },
    Definition {
        library: Library::Regex,
        since: Some(0),
        functions: &[regex::FUNCTIONS],
        macros: &[],
        types: &[],
    },
    Definition {
        library: Library::Url,
        since: Some(0),
        functions: &[url::FUNCTIONS],
        macros: &[],
        types: &[],
    },
    Definition {
        library: Library::Quantity,
        since: Some(28),
        functions: &[quantity::FUNCTIONS],
        macros: &[],
        types: &[],
    },
    Definition {
        library: Library::Ip,
        since: Some(30),
        functions: &[network::IP],
        macros: &[],
        types: &["#net.IP"],
    },
    Definition {
        library: Library::Cidr,
        since: Some(30),
        functions: &[network::CIDR],
        macros: &[],
        types: &["#net.CIDR"],
    },
    Definition {
        library: Library::Format,
        since: Some(31),
        functions: &[format::FUNCTIONS],
        macros: &[],
        types: &[],
    },
    Definition {
        library: Library::Semver,
        since: Some(33),
        functions: &[semver::FUNCTIONS],
        macros: &[],
        types: &[],
    },
    Definition {
        library: Library::Authz,
        since: Some(27),
        functions: &[authz::FUNCTIONS],
        macros: &[],
        types: &[],
    },
    Definition {
        library: Library::AuthzSelectors,
        since: Some(31),
        functions: &[authz::SELECTORS],
        macros: &[],
        types: &[],
    },
    Definition {
        library: Library::TwoVariables,
        since: Some(32),
        functions: &[standard::MAP_INSERT],
        macros: macros::TWO_VARIABLES,
        types: &[],
    },
    Definition {
        library: Library::JsonPatch,
        since: None,
        functions: &[strings::JSON_PATCH],
        macros: &[],
        types: &[],
    },
    Definition {
        library: Library::Bindings,
        since: None,
        functions: &[],
        macros: macros::BINDINGS,
        types: &[],
    },
    Definition {
        library: Library::Devices,
        since: None,
        functions: &[devices::FUNCTIONS],
        macros: &[],
        types: &[],
    },
];

/// Those of a version's base environment.
pub(crate) fn base(version: Version) -> impl Iterator<Item = Library> {
    LIBRARIES
        .iter()
        .filter(move |definition| definition.since.is_some_and(|minor| version >= Version::new(1, minor)))
        .map(|definition| definition.library)
}

/// An overload with its signature read.
#[derive(Clone)]
pub(crate) struct Overload {
    pub id: &'static str,
    pub member: bool,
    pub params: Vec<Type>,
    pub result: Type,
    pub generic: bool,
    pub function: &'static Function,
}

/// The overloads of each function, in the order of the tables.
pub(crate) type Functions = HashMap<&'static str, Vec<Overload>>;

pub(crate) fn add(functions: &mut Functions, library: Library) {
    for definition in LIBRARIES.iter().filter(|definition| definition.library == library) {
        for function in definition.functions.iter().flat_map(|table| table.iter()) {
            let overloads = functions.entry(function.name).or_default();
            for (id, signature) in function.overloads {
                let (member, params, result) = read_signature(signature);
                let generic = params.iter().chain([&result]).any(has_param);
                overloads.push(Overload { id, member, params, result, generic, function });
            }
        }
    }
}

fn has_param(of: &Type) -> bool {
    match of {
        Type::Param(_) => true,
        Type::List(elem) => has_param(elem),
        Type::Map(kv) => has_param(&kv.0) || has_param(&kv.1),
        Type::Opaque(_, params) => params.iter().any(has_param),
        Type::Type(Some(of)) => has_param(of),
        _ => false,
    }
}

fn read_signature(text: &str) -> (bool, Vec<Type>, Type) {
    let (member, text) = match text.strip_prefix('.') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (params, result) = text.split_once("->").unwrap_or(("", text));
    let mut rest = params.trim();
    let mut types = Vec::new();
    while !rest.is_empty() {
        let (of, after) = read_type(rest);
        types.push(of);
        rest = after.trim_start().trim_start_matches(',').trim_start();
    }
    (member, types, read_type(result.trim()).0)
}

/// One type at the beginning of the text, and what follows it.
pub(crate) fn read_type(text: &str) -> (Type, &str) {
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || "._#".contains(c))).unwrap_or(text.len());
    let (name, mut rest) = text.split_at(end);
    let mut args = Vec::new();
    if let Some(inside) = rest.strip_prefix('(') {
        rest = inside;
        loop {
            let (arg, after) = read_type(rest.trim_start());
            args.push(arg);
            let after = after.trim_start();
            match after.strip_prefix(',') {
                Some(more) => rest = more,
                None => {
                    rest = after.strip_prefix(')').unwrap_or(after);
                    break;
                }
            }
        }
    }
    let mut args = args.into_iter();
    let mut next = || args.next().unwrap_or(Type::Dyn);
    let of = match name {
        "dyn" => Type::Dyn,
        "null" => Type::Null,
        "bool" => Type::Bool,
        "int" => Type::Int,
        "uint" => Type::Uint,
        "double" => Type::Double,
        "string" => Type::String,
        "bytes" => Type::Bytes,
        "duration" => Type::Duration,
        "timestamp" => Type::Timestamp,
        "list" => Type::list(next()),
        "map" => {
            let key = next();
            Type::map(key, next())
        }
        "type" => Type::Type(Some(next().into())),
        "optional" => Type::optional(next()),
        _ if name.starts_with('#') => Type::opaque(&name[1..]),
        _ if name.len() == 1 => Type::Param(name.into()),
        _ => Type::object(name),
    };
    (of, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overload_ids_are_unique() {
        let mut functions = Functions::new();
        LIBRARIES.iter().for_each(|definition| add(&mut functions, definition.library));
        let mut ids: Vec<&str> = functions.values().flatten().map(|overload| overload.id).collect();
        let count = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), count);
    }

    #[test]
    fn signatures_are_read() {
        let (member, params, result) = read_signature(".map(K, list(V)), #net.IP -> optional(type(K))");
        assert!(member);
        assert_eq!(format!("{params:?}"), r#"[Map((Param("K"), List(Param("V")))), Opaque("net.IP", [])]"#);
        assert_eq!(result.to_string(), "optional_type(type(K))");
        assert_eq!(read_signature("-> int"), (false, vec![], Type::Int));
    }
}
