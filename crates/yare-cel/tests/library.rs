//! Kubernetes' function libraries, by facts: `library.jsonl` says what expressions evaluate to, how they fail, or
//! why they are refused; the tables here add what it leaves open.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::{Arc, Mutex};

use regex::Regex;
use serde_json::{Value as Json, json};
use yare_cel::{Budget, Decl, Env, Field, Library, ListKind, Type, Value, Vars, Version, authz};

const LATEST: Version = Version::new(1, 36);

fn eval(env: &Env, expr: &str) -> Result<Value<'static>, String> {
    let program =
        env.compile(expr).map_err(|error| error.to_string())?.program().map_err(|error| error.to_string())?;
    program.eval(&Vars::new(), &mut Budget::unlimited()).map_err(|error| error.to_string())
}

fn holds(case: &Json, env: &Env) -> Result<(), String> {
    let expr = case["expr"].as_str().unwrap();
    if let Some(patterns) = case["refused"].as_array() {
        let Err(error) = env.compile(expr) else { return Err("is not refused".into()) };
        for pattern in patterns {
            let regex = Regex::new(pattern.as_str().unwrap()).unwrap();
            if !error.issues.iter().any(|issue| regex.is_match(&issue.message)) {
                return Err(format!("{error}, want {pattern}"));
            }
        }
        return Ok(());
    }
    let found = eval(env, expr);
    if let Some(message) = case["error"].as_str() {
        return match found {
            Err(error)
                if error.contains(message)
                    || Regex::new(message).is_ok_and(|regex| regex.is_match(&error)) =>
            {
                Ok(())
            }
            other => Err(format!("{other:?}, want {message}")),
        };
    }
    let found = found?;
    if case["ok"].as_bool().unwrap_or(false) {
        return Ok(());
    }
    let json = found.to_json().map_err(|error| error.to_string())?;
    if json == case["value"] { Ok(()) } else { Err(format!("{json}, want {}", case["value"])) }
}

#[test]
fn libraries_do_what_upstream_s_do() {
    let env = Env::kubernetes(LATEST);
    let cases: Vec<Json> =
        include_str!("library.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(cases.len() > 150, "{}", cases.len());
    let failures: Vec<String> = cases
        .iter()
        .filter_map(|case| holds(case, &env).err().map(|why| format!("{}: {why}", case["expr"])))
        .collect();
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), cases.len(), failures.join("\n"));
}

