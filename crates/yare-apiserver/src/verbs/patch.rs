//! `patch`: JSON patch, merge patch, strategic merge patch and server-side apply.

use std::sync::Arc;

use bytes::Bytes;
use http::header;
use serde_json::Value;
use yare_kinds::view::{View, ViewMut};
use yare_schema::{
    field::{FieldError, Path},
    goprint, patch,
};

use crate::{
    body::Reply,
    codec,
    core::Call,
    managed,
    negotiate::{Asked, Encoding},
    options::{APPLY_CBOR_PATCH, APPLY_PATCH, FieldValidation, WriteOptions, is_apply},
    registry::Served,
    render::Renderer,
    status::{ApiError, ApiResult, GroupResource},
    verbs::{
        create,
        write::{self, Target, Update},
    },
};

const JSON_PATCH: &str = "application/json-patch+json";
const MERGE_PATCH: &str = "application/merge-patch+json";
const STRATEGIC_PATCH: &str = "application/strategic-merge-patch+json";

/// Patches an object, or one of its subresources.
pub async fn patch(call: &Call, served: &Arc<Served>, target: &Target, body: Bytes) -> ApiResult<Reply> {
    let media = media_type(call, served)?;
    let renderer = Renderer::new(call, served, Asked::One)?;
    let options = WriteOptions::parse(&call.query, "PatchOptions", Some(media), call.user_agent())?;
    if let Some(record) = &call.audit {
        read(media, &body).iter().for_each(|patch| record.patch(patch));
    }
    let name = call.info.name.as_str();
    let run = async |make: &write::Make<'_>, apply: bool| {
        let update =
            Update { call, served, name, target, options: &options, make, apply, retry: true, view: None };
        write::update(&update).await
    };
    if is_apply(media) {
        let config = applied(call, served, media, &body)?;
        let make = |current: &Value| {
            let new = apply(call, served, target, Some(current), &config, &options)?;
            check_duplicates(call, media, &body, &options)?;
            Ok(new)
        };
        let written = match run(&make, true).await {
            Err(error) if error.reason == "NotFound" && target.subresource.is_empty() => {
                if config.is_set("metadata.uid") {
                    return Err(ApiError::conflict(
                        served.group_resource(),
                        name,
                        format!(
                            "uid mismatch: the provided object specified uid {}, and no existing object was found",
                            config.str_at("metadata.uid")
                        ),
                    ));
                }
                let new = apply(call, served, target, None, &config, &options)?;
                check_duplicates(call, media, &body, &options)?;
                create::object_of(call, served, new, &options, true).await?
            }
            done => done?,
        };
        return write::answer(&renderer, &written);
    }
    let document: Value = serde_json::from_slice(&body)
        .map_err(|e| ApiError::bad_request(format!("error decoding patch: {e}")))?;
    let make = |current: &Value| {
        let patch = || patched(served, media, current.clone(), &document);
        let shown = || match media {
            STRATEGIC_PATCH => goprint::value(&document),
            _ => patch().map_or_else(|e| e.to_string(), |patched| patched.to_string()),
        };
        checked(call, served, patch()?, &options, shown)
    };
    let written = run(&make, false).await?;
    write::answer(&renderer, &written)
}

/// What kind of patch the request is, of those that the resource takes.
pub fn media_type<'a>(call: &'a Call, served: &Served) -> ApiResult<&'a str> {
    let given = call.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let media = given.split_once(';').map_or(given, |(media, _)| media);
    let mut accepted = vec![JSON_PATCH, MERGE_PATCH];
    if served.stored.custom.is_none() {
        accepted.push(STRATEGIC_PATCH);
    }
    accepted.push(APPLY_PATCH);
    if Encoding::Cbor.format().is_on(Some(&call.core.config.gates)) {
        accepted.push(APPLY_CBOR_PATCH);
    }
    if accepted.contains(&media) { Ok(media) } else { Err(ApiError::unsupported_media_type(&accepted)) }
}

/// A patch as a document.
pub fn read(media: &str, body: &[u8]) -> Result<Value, String> {
    match media {
        APPLY_CBOR_PATCH => codec::from_cbor(body),
        // Every JSON document is one in YAML.
        _ => codec::from_yaml(body),
    }
}

