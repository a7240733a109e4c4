//! Built-in types as expressions see them, for type checking.

use std::sync::Arc;

use yare_cel::{Decl, DeclKind, Field, ListKind};
use yare_schema::model::{self, Scalar, Shape, TypeRef};

/// The declaration of a built-in type. `name`: what the type is called in messages, with the fields that lead to
/// the objects below it.
pub fn of_builtin(ty: TypeRef<'_>, name: &str) -> Decl {
    at(ty, &mut Vec::new()).unwrap_or_else(Decl::any).named(name)
}

/// The declaration of a custom resource's schema, with the metadata that all objects have; `None` where it exposes
/// nothing.
pub fn of_schema(schema: &serde_json::Value, name: &str) -> Option<Decl> {
    let mut decl = yare_cel::schema::decl(schema, true)?;
    if let DeclKind::Object(object) = &mut decl.kind {
        let metadata = at(yare_schema::builtin::builtin().object_meta(), &mut Vec::new())?;
        let fields = &mut Arc::make_mut(object).fields;
        fields.insert("metadata".into(), Field { decl: metadata, required: false });
    }
    Some(decl.named(name))
}

/// `None` where the type says nothing. `path`: the types above, of which some contain themselves.
fn at(ty: TypeRef<'_>, path: &mut Vec<model::TypeId>) -> Option<Decl> {
    match ty.shape() {
        // Upstream declares these as objects without fields.
        Shape::Any if ["RawExtension", "FieldsV1"].iter().any(|n| ty.ty().name.ends_with(n)) => {
            Some(Decl::object("object", []))
        }
        Shape::Any => None,
        Shape::Scalar(scalar) => Some(match scalar {
            Scalar::Bool => Decl::bool(),
            Scalar::Int32 | Scalar::Int64 => Decl::int(),
            Scalar::Float64 => Decl::double(),
            Scalar::String | Scalar::Quantity | Scalar::Duration => Decl::string(),
            Scalar::Bytes => Decl::bytes(),
            Scalar::Time | Scalar::MicroTime => Decl::date_time(),
            Scalar::IntOrString => Decl::int_or_string(),
        }),
        Shape::List(list) => {
            let kind = match &list.kind {
                model::ListKind::Atomic => ListKind::Atomic,
                model::ListKind::Set => ListKind::Set,
                model::ListKind::Map(keys) => ListKind::Map(keys.iter().cloned().collect()),
            };
            Some(Decl::list(at(ty.to(&list.item), path)?).list_kind(kind))
        }
        Shape::Map(map) => Some(Decl::map(at(ty.to(&map.value), path)?)),
        Shape::Struct(s) => {
            if path.contains(&ty.id) {
                return Some(Decl::object("object", []));
            }
            path.push(ty.id);
            let fields: Vec<(&str, Field)> = s
                .fields
                .iter()
                .filter_map(|field| {
                    let decl = at(ty.to(&field.slot), path)?;
                    Some((&*field.name, Field { decl, required: field.required }))
                })
                .collect();
            path.pop();
            Some(Decl::object("object", fields))
        }
    }
}