/// Expressions that are true.
const TRUE: &[&str] = &[
    // Lists.
    "[1, 2, 3].isSorted() && !['b', 'a'].isSorted() && dyn([]) == []",
    "[1, 3].sum() == 4 && [1.0, 3.0].sum() == 4.0 && [duration('1m'), duration('1s')].sum() == duration('61s')",
    "[3, 1, 2].min() == 1 && [3, 1, 2].max() == 3 && ['b', 'a'].max() == 'b'",
    "[1, 2, 2, 3].indexOf(2) == 1 && [1, 2, 2, 3].lastIndexOf(2) == 2 && [1].indexOf(5) == -1",
    "[1, 2, 3, 4].slice(1, 3) == [2, 3] && [[1], [2, 3]].flatten() == [1, 2, 3]",
    "dyn([dyn([1]), dyn([dyn([2])])]).flatten(2) == [1, 2]",
    "[3, 1, 2].sort() == [1, 2, 3] && ['b', 'a'].sort() == ['a', 'b'] && [1, 1, 2].distinct() == [1, 2]",
    "[{'n': 2}, {'n': 1}].sortBy(e, e.n) == [{'n': 1}, {'n': 2}]",
    "lists.range(3) == [0, 1, 2] && [1, 2].reverse() == [2, 1] && lists.range(0) == []",
    "sets.contains([1, 2], [2]) && sets.equivalent([1, 1], [1]) && !sets.intersects([1], [2])",
    // Strings.
    "'abc'.charAt(1) == 'b' && 'äöü'.substring(1, 2) == 'ö' && 'TacoCat'.lowerAscii() == 'tacocat'",
    "'hello mellow'.indexOf('ell', 2) == 7 && 'hello mellow'.lastIndexOf('ell', 6) == 1",
    "'a,b,c'.split(',', 2) == ['a', 'b,c'] && 'abc'.split('') == ['a', 'b', 'c'] && 'a'.split(',', 0) == []",
    "['a', 'b'].join('-') == 'a-b' && '  x '.trim() == 'x' && 'aaa'.replace('a', 'b', 2) == 'bba'",
    "'%s %d %.2f %x'.format(['a', 5, 1234.5, 255]) == 'a 5 1,234.50 ff'",
    r#"strings.quote("a\"b\n") == "\"a\\\"b\\n\"""#,
    "'abc 123'.find('[0-9]+') == '123' && 'a1b2'.findAll('[0-9]') == ['1', '2'] && 'a1b2'.findAll('[0-9]', 1) == ['1']",
    "'foo123'.matches(r'^[a-z]+\\d+$') && !'foo'.matches('^o')",
    // URLs.
    "url('https://user:pass@example.com:80/path%20x?k=v&k=w+x#f').getHostname() == 'example.com'",
    "url('https://[::1]:80/').getHost() == '[::1]:80' && url('https://[::1]:80/').getHostname() == '::1'",
    "url('https://example.com:80/').getPort() == '80' && url('/a b').getEscapedPath() == '/a%20b'",
    "url('https://x/?k=v&k=w+x').getQuery() == {'k': ['v', 'w x']} && url('/x').getScheme() == ''",
    "isURL('https://example.com') && !isURL('example.com') && !isURL('') && isURL('/a') && !isURL('http://a b')",
    // Quantities, addresses, formats, versions.
    "quantity('1Gi').compareTo(quantity('1024Mi')) == 0 && quantity('50k').add(20) == quantity('50020')",
    "quantity('100m').asApproximateFloat() == 0.1 && sign(quantity('-1')) == -1 && !isQuantity('1x')",
    "cidr('10.0.0.0/8').containsCIDR('10.1.0.0/16') && cidr('10.1.2.3/8').masked() == cidr('10.0.0.0/8')",
    "string(ip('::1')) == '::1' && string(cidr('10.0.0.0/8')) == '10.0.0.0/8' && type(ip('::1')) == net.IP",
    "!format.dns1123Label().validate('my-label').hasValue() && format.dns1123Label().validate('My').value()[0].startsWith('a lowercase')",
    "format.named('nope') == optional.none() && format.uuid().validate('x').value() == ['does not match the UUID format']",
    "semver('v1.0', true).compareTo(semver('1.0.0')) == 0 && semver('1.0.0-alpha').isLessThan(semver('1.0.0'))",
    // Optionals and loops over two variables.
    "{'a': 1}[?'b'].orValue(2) == 2 && [1][?0].value() == 1 && {?'a': optional.none()} == {}",
    "[?optional.of(1), ?optional.none()] == [1] && optional.of(2).optMap(x, x + 1).value() == 3",
    "{'a': 1}.?a.optFlatMap(x, x > 1 ? optional.of(x) : optional.none()) == optional.none()",
    "{'a': 1, 'b': 2}.transformList(k, v, k + string(v)) == ['a1', 'b2']",
    "{'a': 1, 'b': 2}.transformMap(k, v, v > 1, v * 10) == {'b': 20}",
    "['a', 'b'].transformMapEntry(i, v, {v: i}) == {'a': 0, 'b': 1}",
    "[1, 2, 3].all(i, v, v == i + 1) && [1, 2].exists(i, v, v == 2) && [1, 2].existsOne(i, v, v == 2)",
    "timestamp('2009-02-13T23:31:30Z').getHours('America/New_York') == 18",
    "string(timestamp('2009-02-13T23:31:30+02:00')) == '2009-02-13T23:31:30+02:00'",
    "timestamp('2009-02-13T23:31:30+02:00').getHours() == 23",
    "timestamp('2009-02-13T23:31:30+02:00').getHours('UTC') == 21",
    "timestamp('2009-02-13T23:31:30+02:00') == timestamp('2009-02-13T21:31:30Z')",
    "[1, 2].map(x, x > 1, x * 2) == [4] && lists.range(1000).filter(x, x % 2 == 0).size() == 500",
];

