//! What calls cost, by upstream's figures: the static range, and what evaluation was charged.
//!
//! `costs.jsonl` has one expression per line. The sizes of strings and bytes that are not known are 0 to 12.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use serde_json::{Value as Json, json};
use yare_cel::{
    Budget, Decl, DeclSizes, Env, EvalError, Field, Lazy, Library, PathStep, SizeEstimate, SizeEstimator,
    Type, Vars, Version, authz,
};

const LATEST: Version = Version::new(1, 36);

struct Twelve;

impl SizeEstimator for Twelve {
    fn size(&self, _path: &[PathStep], of: &Type) -> Option<SizeEstimate> {
        matches!(of, Type::String | Type::Bytes).then_some(SizeEstimate { min: 0, max: 12 })
    }
}

struct Allow;

impl authz::Authorizer for Allow {
    fn authorize(&self, _: &authz::Attributes) -> authz::Decision {
        authz::Decision { allowed: true, ..authz::Decision::default() }
    }
}

#[test]
fn calls_cost_what_upstream_says() {
    let env = Env::kubernetes(LATEST)
        .extend()
        .library(Library::JsonPatch)
        .variable("authorizer", Type::object(authz::AUTHORIZER_TYPE))
        .fold_constants(false)
        .mixed_literals(true)
        .build();
    let mut failures = Vec::new();
    let mut cases = 0;
    for line in include_str!("costs.jsonl").lines() {
        let case: Json = serde_json::from_str(line).unwrap();
        let expr = case["expr"].as_str().unwrap();
        cases += 1;
        let ast = match env.compile(expr) {
            Ok(ast) => ast,
            Err(error) => {
                failures.push(error.to_string());
                continue;
            }
        };
        let estimate = ast.estimate(&Twelve);
        let mut vars = Vars::new();
        vars.bind("authorizer", authz::authorizer(Arc::new(Allow)));
        let mut budget = Budget::unlimited();
        let result = ast.program().unwrap().eval(&vars, &mut budget);
        let ran = u64::MAX - budget.remaining;
        let found = (estimate.min, estimate.max, ran);
        let want =
            (case["min"].as_u64().unwrap(), case["max"].as_u64().unwrap(), case["run"].as_u64().unwrap());
        if found != want {
            failures.push(format!("{expr}: {found:?}, want {want:?} ({result:?})"));
        }
    }
    assert!(cases > 150, "{cases}");
    assert!(failures.is_empty(), "{} of {cases}:\n{}", failures.len(), failures.join("\n"));
}

/// Estimates over a schema, and costs over a value of it.
#[test]
fn sizes_come_from_declarations() {
    let item = Decl::object("Item", [("name", Field::optional(Decl::string().max_elements(10)))]);
    let root = Decl::object(
        "Root",
        [
            ("name", Field::optional(Decl::string().max_elements(20))),
            ("list", Field::optional(Decl::list(item).max_elements(5))),
            ("count", Field::optional(Decl::int())),
            ("labels", Field::optional(Decl::map(Decl::string().max_elements(8)).max_elements(3))),
        ],
    );
    let env = Env::kubernetes(LATEST).extend().declare("self", &root).build();
    let object = json!({"name": "abcdefghijkl", "count": 3, "list": [{"name": "a"}, {"name": "b"}], "labels": {"k": "v"}});
    for (expr, min, max, ran) in [
        ("self.count > 1", 3, 3, 3),
        ("has(self.name)", 1, 1, 1),
        ("self.name == 'abc'", 3, 3, 3),
        ("self.name.startsWith('abc')", 3, 3, 4),
        // The list, twice each: condition (2), accumulator (1), item's name (2), comparison (1).
        ("self.list.all(i, i.name == 'a')", 3, 3 + 5 * 6, 2 + 2 * 6 + 1),
        ("self.labels['k'] == 'v'", 4, 4, 4),
        ("self.count in [1, 2, 3]", 12 + 3, 12 + 3, 2),
        ("self.count == 1 ? self.name : 'x'", 2, 4, 3),
    ] {
        let ast = env.compile(expr).unwrap();
        let estimate = ast.estimate(&DeclSizes(&root));
        let mut vars = Vars::new();
        vars.bind_json("self", &object, &root);
        let mut budget = Budget::unlimited();
        ast.program().unwrap().eval(&vars, &mut budget).unwrap();
        assert_eq!((estimate.min, estimate.max, u64::MAX - budget.remaining), (min, max, ran), "{expr}");
    }
}

#[test]
fn budgets_are_kept() {
    let env = Env::kubernetes(LATEST).extend().variable("x", Type::list(Type::Int)).build();
    let program = env.compile("x.all(i, x.all(j, i + j >= 0))").unwrap().program().unwrap();
    let numbers = json!((0..100).collect::<Vec<_>>());
    let decl = Decl::list(Decl::int());
    let mut vars = Vars::new();
    vars.bind_json("x", &numbers, &decl);
    let mut budget = Budget::unlimited();
    assert_eq!(program.eval(&vars, &mut budget).unwrap().as_bool(), Some(true));
    let cost = u64::MAX - budget.remaining;
    let mut budget = Budget::new(cost, 2 * cost);
    program.eval(&vars, &mut budget).unwrap();
    assert_eq!(budget.remaining, cost);
    program.eval(&vars, &mut budget).unwrap();
    assert_eq!(program.eval(&vars, &mut budget).unwrap_err(), EvalError::OutOfBudget);
    let error = program.eval(&vars, &mut Budget::new(cost - 1, 2 * cost)).unwrap_err();
    assert_eq!(error.to_string(), "operation cancelled: actual cost limit exceeded");
    let stop = || true;
    vars.cancel_when(&stop);
    assert_eq!(
        program.eval(&vars, &mut Budget::unlimited()).unwrap_err().to_string(),
        "operation interrupted"
    );
}

