//! The conversation with a webhook: an `AdmissionReview` with a request, one with a response, and what the
//! response does.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde_json::{Value, json};
use yare_kinds::view::View;
use yare_schema::{
    decode::{self, Mode, Syntax},
    goprint, patch,
};

use super::{
    super::request,
    Attributes,
    hook::{Invocation, ReviewVersion},
};
use crate::{
    outbound::Kind,
    status::{ApiError, Cause},
};

/// Why a request does not pass a webhook.
pub enum Refusal {
    /// The webhook says so.
    Denied(ApiError),
    /// The webhook could not be asked, or its answer makes no sense; `code` is for metrics.
    Failed {
        /// One line.
        why: String,
        /// HTTP status.
        code: u16,
    },
    /// The server itself cannot go on.
    Internal(ApiError),
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self::Internal(error)
    }
}

fn failed(why: impl Into<String>, code: u16) -> Refusal {
    Refusal::Failed { why: why.into(), code }
}

/// Asks the webhook. Gives the object (of the storage version) where the webhook changed it.
pub async fn run(
    attributes: &Attributes<'_>,
    invocation: &Invocation<'_>,
    object: Option<&Value>,
    old: Option<&Value>,
    at: &str,
) -> Result<Option<Value>, Refusal> {
    let Invocation { hook, served } = invocation;
    if attributes.dry_run {
        match hook.knows_dry_run {
            None => return Err(failed("Webhook SideEffects is nil", 400)),
            Some(false) => {
                let why = format!("admission webhook {:?} does not support dry run", hook.name);
                return Err(Refusal::Internal(ApiError::bad_request(why)));
            }
            Some(true) => {}
        }
    }
    let Some(version) = hook.review else {
        return Err(failed(
            "could not create admission objects: webhook does not accept known AdmissionReview versions (v1, v1beta1)",
            400,
        ));
    };
    let api_version = match version {
        ReviewVersion::V1 => "admission.k8s.io/v1",
        ReviewVersion::V1Beta1 => "admission.k8s.io/v1beta1",
    };
    let core = &attributes.call.core;
    let uid = core.new_uid();
    let shown = object.map(|o| request::written(attributes, served, o)).transpose()?;
    let shown_old = old.map(|o| request::written(attributes, served, o)).transpose()?;
    let mut request = request::describe(attributes, served, shown.as_ref(), request::Members::ALL);
    request.insert("uid".into(), uid.as_str().into());
    request.insert("object".into(), shown.clone().unwrap_or_default());
    request.insert("oldObject".into(), shown_old.unwrap_or_default());
    let review = json!({ "kind": "AdmissionReview", "apiVersion": api_version, "request": request });
    let left = attributes.call.time_left();
    if left.is_zero() {
        return Err(ApiError::timeout("request did not complete within requested timeout").into());
    }
    let timeout = hook.timeout.min(left);
    let query = format!("timeout={}s", whole_seconds(timeout));
    let wanted = Kind {
        group: "admission.k8s.io",
        version: api_version.rsplit('/').next().unwrap_or_default(),
        kind: "AdmissionReview",
        scheme: "pkg/util/webhook/client.go:71",
    };
    let ask = hook.client.ask_for(Some(core), &query, Bytes::from(review.to_string()), timeout, wanted);
    let span = if hook.is_mutating { "Call mutating webhook" } else { "Call validating webhook" };
    let describe = |span: &mut yare_trace::Span| {
        let info = &attributes.call.info;
        let (group, version, resource) = (&info.group, &info.version, &info.resource);
        span.set("configuration", hook.configuration.as_str());
        span.set("webhook", hook.name.as_str());
        span.set("resource", format!("{group}/{version}, Resource={resource}"));
        span.set("subresource", info.subresource.as_str());
        span.set("operation", attributes.operation.name());
        span.set("UID", uid.as_str());
    };
    let span = yare_trace::described(span, yare_trace::Kind::Internal, describe);
    let answer = yare_trace::scoped(span.as_ref().map(yare_trace::Span::active), ask)
        .await
        .map_err(|f| failed(format!("failed to call webhook: {}", f.message), f.code.unwrap_or(503)))?;
    if let Some(span) = &span {
        span.event("Request completed", &[]);
    }
    let response = Response::read(&answer, version, &uid, hook.is_mutating)
        .map_err(|why| failed(format!("received invalid webhook response: {why}"), 503))?;
    for (key, value) in response.at.entries("auditAnnotations") {
        attributes.call.annotate(format!("{}/{key}", hook.name), value.as_str().unwrap_or_default());
    }
    for warning in response.at.strings("warnings") {
        attributes.call.warn(warning);
    }
    if !response.at.bool_at("allowed") {
        return Err(Refusal::Denied(denied(&hook.name, response.at.at("status"))));
    }
    let Some(patch) = response.patch else { return Ok(None) };
    let document = operations(&patch)
        .map_err(|why| failed(format!("received undecodable patch in webhook response: {why}"), 503))?;
    if document.as_array().is_none_or(Vec::is_empty) {
        return Ok(None);
    }
    let (Some(object), Some(shown)) = (object, shown) else {
        return Err(ApiError::internal(format!(
            "admission webhook {:?} attempted to modify the object, which is not supported for this operation",
            hook.name
        ))
        .into());
    };
    if response.patch_type != "JSONPatch" {
        return Err(failed(format!("unsupported patch type {:?}", response.patch_type), 400));
    }
    let patched = patch::json::apply(shown, &document).map_err(ApiError::internal)?;
    let changed = request::settle(attributes, served, object, patched, false)?;
    if let Some(span) = &span {
        span.event("Patch applied", &[]);
    }
    attributes.call.annotate(
        format!("patch.webhook.admission.k8s.io/{at}"),
        json!({
            "configuration": hook.configuration, "webhook": hook.name, "patch": document,
            "patchType": "JSONPatch",
        })
        .to_string(),
    );
    Ok(changed)
}

