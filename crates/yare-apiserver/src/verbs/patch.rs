//! `patch`: JSON patch, merge patch, strategic merge patch and server-side apply.

use std::sync::Arc;

use bytes::Bytes;
use http::header;
use serde_json::Value;
use yare_kinds::view::{View, ViewMut};
use yare_schema::{
    decode::{self, Mode, Syntax},
    field::{FieldError, Path},
    goprint,
    patch::{
        self,
        json::JsonPatchError,
        strategic::StrategicPatchError::{self, BadDocument, ListOfLists},
    },
};

use crate::{
    body::Reply,
    codec,
    core::Call,
    managed,
    negotiate::{Asked, Encoding},
    options::{APPLY_CBOR_PATCH, APPLY_PATCH, FieldValidation, WriteOptions, is_apply},
    registry::{Served, TypeHandle},
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

/// How often an object that is not there when it is applied, but is when it is created, is applied again.
const MAX_ATTEMPTS: usize = 5;

/// What is patched: an object of a resource, or its scale.
pub struct Subject<'a> {
    /// Its type.
    pub ty: &'a TypeHandle,
    /// `apps/v1`
    pub api_version: &'a str,
    /// `Deployment`
    pub kind: &'a str,
    /// A type without merge keys, which no strategic patch can be made for.
    pub custom: bool,
}

/// The kind of patch that a request has, if its subject takes it.
pub fn media_type(call: &Call, custom: bool) -> ApiResult<&'static str> {
    let given = call.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let media = given.split_once(';').map_or(given, |(media, _)| media);
    let mut accepted = vec![JSON_PATCH, MERGE_PATCH];
    if !custom {
        accepted.push(STRATEGIC_PATCH);
    }
    accepted.push(APPLY_PATCH);
    if Encoding::Cbor.format().is_on(Some(&call.core.config.gates)) {
        accepted.push(APPLY_CBOR_PATCH);
    }
    let found = accepted.iter().find(|accepted| **accepted == media);
    found.copied().ok_or_else(|| match custom {
        true => ApiError::unsupported_media_type(&accepted),
        false => ApiError::unrouted_media_type(),
    })
}

/// A patch as a document.
fn read(media: &str, body: &[u8]) -> Result<Value, String> {
    match media {
        APPLY_CBOR_PATCH => codec::from_cbor(body),
        // Every JSON document is one in YAML.
        _ => codec::from_yaml(body),
    }
}

/// Patches an object, or one of its subresources.
pub async fn patch(call: &Call, served: &Arc<Served>, target: &Target, body: Bytes) -> ApiResult<Reply> {
    let custom = served.stored.custom.is_some();
    let media = media_type(call, custom)?;
    let renderer = Renderer::new(call, served, Asked::One)?;
    let options = WriteOptions::parse(&call.query, "PatchOptions", Some(media), call.user_agent())?;
    record(call, media, &body);
    yare_trace::event("Recorded the audit event", &[]);
    let name = call.info.name.as_str();
    let run = async |make: &write::Make<'_>, apply: bool| {
        let update =
            Update { call, served, name, target, options: &options, make, apply, retry: true, view: None };
        write::update(&update).await
    };
    if is_apply(media) {
        let config = applied(call, served, media, &body)?;
        let make = |current: &Value| {
            yare_trace::event("About to apply patch", &[]);
            let new = apply(call, served, target, Some(current), &config, &options)?;
            check_duplicates(call, media, &body, &options)?;
            Ok(new)
        };
        let mut attempts = 0;
        let written = loop {
            attempts += 1;
            match run(&make, true).await {
                Err(error) if error.reason == "NotFound" && target.subresource.is_empty() => {}
                done => break done?,
            }
            let new = apply(call, served, target, None, &config, &options)?;
            check_duplicates(call, media, &body, &options)?;
            if config.is_set("metadata.uid") {
                let uid = config.str_at("metadata.uid");
                let why = format!(
                    "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
                );
                return Err(ApiError::conflict(served.group_resource(), name, why));
            }
            write::check_name(&new, name)?;
            create::authorize(call).await?;
            match create::object_of(call, served, new, &options, create::By::Apply).await {
                // Somebody was faster.
                Err(error) if error.reason == "AlreadyExists" && attempts < MAX_ATTEMPTS => {}
                done => break done?,
            }
        };
        yare_trace::event("Object stored in database", &[]);
        return write::answer(call, &renderer, &written);
    }
    let patch = Patch::read(media, &body, options.field_validation)?;
    let subject = Subject { ty: &served.ty, api_version: &served.api_version, kind: &served.kind, custom };
    let make = |current: &Value| {
        yare_trace::event("About to apply patch", &[]);
        patch.apply(call, &subject, options.field_validation, current.clone())
    };
    let written = run(&make, false).await?;
    yare_trace::event("Object stored in database", &[]);
    write::answer(call, &renderer, &written)
}

