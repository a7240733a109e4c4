//! Objects within objects (`x-kubernetes-embedded-resource`) are read as objects are: `apiVersion` and `kind` are
//! strings, and `metadata` goes through the type that all metadata has, whatever the schema says of it.
//!
//! In: a value of a definition's type. Out: the same with its embedded metadata in form, or what does not fit.
//! Writers are told; of what rests in the store since before the schema said so, what does not fit is dropped.

use serde_json::{Map, Value};

use crate::{
    builtin::builtin,
    decode::{self, Decoded, Mode},
    field::{FieldError, Path},
    model::{Shape, TypeRef},
};

/// What becomes of what does not fit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Misfits {
    /// The first is the error.
    Refuse,
    /// They are taken out.
    Drop,
}

/// Most unknown fields that are named; all of them are taken out.
const MAX_NAMED: usize = 100;

/// Brings the objects within `value` into form. The outermost object is the reader's own to judge. Returns what is
/// unknown in their metadata: `unknown field "spec.template.metadata.colour"`.
pub fn coerce(ty: TypeRef<'_>, value: &mut Value, misfits: Misfits) -> Result<Vec<String>, FieldError> {
    let mut run = Run { misfits, unknown: Vec::new() };
    if ty.schema.embeds {
        run.visit(ty, value, true, &Path::ROOT)?;
    }
    Ok(run.unknown)
}

/// [`coerce`] of a value that stands at `path` in something else, and may itself be an object.
pub(crate) fn coerce_value(
    ty: TypeRef<'_>,
    value: &mut Value,
    path: &Path<'_>,
    misfits: Misfits,
) -> Result<Vec<String>, FieldError> {
    let mut run = Run { misfits, unknown: Vec::new() };
    run.visit(ty, value, false, path)?;
    Ok(run.unknown)
}

/// Brings into form what every object has.
pub(crate) fn object(map: &mut Map<String, Value>) -> Result<(), FieldError> {
    Run { misfits: Misfits::Refuse, unknown: Vec::new() }.object(map, &Path::ROOT)
}

struct Run {
    misfits: Misfits,
    unknown: Vec<String>,
}

impl Run {
    fn visit(
        &mut self,
        ty: TypeRef<'_>,
        value: &mut Value,
        outermost: bool,
        path: &Path<'_>,
    ) -> Result<(), FieldError> {
        match (ty.shape(), value) {
            (Shape::Struct(s), Value::Object(map)) => {
                if s.embedded && !outermost {
                    self.object(map, path)?;
                }
                for (name, member) in map {
                    // Metadata has nothing below it that is an object of its own.
                    if let Some(field) = s.field(name).filter(|_| !s.embedded || name != "metadata") {
                        self.visit(ty.to(&field.slot), member, false, &path.child(name))?;
                    }
                }
            }
            (Shape::Map(m), Value::Object(map)) => {
                for (name, member) in map {
                    self.visit(ty.to(&m.value), member, false, &path.key(name))?;
                }
            }
            (Shape::List(l), Value::Array(items)) => {
                for (i, item) in items.iter_mut().enumerate() {
                    self.visit(ty.to(&l.item), item, false, &path.index(i))?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn object(&mut self, map: &mut Map<String, Value>, path: &Path<'_>) -> Result<(), FieldError> {
        for name in ["apiVersion", "kind"] {
            match map.get(name) {
                None | Some(Value::String(_)) => {}
                Some(_) if self.misfits == Misfits::Drop => {
                    map.remove(name);
                }
                Some(other) => {
                    return Err(FieldError::invalid(&path.child(name), other.clone(), "must be a string"));
                }
            }
        }
        let Some(metadata) = map.get_mut("metadata") else { return Ok(()) };
        let path = path.child("metadata");
        match read(metadata) {
            Ok(fit) => {
                *metadata = fit.value;
                let room = MAX_NAMED.saturating_sub(self.unknown.len());
                // What is said of `x` is said of `spec.template.metadata.x`.
                let within = format!(" \"{path}.");
                self.unknown.extend(fit.warnings.iter().take(room).map(|w| w.replacen(" \"", &within, 1)));
            }
            Err(why) if self.misfits == Misfits::Refuse => {
                return Err(FieldError::invalid(&path, metadata.clone(), why));
            }
            Err(_) => drop_misfits(metadata),
        }
        Ok(())
    }
}

/// Metadata in its form, or why it is none.
pub(crate) fn read(metadata: &Value) -> Result<Decoded, String> {
    decode::normalize(builtin().object_meta(), metadata.clone(), Mode::Warn)
        .map_err(|error| error.to_string())
}

/// Field by field, what fits stays. What is no object at all is left as it is.
fn drop_misfits(metadata: &mut Value) {
    if let Value::Object(fields) = metadata {
        let fitting = std::mem::take(fields).into_iter().filter_map(|(name, value)| {
            let alone = Value::Object(Map::from_iter([(name, value)]));
            match read(&alone).map(|fit| fit.value) {
                Ok(Value::Object(fit)) => Some(fit),
                _ => None,
            }
        });
        *fields = fitting.flatten().collect();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::crd;

    fn check(misfits: Misfits, object: Value) -> Result<Value, String> {
        let template = json!({"type": "object", "x-kubernetes-embedded-resource": true,
            "x-kubernetes-preserve-unknown-fields": true});
        let compiled =
            crd::load(&json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
                "one": template,
                "list": {"type": "array", "items": template},
                "map": {"type": "object", "additionalProperties": template},
            }}}}));
        let mut object = json!({ "spec": object });
        coerce(compiled.ty(), &mut object, misfits).map_err(|e| e.to_string())?;
        Ok(object["spec"].take())
    }

