//! What another server answers, read as upstream's clients read it: an object of a known kind, or why it is none.

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use serde_json::Value;
use yare_kinds::view::View;
use yare_schema::decode::{self, Mode};

use super::client::Failure;
use crate::{codec, registry::api_version};

/// Of an error's body, what goes into messages.
const MAX_SHOWN_BYTES: usize = 2048;
/// How long a server may ask to be left alone before the same call comes again.
const MAX_LATER_S: u64 = 60 * 60;

/// An answer.
pub(super) struct Answer {
    /// What it is.
    pub status: StatusCode,
    /// What it says of itself.
    pub headers: HeaderMap,
    /// All of it.
    pub body: Bytes,
}

/// The kind that an answer should be of.
#[derive(Clone, Copy)]
pub struct Kind<'a> {
    /// Its group.
    pub group: &'a str,
    /// Its version.
    pub version: &'a str,
    /// Its name.
    pub kind: &'a str,
    /// Where upstream's client of it knows its kinds from, for messages.
    pub scheme: &'a str,
}

impl Answer {
    /// As upstream's clients tell success.
    pub fn is_success(&self) -> bool {
        (200..=206).contains(&self.status.as_u16())
    }

    fn text(&self, name: header::HeaderName) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// In how many seconds the same call should come again, where the other side asks for that.
    pub fn again_after_s(&self) -> Option<u64> {
        let busy = self.status == StatusCode::TOO_MANY_REQUESTS || self.status.is_server_error();
        let seconds = self.text(header::RETRY_AFTER).parse().ok().filter(|_| busy)?;
        Some(Ord::min(seconds, MAX_LATER_S))
    }

    /// An answer that is no success, as clients of Kubernetes tell it. `is_get`: what was asked only read.
    pub fn refused(&self, is_get: bool) -> Failure {
        let failure = |message: String| Failure {
            code: Some(self.status.as_u16()),
            may_pass: self.again_after_s().is_some(),
            ..Failure::new(message)
        };
        let said: Option<Value> = serde_json::from_slice(&self.body).ok();
        if let Some(status) =
            said.filter(|said| said.str_at("status") == "Failure" && said.str_at("kind") == "Status")
        {
            return failure(status.str_at("message").to_owned());
        }
        let content_type = self.text(header::CONTENT_TYPE);
        let text = String::from_utf8_lossy(&self.body[..self.body.len().min(MAX_SHOWN_BYTES)]);
        let is_text = content_type.is_empty() || content_type.starts_with("text/");
        let text = if is_text { text.trim() } else { "unknown" };
        failure(match self.status.as_u16() {
            400 => "the server rejected our request for an unknown reason".into(),
            401 => "the server has asked for the client to provide credentials".into(),
            403 | 415 => text.to_owned(),
            404 => "the server could not find the requested resource".into(),
            405 => "the server does not allow this method on the requested resource".into(),
            406 if matches!(text, "" | "unknown") => {
                "the server was unable to respond with a content type that the client supports".into()
            }
            406 => text.to_owned(),
            409 => "the server reported a conflict".into(),
            422 => "the server rejected our request due to an error in our request".into(),
            429 => "the server has received too many requests and has asked us to try again later".into(),
            503 => "the server is currently unable to handle the request".into(),
            504 if is_get => "the server was unable to return a response in the time allotted".into(),
            504 => {
                "the server was unable to return a response in the time allotted, but may still be processing the request"
                    .into()
            }
            code if code >= 500 => {
                format!("an error on the server ({text:?}) has prevented the request from succeeding")
            }
            code => {
                format!("the server responded with the status code {code} but did not return more information")
            }
        })
    }

    /// The object that it is.
    pub fn read(&self, wanted: Kind<'_>) -> Result<Value, String> {
        if self.body.is_empty() {
            return Err(format!(
                "0-length response with status code: {} and content type: {}",
                self.status.as_u16(),
                self.text(header::CONTENT_TYPE)
            ));
        }
        read(&self.body, wanted)
    }
}

/// JSON or YAML of the kind. What it leaves out of `apiVersion` and `kind` counts as wanted.
fn read(bytes: &[u8], wanted: Kind<'_>) -> Result<Value, String> {
    let is_json = bytes.trim_ascii_start().starts_with(b"{");
    let yaml = if is_json { None } else { Some(codec::from_yaml(bytes)?.to_string()) };
    let bytes = yaml.as_deref().map_or(bytes, str::as_bytes);
    let (version, kind) = decode::type_meta(bytes)
        .map_err(|error| format!("couldn't get version/kind; json parse error: {error}"))?;
    let api_version = api_version(wanted.group, wanted.version);
    let (version, kind) = (or(&version, &api_version), or(&kind, wanted.kind));
    if (version, kind) == ("v1", "Status") {
        return status(bytes);
    }
    if (version, kind) != (&*api_version, wanted.kind) {
        let (group, other) = version.split_once('/').unwrap_or(("", version));
        // Upstream's clients of webhooks know two versions of what they ask for.
        if group == wanted.group && kind == wanted.kind && matches!(other, "v1" | "v1beta1") {
            let to = wanted.version;
            return Err(format!("converting ({other}.{kind}) to ({to}.{kind}): unknown conversion"));
        }
        let scheme = wanted.scheme;
        return Err(format!("no kind {kind:?} is registered for version {version:?} in scheme {scheme:?}"));
    }
    let ty = codec::builtin_type(wanted.group, wanted.version, wanted.kind)
        .ok_or_else(|| format!("no type for {}", wanted.kind))?;
    decode::decode(ty, bytes, Mode::Ignore).map(|decoded| decoded.value).map_err(|error| error.to_string())
}

