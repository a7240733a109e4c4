//! Structural defaulting: what an object leaves out and its schema has a default for.

use serde_json::Value;

use crate::model::{Shape, Slot, TypeRef};

/// Sets the defaults of `ty` in `value`, all the way down, and drops `null` where the type neither allows it
/// nor has a default for it.
pub fn apply(ty: TypeRef<'_>, value: &mut Value) {
    match (ty.shape(), value) {
        (Shape::Struct(s), Value::Object(map)) => {
            map.retain(|name, member| {
                !member.is_null() || s.field(name).is_none_or(|f| f.slot.nullable || f.slot.default.is_some())
            });
            for field in s.fields.iter().filter(|f| f.slot.default.is_some()) {
                match map.get_mut(&*field.name) {
                    Some(member) => replace_null(&field.slot, member),
                    None => {
                        if let Some(default) = &field.slot.default {
                            map.insert(field.name.to_string(), Value::clone(default));
                        }
                    }
                }
            }
            for (name, member) in map.iter_mut() {
                if let Some(field) = s.field(name) {
                    apply(ty.to(&field.slot), member);
                }
                if let Some(metadata) = s.metadata.filter(|_| name == "metadata") {
                    apply(ty.to(&Slot::new(metadata)), member);
                }
            }
        }
        (Shape::Map(m), Value::Object(map)) => {
            map.retain(|_, v| {
                !v.is_null()
                    || m.value.nullable
                    || m.value.default.is_some()
                    || ty.to(&m.value).is_unspecified()
            });
            for member in map.values_mut() {
                replace_null(&m.value, member);
                apply(ty.to(&m.value), member);
            }
        }
        (Shape::List(l), Value::Array(items)) => {
            for item in items {
                replace_null(&l.item, item);
                apply(ty.to(&l.item), item);
            }
        }
        _ => {}
    }
}

fn replace_null(slot: &Slot, value: &mut Value) {
    if value.is_null()
        && !slot.nullable
        && let Some(default) = &slot.default
    {
        *value = Value::clone(default);
    }
}