    #[test]
    fn metadata_takes_its_form() {
        let given = json!({"kind": "K", "metadata": {"name": "a", "labels": {}, "creationTimestamp": null, "generation": 0,
            "deletionTimestamp": "2020-01-01T00:00:00.000Z", "odd": 1}, "odd": {"metadata": 5}});
        let want = json!({"kind": "K", "metadata": {"name": "a", "deletionTimestamp": "2020-01-01T00:00:00Z"},
            "odd": {"metadata": 5}});
        for misfits in [Misfits::Refuse, Misfits::Drop] {
            assert_eq!(check(misfits, json!({"one": given})), Ok(json!({"one": want})));
            assert_eq!(check(misfits, json!({"list": [given]})), Ok(json!({"list": [want]})));
            assert_eq!(check(misfits, json!({"map": {"k": given}})), Ok(json!({"map": {"k": want}})));
            assert_eq!(
                check(misfits, json!({"one": {"metadata": null}})),
                Ok(json!({"one": {"metadata": {}}}))
            );
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_or_dropped() {
        let owner = |uid: Value| json!([{"apiVersion": "v1", "kind": "K", "name": "n", "uid": uid}]);
        for (place, object, error, dropped) in [
            (
                "one",
                json!({"metadata": {"name": "n", "ownerReferences": owner(json!(true))}}),
                "spec.one.metadata: Invalid value: {\"name\":\"n\",\"ownerReferences\":[{\"apiVersion\":\"v1\",\"kind\":\"K\",\"name\":\"n\",\"uid\":true}]}: json: cannot unmarshal bool into Go struct field OwnerReference.ownerReferences.uid of type types.UID",
                json!({"metadata": {"name": "n"}}),
            ),
            (
                "list",
                json!([{"metadata": {"labels": {"a": 1}, "name": "n"}}]),
                "spec.list[0].metadata: Invalid value: {\"labels\":{\"a\":1},\"name\":\"n\"}: json: cannot unmarshal number into Go struct field ObjectMeta.labels of type string",
                json!([{"metadata": {"name": "n"}}]),
            ),
            (
                "map",
                json!({"k": {"metadata": "x"}}),
                "spec.map[k].metadata: Invalid value: \"x\": json: cannot unmarshal string into Go value of type v1.ObjectMeta",
                json!({"k": {"metadata": "x"}}),
            ),
            (
                "one",
                json!({"metadata": {"creationTimestamp": "soon"}}),
                "spec.one.metadata: Invalid value: {\"creationTimestamp\":\"soon\"}: parsing time \"soon\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"soon\" as \"2006\"",
                json!({"metadata": {}}),
            ),
            ("one", json!({"kind": 5}), "spec.one.kind: Invalid value: 5: must be a string", json!({})),
        ] {
            assert_eq!(check(Misfits::Refuse, json!({ place: object })), Err(error.to_owned()));
            assert_eq!(check(Misfits::Drop, json!({ place: object })), Ok(json!({ place: dropped })));
        }
    }
}
