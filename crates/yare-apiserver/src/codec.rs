//! Between bytes and JSON values: the one place where the server calls the schema's readers and writers.

use bytes::{Bytes, BytesMut};
use serde_json::Value;
use yare_kinds::view::View;
use yare_schema::{
    builtin::builtin,
    cbor,
    coerce::{self, Misfits},
    decode::{self, DecodeError, Mode, Syntax},
    encode,
    field::{FieldError, Path},
    model::TypeRef,
    proto, prune,
};
use yare_store::Draft;

use crate::{
    core::Call,
    index, negotiate,
    options::FieldValidation,
    registry::{Stored, TypeHandle},
    status::{ApiError, ApiResult, GroupResource, quote},
};

/// The built-in type of a kind.
pub fn builtin_type(group: &str, version: &str, kind: &str) -> Option<TypeRef<'static>> {
    builtin().lookup(group, version, kind)
}

/// What a body should be.
pub struct Expected<'a> {
    /// API group.
    pub group: &'a str,
    /// Version.
    pub version: &'a str,
    /// Kind.
    pub kind: &'a str,
    /// A custom resource, whose `apiVersion` and `kind` must be there.
    pub custom: bool,
}

impl Expected<'_> {
    fn api_version(&self) -> Box<str> {
        crate::registry::api_version(self.group, self.version)
    }
}

/// `Pod in version "v1" cannot be handled as a Pod: …`
pub fn cannot_be_handled(expected: &Expected<'_>, why: &str) -> String {
    format!(
        "{} in version {} cannot be handled as a {}: {why}",
        expected.kind,
        quote(expected.version),
        expected.kind
    )
}

/// Refuses a body of another version or kind. Absent ones are fine for built-in kinds.
pub fn check_identity(value: &Value, expected: &Expected<'_>, body: &[u8]) -> ApiResult<()> {
    let name = || value.str_at("metadata.name").to_owned();
    check_type((value.str_at("apiVersion"), value.str_at("kind")), expected, body, name)
}

/// `name`: of the object, which is asked for where it is refused.
fn check_type(
    (api_version, kind): (&str, &str),
    expected: &Expected<'_>,
    body: &[u8],
    name: impl FnOnce() -> String,
) -> ApiResult<()> {
    let wanted = expected.api_version();
    if expected.custom && kind.is_empty() {
        let why = format!("Object 'Kind' is missing in '{}'", String::from_utf8_lossy(body));
        return Err(unrecognized(expected, &why, body));
    }
    let given = if api_version.is_empty() { &*wanted } else { api_version };
    let of = if kind.is_empty() { expected.kind } else { kind };
    let refused = |why: String| {
        let version = given.rsplit('/').next().unwrap_or_default();
        ApiError::bad_request(format!(
            "{of} in version {} cannot be handled as a {}: {why}",
            quote(version),
            expected.kind,
        ))
    };
    if !expected.custom && (of != expected.kind || *given != *wanted) {
        let (group, version) = given.split_once('/').unwrap_or(("", given));
        if builtin_type(group, version, of).is_none() {
            return Err(refused(not_registered(expected.group, given, of)));
        }
        if of != expected.kind {
            let to = internal(expected.group);
            return Err(refused(format!(
                "converting ({version}.{of}) to ({to}.{}): unknown conversion",
                expected.kind
            )));
        }
    }
    if (!api_version.is_empty() || expected.custom) && *api_version != *wanted {
        return Err(ApiError::bad_request(format!(
            "the API version in the data ({api_version}) does not match the expected API version ({wanted})"
        )));
    }
    if of != expected.kind {
        return Err(another_type((given, of), (&wanted, expected.kind), &name()));
    }
    Ok(())
}

/// What is said to a custom resource that says of itself to be of another type than the one it is sent as.
pub fn another_type(
    (api_version, kind): (&str, &str),
    (wanted_version, wanted_kind): (&str, &str),
    name: &str,
) -> ApiError {
    let mut errors = Vec::new();
    for (field, given, wanted) in [("kind", kind, wanted_kind), ("apiVersion", api_version, wanted_version)] {
        if given != wanted {
            errors.push(FieldError::invalid(&Path::new(field), given, format!("must be {wanted}")));
        }
    }
    let group = api_version.split_once('/').map_or("", |(group, _)| group);
    ApiError::invalid(GroupResource { group, resource: kind }, name, &errors)
}

