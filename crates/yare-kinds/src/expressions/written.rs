//! Built-in types as expressions see them: with the fields that Go writes although nobody set them.

use std::{
    collections::HashMap,
    sync::{LazyLock, OnceLock},
};

use serde_json::Value;
use yare_cel::{Decl, Written};
use yare_schema::{
    builtin::builtin,
    encode,
    model::{Shape, TypeId, TypeRef},
};

static DYNAMIC: Decl = Decl::DYNAMIC;

/// How to read objects of a built-in type.
pub fn of(ty: TypeRef<'static>) -> &'static Decl {
    /// One for each type of the tables; nearly all stay empty.
    static SEEN: LazyLock<Box<[Seen]>> = LazyLock::new(|| {
        let all = 0..u32::try_from(builtin().schema().types.len()).unwrap_or(u32::MAX);
        all.map(|id| Seen {
            ty: builtin().at(TypeId(id)),
            parts: OnceLock::new(),
            unset: OnceLock::new(),
            decl: OnceLock::new(),
        })
        .collect()
    });
    let of_the_tables = std::ptr::eq(ty.schema, builtin().schema());
    match SEEN.get(ty.id.0 as usize).filter(|_| of_the_tables && has_fields(ty)) {
        Some(seen) => seen.decl.get_or_init(|| Decl::written(seen)),
        None => &DYNAMIC,
    }
}

/// Whether there are fields somewhere in such a value.
fn has_fields(ty: TypeRef<'static>) -> bool {
    match ty.shape() {
        Shape::Struct(_) => true,
        Shape::List(list) => has_fields(ty.to(&list.item)),
        Shape::Map(map) => has_fields(ty.to(&map.value)),
        Shape::Scalar(_) | Shape::Any => false,
    }
}

/// A type with fields.
struct Seen {
    ty: TypeRef<'static>,
    decl: OnceLock<Decl>,
    /// The fields that have fields themselves.
    parts: OnceLock<HashMap<&'static str, &'static Decl>>,
    unset: OnceLock<Vec<(Box<str>, Value)>>,
}

impl Written for Seen {
    fn within(&'static self, name: &str) -> &'static Decl {
        match self.ty.shape() {
            Shape::Struct(s) => {
                let parts = self.parts.get_or_init(|| {
                    let types = s.fields.iter().map(|field| (&*field.name, self.ty.to(&field.slot)));
                    types.filter(|(_, ty)| has_fields(*ty)).map(|(name, ty)| (name, of(ty))).collect()
                });
                parts.get(name).copied().unwrap_or(&DYNAMIC)
            }
            Shape::List(list) => of(self.ty.to(&list.item)),
            Shape::Map(map) => of(self.ty.to(&map.value)),
            Shape::Scalar(_) | Shape::Any => &DYNAMIC,
        }
    }

    fn unset(&'static self) -> &'static [(Box<str>, Value)] {
        self.unset.get_or_init(|| {
            let Shape::Struct(s) = self.ty.shape() else { return Vec::new() };
            let mut fields: Vec<(Box<str>, Value)> = s
                .fields
                .iter()
                .filter_map(|field| Some((field.name.clone(), encode::unset(self.ty, field)?)))
                .collect();
            fields.sort_by(|(a, _), (b, _)| a.cmp(b));
            fields
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use yare_cel::{Budget, Env, Vars};

    use super::*;

    /// Every kind of the tables, as an expression sees an empty object, is what is written of one.
    #[test]
    fn what_is_seen_is_what_is_written() {
        let env = Env::kubernetes("1.36".parse().unwrap()).extend().declare("object", &DYNAMIC).build();
        let program = env.compile("object").unwrap().program().unwrap();
        let seen = |ty: TypeRef<'static>, value: &Value| {
            let mut vars = Vars::new();
            vars.bind_json("object", value, of(ty));
            program.eval(&vars, &mut Budget::unlimited()).unwrap().to_json().unwrap()
        };
        for kind in builtin().kinds() {
            let ty = builtin().at(kind.ty);
            let mut filled = json!({});
            encode::fill(ty, &mut filled);
            assert_eq!(seen(ty, &json!({})), filled, "{}", kind.kind);
        }
        let pod = builtin().lookup("", "v1", "Pod").unwrap();
        let value = json!({
            "spec": {"containers": [{"name": "a", "resources": {"limits": {"cpu": "1"}}}, {}], "volumes": [{"name": "v", "emptyDir": {}}]},
            "status": {"containerStatuses": [{"name": "a"}]},
        });
        let mut filled = value.clone();
        encode::fill(pod, &mut filled);
        assert_eq!(seen(pod, &value), filled);
    }
}
