//! What an apply configuration of a mutating admission policy does to an object: it is merged in by type, and
//! nobody owns what it set.

use serde_json::Value;

use super::{
    check::{check, joined},
    merge,
    typed::{Ty, Walk, walk},
};
use crate::model::{Shape, TypeRef};

/// Merges `config` into `live`, both of the type.
///
/// # Errors
/// The configuration has fields that the type does not know, or sets what can only be set as a whole, where it
/// is all too easy to lose what it does not mention.
pub fn overlay(ty: TypeRef<'_>, live: &Value, config: &Value) -> Result<Value, String> {
    let errors = check(Some(ty), config, false);
    if !errors.is_empty() {
        return Err(format!("failed to convert patch object to typed object: {}", joined(&errors)));
    }
    let mut atomics = Vec::new();
    find_atomics(Some(ty), config, &mut String::new(), &mut atomics);
    if !atomics.is_empty() {
        return Err(format!(
            "invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: {}",
            atomics.join(", ")
        ));
    }
    Ok(merge::merge(Some(ty), Some(live), Some(config)).unwrap_or_default())
}

/// Paths of objects and lists that are owned as a whole. What lies under free keys is not looked at, as upstream
/// has it.
fn find_atomics(ty: Ty<'_>, value: &Value, path: &mut String, found: &mut Vec<String>) {
    let length = path.len();
    match value {
        Value::Object(members) => {
            if matches!(walk(ty, value), Walk::Leaf) {
                found.push(path.clone());
            }
            let Some(ty) = ty else { return };
            if let Shape::Struct(s) = ty.shape() {
                for (name, member) in members {
                    if let Some(field) = s.field(name) {
                        path.push('.');
                        path.push_str(name);
                        find_atomics(Some(ty.to(&field.slot)), member, path, found);
                        path.truncate(length);
                    }
                }
            }
        }
        Value::Array(items) => {
            if matches!(walk(ty, value), Walk::Leaf) {
                found.push(path.clone());
            }
            let Some(ty) = ty else { return };
            if let Shape::List(list) = ty.shape() {
                for (i, item) in items.iter().enumerate() {
                    path.push_str(&format!("[{i}]"));
                    find_atomics(Some(ty.to(&list.item)), item, path, found);
                    path.truncate(length);
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn merges_and_refuses() {
        let ty = crate::builtin::builtin().lookup("apps", "v1", "Deployment").unwrap();
        let live = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a", "labels": {"x": "1"}},
            "spec": {"replicas": 1, "template": {"spec": {"containers": [{"name": "c", "image": "i", "args": ["a"]}]}}}});
        for (config, expect) in [
            (
                json!({"metadata": {"labels": {"y": "2"}}, "spec": {"replicas": 3}}),
                Ok(
                    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a", "labels": {"x": "1", "y": "2"}},
                    "spec": {"replicas": 3, "template": {"spec": {"containers": [{"name": "c", "image": "i", "args": ["a"]}]}}}}),
                ),
            ),
            (
                json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "j"}, {"name": "d", "image": "k"}]}}}}),
                Ok(
                    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a", "labels": {"x": "1"}},
                    "spec": {"replicas": 1, "template": {"spec": {"containers": [{"name": "c", "image": "j", "args": ["a"]}, {"name": "d", "image": "k"}]}}}}),
                ),
            ),
            (
                json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "args": ["b"]}]}}}}),
                Err(
                    "invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: .spec.template.spec.containers[0].args",
                ),
            ),
            (
                json!({"spec": {"nothing": 1}}),
                Err(
                    "failed to convert patch object to typed object: .spec.nothing: field not declared in schema",
                ),
            ),
        ] {
            let found = overlay(ty, &live, &config);
            assert_eq!(found, expect.map_err(str::to_owned), "{config}");
        }
    }
}
