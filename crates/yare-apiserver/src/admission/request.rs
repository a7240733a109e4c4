//! A request as those see it who are asked about it: webhooks in an `AdmissionReview`, expressions as `request`,
//! `object` and `oldObject`. And the way back: what they make of the object.

use serde_json::{Map, Value, json};
use yare_kinds::view::{View, ViewMut, same};
use yare_schema::{encode, model::TypeRef};

use super::{Attributes, Operation};
use crate::{
    codec,
    registry::{Served, TypeHandle},
    status::{ApiError, ApiResult},
};

/// Group, version and kind of what is written: of the resource, or of its subresource's own body.
fn kind_of(served: &Served, subresource: &str) -> Value {
    let own = served.sub(subresource).and_then(|s| s.kind.as_ref());
    let (group, version, kind) = match own {
        Some((group, version, kind)) => (group, version, kind),
        None => (&served.group, &served.version, &served.kind),
    };
    json!({ "group": &**group, "version": &**version, "kind": &**kind })
}

/// The type of the object of the request in a version of its resource, if it is of the tables.
pub fn type_in(attributes: &Attributes<'_>, served: &Served) -> Option<TypeRef<'static>> {
    own_type_or(attributes, served, &served.ty)
}

/// The type of the subresource's own body, or the resource's where it has none.
fn own_type_or(attributes: &Attributes<'_>, served: &Served, main: &TypeHandle) -> Option<TypeRef<'static>> {
    match served.sub(attributes.subresource).and_then(|s| s.kind.as_ref()) {
        Some((group, version, kind)) => codec::builtin_type(group, version, kind),
        None => main.of_tables(),
    }
}

/// Adds what Go always writes: a webhook may say of an empty `status` or of a template's `metadata` what comes into it.
pub fn fill(attributes: &Attributes<'_>, object: &mut Value) {
    let served = attributes.served;
    if let Some(ty) = own_type_or(attributes, served, &served.stored.ty) {
        encode::fill(ty, object);
    }
}

/// Whether the object of the request is the resource's own, which has versions.
fn has_versions(attributes: &Attributes<'_>) -> bool {
    attributes.served.sub(attributes.subresource).is_none_or(|s| s.kind.is_none())
}

/// The object in a version of its resource, with what Go writes of it.
pub fn written(attributes: &Attributes<'_>, served: &Served, object: &Value) -> ApiResult<Value> {
    let mut object = in_version(attributes, served, object)?;
    if let Some(ty) = type_in(attributes, served) {
        encode::fill(ty, &mut object);
    }
    Ok(object)
}

/// The object in a version of its resource.
pub fn in_version(attributes: &Attributes<'_>, served: &Served, object: &Value) -> ApiResult<Value> {
    let mut object = object.clone();
    if has_versions(attributes) {
        served.from_storage(&mut object)?;
    }
    Ok(object)
}

/// Metadata that the server alone says: a new object has none of it yet.
const OF_SERVER: [&str; 6] = [
    "metadata.creationTimestamp",
    "metadata.deletionGracePeriodSeconds",
    "metadata.deletionTimestamp",
    "metadata.resourceVersion",
    "metadata.selfLink",
    "metadata.uid",
];
/// Metadata of an object that is there: left out it is as it was, and changed it is judged with the rest.
const KEPT: [&str; 5] = [
    "metadata.creationTimestamp",
    "metadata.deletionGracePeriodSeconds",
    "metadata.deletionTimestamp",
    "metadata.namespace",
    "metadata.uid",
];

/// What becomes of metadata that a webhook or policy changed.
fn settle_metadata(attributes: &Attributes<'_>, object: &Value, changed: &mut Value) -> ApiResult<()> {
    if attributes.operation == Operation::Create {
        for field in OF_SERVER {
            changed.remove(field);
        }
    } else {
        changed.copy_from(object, "metadata.resourceVersion");
    }
    for field in KEPT {
        if !changed.is_set(field) {
            changed.copy_from(object, field);
        }
    }
    if changed.str_at("metadata.namespace") != object.str_at("metadata.namespace") {
        return Err(ApiError::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    Ok(())
}

/// What a webhook or policy made of the object in the version it saw it in, as an object of the storage version;
/// `None` where that changes nothing. `strict`: a field that its type has not is a mistake.
pub fn settle(
    attributes: &Attributes<'_>,
    served: &Served,
    object: &Value,
    patched: Value,
    strict: bool,
) -> ApiResult<Option<Value>> {
    let own = served.sub(attributes.subresource).and_then(|s| s.kind.as_ref());
    let expected = kind_of(served, attributes.subresource);
    let api_version = crate::registry::api_version(expected.str_at("group"), expected.str_at("version"));
    let kind = expected.str_at("kind");
    if (patched.str_at("apiVersion"), patched.str_at("kind")) != (&*api_version, kind) {
        let (found_version, found) = (patched.str_at("apiVersion"), patched.str_at("kind"));
        return Err(ApiError::internal(format!(
            "what was {api_version}, Kind={kind} may not become {found_version}, Kind={found}"
        )));
    }
    let mut changed = match own {
        Some((group, version, kind)) => {
            let ty = codec::builtin_type(group, version, kind)
                .ok_or_else(|| ApiError::internal(format!("no type for {kind}")))?;
            codec::conform(&TypeHandle::Static(ty), patched).map_err(ApiError::internal)?.value
        }
        None => {
            let conformed = codec::conform(&served.ty, patched).map_err(ApiError::internal)?;
            if strict && served.ty.at().schema.typed && !conformed.problems.is_empty() {
                let problems = conformed.problems.join(", ");
                return Err(ApiError::internal(format!("strict decoding error: {problems}")));
            }
            let mut value = conformed.value;
            served.to_storage(&mut value)?;
            attributes.served.stored.strategy.default(&mut value);
            value
        }
    };
    if own.is_none() {
        settle_metadata(attributes, object, &mut changed)?;
    }
    Ok((!same(&changed, object)).then_some(changed))
}

/// Members of an `AdmissionRequest`: few expressions read more than one or two.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Members(u16);

impl Members {
    /// All of them.
    pub const ALL: Self = Self(u16::MAX);
    const NAMES: [&str; 15] = [
        "kind",
        "resource",
        "subResource",
        "requestKind",
        "requestResource",
        "requestSubResource",
        "name",
        "namespace",
        "operation",
        "userInfo",
        "dryRun",
        "options",
        "uid",
        "object",
        "oldObject",
    ];

    /// The one of this name; all, if there is none.
    pub fn named(name: &str) -> Self {
        Self::NAMES.iter().position(|n| *n == name).map_or(Self::ALL, |at| Self(1 << at))
    }

    /// These and those.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `other` are among them.
    pub fn covers(self, other: Self) -> bool {
        other.0 & !self.0 == 0
    }

    /// Whether it is among them.
    pub fn has(self, name: &str) -> bool {
        self.covers(Self::named(name))
    }

    /// Whether there are none.
    pub fn is_none(self) -> bool {
        self.0 == 0
    }
}

/// Members of the `AdmissionRequest`, without UID and objects.
pub fn describe(
    attributes: &Attributes<'_>,
    served: &Served,
    object: Option<&Value>,
    members: Members,
) -> Map<String, Value> {
    let resource_of = |served: &Served| json!({ "group": &*served.group, "version": &*served.version, "resource": &*served.plural });
    let subresource = (!attributes.subresource.is_empty()).then_some(attributes.subresource);
    let collection = attributes.call.info.verb == "deletecollection";
    let name = match attributes.name {
        _ if collection => "",
        "" => object.map_or("", |o| o.str_at("metadata.name")),
        name => name,
    };
    let namespace = if attributes.is("", "namespaces") { name } else { attributes.namespace };
    let text = |text: &str| (!text.is_empty()).then(|| text.into());
    let mut out = Map::new();
    let mut put = |member: &str, value: &dyn Fn() -> Option<Value>| {
        if members.has(member)
            && let Some(value) = value()
        {
            out.insert(member.into(), value);
        }
    };
    put("kind", &|| Some(kind_of(served, attributes.subresource)));
    put("resource", &|| Some(resource_of(served)));
    put("subResource", &|| subresource.map(Value::from));
    put("requestKind", &|| Some(kind_of(attributes.served, attributes.subresource)));
    put("requestResource", &|| Some(resource_of(attributes.served)));
    put("requestSubResource", &|| subresource.map(Value::from));
    put("name", &|| text(name));
    put("namespace", &|| text(namespace));
    put("operation", &|| Some(attributes.operation.name().into()));
    put("userInfo", &|| Some(attributes.call.user.to_json()));
    put("dryRun", &|| Some(attributes.dry_run.into()));
    put("options", &|| Some(options(attributes)));
    out
}

/// The options of the operation, which a patch has too, as what it comes to.
fn options(attributes: &Attributes<'_>) -> Value {
    let kind = match attributes.operation {
        Operation::Create => "CreateOptions",
        Operation::Update => "UpdateOptions",
        Operation::Delete => "DeleteOptions",
        Operation::Connect => return Value::Null,
    };
    let mut out = json!({ "kind": kind, "apiVersion": "meta.k8s.io/v1" });
    if attributes.dry_run {
        out.set("dryRun", vec!["All"]);
    }
    if let Some(deletion) = attributes.deletion {
        if let Some(seconds) = deletion.grace_period_s {
            out.set("gracePeriodSeconds", seconds);
        }
        if let Some(uid) = &deletion.uid {
            out.set("preconditions.uid", uid.as_str());
        }
        if let Some(version) = &deletion.resource_version {
            out.set("preconditions.resourceVersion", version.as_str());
        }
        if let Some(propagation) = deletion.propagation {
            out.set("propagationPolicy", format!("{propagation:?}"));
        }
        return out;
    }
    for field in ["fieldManager", "fieldValidation"] {
        if let Some(value) = attributes.call.query.get(field).filter(|v| !v.is_empty()) {
            out.set(field, value);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::Members;

    #[test]
    fn members_are_counted_by_name() {
        let (kind, name) = (Members::named("kind"), Members::named("name"));
        assert!(kind.and(name).has("name") && !kind.has("name"));
        assert!(kind.and(name).covers(kind) && !kind.covers(kind.and(name)));
        assert!(Members::default().is_none() && kind.covers(Members::default()));
        // What is none may be anything.
        assert_eq!(Members::named("__kind__"), Members::ALL);
    }
}