/// The operations of a patch, or what Go says of a text that is none.
fn operations(patch: &[u8]) -> Result<Value, String> {
    let decoded = decode::decode_untyped_as(patch, Syntax::Json, Mode::Ignore).map_err(|e| e.to_string())?;
    match &decoded.value {
        Value::Array(_) | Value::Null => Ok(decoded.value),
        other => Err(goprint::unreadable(other, "jsonpatch.Patch")),
    }
}

fn whole_seconds(timeout: Duration) -> u64 {
    timeout.as_secs() + u64::from(timeout.subsec_nanos() > 0)
}

/// What of a response counts, checked.
struct Response<'a> {
    at: &'a Value,
    patch: Option<Vec<u8>>,
    patch_type: &'a str,
}

impl<'a> Response<'a> {
    fn read(review: &'a Value, version: ReviewVersion, uid: &str, is_mutating: bool) -> Result<Self, String> {
        let response = review.at("response");
        if !response.is_object() {
            return Err("webhook response was absent".into());
        }
        let patch = match response.at("patch") {
            Value::Null => None,
            Value::String(text) => {
                Some(STANDARD.decode(text).map_err(|e| format!("response.patch is no base64: {e}"))?)
            }
            _ => return Err("response.patch is no string".into()),
        }
        .filter(|p| !p.is_empty());
        let mut patch_type = response.str_at("patchType");
        match version {
            ReviewVersion::V1 => {
                let given = response.str_at("uid");
                if given != uid {
                    return Err(format!("expected response.uid={uid:?}, got {given:?}"));
                }
                let (group, review_version) =
                    review.str_at("apiVersion").rsplit_once('/').unwrap_or(("", review.str_at("apiVersion")));
                let kind = review.str_at("kind");
                if (group, review_version, kind) != ("admission.k8s.io", "v1", "AdmissionReview") {
                    let got = format!("{group}/{review_version}, Kind={kind}");
                    return Err(format!(
                        "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got {got}"
                    ));
                }
                let has_type = response.has("patchType");
                match (is_mutating, patch.is_some(), has_type) {
                    (true, true, false) => {
                        return Err("webhook returned response.patch but not response.patchType".into());
                    }
                    (true, false, true) => {
                        return Err("webhook returned response.patchType but not response.patch".into());
                    }
                    (true, true, true) if patch_type.is_empty() => {
                        return Err("webhook returned invalid response.patchType of \"\"".into());
                    }
                    (false, true, _) => {
                        return Err("validating webhook may not return response.patch".into());
                    }
                    (false, _, true) => {
                        return Err("validating webhook may not return response.patchType".into());
                    }
                    _ => {}
                }
            }
            // There has only ever been one type of patch.
            ReviewVersion::V1Beta1 => patch_type = "JSONPatch",
        }
        Ok(Self { at: response, patch: patch.filter(|_| is_mutating), patch_type })
    }
}