/// Shows a patch to audit.
pub fn record(call: &Call, media: &str, body: &[u8]) {
    if let Some(record) = &call.audit {
        read(media, body).iter().for_each(|patch| record.patch(patch));
    }
}

/// A patch that is not an apply.
pub struct Patch {
    media: &'static str,
    document: Value,
    /// What a strict reader would not take.
    problems: Vec<String>,
}

/// The members of a JSON patch's operations.
const OPERATION: [&str; 4] = ["from", "op", "path", "value"];

impl Patch {
    /// Reads a body of one of the media types.
    pub fn read(media: &'static str, body: &[u8], validation: FieldValidation) -> ApiResult<Self> {
        let lenient = validation == FieldValidation::Ignore;
        let bad = |why: String| {
            let strategic = media == STRATEGIC_PATCH;
            ApiError::bad_request(if strategic || lenient {
                why
            } else {
                format!("error decoding patch: {why}")
            })
        };
        let mode = if lenient { Mode::Ignore } else { Mode::Warn };
        let decoded =
            decode::decode_untyped_as(body, Syntax::Json, mode).map_err(|error| bad(error.to_string()))?;
        let (document, mut problems) = (decoded.value, decoded.warnings);
        let wanted = match media {
            JSON_PATCH if document.is_array() || document.is_null() => None,
            JSON_PATCH if lenient => Some("jsonpatch.Patch"),
            JSON_PATCH => Some("[]handlers.jsonPatchOp"),
            MERGE_PATCH if lenient => None,
            _ if document.is_object() || document.is_null() => None,
            _ => Some("map[string]interface {}"),
        };
        if let Some(wanted) = wanted {
            return Err(bad(goprint::unreadable(&document, wanted)));
        }
        if media == JSON_PATCH {
            let operations = document.as_array().map_or(&[][..], Vec::as_slice);
            if operations.len() > patch::json::MAX_OPERATIONS {
                let error = JsonPatchError::TooManyOperations(operations.len());
                return Err(ApiError::request_too_large(error));
            }
            if !lenient {
                if let Some(why) = operations.iter().find_map(ill_typed) {
                    return Err(bad(why));
                }
                for (i, operation) in operations.iter().enumerate() {
                    let members = operation.as_object().into_iter().flatten();
                    for (name, _) in members.filter(|(name, _)| !OPERATION.contains(&name.as_str())) {
                        problems.push(format!("unknown field {}", goprint::quote(&format!("[{i}].{name}"))));
                    }
                }
                problems.iter_mut().for_each(|problem| problem.insert_str(0, "json patch "));
            }
        }
        Ok(Self { media, document, problems })
    }

    /// What the patch makes of an object, in its type's form.
    pub fn apply(
        &self,
        call: &Call,
        subject: &Subject<'_>,
        validation: FieldValidation,
        current: Value,
    ) -> ApiResult<Value> {
        let again = (self.media != STRATEGIC_PATCH).then(|| current.clone());
        let mut patched = self.patched(subject, current)?;
        // Upstream's errors name no object; they show what does not fit: the strategic patch as Go prints it,
        // or else the patched object, which is made once more for them.
        let invalid = |why: String| {
            let shown = match again {
                None => goprint::value(&self.document),
                Some(current) => self
                    .patched(subject, current)
                    .map_or_else(|e| e.to_string(), |patched| patched.to_string()),
            };
            let nobody = GroupResource { group: "", resource: "" };
            ApiError::invalid(nobody, "", &[FieldError::invalid(&Path::new("patch"), shown, why)])
        };
        if !patched.is_object() {
            return Err(invalid("the patched document is not an object".to_owned()));
        }
        let type_meta = [("apiVersion", subject.api_version), ("kind", subject.kind)];
        if self.media == STRATEGIC_PATCH {
            // It goes by the type that it is sent to, whatever it says of itself.
            type_meta.iter().for_each(|(field, have)| patched.set(field, *have));
        }
        let given = (patched.str_at("apiVersion"), patched.str_at("kind"));
        if given != (subject.api_version, subject.kind) {
            return Err(if subject.custom {
                let name = patched.str_at("metadata.name");
                codec::another_type(given, (subject.api_version, subject.kind), name)
            } else {
                let group = subject.api_version.split_once('/').map_or("", |(group, _)| group);
                invalid(codec::not_registered(group, given.0, given.1))
            });
        }
        let decoded = match codec::conform(subject.ty, patched) {
            Ok(decoded) => decoded,
            Err(why) => return Err(invalid(why)),
        };
        let problems = || self.problems.iter().chain(&decoded.problems);
        match validation {
            FieldValidation::Ignore => {}
            FieldValidation::Warn => problems().for_each(|problem| call.warn(problem.clone())),
            FieldValidation::Strict => {
                let all: Vec<&str> = problems().map(String::as_str).collect();
                if !all.is_empty() {
                    return Err(invalid(format!("strict decoding error: {}", all.join(", "))));
                }
            }
        }
        Ok(decoded.value)
    }