/// What upstream says of a kind that it does not have, where one of `group` is asked for: three of its servers are one,
/// each with a scheme of its own.
pub fn not_registered(group: &str, api_version: &str, kind: &str) -> String {
    let scheme = match group {
        "apiextensions.k8s.io" => "pkg/apiserver/apiserver.go:55",
        "apiregistration.k8s.io" => "pkg/apiserver/scheme/scheme.go:28",
        _ => "pkg/api/legacyscheme/scheme.go:30",
    };
    format!(
        "no kind {} is registered for version {} in scheme {}",
        quote(kind),
        quote(api_version),
        quote(scheme)
    )
}

/// What upstream calls a group's own types in its errors.
fn internal(group: &str) -> &str {
    match group {
        "" | "events.k8s.io" => "core",
        group => group.split('.').next().unwrap_or_default(),
    }
}

fn mode(validation: FieldValidation) -> Mode {
    match validation {
        FieldValidation::Ignore => Mode::Ignore,
        FieldValidation::Warn => Mode::Warn,
        FieldValidation::Strict => Mode::Strict,
    }
}

/// A request's body as an object of the type. Its `apiVersion` and `kind` are set.
pub fn decode_body(
    call: &Call,
    ty: &TypeHandle,
    expected: &Expected<'_>,
    body: &[u8],
    validation: FieldValidation,
) -> ApiResult<Value> {
    let value = decoded(call, ty, expected, body, validation)?;
    if let Some(record) = &call.audit {
        record.request(&value);
    }
    Ok(value)
}

fn decoded(
    call: &Call,
    ty: &TypeHandle,
    expected: &Expected<'_>,
    body: &[u8],
    validation: FieldValidation,
) -> ApiResult<Value> {
    let format = negotiate::content_type(&call.headers, &call.core.config.gates)?;
    let Some(syntax) = format.syntax else { return decode_protobuf(ty, expected, body) };
    match syntax {
        Syntax::Json => {
            if body.is_empty() {
                let why = "couldn't get version/kind; json parse error: unexpected end of JSON input";
                return Err(unrecognized(expected, why, body));
            }
            let (api_version, kind) = decode::type_meta(body).map_err(|e| {
                unrecognized(expected, &format!("couldn't get version/kind; json parse error: {e}"), body)
            })?;
            let name = || {
                let value: Value = serde_json::from_slice(body).unwrap_or_default();
                value.str_at("metadata.name").to_owned()
            };
            check_type((&api_version, &kind), expected, body, name)?;
        }
        Syntax::Yaml => {
            if body.is_empty() {
                let why = "couldn't get version/kind; json parse error: unexpected end of JSON input";
                return Err(unrecognized(expected, why, body));
            }
            // In JSON, bytes that are no text are replaced; in YAML they are an error.
            if std::str::from_utf8(body).is_err() {
                let why = "yaml: invalid leading UTF-8 octet";
                return Err(unrecognized(expected, why, body));
            }
        }
        Syntax::Cbor => {
            let (api_version, kind) =
                cbor::type_meta(body).map_err(|e| unrecognized(expected, &e.to_string(), body))?;
            check_type((&api_version, &kind), expected, body, String::new)?;
        }
    }
    // Of a custom resource, keys that stand twice are told together with those that its schema does not know.
    let together = expected.custom && syntax == Syntax::Json && validation == FieldValidation::Strict;
    let mode = if together { Mode::Warn } else { mode(validation) };
    let mut decoded = decode::decode_as(ty.at(), body, syntax, mode).map_err(|error| match error {
        DecodeError::Syntax(text) => unrecognized(expected, &text, body),
        other => ApiError::bad_request(cannot_be_handled(expected, &other.to_string())),
    })?;
    if syntax == Syntax::Yaml {
        check_identity(&decoded.value, expected, body)?;
    }
    if expected.custom {
        let unknown = fit_custom(ty, &mut decoded.value)
            .map_err(|why| ApiError::bad_request(cannot_be_handled(expected, &why)))?;
        // Of custom resources in CBOR upstream names no unknown fields.
        let mut unknown = if syntax == Syntax::Cbor { Vec::new() } else { unknown };
        if together {
            unknown.splice(0..0, std::mem::take(&mut decoded.warnings));
        }
        if validation == FieldValidation::Strict && !unknown.is_empty() {
            let why = format!("strict decoding error: {}", unknown.join(", "));
            return Err(ApiError::bad_request(cannot_be_handled(expected, &why)));
        }
        decoded.warnings.extend(unknown);
    }
    if validation == FieldValidation::Warn {
        decoded.warnings.iter().for_each(|w| call.warn(w.clone()));
    }
    identified(decoded.value, expected)
}

