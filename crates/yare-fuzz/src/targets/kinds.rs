//! Strategies of the built-in kinds: whatever decodes is defaulted, validated, converted and printed.

use serde_json::Value;
use yare_kinds::{
    convert,
    strategy::Context,
    table::{RESOURCES, Resource},
};
use yare_schema::{
    builtin::builtin,
    decode::{self, Mode},
    encode, features, fixtures,
};

use crate::input::parts;

const CONTEXT: Context<'_> =
    Context { now: "2026-01-01T00:00:00Z", namespace: "ns", user: "u", gates: &features::DEFAULT };

/// Input: which resource, then what an object is and what it was, with a zero byte between.
pub fn kinds(bytes: &[u8]) {
    let Some((first, bytes)) = bytes.split_first() else { return };
    let resource = &RESOURCES[usize::from(*first) % RESOURCES.len()];
    let Some(ty) = builtin().lookup(resource.group, resource.storage_version(), resource.kind) else {
        return;
    };
    let [new, old] = parts(bytes).map(|part| Some(decode::decode(ty, part, Mode::Ignore).ok()?.value));
    let Some(new) = new else { return };
    let new = exercise(resource, new, None);
    if let Some(old) = old {
        let old = exercise(resource, old, None);
        exercise(resource, new, Some(&old));
    }
}

fn exercise(resource: &Resource, mut object: Value, old: Option<&Value>) -> Value {
    let strategy = resource.strategy;
    strategy.default(&mut object);
    let once = object.clone();
    strategy.default(&mut object);
    assert_eq!(object, once, "{}: defaults are not set once and for all", resource.plural);
    assert_eq!((resource.row)(&object, 0).len(), resource.columns.len(), "{}: cells", resource.plural);
    for selectable in resource.selectable {
        (selectable.read)(&object);
    }
    for version in resource.versions {
        let mut converted = object.clone();
        convert::from_storage(resource, &mut converted, version.name);
        convert::to_storage(resource, &mut converted);
    }
    match old {
        None => {
            strategy.prepare_for_create(&mut object, &CONTEXT);
            told(&resource.validate_create(&object, &CONTEXT));
        }
        Some(old) => {
            for subresource in resource.subresources {
                let mut updated = object.clone();
                strategy.prepare_for_subresource_update(subresource.name, &mut updated, old, &CONTEXT);
                told(&resource.validate_subresource_update(subresource.name, &updated, old, &CONTEXT));
            }
            strategy.prepare_for_update(&mut object, old, &CONTEXT);
            told(&resource.validate_update(&object, old, &CONTEXT));
        }
    }
    strategy.warnings(&object, old);
    strategy.graceful_deletion_s(&object);
    object
}

fn told(errors: &[yare_schema::field::FieldError]) {
    for error in errors {
        assert!(!error.to_string().is_empty());
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for (at, resource) in RESOURCES.iter().enumerate() {
        let ty = builtin().lookup(resource.group, resource.storage_version(), resource.kind);
        let (Ok(at), Some(ty)) = (u8::try_from(at), ty) else { continue };
        let object = |seed| encode::json(ty, &fixtures::sparse(ty, seed));
        seeds.push([&[at], &*encode::json(ty, &fixtures::full(ty)), &[0], &*object(1)].concat());
        seeds.push([&[at], &*object(2), &[0], &*object(3)].concat());
    }
    seeds
}
