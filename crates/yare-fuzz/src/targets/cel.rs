//! CEL: any text is compiled or refused, and costs end what was compiled.

use std::sync::LazyLock;

use serde_json::Value as Json;
use yare_cel::{Budget, Decl, DeclSizes, Env, Library, Vars, Version, schema};
use yare_schema::decode::{self, Mode};

use crate::input::{joined, parts};

pub const WORDS: &[&str] = &[
    "self",
    "self.a",
    "self.list",
    "self.map",
    "oldSelf",
    "&&",
    "||",
    "==",
    "in",
    "!",
    "?",
    ":",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    "'a'",
    "b'\\xff'",
    "1",
    "2u",
    "3.5",
    "null",
    "has(self.name)",
    ".all(x, ",
    ".exists(x, ",
    ".map(x, ",
    ".filter(x, ",
    ".size()",
    "duration('1h')",
    "timestamp('2024-01-01T00:00:00Z')",
    "optional.of(",
    ".orValue(",
    "cel.bind(v, ",
    "dyn(",
    "type(",
    "string(",
    "int(",
    "double(",
    "bytes(",
    ".matches('(a+)+$')",
    ".findAll('[a-z]')",
    ".split(',')",
    ".replace('a', 'aa')",
    ".join()",
    "lists.range(",
    ".sort()",
    ".flatten()",
    "quantity('1Ki')",
    "ip('::1')",
    "cidr('10.0.0.0/8')",
    "url('http://a/b')",
    "semver('1.2.3')",
    ".format([",
    "'%d %s %e'",
    "sets.contains(",
    "transformMap(k, v, ",
    "JSONPatch{op: 'add'}",
    "Object{a: 1}",
    "?.",
    "[?0]",
    "-9223372036854775808",
    "/ 0",
    "% 0",
    "authorizer.path('/')",
    "format.dns1123Label()",
    "base64.encode(",
];

/// What a call may cost, and a request.
const CALL: u64 = 100_000;
const REQUEST: u64 = 150_000;

/// Objects of a known shape with bounds, of which costs can be told beforehand.
static SHAPE: LazyLock<Decl> = LazyLock::new(|| {
    let schema = serde_json::json!({"type": "object", "properties": {
        "a": {"type": "integer"},
        "name": {"type": "string", "maxLength": 64},
        "list": {"type": "array", "maxItems": 16, "items": {"type": "string", "maxLength": 16}},
        "map": {"type": "object", "maxProperties": 16, "additionalProperties": {"type": "integer"}},
        "when": {"type": "string", "format": "date-time"},
        "any": {"x-kubernetes-preserve-unknown-fields": true},
        "port": {"x-kubernetes-int-or-string": true},
    }});
    schema::decl(&schema, true).expect("a schema of an object").named("Shape")
});
static TYPED: LazyLock<Env> = LazyLock::new(|| {
    let env = Env::kubernetes(Version::new(1, 36)).extend();
    env.declare("self", &SHAPE).declare("oldSelf", &SHAPE).build()
});
static DYNAMIC: LazyLock<(Env, Decl)> = LazyLock::new(|| {
    let any = Decl::any();
    let env = Env::kubernetes(Version::new(1, 36)).extend().declare("self", &any).declare("oldSelf", &any);
    (env.library(Library::JsonPatch).open_type("Object").build(), any)
});

/// Input: an expression, a zero byte, the object that `self` and `oldSelf` are.
pub fn cel(bytes: &[u8]) {
    let [text, object] = parts(bytes);
    let Ok(text) = std::str::from_utf8(text) else { return };
    let object = decode::decode_untyped(object, Mode::Ignore).map_or(Json::Null, |d| d.value);
    drive(&DYNAMIC.0, &DYNAMIC.1, text, &object);
    // Objects whose sizes the declaration's bounds do not bound are none of its values.
    if fits(&object) {
        drive(&TYPED, &SHAPE, text, &object);
    }
}