#[test]
fn these_are_true() {
    let env = Env::kubernetes(LATEST);
    for expr in TRUE {
        assert_eq!(eval(&env, expr).map(|value| value.as_bool()), Ok(Some(true)), "{expr}");
    }
}

#[test]
fn failures_have_upstream_s_words() {
    let env = Env::kubernetes(LATEST).extend().variable("x", Type::Dyn).build();
    for (expr, message) in [
        ("{'a': 1}['b'] == 1", "no such key: b"),
        ("[1][3] == 1", "index out of bounds: 3"),
        ("1 / 0 == 1", "division by zero"),
        ("1 % 0 == 1", "modulus by zero"),
        ("9223372036854775807 + 1 > 0", "integer overflow"),
        ("dyn(1) + dyn('a') == 'b'", "no such overload"),
        ("x.y == 1", "no such attribute(s): x"),
        ("dyn([]).min() == 1", "min called on empty list"),
        ("optional.none().value() == 1", "optional.none() dereference"),
        ("'a'.charAt(5) == ''", "index out of range: 5"),
        ("'abc'.substring(2, 1) == ''", "invalid substring range. start: 2, end: 1"),
        ("int('x') == 1", "type conversion error from 'string' to 'int'"),
    ] {
        assert_eq!(eval(&env, expr).unwrap_err(), message, "{expr}");
    }
}

#[test]
fn refusals_have_upstream_s_words_and_place() {
    let decl = Decl::object("Root", [("name", Field::optional(Decl::string()))]);
    let env = Env::kubernetes(LATEST).extend().declare("self", &decl).build();
    for (expr, text) in [
        (
            "1 == foo",
            "ERROR: <input>:1:6: undeclared reference to 'foo' (in container '')\n | 1 == foo\n | .....^",
        ),
        (
            "1 + 'a' == 2",
            "ERROR: <input>:1:3: found no matching overload for '_+_' applied to '(int, string)'\n | 1 + 'a' == 2\n | ..^",
        ),
        ("self.nope == 1", "ERROR: <input>:1:5: undefined field 'nope'\n | self.nope == 1\n | ....^"),
        (
            "self.name.startsWith(1)",
            "ERROR: <input>:1:21: found no matching overload for 'startsWith' applied to 'string.(int)'\n | \
             self.name.startsWith(1)\n | ....................^",
        ),
        (
            "1 +",
            "ERROR: <input>:1:4: Syntax error: mismatched input '<EOF>' expecting {'[', '{', '(', '.', '-', '!', 'true', \
             'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}\n | 1 +\n | ...^",
        ),
        (
            "self..name",
            "ERROR: <input>:1:6: Syntax error: no viable alternative at input '..'\n | self..name\n | .....^",
        ),
        (
            "self.",
            "ERROR: <input>:1:6: Syntax error: no viable alternative at input '.'\n | self.\n | .....^",
        ),
        (
            "1 * + 2",
            "ERROR: <input>:1:5: Syntax error: extraneous input '+' expecting {'[', '{', '(', '.', '-', '!', 'true', \
             'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}\n | 1 * + 2\n | ....^",
        ),
        (
            "[1",
            "ERROR: <input>:1:3: Syntax error: mismatched input '<EOF>' expecting {']', ','}\n | [1\n | ..^",
        ),
        ("[1,", "ERROR: <input>:1:4: Syntax error: missing ']' at '<EOF>'\n | [1,\n | ...^"),
        (
            "[1 2]",
            "ERROR: <input>:1:4: Syntax error: extraneous input '2' expecting {']', ','}\n | [1 2]\n | ...^",
        ),
        ("(1 2)", "ERROR: <input>:1:4: Syntax error: extraneous input '2' expecting ')'\n | (1 2)\n | ...^"),
        (
            "1 ? 2",
            "ERROR: <input>:1:6: Syntax error: mismatched input '<EOF>' expecting ':'\n | 1 ? 2\n | .....^",
        ),
        ("1 ? 2 3", "ERROR: <input>:1:7: Syntax error: missing ':' at '3'\n | 1 ? 2 3\n | ......^"),
        (
            "1 = 2",
            "ERROR: <input>:1:3: Syntax error: token recognition error at: '= '\n | 1 = 2\n | ..^\n\
             ERROR: <input>:1:5: Syntax error: extraneous input '2' expecting <EOF>\n | 1 = 2\n | ....^",
        ),
        (
            "!-x",
            "ERROR: <input>:1:2: Syntax error: mismatched input '-' expecting {'[', '{', '(', '.', '-', '!', 'true', \
             'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}\n | !-x\n | .^",
        ),
        ("has(self)", "ERROR: <input>:1:5: invalid argument to has() macro\n | has(self)\n | ....^"),
        ("for == 1", "ERROR: <input>:1:1: reserved identifier: for\n | for == 1\n | ^"),
        (
            "[1, 'a'] == []",
            "ERROR: <input>:1:5: expected type 'int' but found 'string'\n | [1, 'a'] == []\n | ....^",
        ),
        (
            "duration('x') == duration('1s')",
            "ERROR: <input>:1:10: invalid duration argument\n | duration('x') == duration('1s')\n | .........^",
        ),
        (
            "'ä' == 'ö' && z",
            "ERROR: <input>:1:15: undeclared reference to 'z' (in container '')\n | 'ä' == 'ö' && z\n | .\u{ff0e}......\u{ff0e}.....^",
        ),
    ] {
        assert_eq!(env.compile(expr).unwrap_err().to_string(), text);
    }
}

