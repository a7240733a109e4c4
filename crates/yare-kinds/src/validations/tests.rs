//! Cases for validation rules, after upstream's `validation_test.go` of definitions and of objects.

use serde_json::{Value, json};
use yare_schema::{crd, field::Path};

use super::{Before, Rules, check};

const AT: &str = "schema";

fn texts(errors: &[yare_schema::field::FieldError]) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

fn checked(schema: &Value) -> Vec<String> {
    texts(&check(schema, &Path::new(AT), &[], &Before::default(), false))
}

/// A root with one field `f`.
fn root(field: Value) -> Value {
    json!({"type": "object", "properties": {"f": field}})
}

fn with(mut schema: Value, rule: Value) -> Value {
    schema["x-kubernetes-validations"] = json!([rule]);
    schema
}

#[test]
fn definitions() {
    let hint = "(try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)";
    let map = |keys: Value| json!({"type": "object", "additionalProperties": keys});
    let items = |of: Value| json!({"type": "array", "items": of});
    let at = |place: &str, rest: &str| format!("{AT}.properties[f]{place}.x-kubernetes-validations[0]{rest}");
    let shown = |rule: &str| {
        format!(
            "{{\"Rule\":\"{rule}\",\"Message\":\"\",\"MessageExpression\":\"\",\"Reason\":null,\"FieldPath\":\"\",\"OptionalOldSelf\":null}}"
        )
    };
    let cases: Vec<(Value, Vec<String>)> = vec![
        (json!({"type": "object"}), vec![]),
        (root(with(json!({"type": "string"}), json!({"rule": "self.size() < 3"}))), vec![]),
        (
            root(with(json!({"type": "integer"}), json!({"rule": "self + 1"}))),
            vec![at(
                "",
                &format!(
                    ".rule: Invalid value: {}: cel expression must evaluate to a bool",
                    shown("self + 1")
                ),
            )],
        ),
        (
            root(with(json!({"type": "integer"}), json!({"rule": "self > 'a'"}))),
            vec![at(
                "",
                &format!(
                    ".rule: Invalid value: {}: compilation failed: ERROR: <input>:1:6: found no matching overload for '_>_' applied to '(int, string)'\n | self > 'a'\n | .....^",
                    shown("self \\u003e 'a'")
                ),
            )],
        ),
        (
            root(with(json!({"type": "integer"}), json!({"rule": "true", "messageExpression": "self"}))),
            vec![at(
                "",
                ".messageExpression: Invalid value: {\"Rule\":\"true\",\"Message\":\"\",\"MessageExpression\":\"self\",\"Reason\":null,\"FieldPath\":\"\",\"OptionalOldSelf\":null}: messageExpression must evaluate to a string",
            )],
        ),
        // The root of a resource has what every resource has.
        (
            with(
                json!({"type": "object"}),
                json!({"rule": "self.metadata.name.startsWith(self.kind) && self.apiVersion != ''"}),
            ),
            vec![],
        ),
        // An embedded one has it too.
        (
            root(with(
                json!({"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true}),
                json!({"rule": "self.kind == 'A' && self.metadata.generateName == ''"}),
            )),
            vec![],
        ),
        // int-or-string is dynamic.
        (
            root(with(
                json!({"x-kubernetes-int-or-string": true}),
                json!({"rule": "type(self) == int ? self < 3 : self == 'x'"}),
            )),
            vec![],
        ),
        (
            root(with(json!({"x-kubernetes-preserve-unknown-fields": true}), json!({"rule": "true"}))),
            vec![format!(
                "{AT}.properties[f].x-kubernetes-validations: Internal error: internal error: failed to construct type information for x-kubernetes-validations rules: unable to convert structural schema to CEL declarations"
            )],
        ),
        // Where items cannot be told apart, there is no past.
        (
            root(items(with(json!({"type": "integer"}), json!({"rule": "self >= oldSelf"})))),
            vec![at(
                ".items",
                &format!(
                    ".rule: Invalid value: \"self >= oldSelf\": oldSelf cannot be used on the uncorrelatable portion of the schema within {AT}.properties[f]"
                ),
            )],
        ),
        (
            root(
                json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items":
                with(json!({"type": "object", "required": ["k"], "properties": {"k": {"type": "string"}}}), json!({"rule": "self == oldSelf"}))}),
            ),
            vec![],
        ),
        (root(map(with(json!({"type": "integer"}), json!({"rule": "self >= oldSelf"})))), vec![]),
        (
            root(with(json!({"type": "integer"}), json!({"rule": "self >= 0", "optionalOldSelf": true}))),
            vec![at(
                "",
                ".optionalOldSelf: Invalid value: true: may not be set if oldSelf is not used in rule",
            )],
        ),
        (
            root(with(
                json!({"type": "integer"}),
                json!({"rule": "!oldSelf.hasValue() || self >= oldSelf.value()", "optionalOldSelf": true}),
            )),
            vec![],
        ),
        // Costs: every character of a string without bounds.
        (
            root(items(with(json!({"type": "string"}), json!({"rule": "self.contains('x')"})))),
            vec![
                at(
                    ".items",
                    &format!(
                        ".rule: Forbidden: estimated rule cost exceeds budget by factor of more than 100x {hint}"
                    ),
                ),
                at(
                    ".items",
                    ".rule: Forbidden: contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema",
                ),
                format!(
                    "{AT}: Forbidden: x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema exceeds budget by factor of more than 100x {hint}"
                ),
            ],
        ),
        (
            root(
                json!({"type": "array", "maxItems": 10, "items": with(json!({"type": "string", "maxLength": 100}), json!({"rule": "self.contains('x')"}))}),
            ),
            vec![],
        ),
        // Defaults are held against rules.
        (
            root(with(json!({"type": "integer", "default": 3}), json!({"rule": "self > 5"}))),
            vec![format!("{AT}.properties[f].default: Invalid value: 3: failed rule: self > 5")],
        ),
        (root(with(json!({"type": "integer", "default": 3}), json!({"rule": "self == oldSelf"}))), vec![]),
    ];
    for (schema, want) in cases {
        assert_eq!(checked(&schema), want, "{schema}");
    }
}