/// Prunes a custom resource and brings its metadata into form. Gives what was unknown.
fn fit_custom(ty: &TypeHandle, value: &mut Value) -> Result<Vec<String>, String> {
    let mut unknown = Vec::new();
    if let Some(metadata) = value.get_mut("metadata") {
        let decoded = decode::normalize(builtin().object_meta(), metadata.take(), Mode::Warn)
            .map_err(|e| e.to_string())?;
        *metadata = decoded.value;
        // What is said of `x` is said of `metadata.x`.
        unknown.extend(decoded.warnings.iter().map(|w| w.replacen(" \"", " \"metadata.", 1)));
    }
    unknown.extend(prune::prune(ty.at(), value).iter().map(|path| format!("unknown field {}", quote(path))));
    unknown.extend(coerce::coerce(ty.at(), value, Misfits::Refuse).map_err(|error| error.to_string())?);
    Ok(unknown)
}

fn identified(mut value: Value, expected: &Expected<'_>) -> ApiResult<Value> {
    let Some(map) = value.as_object_mut() else {
        return Err(ApiError::bad_request(cannot_be_handled(expected, "the body is not an object")));
    };
    map.insert("apiVersion".into(), expected.api_version().into_string().into());
    map.insert("kind".into(), expected.kind.into());
    if !map.get("metadata").is_some_and(Value::is_object) {
        map.insert("metadata".into(), Value::Object(serde_json::Map::new()));
    }
    Ok(value)
}

fn unrecognized(expected: &Expected<'_>, why: &str, body: &[u8]) -> ApiError {
    // Upstream shows the first bytes so that a user sees what was sent.
    let start = &body[..body.len().min(30)];
    let mut head = match start.first() {
        None => "<empty>".to_owned(),
        Some(b'{') => String::from_utf8_lossy(start).into_owned(),
        Some(_) => start.iter().map(|b| format!("{b:02x}")).collect(),
    };
    if body.len() > 30 {
        head.push_str(" ...");
    }
    ApiError::bad_request(format!(
        "the object provided is unrecognized (must be of type {}): {why} ({head})",
        expected.kind
    ))
}

fn decode_protobuf(ty: &TypeHandle, expected: &Expected<'_>, body: &[u8]) -> ApiResult<Value> {
    if body.is_empty() {
        return Err(unrecognized(expected, "empty data", body));
    }
    if expected.custom {
        let Ok(envelope) = proto::unwrap(body) else {
            let why =
                "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]";
            return Err(unrecognized(expected, why, body));
        };
        let or = |given: String, otherwise: &str| if given.is_empty() { otherwise.to_owned() } else { given };
        let version = envelope.api_version.rsplit('/').next().unwrap_or_default().to_owned();
        return Err(ApiError::bad_request(format!(
            "{} in version {} cannot be handled as a {}: object *unstructured.Unstructured does not implement the protobuf marshalling interface and cannot be encoded to a protobuf message",
            or(envelope.kind, expected.kind),
            quote(&or(version, expected.version)),
            expected.kind,
        )));
    }
    let (api_version, kind, value) = crate::wire::decode(ty.at(), body)
        .map_err(|e| ApiError::bad_request(cannot_be_handled(expected, &e)))?;
    check_type((&api_version, &kind), expected, body, String::new)?;
    identified(value, expected)
}

/// A body of a built-in kind, unknown fields dropped (`DeleteOptions` and the like).
pub fn decode_loose(call: &Call, group: &str, version: &str, kind: &str, body: &[u8]) -> ApiResult<Value> {
    let Some(ty) = builtin_type(group, version, kind) else {
        return Err(ApiError::internal(format!("no type for {kind}")));
    };
    let format = negotiate::content_type(&call.headers, &call.core.config.gates)?;
    let bad = |e: &dyn std::fmt::Display| ApiError::bad_request(e.to_string());
    match format.syntax {
        Some(syntax) => {
            decode::decode_as(ty, body, syntax, Mode::Ignore).map(|d| d.value).map_err(|e| bad(&e))
        }
        None => crate::wire::decode(ty, body).map(|(_, _, value)| value).map_err(|e| bad(&e)),
    }
}

/// A value that was put together (by a patch, say) brought into its type's form.
pub struct Conformed {
    /// The object.
    pub value: Value,
    /// Unknown and duplicate fields, which are gone from the object.
    pub problems: Vec<String>,
}

/// Brings a value into its type's form. The error is what is of the wrong type.
pub fn conform(ty: &TypeHandle, value: Value) -> Result<Conformed, String> {
    if !ty.at().schema.typed {
        let mut value = value;
        let problems = fit_custom(ty, &mut value)?;
        return Ok(Conformed { value, problems });
    }
    let decoded = decode::normalize(ty.at(), value, Mode::Warn).map_err(|e| e.to_string())?;
    Ok(Conformed { value: decoded.value, problems: decoded.warnings })
}