#[test]
fn json_is_read_through_its_declaration() {
    let port = Decl::object(
        "Port",
        [("name", Field::required(Decl::string())), ("port", Field::required(Decl::int()))],
    );
    let root = Decl::object(
        "Root",
        [
            ("x-y", Field::optional(Decl::string())),
            ("namespace", Field::optional(Decl::string())),
            ("data", Field::optional(Decl::bytes())),
            ("at", Field::optional(Decl::date_time())),
            ("day", Field::optional(Decl::date())),
            ("wait", Field::optional(Decl::duration())),
            ("ratio", Field::optional(Decl::double())),
            ("target", Field::optional(Decl::int_or_string())),
            ("none", Field::optional(Decl::string().nullable())),
            ("set", Field::optional(Decl::list(Decl::string()).list_kind(ListKind::Set))),
            ("ports", Field::optional(Decl::list(port).list_kind(ListKind::Map(Arc::new(["name".into()]))))),
            ("labels", Field::optional(Decl::map(Decl::string()))),
            ("wrong", Field::optional(Decl::int())),
        ],
    );
    let env = Env::kubernetes(LATEST).extend().declare("self", &root).declare("old", &root).build();
    let object = json!({
        "x-y": "dash", "namespace": "ns", "data": "aGk=", "at": "2024-01-02T03:04:05Z", "day": "2024-01-02", "wait": "1h",
        "ratio": 3, "target": "50%", "none": null, "set": ["a", "b"], "labels": {"a/b": "c"}, "wrong": "text",
        "ports": [{"name": "x", "port": 1}, {"name": "y", "port": 2}], "hidden": 1,
    });
    let old = json!({
        "set": ["b", "a"], "ports": [{"name": "y", "port": 2}, {"name": "x", "port": 1}], "hidden": 1,
    });
    let run = |expr: &str| {
        let mut vars = Vars::new();
        vars.bind_json("self", &object, &root);
        vars.bind_json("old", &old, &root);
        let program = env.compile(expr).map_err(|error| error.to_string())?.program().unwrap();
        program
            .eval(&vars, &mut Budget::unlimited())
            .map_err(|error| error.to_string())
            .map(|value| value.as_bool())
    };
    for expr in [
        "self.x__dash__y == 'dash' && has(self.x__dash__y) && self.__namespace__ == 'ns'",
        "self.data == b'hi' && self.at.getFullYear() == 2024 && self.day < self.at && self.wait == duration('60m')",
        "type(self.ratio) == double && self.ratio == 3.0 && type(self.target) == string",
        "self.?none == optional.none() && !has(self.none) && !has(old.at)",
        "self.set == old.set && self.ports == old.ports && self.set != ['a', 'c'] && size(self.set + old.set) == 2",
        "(self.ports + [{'name': 'x', 'port': 9}]).size() == 2",
        "(self.set + ['c']).size() == 3 && self.labels['a/b'] == 'c' && 'a/b' in self.labels",
        "self.labels.all(k, self.labels[k] == 'c') && self.ports.map(p, p.port).sum() == 3",
        "self.ports.exists(p, p.name == 'y' && p.port == 2) && [self.ports[0]] == [old.ports[1]]",
        "self.wrong == 1 || true",
    ] {
        // A literal of mixed types is dynamic where it meets a typed list.
        let expr = expr.replace("[{'name': 'x', 'port': 9}]", "dyn([{'name': dyn('x'), 'port': dyn(9)}])");
        assert_eq!(run(&expr), Ok(Some(true)), "{expr}");
    }
    assert_eq!(run("self.wrong == 1").unwrap_err(), "invalid data, expected int, got string");
    assert!(run("self.hidden == 1").unwrap_err().contains("undefined field 'hidden'"));
}