#[test]
fn what_was_accepted_stays_so() {
    let rule = json!({"rule": "self.all(x, self.all(y, x.contains(y)))"});
    let schema = root(with(
        json!({"type": "array", "maxItems": 20, "items": {"type": "string", "maxLength": 1000}}),
        rule,
    ));
    assert_eq!(checked(&schema).len(), 1, "{:?}", checked(&schema));
    assert_eq!(check(&schema, &Path::new(AT), &[], &Before::default(), true), []);
}

struct Case {
    schema: Value,
    rule: Value,
    new: Value,
    old: Option<Value>,
    want: &'static [&'static str],
    warned: &'static [&'static str],
}

/// A rule on `spec`, an object's one field.
fn case(schema: Value, rule: Value, new: Value, want: &'static [&'static str]) -> Case {
    Case { schema, rule, new, old: None, want, warned: &[] }
}

impl Case {
    fn after(mut self, old: Value) -> Self {
        self.old = Some(old);
        self
    }

    fn warns(mut self, warned: &'static [&'static str]) -> Self {
        self.warned = warned;
        self
    }

    fn check(&self) {
        let spec = with(self.schema.clone(), self.rule.clone());
        let schema = json!({"type": "object", "properties": {"spec": spec}});
        run(
            &schema,
            &json!({"spec": self.new}),
            self.old.as_ref().map(|old| json!({"spec": old})).as_ref(),
            self.want,
            self.warned,
        );
    }
}

fn run(schema: &Value, new: &Value, old: Option<&Value>, want: &[&str], warned: &[&str]) {
    let compiled = crd::load(schema);
    let rules = Rules::of(schema).unwrap();
    // Twice: what was compiled for the first object serves the second.
    for _ in 0..2 {
        let verdict = rules.run(new, old.map(|old| (compiled.ty(), old)));
        assert_eq!(texts(&verdict.errors), want, "{schema} {new}");
        assert_eq!(verdict.warnings, warned, "{schema} {new}");
    }
}