fn or<'a>(given: &'a str, otherwise: &'a str) -> &'a str {
    if given.is_empty() { otherwise } else { given }
}

/// A status in the object's place: a failure is told, of anything else nothing is left.
fn status(bytes: &[u8]) -> Result<Value, String> {
    let status: Value = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    match status.str_at("status") {
        "Success" => Ok(Value::Object(serde_json::Map::new())),
        _ => Err(status.str_at("message").to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn answer(code: u16, content_type: &'static str, body: &'static str) -> Answer {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        Answer {
            status: StatusCode::from_u16(code).unwrap_or_default(),
            headers,
            body: Bytes::from_static(body.as_bytes()),
        }
    }

    const REVIEW: Kind<'_> =
        Kind { group: "admission.k8s.io", version: "v1", kind: "AdmissionReview", scheme: "s.go:1" };

    #[test]
    fn refusals_are_told_as_clients_tell_them() {
        for (code, content_type, body, expect) in [
            (400, "text/plain", "x", "the server rejected our request for an unknown reason"),
            (403, "text/plain", " no ", "no"),
            (403, "application/json", "{}", "unknown"),
            (404, "text/plain", "x", "the server could not find the requested resource"),
            (
                406,
                "application/json",
                "",
                "the server was unable to respond with a content type that the client supports",
            ),
            (409, "", "", "the server reported a conflict"),
            (415, "text/plain", "what", "what"),
            (
                418,
                "",
                "",
                "the server responded with the status code 418 but did not return more information",
            ),
            (
                500,
                "text/html",
                "oops",
                "an error on the server (\"oops\") has prevented the request from succeeding",
            ),
            (
                500,
                "application/json",
                "oops",
                "an error on the server (\"unknown\") has prevented the request from succeeding",
            ),
            (503, "", "x", "the server is currently unable to handle the request"),
            (500, "application/json", r#"{"kind": "Status", "status": "Failure", "message": "why"}"#, "why"),
        ] {
            assert_eq!(answer(code, content_type, body).refused(false).message, expect, "{code} {body}");
        }
    }

    #[test]
    fn objects_are_read_as_clients_read_them() {
        const STRUCT: &str = r#"Go value of type struct { APIVersion string "json:\"apiVersion,omitempty\""; Kind string "json:\"kind,omitempty\"" }"#;
        for (body, expect) in [
            ("", "0-length response with status code: 200 and content type: application/json".to_owned()),
            ("hello", format!("couldn't get version/kind; json parse error: json: cannot unmarshal string into {STRUCT}")),
            ("[]", format!("couldn't get version/kind; json parse error: json: cannot unmarshal array into {STRUCT}")),
            ("{", "couldn't get version/kind; json parse error: unexpected end of JSON input".to_owned()),
            (r#"{"apiVersion": "v1", "kind": "Pod"}"#, "no kind \"Pod\" is registered for version \"v1\" in scheme \"s.go:1\"".to_owned()),
            (
                r#"{"apiVersion": "admission.k8s.io/v1beta1", "kind": "AdmissionReview"}"#,
                "converting (v1beta1.AdmissionReview) to (v1.AdmissionReview): unknown conversion".to_owned(),
            ),
            (
                r#"{"response": {"allowed": "true"}}"#,
                "json: cannot unmarshal string into Go struct field AdmissionResponse.response.allowed of type bool".to_owned(),
            ),
            (r#"{"response": {"patch": "!!!"}}"#, "illegal base64 data at input byte 0".to_owned()),
            (r#"{"apiVersion": "v1", "kind": "Status", "status": "Failure", "message": "why"}"#, "why".to_owned()),
            ("kind: AdmissionReview\nresponse: {uid: u, allowed: true}", String::new()),
            (r#"{"response": {"uid": "u", "allowed": true, "more": 1}}"#, String::new()),
        ] {
            let read = answer(200, "application/json", body).read(REVIEW);
            assert_eq!(read.as_ref().err().cloned().unwrap_or_default(), expect, "{body}");
            assert!(read.is_err() || read.is_ok_and(|review| review.bool_at("response.allowed")), "{body}");
        }
    }

    #[test]
    fn who_is_busy_is_asked_again() {
        for (code, later, expect) in
            [(503, "1", Some(1)), (429, "2", Some(2)), (404, "1", None), (500, "x", None)]
        {
            let mut answer = answer(code, "", "");
            answer.headers.insert(header::RETRY_AFTER, HeaderValue::from_static(later));
            assert_eq!(answer.again_after_s(), expect, "{code}");
            assert_eq!(
                answer.refused(false).is_transient(),
                expect.is_some() || matches!(code, 429 | 500 | 504)
            );
        }
    }
}