    fn patched(&self, subject: &Subject<'_>, current: Value) -> ApiResult<Value> {
        match self.media {
            JSON_PATCH => patch::json::apply(current, &self.document).map_err(|error| match error {
                JsonPatchError::Decode(why) => ApiError::bad_request(why),
                JsonPatchError::TooManyOperations(_) => ApiError::request_too_large(error),
                _ => ApiError::rejected(),
            }),
            MERGE_PATCH => patch::merge::apply(current, self.document.clone())
                .map_err(|e| ApiError::bad_request(e.to_string())),
            _ => {
                patch::strategic::apply(subject.ty.at(), current, self.document.clone()).map_err(unmergeable)
            }
        }
    }
}

/// Upstream tells a client of malformed directives; other mistakes it takes for its own.
fn unmergeable(error: StrategicPatchError) -> ApiError {
    match error {
        ListOfLists => ApiError::rejected(),
        BadDocument
        | StrategicPatchError::PrimitiveList
        | StrategicPatchError::RetainKeys
        | StrategicPatchError::SetElementOrder => ApiError::bad_request(error.to_string()),
        StrategicPatchError::Other(why) => ApiError::new(500, "", why),
    }
}

/// Why a strict reader does not take a JSON patch's operation for one.
fn ill_typed(operation: &Value) -> Option<String> {
    if !operation.is_object() && !operation.is_null() {
        let have = goprint::json_kind(operation);
        return Some(format!("json: cannot unmarshal {have} into Go value of type handlers.jsonPatchOp"));
    }
    // Its `value` may be anything.
    ["op", "path", "from"].into_iter().find_map(|member| {
        let value = operation.get(member).filter(|value| !value.is_string() && !value.is_null())?;
        let have = goprint::json_kind(value);
        Some(format!(
            "json: cannot unmarshal {have} into Go struct field jsonPatchOp.{member} of type string"
        ))
    })
}

/// The configuration of a server-side apply as it was sent: its fields decide who owns what.
pub fn configuration(media: &str, body: &[u8], api_version: &str, kind: &str) -> ApiResult<Value> {
    let value = read(media, body).map_err(|e| ApiError::bad_request(format!("error decoding YAML: {e}")))?;
    if !value.is_object() && !value.is_null() {
        let have = goprint::json_kind(&value);
        return Err(ApiError::bad_request(format!(
            "error decoding YAML: error unmarshaling JSON: while decoding JSON: json: cannot unmarshal {have} into Go value of type map[string]interface {{}}"
        )));
    }
    let (given_version, given_kind) = (value.str_at("apiVersion"), value.str_at("kind"));
    if (given_version, given_kind) != (api_version, kind) {
        let (group, version) = given_version.split_once('/').unwrap_or(("", given_version));
        return Err(ApiError::bad_request(format!(
            "invalid object type: {group}/{version}, Kind={given_kind}"
        )));
    }
    Ok(value)
}

fn applied(call: &Call, served: &Served, media: &str, body: &[u8]) -> ApiResult<Value> {
    let mut value = configuration(media, body, &served.api_version, &served.kind)?;
    // A namespace that it does not say is not its own: messages about it leave it out.
    if !served.namespaced || value.is_set("metadata.namespace") {
        write::settle_namespace(served, &mut value, &call.info.namespace)?;
    }
    Ok(value)
}

/// Keys that stand twice in the configuration. Asked after applying, whose own errors come first.
pub fn check_duplicates(call: &Call, media: &str, body: &[u8], options: &WriteOptions) -> ApiResult<()> {
    // CBOR with keys that stand twice is none: reading it failed.
    if options.field_validation == FieldValidation::Ignore || media == APPLY_CBOR_PATCH {
        return Ok(());
    }
    let Err(why) = codec::strict_yaml(body) else { return Ok(()) };
    if options.field_validation == FieldValidation::Strict {
        return Err(ApiError::bad_request(format!("error strict decoding YAML: {why}")));
    }
    // One warning for each, without the head that an error has.
    why.lines().skip(1).for_each(|line| call.warn(line.trim()));
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
