//! The three patches of RFC 6902, RFC 7386 and of Kubernetes' own. Input: a document, a zero byte, a patch.

use serde_json::Value;
use yare_schema::{
    builtin::builtin,
    decode::{self, Mode},
    model::TypeRef,
    patch,
};

use crate::input::{check_size, depth, heap_bytes, joined, kind, of_kind, parts};

pub const JSON_WORDS: &[&str] = &[
    "{\"op\":\"add\",\"path\":\"/a/-\",\"value\":1},",
    "{\"op\":\"copy\",\"from\":\"\",\"path\":\"/a/0\"},",
    "{\"op\":\"move\",\"from\":\"/a\",\"path\":\"/a/b\"},",
    "\"op\":",
    "\"path\":",
    "\"from\":",
    "\"value\":",
    "\"test\"",
    "\"remove\"",
    "\"replace\"",
    "/-",
    "/0",
    "/-1",
    "~0",
    "~1",
    "/",
    "null",
];
pub const STRATEGIC_WORDS: &[&str] = &[
    "\"$patch\":\"delete\",",
    "\"$patch\":\"replace\",",
    "\"$patch\":\"merge\",",
    "\"$retainKeys\":[\"name\"],",
    "\"$setElementOrder/containers\":[{\"name\":\"a\"}],",
    "\"$deleteFromPrimitiveList/finalizers\":[\"a\"],",
    "\"name\":",
    "\"containers\":",
    "null",
    "[]",
    "{}",
    "[[]]",
    "\"$setElementOrder/args\":",
    "\"ports\":",
    "\"containerPort\":",
];

/// Documents are what a decoder let in, patches too.
fn value(bytes: &[u8]) -> Option<Value> {
    decode::decode_untyped(bytes, Mode::Ignore).ok().map(|d| d.value)
}

pub fn json(bytes: &[u8]) {
    let [document, change] = parts(bytes);
    let (Some(document), Some(change)) = (value(document), value(change)) else { return };
    let Ok(patched) = patch::json::apply(document.clone(), &change) else { return };
    // What goes in has a bound on its depth; what comes out too, unless nothing was done to it.
    assert!(depth(&patched) <= patch::MAX_DEPTH.max(depth(&document)));
    let copied = patch::json::MAX_COPY_BYTES * size_of::<Value>();
    assert!(heap_bytes(&patched) <= heap_bytes(&document) + heap_bytes(&change) + copied);
    assert_eq!(patch::json::apply(document, &change).as_ref(), Ok(&patched), "twice the same");
}

pub fn merge(bytes: &[u8]) {
    let [document, change] = parts(bytes);
    let (Some(document), Some(change)) = (value(document), value(change)) else { return };
    let Ok(once) = patch::merge::apply(document.clone(), change.clone()) else { return };
    assert!(depth(&once) <= depth(&document).max(depth(&change)));
    // The second time may prune what took the place of an object the first time.
    let twice = patch::merge::apply(once, change.clone());
    assert_eq!(twice.clone().and_then(|twice| patch::merge::apply(twice, change)), twice);
}

pub fn strategic(bytes: &[u8]) {
    let Some((_, ty, bytes)) = kind(bytes) else { return };
    let [document, change] = parts(bytes);
    let Ok(document) = decode::decode(ty, document, Mode::Ignore) else { return };
    let document = document.value;
    let empty = Value::Object(Default::default());
    if document.is_object() {
        assert_eq!(patch::strategic::apply(ty, document.clone(), empty).as_ref(), Ok(&document));
    }
    let Some(change) = value(change) else { return };
    if let Ok(patched) = patch::strategic::apply(ty, document.clone(), change.clone()) {
        grown(ty, &document, &change, &patched);
    }
}

/// What a patch adds was in it, and what comes out is read like any other object.
fn grown(ty: TypeRef<'_>, document: &Value, change: &Value, patched: &Value) {
    assert!(depth(patched) <= depth(document).max(depth(change)) + 1);
    // Trees are rebuilt, and lists grow by doubling.
    let before = heap_bytes(document) + heap_bytes(change);
    assert!(heap_bytes(patched) <= 4 * before + 4096, "{before} bytes grew to {}", heap_bytes(patched));
    if let Ok(read) = decode::normalize(ty, patched.clone(), Mode::Warn) {
        check_size(&read.value, yare_schema::encode::any(patched).len());
    }
}

