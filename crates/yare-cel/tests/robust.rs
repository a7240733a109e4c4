//! Whatever comes in: no panic, and an end.

#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;
use serde_json::{Value as Json, json};
use yare_cel::{Budget, Decl, DeclSizes, Env, Vars, Version, schema};

fn env() -> Env {
    Env::kubernetes(Version::new(1, 36)).extend().declare("self", &Decl::any()).build()
}

/// Compiles, estimates and evaluates; what fails, fails with an error.
fn drive(text: &str, object: &Json) {
    let any = Decl::any();
    let Ok(ast) = env().compile(text).map_err(|error| error.to_string()) else { return };
    let estimate = ast.estimate(&DeclSizes(&any));
    assert!(estimate.min <= estimate.max, "{text}: {estimate:?}");
    let Ok(program) = ast.program() else { return };
    let mut vars = Vars::new();
    vars.bind_json("self", object, &any);
    let mut budget = Budget::new(100_000, 100_000);
    if let Ok(value) = program.eval(&vars, &mut budget) {
        let _ = value.to_string();
        let _ = value.to_json();
    }
}

fn expression() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("self".to_owned()),
        Just("self.a".to_owned()),
        Just("x".to_owned()),
        any::<i64>().prop_map(|n| n.to_string()),
        any::<u64>().prop_map(|n| format!("{n}u")),
        (-1e6..1e6).prop_map(|n: f64| format!("{n:?}")),
        "[a-z0-9äß/:.%]{0,6}".prop_map(|text| format!("'{text}'")),
        Just("b'x'".to_owned()),
        Just("null".to_owned()),
        Just("true".to_owned()),
        Just("duration('1h')".to_owned()),
        Just("timestamp('2024-01-01T00:00:00Z')".to_owned()),
        Just("optional.none()".to_owned()),
    ];
    leaf.prop_recursive(5, 64, 4, |inner| {
        let two = (inner.clone(), inner.clone());
        let three = (inner.clone(), inner.clone(), inner.clone());
        prop_oneof![
            (
                two.clone(),
                prop::sample::select(vec!["+", "-", "*", "/", "%", "==", "!=", "<", ">=", "&&", "||", "in"])
            )
                .prop_map(|((a, b), op)| format!("({a} {op} {b})")),
            three.prop_map(|(a, b, c)| format!("({a} ? {b} : {c})")),
            inner.clone().prop_map(|a| format!("!{a}")),
            inner.clone().prop_map(|a| format!("-{a}")),
            two.clone().prop_map(|(a, b)| format!("[{a}, {b}]")),
            two.clone().prop_map(|(a, b)| format!("{{'k': {a}, 'l': {b}}}")),
            two.clone().prop_map(|(a, b)| format!("{a}[{b}]")),
            two.clone().prop_map(|(a, b)| format!("{a}[?{b}]")),
            inner.clone().prop_map(|a| format!("{a}.?k.b")),
            inner.clone().prop_map(|a| format!("has({a}.k)")),
            (two.clone(), prop::sample::select(vec!["all", "exists", "exists_one", "map", "filter"]))
                .prop_map(|((a, b), name)| format!("{a}.{name}(x, {b})")),
            (two, prop::sample::select(vec!["transformList", "transformMap"]))
                .prop_map(|((a, b), name)| format!("{a}.{name}(i, x, {b})")),
            (
                inner,
                prop::sample::select(vec![
                    "size()",
                    "sum()",
                    "sort()",
                    "split('a')",
                    "matches('a+')",
                    "find('[a-z]')",
                    "distinct()",
                    "max()",
                    "getHours()",
                    "substring(1)",
                    "replace('a', 'bb')",
                    "indexOf('a')",
                    "flatten()",
                    "hasValue()",
                ])
            )
                .prop_map(|(a, call)| format!("dyn({a}).{call}")),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_text_is_answered(text in "\\PC{0,80}") {
        drive(&text, &Json::Null);
    }

    #[test]
    fn tokens_in_any_order_are_answered(tokens in prop::collection::vec(prop::sample::select(vec![
        "a", "1", "2.5", "'s'", "(", ")", "[", "]", "{", "}", ".", ",", "?", ":", "+", "-", "!", "&&", "||", "==", "in",
        "has", "all", "x", "true", "null", "`", "\"", "\\", "r'", "b'", "0x", "1u", "//", "\n", "self", "map", "é",
    ]), 0..30)) {
        drive(&tokens.join(" "), &Json::Null);
        drive(&tokens.concat(), &Json::Null);
    }

    #[test]
    fn any_expression_is_answered(text in expression()) {
        drive(&text, &json!({"a": [1, "x", {"k": {"b": 2}}, null, 1.5], "k": "v"}));
    }

    /// The same text gives the same tree, with or without blanks and comments around its tokens.
    #[test]
    fn blanks_do_not_matter(text in expression()) {
        let spaced = text.replace(' ', "  // note\n ");
        let (plain, spaced) = (env().compile(&text), env().compile(&spaced));
        prop_assert_eq!(plain.is_ok(), spaced.is_ok());
        if let (Ok(plain), Ok(spaced)) = (plain, spaced) {
            prop_assert_eq!(plain.output_type(), spaced.output_type());
            let any = Decl::any();
            prop_assert_eq!(plain.estimate(&DeclSizes(&any)), spaced.estimate(&DeclSizes(&any)));
        }
    }
}

#[test]
fn what_is_too_much_is_refused() {
    let env = env();
    for text in [
        "(".repeat(10_000),
        "[".repeat(10_000),
        "!".repeat(100_000),
        format!("1{}", "+1".repeat(5_000)),
        format!("self{}", ".a".repeat(5_000)),
        format!("{}1{}", "(".repeat(300), ")".repeat(300)),
        format!("{}true", "true ? true : ".repeat(300)),
        "a".repeat(100_001),
        format!("{}self{}", "self.all(x, ".repeat(260), ")".repeat(260)),
    ] {
        let error = env.compile(&text).unwrap_err().to_string();
        assert!(error.contains("exceed") || error.contains("Syntax error"), "{}: {error}", &text[..20]);
    }
    // What is just within the limits is taken, on a stack like any other.
    for text in [
        format!("{}true{}", "(".repeat(240), ")".repeat(240)),
        format!("{}true{}", "[1].all(x, ".repeat(240), ")".repeat(240)),
        vec!["true"; 2_000].join(" && "),
    ] {
        let program = env.compile(&text).unwrap().program().unwrap();
        let result = program.eval(&Vars::new(), &mut Budget::new(1_000_000, 1_000_000));
        assert_eq!(result.unwrap().as_bool(), Some(true), "{}", &text[..20]);
    }
    // Nothing fills the memory before its cost stops it.
    for text in
        ["lists.range(9000000000).size() == 1", "lists.range(2000000).map(x, lists.range(2000000)) == []"]
    {
        let error = env
            .compile(text)
            .unwrap()
            .program()
            .unwrap()
            .eval(&Vars::new(), &mut Budget::new(1_000_000, 9_000_000));
        assert!(error.is_err(), "{text}");
    }
}

#[test]
fn schemas_become_declarations_with_upstream_s_sizes() {
    let decl = schema::decl(
        &json!({
            "type": "object",
            "required": ["name"],
            "properties": {
                "name": {"type": "string", "maxLength": 10},
                "kinds": {"type": "string", "enum": ["a", "abc"]},
                "items": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
                "labels": {"type": "object", "additionalProperties": {"type": "integer"}, "maxProperties": 7},
                "any": {"x-kubernetes-preserve-unknown-fields": true},
                "port": {"x-kubernetes-int-or-string": true},
            },
        }),
        true,
    )
    .unwrap()
    .named("Root");
    let env = Env::kubernetes(Version::new(1, 36)).extend().declare("self", &decl).build();
    for (path, max) in [("self.name", 40), ("self.kinds", 3), ("self.items", 1_048_575), ("self.labels", 7)] {
        // A walk over the value costs a tenth of its size; `size()` is asked of what is as large as it is.
        let ast = env.compile(&format!("dyn({path}) == dyn({path})")).unwrap();
        let cost = ast.estimate(&DeclSizes(&decl)).max;
        assert_eq!(cost, 4 + 2 + u64::div_ceil(max, 10), "{path}");
    }
    for text in ["self.metadata.name == self.apiVersion", "self.port == 1 || self.port == 'x'"] {
        assert!(env.compile(text).is_ok(), "{text}");
    }
    assert!(env.compile("self.any == 1").is_err());
}
