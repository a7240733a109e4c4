//! Pod templates: pods made from them, whether two are the same, and their hash.

use serde_json::{Map, Value, json};
use yare_client::{Cached, PODS, Resource};

use crate::{
    api::{ApiError, Deletion},
    context::Context,
    ownership::controller_ref,
};

/// The label that tells the pods of a deployment's replica sets apart.
pub const POD_TEMPLATE_HASH: &str = "pod-template-hash";

/// The pod that a template describes, owned by `owner` and named after it.
pub fn pod(template: &Value, resource: &Resource, owner: &Cached) -> Value {
    let mut metadata = Map::new();
    for field in ["labels", "annotations", "finalizers"] {
        if let Some(value) = template.pointer(&format!("/metadata/{field}")).filter(|v| !is_absent(field, v))
        {
            metadata.insert(field.into(), value.clone());
        }
    }
    metadata.insert("generateName".into(), format!("{}-", owner.name()).into());
    metadata.insert("namespace".into(), owner.namespace().into());
    metadata.insert("ownerReferences".into(), json!([controller_ref(resource, owner)]));
    json!({
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": metadata,
        "spec": template.get("spec").cloned().unwrap_or_default(),
    })
}

/// Creates a pod for `owner` and says so in an event.
pub async fn create_pod(
    context: &Context,
    resource: &Resource,
    owner: &Cached,
    pod: &Value,
) -> Result<Cached, ApiError> {
    match context.api.create(&PODS, owner.namespace(), pod).await {
        Ok(created) => {
            let message = format!("Created pod: {}", created.name());
            context.normal(resource, owner, "SuccessfulCreate", message);
            Ok(created)
        }
        Err(error) => {
            if !error.is_namespace_terminating() {
                context.warning(resource, owner, "FailedCreate", format!("Error creating: {error}"));
            }
            Err(error)
        }
    }
}

/// Deletes a pod of `owner` and says so in an event. A pod that is gone already is no error.
pub async fn delete_pod(
    context: &Context,
    resource: &Resource,
    owner: &Cached,
    pod: &Cached,
) -> Result<(), ApiError> {
    match context.api.delete(&PODS, pod.key(), Deletion::of(pod)).await {
        Ok(true) => {
            context.normal(resource, owner, "SuccessfulDelete", format!("Deleted pod: {}", pod.name()));
            Ok(())
        }
        Ok(false) => Ok(()),
        // A pod of the same name with another uid: ours is gone.
        Err(error) if error.is_conflict() => Ok(()),
        Err(error) => {
            context.warning(resource, owner, "FailedDelete", format!("Error deleting: {error}"));
            Err(error)
        }
    }
}

/// Fields whose empty object means the same as their absence: Go's maps and its structs that are no
/// pointers. Elsewhere `{}` says something (`emptyDir`, `namespaceSelector`).
const EMPTY_IS_ABSENT: [&str; 7] =
    ["metadata", "labels", "annotations", "nodeSelector", "resources", "limits", "requests"];

/// Whether a field is as good as absent.
fn is_absent(name: &str, value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => {
            EMPTY_IS_ABSENT.contains(&name) && fields.iter().all(|(k, v)| is_absent(k, v))
        }
        _ => false,
    }
}

/// Equal but for the difference between absent and empty.
pub fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            a.iter().all(|(k, v)| {
                b.get(k)
                    .map_or_else(|| is_absent(k, v), |w| same(v, w) || (is_absent(k, v) && is_absent(k, w)))
            }) && b.iter().all(|(k, w)| a.contains_key(k) || is_absent(k, w))
        }
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(v, w)| same(v, w)),
        _ => a == b,
    }
}

/// Whether two templates are the same but for the `pod-template-hash` label.
pub fn same_but_hash(a: &Value, b: &Value) -> bool {
    let strip = |t: &Value| {
        let mut t = t.clone();
        if let Some(labels) = t.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
            labels.remove(POD_TEMPLATE_HASH);
        }
        t
    };
    same(&strip(a), &strip(b))
}

/// A short name for a template: FNV-1a over its canonical form and the number of collisions so far,
/// spelled with letters and digits that make no words.
pub fn hash(template: &Value, collisions: Option<i32>) -> String {
    let mut fnv = Fnv::default();
    write_canonical(template, &mut fnv);
    if let Some(count) = collisions {
        fnv.write(&count.to_le_bytes());
    }
    safe_encode(&fnv.0.to_string())
}

/// A short name for texts in their order.
pub fn hash_of(texts: &[&str]) -> String {
    let mut fnv = Fnv::default();
    texts.iter().for_each(|text| fnv.write(text.as_bytes()));
    safe_encode(&fnv.0.to_string())
}

/// Spells a number so that it cannot form a word.
pub fn safe_encode(text: &str) -> String {
    const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    text.bytes().map(|b| char::from(ALPHABET[usize::from(b) % ALPHABET.len()])).collect()
}

struct Fnv(u32);

impl Default for Fnv {
    fn default() -> Self {
        Self(0x811c_9dc5)
    }
}

impl Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u32::from(byte)).wrapping_mul(0x0100_0193);
        }
    }
}

/// Writes a value with sorted keys and without what is empty, so that spellings do not matter.
fn write_canonical(value: &Value, fnv: &mut Fnv) {
    match value {
        Value::Object(fields) => {
            let mut sorted: Vec<_> = fields.iter().filter(|(k, v)| !is_absent(k, v)).collect();
            sorted.sort_by_key(|(k, _)| *k);
            fnv.write(b"{");
            for (key, value) in sorted {
                fnv.write(key.as_bytes());
                fnv.write(b":");
                write_canonical(value, fnv);
                fnv.write(b",");
            }
            fnv.write(b"}");
        }
        Value::Array(items) => {
            fnv.write(b"[");
            for item in items {
                write_canonical(item, fnv);
                fnv.write(b",");
            }
            fnv.write(b"]");
        }
        scalar => fnv.write(scalar.to_string().as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sameness_ignores_hash_and_emptiness() {
        let a = json!({"metadata": {"labels": {"app": "w", POD_TEMPLATE_HASH: "x"}, "creationTimestamp": null}, "spec": {"volumes": []}});
        let b = json!({"metadata": {"labels": {"app": "w"}}, "spec": {"nodeSelector": {}}});
        assert!(same_but_hash(&a, &b));
        assert!(!same_but_hash(&a, &json!({"metadata": {"labels": {"app": "v"}}})));
        assert!(!same(&json!({"namespaceSelector": {}}), &json!({})), "an empty selector selects everything");
        assert!(same_but_hash(
            &json!({"metadata": {"labels": {POD_TEMPLATE_HASH: "x"}}}),
            &json!({"metadata": {}})
        ));
    }

    #[test]
    fn hash_depends_on_content_and_collisions_only() {
        let a = json!({"spec": {"a": 1, "b": [1, {"c": null}]}, "metadata": {"creationTimestamp": null}});
        let b = json!({"spec": {"b": [1, {}], "a": 1}, "metadata": {}});
        assert_eq!(hash(&a, None), hash(&b, None));
        assert_ne!(hash(&a, None), hash(&a, Some(1)));
        assert!(hash(&a, None).bytes().all(|c| b"bcdfghjklmnpqrstvwxz2456789".contains(&c)));
    }
}