fn fits(object: &Json) -> bool {
    let short = |value: &Json, most: usize| value.as_str().is_none_or(|text| text.chars().count() <= most);
    let Some(map) = object.as_object() else { return false };
    map.iter().all(|(key, value)| match key.as_str() {
        "a" => value.is_i64(),
        "name" => value.is_string() && short(value, 64),
        "list" => {
            value.as_array().is_some_and(|l| l.len() <= 16 && l.iter().all(|v| v.is_string() && short(v, 16)))
        }
        "map" => value.as_object().is_some_and(|m| m.len() <= 16 && m.values().all(Json::is_i64)),
        "when" => value.as_str().is_some_and(|t| yare_schema::gotime::parse_time(t).is_ok()),
        "port" => value.is_i64() || value.is_string() && short(value, 64),
        "any" => true,
        _ => false,
    })
}

fn drive(env: &Env, decl: &Decl, text: &str, object: &Json) {
    let ast = match env.compile(text) {
        Ok(ast) => ast,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let estimate = ast.estimate(&DeclSizes(decl));
    assert!(estimate.min <= estimate.max, "{text}: {estimate:?}");
    let Ok(program) = ast.program() else { return };
    let mut vars = Vars::new();
    vars.bind_json("self", object, decl);
    vars.bind_json("oldSelf", object, decl);
    let mut budget = Budget::new(CALL, REQUEST);
    let result = program.eval(&vars, &mut budget);
    let spent = REQUEST - budget.remaining;
    if let Ok(value) = result {
        assert!(spent <= CALL, "{text}: cost {spent}");
        let _ = value.to_string();
        let _ = value.to_json();
        let mut again = Budget::new(CALL, REQUEST);
        let second = program.eval(&vars, &mut again).expect("what was evaluated can be again");
        assert_eq!(again.remaining, budget.remaining, "{text}: costs differ");
        assert_eq!(second.to_string(), value.to_string(), "{text}");
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    const OBJECT: &str = r#"{"a":1,"name":"web","list":["a","b"],"map":{"k":1,"l":2},"when":"2024-01-01T00:00:00Z","any":{"x":[1,null,"s"]},"port":"http"}"#;
    [
        "self.a > 0 && self.name.startsWith('w') || has(self.when)",
        "self.list.all(x, x.size() < 5) && self.list.exists_one(x, x == 'a')",
        "self.map.transformMap(k, v, v * 2).transformList(k, v, k + string(v)).sort().join(',')",
        "cel.bind(v, self.list.map(x, [x, x]), v.flatten().distinct().size() == sets.intersects(v[0], ['a']) ? 1 : 2)",
        "self.?any.?x.orValue([])[?5].hasValue() ? optional.none() : optional.of(type(self.port))",
        "timestamp(self.when) + duration('1h') > timestamp('2020-01-01T00:00:00Z') && timestamp(self.when).getFullYear('Europe/Berlin') == 2024",
        "quantity('1.5Gi').add(quantity('1Ki')).isGreaterThan(quantity('1')) && quantity('1').asInteger() == 1",
        "ip('192.168.0.1').family() == 4 && cidr('10.0.0.0/8').containsIP('10.1.2.3') && isIP('::1')",
        "url('https://a.b:80/c?d=e').getQuery()['d'] == ['e'] && semver('1.2.3-rc.1').isLessThan(semver('1.2.3'))",
        "'%s %d %.2f %x %e %b'.format(['a', 1, 2.5, 255, 1e10, 5]) + 'a,b'.split(',')[0].upperAscii().replace('A', 'bb', 1)",
        "'aaaa'.matches('(a|a)*b$') || 'abc'.findAll('[a-c]').size() > 2 || 'x'.find('y') == ''",
        "[1, 2u, 3.0, 'a', b'b', null, true, {1: 2}, [[]]].filter(x, dyn(x) == 1).map(x, x + 1)",
        "[JSONPatch{op: 'add', path: '/spec/' + jsonpatch.escapeKey('a/b'), value: Object{spec: Object.spec{x: 1}}}]",
        "lists.range(100).map(x, lists.range(100).map(y, x * y)).map(l, l.sum()).max()",
        "r'''raw''' + \"\"\"multi\nline\"\"\" + '\\u00e9\\x41\\101' == b'\\303\\251' ? -(-9223372036854775808) : 1 / 0",
        "!format.dns1123Label().validate('A').hasValue() || format.named('x').hasValue()",
    ]
    .map(|text| joined(&[text, OBJECT]))
    .into()
}