#[test]
fn objects_and_patches_are_constructed() {
    let spec = Decl::object("Object.spec", [("replicas", Field::optional(Decl::int()))]);
    let object = Decl::object("Object", [("spec", Field::optional(spec))]);
    let typed = Env::kubernetes(LATEST).extend().library(Library::JsonPatch).constructible(&object).build();
    let open = Env::kubernetes(LATEST).extend().library(Library::JsonPatch).open_type("Object").build();
    for env in [&typed, &open] {
        let value = eval(env, "Object{spec: Object.spec{replicas: 1 + 1}}").unwrap();
        assert_eq!(value.to_json().unwrap(), json!({"spec": {"replicas": 2}}));
        let value = eval(
            env,
            "[JSONPatch{op: 'add', path: '/metadata/labels/' + jsonpatch.escapeKey('a/b~c'), value: {'k': 1}}]",
        )
        .unwrap();
        assert_eq!(
            value.to_json().unwrap(),
            json!([{"op": "add", "path": "/metadata/labels/a~1b~0c", "value": {"k": 1}}])
        );
        assert!(eval(env, "JSONPatch{nope: 1}").unwrap_err().contains("undefined field 'nope'"));
    }
    let misnamed = |expr: &str| match eval(&open, expr).unwrap() {
        Value::Struct(object) => object.misnamed(),
        other => panic!("{other}"),
    };
    assert!(misnamed("Object{spec: Object.spec{a: [Object.spec.a{b: 1}]}}").is_empty());
    assert_eq!(
        misnamed("Object{spec: Object.status{a: 1}}"),
        [
            "unexpected type name \"Object.status\", expected \"Object.spec\", which matches field name path from root Object type"
        ]
    );
    assert!(
        eval(&typed, "Object{spec: Object.spec{replicas: 'x'}}")
            .unwrap_err()
            .contains("expected type of field 'replicas' is 'int' but provided type is 'string'")
    );
}

#[derive(Default)]
struct Asked(Mutex<Vec<authz::Attributes>>);

impl authz::Authorizer for Asked {
    fn authorize(&self, attributes: &authz::Attributes) -> authz::Decision {
        self.0.lock().unwrap().push(attributes.clone());
        authz::Decision { allowed: attributes.verb == "get", reason: "because".into(), error: None }
    }
}

#[test]
fn the_authorizer_is_asked() {
    let env =
        Env::kubernetes(LATEST).extend().variable("authorizer", Type::object(authz::AUTHORIZER_TYPE)).build();
    let asked = Arc::new(Asked::default());
    let run = |expr: &str| {
        let mut vars = Vars::new();
        vars.bind("authorizer", authz::authorizer(asked.clone()));
        let program = env.compile(expr).unwrap().program().unwrap();
        program
            .eval(&vars, &mut Budget::unlimited())
            .map(|value| value.as_bool())
            .map_err(|error| error.to_string())
    };
    let expr = "authorizer.group('apps').resource('deployments').subresource('scale').namespace('ns').name('n')\
                .fieldSelector('a=b').check('get').allowed()";
    assert_eq!(run(expr), Ok(Some(true)));
    assert_eq!(run("authorizer.path('/healthz').check('post').reason() == 'because'"), Ok(Some(true)));
    assert_eq!(
        run("authorizer.serviceAccount('ns', 'sa').path('/x').check('get').errored()"),
        Ok(Some(false))
    );
    assert_eq!(run("authorizer.path(' ').check('get').allowed()").unwrap_err(), "path must not be empty");
    let asked = asked.0.lock().unwrap();
    assert_eq!(
        asked[0].target,
        authz::Target::Resource(authz::Resource {
            group: "apps".into(),
            resource: "deployments".into(),
            subresource: "scale".into(),
            namespace: "ns".into(),
            name: "n".into(),
            field_selector: "a=b".into(),
            label_selector: String::new(),
        })
    );
    assert_eq!(
        asked[2].subject,
        authz::Subject::ServiceAccount { namespace: "ns".into(), name: "sa".into() }
    );
}