pub fn json_seeds() -> Vec<Vec<u8>> {
    let document = r#"{"a":[1,{"b":null},"x"],"c":{"d/e":{"~":[]}},"n":1.0}"#;
    [
        r#"[{"op":"test","path":"/a/1/b","value":null},{"op":"add","path":"/a/-","value":[]},{"op":"remove","path":"/a/0"}]"#,
        r#"[{"op":"copy","from":"/a","path":"/a/0"},{"op":"copy","from":"/a","path":"/a/0"},{"op":"move","from":"/c","path":"/x"}]"#,
        r#"[{"op":"replace","path":"/c/d~1e/~0","value":{"y":[1]}},{"op":"add","path":"","value":{}},{"op":"test","path":"","value":{}}]"#,
        r#"[{"op":"copy","from":"","path":"/c"},{"op":"copy","from":"","path":"/c/c"},{"op":"add","path":"/a/-1","value":0}]"#,
        r#"[{"op":"test","path":"/n","value":1}]"#,
        "null",
    ]
    .map(|patch| joined(&[document, patch]))
    .into()
}

pub fn merge_seeds() -> Vec<Vec<u8>> {
    [
        (r#"{"a":{"b":[1,2],"c":null},"d":"x"}"#, r#"{"a":{"b":[null,{"e":null}],"c":{"f":{}}},"d":null}"#),
        ("[1]", r#"{"a":{"b":null}}"#),
        (r#"{"a":[]}"#, r#"[{"a":null}]"#),
    ]
    .map(|(document, patch)| joined(&[document, patch]))
    .into()
}

pub fn strategic_seeds() -> Vec<Vec<u8>> {
    let pod = r#"{"metadata":{"name":"p","finalizers":["a","b"],"labels":{"x":"y"}},"spec":{"containers":[{"name":"a","image":"i","args":["1"],"ports":[{"containerPort":80,"protocol":"TCP"}],"env":[{"name":"E","value":"v"}]},{"name":"b"}],"volumes":[{"name":"v","emptyDir":{}}],"tolerations":[{"key":"k"}]}}"#;
    let deployment = r#"{"spec":{"replicas":1,"strategy":{"type":"RollingUpdate","rollingUpdate":{"maxSurge":1}},"template":{"spec":{"containers":[{"name":"a"}]}}}}"#;
    let mut seeds: Vec<Vec<u8>> = [
        r#"{"spec":{"containers":[{"name":"a","image":"j"},{"$patch":"delete","name":"b"},{"name":"c"}]}}"#,
        r#"{"spec":{"$setElementOrder/containers":[{"name":"b"},{"name":"a"}],"containers":[{"name":"b","image":"k"}]}}"#,
        r#"{"metadata":{"$deleteFromPrimitiveList/finalizers":["a"],"$setElementOrder/finalizers":["c","b"],"finalizers":["c"],"labels":{"$patch":"replace","z":"w"}}}"#,
        r#"{"spec":{"containers":[{"$patch":"replace"},{"name":"z"}],"volumes":[{"$retainKeys":["name","hostPath"],"name":"v","hostPath":{"path":"/"}}]}}"#,
        r#"{"spec":{"containers":[{"name":"a","ports":[{"containerPort":80,"name":"n"}],"env":[{"$patch":"delete","name":"E"}]}],"tolerations":[{"key":"q"}]}}"#,
        r#"{"spec":null,"metadata":{"$patch":"delete"}}"#,
    ]
    .map(|patch| of_kind("", "v1", "Pod", &joined(&[pod, patch])))
    .into();
    let patch = r#"{"spec":{"replicas":null,"strategy":{"$retainKeys":["type"],"type":"Recreate"}}}"#;
    seeds.push(of_kind("apps", "v1", "Deployment", &joined(&[deployment, patch])));
    for (group, version, name) in
        [("", "v1", "Service"), ("apps", "v1", "StatefulSet"), ("batch", "v1", "CronJob")]
    {
        // The kinds are of the tables, as the seeds above show.
        let ty = builtin().lookup(group, version, name).expect("a built-in kind");
        let full = yare_schema::encode::json(ty, &yare_schema::fixtures::full(ty));
        let sparse = yare_schema::encode::json(ty, &yare_schema::fixtures::sparse(ty, 5));
        seeds.push(of_kind(group, version, name, &[full, vec![0], sparse].concat()));
    }
    seeds
}