#[test]
fn objects() {
    let int = || json!({"type": "integer"});
    let text = || json!({"type": "string"});
    let object =
        || json!({"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}});
    let small = |more: Value| {
        let mut rule = json!({"rule": "self < 5"});
        rule.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        rule
    };
    let cases = [
        case(int(), small(json!({})), json!(4), &[]),
        case(int(), small(json!({})), json!(7), &["spec: Invalid value: 7: failed rule: self < 5"]),
        case(int(), small(json!({})), Value::Null, &[]),
        case(int(), small(json!({"message": " too big "})), json!(7), &["spec: Invalid value: 7: too big"]),
        case(
            int(),
            small(json!({"messageExpression": "'is ' + string(self)"})),
            json!(7),
            &["spec: Invalid value: 7: is 7"],
        ),
        // Messages that cannot be used.
        case(
            int(),
            small(json!({"messageExpression": "'a\\nb'"})),
            json!(7),
            &["spec: Invalid value: 7: failed rule: self < 5"],
        ),
        case(
            int(),
            small(json!({"messageExpression": "' '", "message": "big"})),
            json!(7),
            &["spec: Invalid value: 7: big"],
        ),
        case(
            int(),
            small(json!({"messageExpression": "string(1 / (self - 7))"})),
            json!(7),
            &["spec: Invalid value: 7: failed rule: self < 5"],
        ),
        // Reasons.
        case(
            int(),
            small(json!({"reason": "FieldValueForbidden"})),
            json!(7),
            &["spec: Forbidden: failed rule: self < 5"],
        ),
        case(
            int(),
            small(json!({"reason": "FieldValueRequired"})),
            json!(7),
            &["spec: Required value: failed rule: self < 5"],
        ),
        case(int(), small(json!({"reason": "FieldValueDuplicate"})), json!(7), &["spec: Duplicate value: 7"]),
        // Objects are not shown, and a rule may say which of their fields is meant.
        case(
            object(),
            json!({"rule": "self.a < self.b"}),
            json!({"a": 2, "b": 1}),
            &["spec: Invalid value: failed rule: self.a < self.b"],
        ),
        case(
            object(),
            json!({"rule": "self.a < self.b", "fieldPath": ".a"}),
            json!({"a": 2, "b": 1}),
            &["spec.a: Invalid value: failed rule: self.a < self.b"],
        ),
        // Rules that fail to decide.
        case(
            object(),
            json!({"rule": "self.a < self.b"}),
            json!({"a": 2}),
            &["spec: Invalid value: \"object\": no such key: b evaluating rule: self.a < self.b"],
        ),
        case(
            json!({"x-kubernetes-int-or-string": true}),
            json!({"rule": "self < 3"}),
            json!("x"),
            &[
                "spec: Invalid value: \"\": 'no such overload': call arguments did not match a supported operator, function or macro signature for rule: self < 3",
            ],
        ),
        // Transitions.
        case(int(), json!({"rule": "self >= oldSelf"}), json!(1), &[]),
        case(int(), json!({"rule": "self >= oldSelf"}), json!(1), &[]).after(json!(1)),
        case(
            int(),
            json!({"rule": "self >= oldSelf"}),
            json!(1),
            &["spec: Invalid value: 1: failed rule: self >= oldSelf"],
        )
        .after(json!(2)),
        case(int(), json!({"rule": "self >= oldSelf"}), json!(1), &[]).after(Value::Null),
        case(
            int(),
            json!({"rule": "oldSelf.hasValue() || self == 0", "optionalOldSelf": true}),
            json!(1),
            &["spec: Invalid value: 1: failed rule: oldSelf.hasValue() || self == 0"],
        ),
        case(int(), json!({"rule": "oldSelf.orValue(0) < self", "optionalOldSelf": true}), json!(3), &[])
            .after(json!(2)),
        // Ratcheting: what was left alone is forgiven, unless the rule is about the change.
        case(text(), json!({"rule": "self == 'x'"}), json!("y"), &[])
            .after(json!("y"))
            .warns(&["spec: Invalid value: \"y\": failed rule: self == 'x'"]),
        case(
            text(),
            json!({"rule": "self == 'x'"}),
            json!("y"),
            &["spec: Invalid value: \"y\": failed rule: self == 'x'"],
        )
        .after(json!("z")),
        case(
            text(),
            json!({"rule": "self != oldSelf"}),
            json!("y"),
            &["spec: Invalid value: \"y\": failed rule: self != oldSelf"],
        )
        .after(json!("y")),
        // Fields that the schema does not know count as changed.
        case(
            json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}),
            json!({"rule": "false"}),
            json!({"q": 1}),
            &["spec: Invalid value: failed rule: false"],
        )
        .after(json!({"q": 1})),
    ];
    for case in &cases {
        case.check();
    }
}

