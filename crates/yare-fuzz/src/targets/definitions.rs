//! CustomResourceDefinitions: any definition is accepted or refused, and what is accepted works.

use serde_json::{Value, json};
use yare_kinds::{
    strategy::{Context, Strategy, apiextensions::CUSTOM_RESOURCE_DEFINITION},
    validations::Rules,
};
use yare_schema::{
    builtin::builtin,
    crd,
    decode::{self, Mode},
    defaults, features,
    field::Path,
    prune, validate,
};

use crate::input::{joined, parts};

pub const WORDS: &[&str] = &[
    "\"type\":\"object\",",
    "\"type\":\"array\",",
    "\"type\":\"string\",",
    "\"type\":\"integer\",",
    "\"properties\":{",
    "\"items\":{",
    "\"additionalProperties\":",
    "\"allOf\":[",
    "\"anyOf\":[",
    "\"oneOf\":[",
    "\"not\":{",
    "\"enum\":[1,\"a\",null],",
    "\"default\":",
    "\"required\":[\"a\"],",
    "\"pattern\":\"(a{9}){9}\",",
    "\"format\":\"date-time\",",
    "\"maxLength\":5,",
    "\"multipleOf\":0,",
    "\"nullable\":true,",
    "\"x-kubernetes-int-or-string\":true,",
    "\"x-kubernetes-embedded-resource\":true,",
    "\"x-kubernetes-preserve-unknown-fields\":true,",
    "\"x-kubernetes-list-type\":\"map\",",
    "\"x-kubernetes-list-map-keys\":[\"a\"],",
    "\"x-kubernetes-list-type\":\"set\",",
    "\"x-kubernetes-map-type\":\"atomic\",",
    "\"x-kubernetes-validations\":[{\"rule\":\"self == oldSelf\"}],",
    "\"x-kubernetes-validations\":[{\"rule\":\"self.all(x, x != '')\"}],",
    "\"metadata\":{",
    "\"subresources\":{\"status\":{}},",
    "\"selectableFields\":[{\"jsonPath\":\".spec.a\"}],",
    "{}",
    "}",
    "]",
    "1e400",
];
const CONTEXT: Context<'_> =
    Context { now: "2026-01-01T00:00:00Z", namespace: "", user: "u", gates: &features::DEFAULT };

/// A definition with this schema.
fn around(schema: Value) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "things.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced", "names": {"plural": "things", "kind": "Thing"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}],
        },
    })
}

/// Input: a definition or a schema, an object and what it was, with zero bytes between.
pub fn definition(bytes: &[u8]) {
    let [text, new, old] = parts(bytes);
    let free = |bytes| Some(decode::decode_untyped(bytes, Mode::Ignore).ok()?.value);
    let Some(first) = free(text) else { return };
    let whole = if first.get("spec").is_some() { first } else { around(first) };
    // The tables have the kind.
    let ty =
        builtin().lookup("apiextensions.k8s.io", "v1", "CustomResourceDefinition").expect("a built-in kind");
    let Ok(decoded) = decode::normalize(ty, whole, Mode::Ignore) else { return };
    let mut crd = decoded.value;
    let strategy: &dyn Strategy = CUSTOM_RESOURCE_DEFINITION;
    strategy.default(&mut crd);
    strategy.prepare_for_create(&mut crd, &CONTEXT);
    let errors = strategy.validate(&crd, &CONTEXT);
    for error in strategy.validate_update(&crd, &crd, &CONTEXT).iter().chain(&errors) {
        assert!(!error.to_string().is_empty());
    }
    let objects = [free(new), free(old)];
    for version in crd.pointer("/spec/versions").and_then(Value::as_array).into_iter().flatten() {
        let Some(schema) = version.pointer("/schema/openAPIV3Schema") else { continue };
        serve(schema, errors.is_empty(), &objects);
    }
}