/// Variables of a policy are evaluated once, and charged to whoever reads them first.
#[test]
fn lazy_variables_are_charged_once() {
    let env = Env::kubernetes(LATEST)
        .extend()
        .variable("object", Type::Dyn)
        .object_type("kubernetes.variables", [("a", Type::Int), ("b", Type::Int), ("bad", Type::Int)], false)
        .variable("variables", Type::object("kubernetes.variables"))
        .build();
    let program = |text: &str| env.compile(text).unwrap().program().unwrap();
    let (a, b, bad) = (program("object.n + 1"), program("variables.a * 2"), program("[1][7]"));
    let mut lazy = Lazy::new();
    lazy.push("a", &a);
    lazy.push("b", &b);
    lazy.push("bad", &bad);
    let object = json!({"n": 4});
    let any = Decl::any();
    let mut vars = Vars::new();
    vars.bind_json("object", &object, &any);
    vars.bind_lazy("variables", &lazy);
    let reads = program("variables.b == 10 && variables.a == 5");
    let mut costs = Vec::new();
    for _ in 0..2 {
        let mut budget = Budget::new(1_000, 1_000);
        assert_eq!(reads.eval(&vars, &mut budget).unwrap().as_bool(), Some(true));
        costs.push(1_000 - budget.remaining);
    }
    // Reading both: 2 + 1 each. The variables themselves: 2 + 1 each.
    assert_eq!(costs, [12, 6]);
    let error = program("variables.bad == 1").eval(&vars, &mut Budget::unlimited()).unwrap_err();
    assert_eq!(error.to_string(), "composited variable \"bad\" fails to evaluate: index out of bounds: 7");
}

fn parse_type(text: &str) -> Type {
    let (name, args) = match text.split_once('(') {
        Some((name, rest)) => (name, &rest[..rest.len() - 1]),
        None => (text, ""),
    };
    match name {
        "dyn" => Type::Dyn,
        "null" => Type::Null,
        "bool" => Type::Bool,
        "int" => Type::Int,
        "uint" => Type::Uint,
        "double" => Type::Double,
        "string" => Type::String,
        "bytes" => Type::Bytes,
        "timestamp" => Type::Timestamp,
        "duration" => Type::Duration,
        "list" => Type::list(parse_type(args)),
        "optional" => Type::optional(parse_type(args)),
        "map" => {
            let (key, value) = args.split_once(", ").unwrap();
            Type::map(parse_type(key), parse_type(value))
        }
        object => Type::object(object),
    }
}

/// Sizes by path, written with dots.
struct Hints<'h>(&'h Json);

impl SizeEstimator for Hints<'_> {
    fn size(&self, path: &[PathStep], _of: &Type) -> Option<SizeEstimate> {
        let steps: Vec<&str> = path
            .iter()
            .map(|step| match step {
                PathStep::Field(name) => name,
                PathStep::Items => "@items",
                PathStep::Keys => "@keys",
                PathStep::Values => "@values",
                PathStep::Indices => "@indices",
            })
            .collect();
        let max = self.0.get(steps.join("."))?.as_u64().unwrap();
        Some(SizeEstimate { min: 0, max })
    }
}

/// Estimates with hints, and costs with inputs, of the language itself (`language_costs.jsonl`). Asking whether a
/// field is there is free, as Kubernetes has it.
#[test]
fn the_language_costs_what_upstream_says() {
    let base = Env::kubernetes(LATEST)
        .extend()
        .library(Library::Bindings)
        .open_type("T")
        .fold_constants(false)
        .mixed_literals(true)
        .build();
    let any = Decl::any();
    let mut failures = Vec::new();
    let mut cases = 0;
    for line in include_str!("language_costs.jsonl").lines() {
        let case: Json = serde_json::from_str(line).unwrap();
        let expr = case["expr"].as_str().unwrap();
        cases += 1;
        let mut env = base.extend();
        for (name, of) in case["env"].as_object().into_iter().flatten() {
            env = env.variable(name, parse_type(of.as_str().unwrap()));
        }
        let ast = match env.build().compile(expr) {
            Ok(ast) => ast,
            Err(error) => {
                failures.push(error.to_string());
                continue;
            }
        };
        if let Some(min) = case["min"].as_u64() {
            let found = ast.estimate(&Hints(&case["hints"]));
            let want = (min, case["max"].as_u64().unwrap());
            if (found.min, found.max) != want {
                failures.push(format!("{expr}: {found:?}, want {want:?}"));
            }
            continue;
        }
        let mut vars = Vars::new();
        for (name, value) in case["in"].as_object().into_iter().flatten() {
            vars.bind_json(name, value, &any);
        }
        let mut budget = Budget::unlimited();
        let result = ast.program().unwrap().eval(&vars, &mut budget);
        let ran = u64::MAX - budget.remaining;
        if ran != case["run"].as_u64().unwrap() {
            failures.push(format!("{expr}: ran for {ran}, want {} ({result:?})", case["run"]));
        }
    }
    assert!(cases > 100, "{cases}");
    assert!(failures.is_empty(), "{} of {cases}:\n{}", failures.len(), failures.join("\n"));
}