fn patched(served: &Served, media: &str, current: Value, document: &Value) -> ApiResult<Value> {
    let bad = |e: &dyn std::fmt::Display| ApiError::bad_request(e.to_string());
    match media {
        JSON_PATCH => {
            if !document.is_array() {
                return Err(ApiError::bad_request(
                    "json: cannot unmarshal object into Go value of type jsonpatch.Patch",
                ));
            }
            patch::json::apply(current, document).map_err(|e| {
                ApiError::new(
                    422,
                    "Invalid",
                    format!("the server rejected our request due to an error in our request: {e}"),
                )
            })
        }
        MERGE_PATCH => patch::merge::apply(current, document.clone()).map_err(|e| bad(&e)),
        _ => patch::strategic::apply(served.ty.at(), current, document.clone()).map_err(|e| bad(&e)),
    }
}

/// A patched object must still have its type's shape. Upstream's errors name no object; they show what does not
/// fit: the strategic patch as Go prints it, or else the patched object, which is made once more for them.
fn checked(
    call: &Call,
    served: &Served,
    patched: Value,
    options: &WriteOptions,
    shown: impl Fn() -> String,
) -> ApiResult<Value> {
    let invalid = |why: String| {
        let nobody = GroupResource { group: "", resource: "" };
        ApiError::invalid(nobody, "", &[FieldError::invalid(&Path::new("patch"), shown(), why)])
    };
    if !patched.is_object() {
        return Err(invalid("the patched document is not an object".to_owned()));
    }
    for (field, have) in [("apiVersion", &*served.api_version), ("kind", &*served.kind)] {
        let given = patched.str_at(field);
        if given != have {
            return Err(ApiError::bad_request(format!(
                "the {field} of the patched object ({given}) does not match the expected one ({have})"
            )));
        }
    }
    let decoded = codec::conform(&served.ty, patched).map_err(invalid)?;
    if !decoded.problems.is_empty() {
        match options.field_validation {
            FieldValidation::Strict => {
                let why = format!("strict decoding error: {}", decoded.problems.join(", "));
                return Err(invalid(why));
            }
            FieldValidation::Warn => decoded.problems.iter().for_each(|p| call.warn(p.clone())),
            FieldValidation::Ignore => {}
        }
    }
    Ok(decoded.value)
}

/// The configuration of a server-side apply, as it was sent: its fields decide who owns what.
fn applied(call: &Call, served: &Served, media: &str, body: &[u8]) -> ApiResult<Value> {
    let mut value =
        read(media, body).map_err(|e| ApiError::bad_request(format!("error decoding YAML: {e}")))?;
    let expected = codec::Expected {
        group: &served.group,
        version: &served.version,
        kind: &served.kind,
        custom: served.stored.custom.is_some(),
    };
    if !value.is_object() {
        return Err(ApiError::bad_request("the applied configuration is not an object"));
    }
    if value.str_at("kind").is_empty() {
        return Err(ApiError::bad_request(format!(
            "error unmarshaling applied configuration: Object 'Kind' is missing in '{value}'"
        )));
    }
    codec::check_identity(&value, &expected)?;
    if value.is_set("metadata.managedFields") {
        return Err(ApiError::bad_request("metadata.managedFields must be nil"));
    }
    if value.str_at("metadata.name").is_empty() {
        value.set("metadata.name", call.info.name.as_str());
    }
    write::settle_namespace(served, &mut value, &call.info.namespace)?;
    Ok(value)
}

/// Keys that stand twice in the configuration. Asked after applying, whose own errors come first.
fn check_duplicates(call: &Call, media: &str, body: &[u8], options: &WriteOptions) -> ApiResult<()> {
    // CBOR with keys that stand twice is none: reading it failed.
    if options.field_validation == FieldValidation::Ignore || media == APPLY_CBOR_PATCH {
        return Ok(());
    }
    let Err(why) = codec::strict_yaml(body) else { return Ok(()) };
    if options.field_validation == FieldValidation::Strict {
        return Err(ApiError::bad_request(format!("error strict decoding YAML: {why}")));
    }
    call.warn(why);
    Ok(())
}

fn apply(
    call: &Call,
    served: &Served,
    target: &Target,
    current: Option<&Value>,
    config: &Value,
    options: &WriteOptions,
) -> ApiResult<Value> {
    let now = call.core.now_rfc3339();
    let new = managed::apply(call, served, current, config, options, target.subresource, &now)?;
    // Quantities, times and the like take their one form, as in every other write.
    let mut new = codec::conform(&served.ty, new).map_err(ApiError::bad_request)?.value;
    // A revision in the configuration is a condition on the object.
    if config.is_set("metadata.resourceVersion") {
        new.copy_from(config, "metadata.resourceVersion");
    }
    if config.is_set("metadata.uid") {
        new.copy_from(config, "metadata.uid");
    }
    Ok(new)
}