#[test]
fn a_version_has_what_it_had() {
    for (expr, since) in [
        ("isURL('x')", 0),
        ("optional.none().hasValue()", 28),
        ("quantity('1') == quantity('1')", 28),
        ("sets.contains([1], [1])", 29),
        ("isIP('x')", 30),
        ("format.date().validate('x').hasValue()", 31),
        ("[1].all(i, v, true)", 32),
        ("isSemver('x')", 33),
        ("[1].sort() == [1]", 34),
    ] {
        assert!(Env::kubernetes(Version::new(1, since)).compile(expr).is_ok(), "{expr}");
        if since > 0 {
            assert!(Env::kubernetes(Version::new(1, since - 1)).compile(expr).is_err(), "{expr}");
        }
    }
}

#[test]
fn references_are_known() {
    let env =
        Env::kubernetes(LATEST).extend().variable("self", Type::Dyn).variable("oldSelf", Type::Dyn).build();
    let references = |expr: &str| env.compile(expr).unwrap().references();
    let found = references("self.items.all(i, i == oldSelf.items[0].x) && has(self.spec.name)");
    assert!(found.reads("oldSelf") && found.reads("self") && !found.reads("i"));
    let paths: Vec<&str> = found.paths.iter().map(String::as_str).collect();
    assert_eq!(paths, ["oldSelf.items", "self.items", "self.spec.name"]);
    assert!(!references("[1].all(oldSelf, oldSelf > 0)").reads("oldSelf"));
}

#[test]
fn everything_can_be_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Env>();
    shared::<yare_cel::Ast>();
    shared::<yare_cel::Program>();
    shared::<Value<'_>>();
}

#[test]
fn documents_have_escaped_keys_and_doubles() {
    let document = Decl::document();
    let claims = json!({
        "plain": 1, "a.b": {"c-d": [{"e/f": true}]}, "__g__": "underscores", "nothing": null,
    });
    let env = Env::kubernetes(LATEST).extend().variable("claims", Type::map(Type::String, Type::Dyn)).build();
    for expr in [
        "type(claims.plain) == double && claims.plain == 1",
        "claims.a__dot__b.c__dash__d[0].e__slash__f",
        "claims['a.b']['c-d'][0]['e/f'] && 'a.b' in claims",
        "has(claims.a__dot__b.c__dash__d) && !has(claims.a__dot__c)",
        "claims.?a__dot__b.?missing.orValue(true) == true",
        "claims.nothing == null && claims.size() == 4",
        "claims.exists(k, k == 'a.b' && claims[k].size() == 1)",
    ] {
        let program = env.compile(expr).unwrap().program().unwrap();
        let mut vars = Vars::new();
        vars.bind_json("claims", &claims, &document);
        let found = program.eval(&vars, &mut Budget::unlimited()).map(|value| value.as_bool());
        assert_eq!(found, Ok(Some(true)), "{expr}");
    }
}

#[test]
fn selections_of_a_field_are_found() {
    let env = Env::kubernetes(LATEST).extend().variable("x", Type::Dyn).build();
    for (expr, expect) in [
        ("x.a", true),
        ("x.?a.orValue(1)", true),
        ("has(x.a)", true),
        ("[1].map(i, x.a + i)", true),
        ("{'k': x.a.b}", true),
        ("x['a']", false),
        ("x.b.a", false),
        ("x.aa", false),
        ("[x].map(y, y.a)", false),
    ] {
        assert_eq!(env.compile(expr).unwrap().selects("x", "a"), expect, "{expr}");
    }
}