/// What the server does with a schema that it has, which may be older than today's rules.
fn serve(schema: &Value, accepted: bool, objects: &[Option<Value>; 2]) {
    let path = Path::new("schema");
    let checked = crd::compile(schema, &path);
    assert!(!accepted || checked.is_ok(), "accepted, but does not compile: {schema}");
    let compiled = crd::load(schema);
    let rules = Rules::of(schema);
    let read = objects.each_ref().map(|object| {
        let mut object = object.clone().filter(Value::is_object)?;
        prune::prune(compiled.ty(), &mut object);
        assert_eq!(prune::prune(compiled.ty(), &mut object), Vec::<String>::new(), "pruned twice");
        defaults::apply(compiled.ty(), &mut object);
        let once = object.clone();
        defaults::apply(compiled.ty(), &mut object);
        if accepted {
            assert_eq!(object, once, "defaulted twice");
            assert_eq!(prune::prune(compiled.ty(), &mut object), Vec::<String>::new(), "defaults are pruned");
        }
        Some(object)
    });
    let [Some(new), old] = read else { return };
    let errors = validate::validate(compiled.ty(), &new);
    for old in [Some(&new), old.as_ref()].into_iter().flatten() {
        let of_update = validate::validate_update(compiled.ty(), &new, old);
        assert!(of_update.len() <= errors.len(), "an update has errors of its own");
        validate::validate_status_update(compiled.ty(), &new, old);
        if let Some(rules) = rules.as_ref().filter(|_| of_update.is_empty()) {
            rules.run(&new, Some((compiled.ty(), old)));
        }
    }
    if let Some(rules) = rules.filter(|_| errors.is_empty()) {
        rules.run(&new, None);
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let object = r#"{"apiVersion":"example.com/v1","kind":"Thing","metadata":{"name":"a"},"spec":{"a":"x","b":3,"list":[{"a":"1"},{"a":"2","v":5}],"map":{"k":"v"},"any":{"x":1},"port":80,"t":{"apiVersion":"v1","kind":"Pod"}}}"#;
    let old = r#"{"apiVersion":"example.com/v1","kind":"Thing","metadata":{"name":"a"},"spec":{"a":"y","b":2,"list":[{"a":"2"}]}}"#;
    let spec = r#"{"type":"object","required":["a"],"properties":{
        "a":{"type":"string","maxLength":10,"pattern":"^[a-z]+$","default":"x","enum":["x","y"]},
        "b":{"type":"integer","minimum":1,"maximum":5,"multipleOf":1,"format":"int32","x-kubernetes-validations":[{"rule":"self >= oldSelf","message":"grows"}]},
        "list":{"type":"array","maxItems":10,"x-kubernetes-list-type":"map","x-kubernetes-list-map-keys":["a"],"items":{"type":"object","required":["a"],"properties":{"a":{"type":"string","maxLength":5},"v":{"type":"integer","default":1}}}},
        "map":{"type":"object","maxProperties":5,"additionalProperties":{"type":"string","nullable":true}},
        "any":{"x-kubernetes-preserve-unknown-fields":true},
        "port":{"x-kubernetes-int-or-string":true,"anyOf":[{"type":"integer"},{"type":"string"}]},
        "t":{"type":"object","x-kubernetes-embedded-resource":true,"x-kubernetes-preserve-unknown-fields":true},
        "when":{"type":"string","format":"date-time"}},
        "oneOf":[{"required":["a"]},{"required":["b"],"not":{"required":["a"]}}],
        "x-kubernetes-validations":[{"rule":"self.list.all(x, x.a != '')","messageExpression":"'odd ' + self.a","fieldPath":".list","reason":"FieldValueInvalid"},{"rule":"!oldSelf.hasValue() || oldSelf.value().a != ''","optionalOldSelf":true}]}"#;
    let schema =
        format!(r#"{{"type":"object","properties":{{"spec":{spec},"status":{{"type":"object"}}}}}}"#);
    let whole = format!(
        r#"{{"metadata":{{"name":"things.example.com"}},"spec":{{"group":"example.com","scope":"Cluster","names":{{"plural":"things","kind":"Thing","shortNames":["th"],"categories":["all"]}},"conversion":{{"strategy":"Webhook","webhook":{{"conversionReviewVersions":["v1"],"clientConfig":{{"url":"https://a.b/c"}}}}}},"versions":[{{"name":"v1","served":true,"storage":true,"subresources":{{"status":{{}},"scale":{{"specReplicasPath":".spec.b","statusReplicasPath":".status.b","labelSelectorPath":".status.s"}}}},"additionalPrinterColumns":[{{"name":"A","type":"string","jsonPath":".spec.a"}}],"selectableFields":[{{"jsonPath":".spec.a"}}],"schema":{{"openAPIV3Schema":{schema}}}}},{{"name":"v1beta1","served":true,"storage":false,"deprecated":true,"deprecationWarning":"old","schema":{{"openAPIV3Schema":{{"type":"object","x-kubernetes-preserve-unknown-fields":true}}}}}}]}}}}"#
    );
    vec![joined(&[&schema, object, old]), joined(&[&whole, object, old]), joined(&[&whole, old, object])]
}