#[test]
fn items_are_known_by_their_keys() {
    let item = with(
        json!({"type": "object", "required": ["k"], "properties": {"k": {"type": "string"}, "n": {"type": "integer"}}}),
        json!({"rule": "self.n >= oldSelf.n"}),
    );
    let list = json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": item});
    let schema = root(list);
    let old = json!({"f": [{"k": "a", "n": 1}, {"k": "b", "n": 5}]});
    run(
        &schema,
        &json!({"f": [{"k": "b", "n": 5}, {"k": "a", "n": 1}, {"k": "c", "n": 0}]}),
        Some(&old),
        &[],
        &[],
    );
    run(
        &schema,
        &json!({"f": [{"k": "b", "n": 4}, {"k": "a", "n": 1}]}),
        Some(&old),
        &["f[0]: Invalid value: failed rule: self.n >= oldSelf.n"],
        &[],
    );
}

#[test]
fn unchanged_items_are_forgiven() {
    let item = with(
        json!({"type": "object", "required": ["k"], "properties": {"k": {"type": "string"}, "n": {"type": "integer"}}}),
        json!({"rule": "self.n < 5"}),
    );
    let by_key = root(
        json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": item}),
    );
    let old = json!({"f": [{"k": "a", "n": 7}, {"k": "b", "n": 1}]});
    let new = json!({"f": [{"k": "b", "n": 8}, {"k": "a", "n": 7}]});
    let (b, a) =
        ("f[0]: Invalid value: failed rule: self.n < 5", "f[1]: Invalid value: failed rule: self.n < 5");
    run(&by_key, &new, Some(&old), &[b], &[a]);
    // An atomic list is forgiven as a whole or not at all.
    let atomic = root(json!({"type": "array", "items": item}));
    run(&atomic, &new, Some(&old), &[b, a], &[]);
    run(&atomic, &old, Some(&old), &[], &["f[0]: Invalid value: failed rule: self.n < 5"]);
    // Entries of maps.
    let entries = root(
        json!({"type": "object", "additionalProperties": with(json!({"type": "integer"}), json!({"rule": "self < 5"}))}),
    );
    run(
        &entries,
        &json!({"f": {"x": 7, "y": 8}}),
        Some(&json!({"f": {"x": 7, "y": 1}})),
        &["f[y]: Invalid value: 8: failed rule: self < 5"],
        &["f[x]: Invalid value: 7: failed rule: self < 5"],
    );
}

#[test]
fn the_root_and_names_that_cannot_be_spelled() {
    let schema = with(
        json!({"type": "object", "properties": {"a.b": with(json!({"type": "integer"}), json!({"rule": "self > 1"}))}}),
        json!({"rule": "self.metadata.name != 'x'"}),
    );
    run(
        &schema,
        &json!({"metadata": {"name": "x"}, "a.b": 1}),
        None,
        &[
            "<nil>: Invalid value: failed rule: self.metadata.name != 'x'",
            "a.b: Invalid value: 1: failed rule: self > 1",
        ],
        &[],
    );
}

#[test]
fn budgets() {
    let slow = "self.all(x, self.all(y, self.all(z, x + y + z >= 0)))";
    let list: Vec<u64> = (0..150).collect();
    let spec = with(json!({"type": "array", "items": {"type": "integer"}}), json!({"rule": slow}));
    run(
        &root(spec),
        &json!({"f": list}),
        None,
        &[
            "f: Invalid value: \"array\": 'operation cancelled: actual cost limit exceeded': no further validation rules will be run due to call cost exceeds limit for rule: self.all(x, self.all(y, self.all(z, x + y + z >= 0)))",
        ],
        &[],
    );
    // Each is cheap enough; all together are not.
    let list: Vec<u64> = (0..40).collect();
    let one = with(json!({"type": "array", "items": {"type": "integer"}}), json!({"rule": slow}));
    let lists: Vec<Vec<u64>> = vec![list; 60];
    let verdict =
        Rules::of(&root(json!({"type": "array", "items": one}))).unwrap().run(&json!({"f": lists}), None);
    let texts = texts(&verdict.errors);
    assert_eq!(texts.len(), 1, "{texts:?}");
    assert!(
        texts[0].ends_with("]: Invalid value: \"array\": validation failed due to running out of cost budget, no further validation rules will be run"),
        "{texts:?}"
    );
}