/// YAML (or JSON) of no known type.
pub fn from_yaml(bytes: &[u8]) -> Result<Value, String> {
    decode::decode_untyped_as(bytes, Syntax::Yaml, Mode::Ignore).map(|d| d.value).map_err(|e| match e {
        DecodeError::Syntax(why) if why.starts_with("yaml: ") => converting(&why),
        other => other.to_string(),
    })
}

/// Where upstream reads YAML into what it likes, and not by the kind that it is of, its errors say so.
fn converting(why: &str) -> String {
    format!("error converting YAML to JSON: {why}")
}

/// CBOR of no known type.
pub fn from_cbor(bytes: &[u8]) -> Result<Value, String> {
    decode::decode_untyped_as(bytes, Syntax::Cbor, Mode::Ignore).map(|d| d.value).map_err(|e| e.to_string())
}

/// What is wrong with YAML beyond its syntax: keys that stand twice.
pub fn strict_yaml(bytes: &[u8]) -> Result<(), String> {
    match decode::decode_untyped_as(bytes, Syntax::Yaml, Mode::Strict) {
        Ok(_) => Ok(()),
        Err(DecodeError::Strict(reports)) => Err(converting(&reports.join("\n"))),
        Err(error) => Err(error.to_string()),
    }
}

/// A value as YAML.
pub fn to_yaml(value: &Value) -> String {
    crate::yaml::emit(value)
}

/// A value as JSON in its type's field order.
pub fn to_json(ty: &TypeHandle, value: &Value) -> Vec<u8> {
    encode::json(ty.at(), value)
}

/// An object of the storage version, ready for the store.
pub fn draft(stored: &Stored, object: &mut Value) -> ApiResult<Draft> {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("resourceVersion".into(), "".into());
    }
    let (json, rv_at) = encode::at_rest_as(stored.ty.at(), object);
    let selectable = stored.builtin.map_or(&[][..], |row| row.selectable);
    Ok(Draft { json, rv_at, attrs: Some(index::attrs(selectable, object)) })
}

/// The type of `PartialObjectMetadata`.
pub fn partial_type(version: &str) -> ApiResult<TypeRef<'static>> {
    builtin_type("meta.k8s.io", version, "PartialObjectMetadata")
        .or_else(|| builtin().definition("io.k8s.apimachinery.pkg.apis.meta.v1.PartialObjectMetadata"))
        .ok_or_else(|| ApiError::internal("no type for PartialObjectMetadata"))
}

/// Where ListMeta and items stand in a list's message. Only the first version of metadata lists has them the other
/// way around.
#[derive(Clone, Copy)]
pub struct ListFields {
    /// Number of the ListMeta.
    pub metadata: u8,
    /// Number of the items.
    pub items: u8,
}

/// The numbers of nearly every list.
pub const LIST: ListFields = ListFields { metadata: 1, items: 2 };
/// The numbers of `PartialObjectMetadataList` in `meta.k8s.io/v1beta1`.
pub const LIST_V1BETA1: ListFields = ListFields { metadata: 2, items: 1 };

/// The ListMeta of a list message.
pub fn list_head(fields: ListFields, metadata: &Value) -> Bytes {
    let mut out = BytesMut::new();
    crate::wire::field(&mut out, fields.metadata, &proto::encode(builtin().list_meta(), metadata));
    out.freeze()
}

/// An item of a list message.
pub fn list_item(fields: ListFields, ty: TypeRef<'_>, value: &Value) -> Bytes {
    let mut out = BytesMut::new();
    crate::wire::field(&mut out, fields.items, &proto::encode(ty, value));
    out.freeze()
}

/// An envelope up to a message of `length` bytes, which follows it.
pub fn envelope_head(api_version: &str, kind: &str, length: usize) -> Bytes {
    let mut identity = BytesMut::new();
    crate::wire::field(&mut identity, 1, api_version.as_bytes());
    crate::wire::field(&mut identity, 2, kind.as_bytes());
    let mut out = BytesMut::from(&proto::MAGIC[..]);
    crate::wire::field(&mut out, 1, &identity);
    crate::wire::length_of(&mut out, 2, length);
    out.freeze()
}

/// What stands behind the message in an envelope: no content encoding and no content type.
pub fn envelope_tail() -> Bytes {
    let mut out = BytesMut::new();
    crate::wire::field(&mut out, 3, b"");
    crate::wire::field(&mut out, 4, b"");
    out.freeze()
}
