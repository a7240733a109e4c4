//! The specification's own conformance texts, as facts: expression, environment, expected value.
//!
//! Each line of `conformance/*.jsonl` is one case. Cases about protocol buffer messages are left out: Kubernetes
//! has none in expressions.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::Value as Json;
use yare_cel::{Budget, Duration, Env, Key, Library, Str, Timestamp, Type, Value, Vars};

/// Where Kubernetes deviates from the texts, or cel-go does: by file and expression.
const EXCEPTIONS: &[(&str, &str)] = &[
    // The last of two entries with the same key counts.
    ("fields", "{true:1,false:2,true:3}[true]"),
    ("fields", "{0: 1, 0u: 2}[0.0]"),
    // Nothing is there below what has no fields.
    ("optionals", "{'null_key': dyn(null)}.?null_key.invalid.hasValue()"),
    ("optionals", "{true: dyn(0)}[?true].absent.hasValue()"),
    // Kubernetes has the second version of the strings library; these are of the third and fourth.
    ("string_ext", r#""%.6e".format([1052.032911275])"#),
    ("string_ext", r#""%f".format([2])"#),
    ("string_ext", r#""%f".format([3u])"#),
    ("string_ext", r#""%e".format([2.71828])"#),
    ("string_ext", r#""%e".format([2])"#),
    ("string_ext", r#""%e".format([3u])"#),
    ("string_ext", r#""%e".format([double("Infinity")])"#),
    ("string_ext", r#""%e".format([double("-Infinity")])"#),
    ("string_ext", r#""%d".format([double("NaN")])"#),
    ("string_ext", r#""%d".format([double("Infinity")])"#),
    ("string_ext", r#""%d".format([double("-Infinity")])"#),
    ("string_ext", r#""%f".format([double("Infinity")])"#),
    ("string_ext", r#""%f".format([double("-Infinity")])"#),
    ("string_ext", r#""%s".format([["abc", 3.14, null, [9, 8, 7, 6], timestamp("2023-02-03T23:31:20Z")]])"#),
    (
        "string_ext",
        r#""%s".format([{"key1": b"xyz", "key5": null, "key2": duration("2h"), "key4": true, "key3": 2.71828}])"#,
    ),
    ("string_ext", r#""%s".format([{1: "value1", uint(2): "value2", true: double("NaN")}])"#),
    ("string_ext", r#""%e".format([dyn(2.71828)])"#),
    ("string_ext", r#""%s".format([[double("NaN"), double("Infinity"), double("-Infinity")]])"#),
    ("string_ext", r#""%s".format([dyn([6, 4.2, "a string"])])"#),
    ("string_ext", r#""%s".format([{"strKey":"x", 6:duration("422s"), true:42}])"#),
    ("string_ext", "str_var.format([1052.032911275])"),
    ("string_ext", "'tacocat'.indexOf('a', 30) == -1"),
    ("string_ext", "'tacocat'.lastIndexOf('a', 30) == -1"),
    ("string_ext", "''.reverse() == ''"),
    ("string_ext", "'☺'.reverse() == '☺'"),
    ("string_ext", "'Ta©oCαt'.reverse() == 'tαCo©aT'"),
    // `null` goes with an optional, and what is there of both is the null.
    ("type_deduction", "[optional.of(1), null][0]"),
];

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
        "type" => Type::Type(Some(parse_type(args).into())),
        "map" => {
            let (key, value) = args.split_once(", ").unwrap();
            Type::map(parse_type(key), parse_type(value))
        }
        other => panic!("type {other}"),
    }
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn value(json: &Json) -> Value<'static> {
    let (kind, json) = json.as_object().unwrap().iter().next().unwrap();
    let pair = |json: &Json| (json[0].as_i64().unwrap(), json[1].as_i64().unwrap());
    match kind.as_str() {
        "null" => Value::Null,
        "bool" => Value::Bool(json.as_bool().unwrap()),
        "int" => Value::Int(json.as_str().unwrap().parse().unwrap()),
        "uint" => Value::Uint(json.as_str().unwrap().parse().unwrap()),
        "double" => Value::Double(json.as_str().unwrap().parse().unwrap()),
        "string" => Value::string(json.as_str().unwrap()),
        "bytes" => Value::Bytes(bytes(json.as_str().unwrap()).into()),
        "timestamp" => Value::Timestamp(Timestamp::new(pair(json).0, pair(json).1 as u32).unwrap()),
        "duration" => Value::Duration(Duration(pair(json).0 * 1_000_000_000 + pair(json).1)),
        "type" => Value::Type(match json.as_str().unwrap() {
            "google.protobuf.Timestamp" => Type::Timestamp,
            "google.protobuf.Duration" => Type::Duration,
            "null_type" => Type::Null,
            "list" => Type::list(Type::Dyn),
            "map" => Type::map(Type::Dyn, Type::Dyn),
            "type" => Type::Type(None),
            "optional_type" => Type::optional(Type::Dyn),
            other => parse_type(other),
        }),
        "list" => Value::list(json.as_array().unwrap().iter().map(value).collect()),
        "map" => {
            let mut map = BTreeMap::new();
            for entry in json.as_array().unwrap() {
                let key = match value(&entry[0]) {
                    Value::Bool(key) => Key::Bool(key),
                    Value::Int(key) => Key::Int(key),
                    Value::Uint(key) => Key::Uint(key),
                    Value::String(key) => Key::String(Str::Shared((*key).into())),
                    other => panic!("key {other}"),
                };
                map.insert(key, value(&entry[1]));
            }
            Value::map(map)
        }
        other => panic!("value {other}"),
    }
}

/// Equal and of the same type; NaN is itself.
fn same(a: &Value<'_>, b: &Value<'_>) -> bool {
    match (a, b) {
        (Value::Double(a), Value::Double(b)) => a == b || (a.is_nan() && b.is_nan()),
        _ => a == b && a.type_name() == b.type_name(),
    }
}

fn run(base: &Env, case: &Json) -> Result<(), String> {
    let mut env = base.extend().container(case["container"].as_str().unwrap_or_default());
    for (name, of) in case["env"].as_object().into_iter().flatten() {
        env = env.variable(name, parse_type(of.as_str().unwrap()));
    }
    let env = env.build();
    let wants_error = case["error"].as_bool().unwrap_or(false);
    let ast = match env.compile(case["expr"].as_str().unwrap()) {
        Ok(ast) => ast,
        Err(_) if wants_error => return Ok(()),
        // Some texts are about evaluation without checking, which Kubernetes never does.
        Err(_) if case["unchecked"].as_bool().unwrap_or(false) => return Ok(()),
        Err(error) => return Err(error.to_string()),
    };
    if let Some(of) = case["type"].as_str()
        && *ast.output_type() != parse_type(of)
    {
        return Err(format!("type {}, want {of}", ast.output_type()));
    }
    if case["check_only"].as_bool().unwrap_or(false) {
        return Ok(());
    }
    let result = match ast.program() {
        Ok(program) => {
            let bound: Vec<(&String, &Json)> = case["bind"].as_object().into_iter().flatten().collect();
            let mut vars = Vars::new();
            for (name, json) in &bound {
                vars.bind(name, value(json));
            }
            program.eval(&vars, &mut Budget::unlimited()).map_err(|error| error.to_string())
        }
        Err(error) => Err(error.to_string()),
    };
    match (result, wants_error) {
        (Err(_), true) => Ok(()),
        (Ok(found), true) => Err(format!("{found:?}, want an error")),
        (Err(error), false) => Err(error),
        (Ok(found), false) if case["value"].is_null() || same(&found, &value(&case["value"])) => Ok(()),
        (Ok(found), false) => Err(format!("{found:?}, want {:?}", value(&case["value"]))),
    }
}

#[test]
fn the_specification_s_texts_hold() {
    let base = Env::standard()
        .extend()
        .library(Library::Optional)
        .library(Library::Strings)
        .library(Library::Lists)
        .library(Library::TwoVariables)
        .library(Library::Bindings)
        .build();
    let mut cases = 0;
    let mut failures = Vec::new();
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance");
    let mut files: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    for file in files {
        let name = file.file_stem().unwrap().to_str().unwrap().to_owned();
        for line in fs::read_to_string(&file).unwrap().lines().filter(|line| !line.starts_with('#')) {
            let case: Json = serde_json::from_str(line).unwrap();
            let expr = case["expr"].as_str().unwrap();
            cases += 1;
            let expected = EXCEPTIONS.contains(&(name.as_str(), expr));
            match run(&base, &case) {
                Ok(()) if expected => {
                    failures.push(format!("{name}: {expr}: holds, and is listed as an exception"))
                }
                Err(why) if !expected => failures.push(format!("{name}: {expr}: {why}")),
                _ => {}
            }
        }
    }
    assert!(cases > 1_000, "{cases} cases");
    assert!(failures.is_empty(), "{} of {cases} fail:\n{}", failures.len(), failures.join("\n"));
}