/// The refusal of a webhook as the client sees it.
fn denied(name: &str, status: &Value) -> ApiError {
    let (message, reason) = (status.str_at("message"), status.str_at("reason"));
    let text = match (message, reason) {
        ("", "") => format!("admission webhook {name:?} denied the request without explanation"),
        ("", reason) => format!("admission webhook {name:?} denied the request: {reason}"),
        (message, _) => format!("admission webhook {name:?} denied the request: {message}"),
    };
    let code = u16::try_from(status.int_at("code")).ok().filter(|c| (400..1000).contains(c)).unwrap_or(400);
    let mut error = ApiError::new(code, reason.to_owned(), text);
    let details = status.at("details");
    if details.is_object() {
        let text = |field: &str| details.str_at(field).to_owned();
        let out = &mut error.details;
        out.present = true;
        (out.name, out.group, out.kind, out.uid) = (text("name"), text("group"), text("kind"), text("uid"));
        out.retry_after_s = i32::try_from(details.int_at("retryAfterSeconds")).unwrap_or(0);
        out.causes = details
            .items("causes")
            .iter()
            .map(|c| Cause {
                reason: c.str_at("reason").to_owned(),
                message: c.str_at("message").to_owned(),
                field: c.str_at("field").to_owned(),
            })
            .collect();
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn responses_are_checked() {
        let review = |response: Value| json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response});
        let patch = STANDARD.encode("[]");
        for (review, version, is_mutating, expect) in [
            (review(json!({"uid": "u", "allowed": true})), ReviewVersion::V1, true, ""),
            (review(Value::Null), ReviewVersion::V1, true, "webhook response was absent"),
            (review(json!({"uid": "x"})), ReviewVersion::V1, true, "expected response.uid=\"u\", got \"x\""),
            (review(json!({"uid": "x"})), ReviewVersion::V1Beta1, true, ""),
            (
                json!({"apiVersion": "v1", "kind": "Pod", "response": {"uid": "u"}}),
                ReviewVersion::V1,
                true,
                "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got /v1, Kind=Pod",
            ),
            (
                review(json!({"uid": "u", "patch": patch})),
                ReviewVersion::V1,
                true,
                "webhook returned response.patch but not response.patchType",
            ),
            (
                review(json!({"uid": "u", "patchType": "JSONPatch"})),
                ReviewVersion::V1,
                true,
                "webhook returned response.patchType but not response.patch",
            ),
            (
                review(json!({"uid": "u", "patch": patch, "patchType": "JSONPatch"})),
                ReviewVersion::V1,
                false,
                "validating webhook may not return response.patch",
            ),
            (review(json!({"patch": patch})), ReviewVersion::V1Beta1, true, ""),
            (review(json!({"uid": "u", "patch": 7})), ReviewVersion::V1, true, "response.patch is no string"),
        ] {
            let found = Response::read(&review, version, "u", is_mutating).err().unwrap_or_default();
            assert_eq!(found, expect, "{review}");
        }
    }

    #[test]
    fn refusals_are_told() {
        for (status, code, reason, message) in [
            (Value::Null, 400, "", "admission webhook \"w\" denied the request without explanation"),
            (json!({"message": "no"}), 400, "", "admission webhook \"w\" denied the request: no"),
            (
                json!({"reason": "Forbidden", "code": 403}),
                403,
                "Forbidden",
                "admission webhook \"w\" denied the request: Forbidden",
            ),
            // Its own words, and a code that HTTP does not know.
            (
                json!({"reason": "Because", "code": 999}),
                999,
                "Because",
                "admission webhook \"w\" denied the request: Because",
            ),
            (json!({"message": "m", "code": 200}), 400, "", "admission webhook \"w\" denied the request: m"),
        ] {
            let error = denied("w", &status);
            assert_eq!((error.code, &*error.reason, error.message.as_str()), (code, reason, message));
        }
        let error =
            denied("w", &json!({"details": {"name": "n", "causes": [{"reason": "r", "field": "f"}]}}));
        assert_eq!((error.details.name.as_str(), error.details.causes[0].field.as_str()), ("n", "f"));
    }
}
