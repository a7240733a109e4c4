//! Audit events (`audit.k8s.io/v1` `Event`), as JSON and as upstream's one-line text.

use std::fmt::Write as _;

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use yare_auth::User;

use super::policy::{Level, Stage};
use crate::status::quote;

/// What is known of a request so far.
#[derive(Clone, Debug)]
pub struct Event {
    /// How much is written.
    pub level: Level,
    /// The request's ID.
    pub id: String,
    /// Path and query.
    pub uri: String,
    /// What is asked for.
    pub verb: &'static str,
    /// Who asks.
    pub user: Value,
    /// In whose name.
    pub impersonated: Option<Value>,
    /// The verb that allowed that, where it was a constrained one.
    pub constraint: Option<String>,
    /// From where, proxies first.
    pub source_ips: Vec<String>,
    /// With what.
    pub user_agent: String,
    /// About what; an object.
    pub object: Option<Map<String, Value>>,
    /// How it ended.
    pub status: Option<Map<String, Value>>,
    /// What was sent.
    pub request: Option<Value>,
    /// What was answered.
    pub response: Option<Value>,
    /// When it came.
    pub received: Timestamp,
    /// What parts of the server had to say.
    pub annotations: Vec<(String, String)>,
}

/// `UserInfo` of a user.
pub fn user_info(user: &User) -> Value {
    user.to_json()
}

fn micros(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

impl Event {
    /// The event as JSON. `objects`: with what was sent and answered.
    pub fn json(&self, stage: Stage, at: Timestamp, objects: bool) -> Vec<u8> {
        let mut out = Map::new();
        out.insert("kind".into(), "Event".into());
        out.insert("apiVersion".into(), "audit.k8s.io/v1".into());
        out.insert("level".into(), self.level.name().into());
        out.insert("auditID".into(), self.id.as_str().into());
        out.insert("stage".into(), stage.name().into());
        out.insert("requestURI".into(), self.uri.as_str().into());
        out.insert("verb".into(), self.verb.into());
        out.insert("user".into(), self.user.clone());
        let mut some = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                out.insert(name.into(), value);
            }
        };
        some("impersonatedUser", self.impersonated.clone());
        let constraint = self.constraint.as_ref();
        some("authenticationMetadata", constraint.map(|c| json!({ "impersonationConstraint": c })));
        some("sourceIPs", (!self.source_ips.is_empty()).then(|| json!(self.source_ips)));
        some("userAgent", (!self.user_agent.is_empty()).then(|| self.user_agent.as_str().into()));
        some("objectRef", self.object.clone().map(Value::Object));
        some("responseStatus", self.status.clone().map(Value::Object));
        if objects {
            some("requestObject", self.request.clone());
            some("responseObject", self.response.clone());
        }
        out.insert("requestReceivedTimestamp".into(), micros(self.received).into());
        out.insert("stageTimestamp".into(), micros(at).into());
        let mut annotations: Map<String, Value> =
            self.annotations.iter().map(|(k, v)| (k.clone(), v.as_str().into())).collect();
        if !objects {
            annotations.insert("audit.k8s.io/truncated".into(), "true".into());
        }
        if !annotations.is_empty() {
            out.insert("annotations".into(), Value::Object(annotations));
        }
        Value::Object(out).to_string().into_bytes()
    }

    /// The event as one line of text.
    pub fn line(&self, stage: Stage) -> String {
        let text = |value: &Value, field: &str| value[field].as_str().unwrap_or_default().to_owned();
        let groups = |value: &Value| {
            let all = value["groups"].as_array().map(Vec::as_slice).unwrap_or_default();
            all.iter().filter_map(Value::as_str).map(quote).collect::<Vec<_>>().join(",")
        };
        let or = |text: String, absent: &str| if text.is_empty() { absent.to_owned() } else { text };
        let (mut as_user, mut as_groups) = ("<self>".to_owned(), "<lookup>".to_owned());
        if let Some(user) = &self.impersonated {
            (as_user, as_groups) = (text(user, "username"), or(groups(user), "<lookup>"));
        }
        let namespace = self.object.as_ref().and_then(|o| o.get("namespace")?.as_str()).unwrap_or("<none>");
        let code = self.status.as_ref().and_then(|s| s.get("code")?.as_u64());
        let mut out = String::new();
        let _ = write!(
            out,
            "{} AUDIT: id={} stage={} ip={} method={} user={} groups={} as={} asgroups={} user-agent={} namespace={} uri={} response=\"{}\"",
            self.received,
            quote(&self.id),
            quote(stage.name()),
            quote(self.source_ips.first().map_or("<unknown>", String::as_str)),
            quote(self.verb),
            quote(&or(text(&self.user, "username"), "<none>")),
            quote(&or(groups(&self.user), "<none>")),
            quote(&as_user),
            quote(&as_groups),
            quote(&self.user_agent),
            quote(namespace),
            quote(&self.uri),
            code.map_or_else(|| "<deferred>".to_owned(), |code| code.to_string()),
        );
        out
    }
}

/// Takes `metadata.managedFields` out of an object, of the items of a list, and of a table's rows.
pub fn drop_managed_fields(value: &mut Value) {
    fn one(object: &mut Value) {
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("managedFields");
        }
    }
    one(value);
    for (list, inner) in [("items", ""), ("rows", "object")] {
        for item in value.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            match inner {
                "" => one(item),
                inner => {
                    if let Some(object) = item.get_mut(inner) {
                        one(object);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms() {
        let mut event = Event {
            level: Level::Request,
            id: "1-2".into(),
            uri: "/api/v1/namespaces/a/pods?limit=1".into(),
            verb: "list",
            user: json!({"username": "u", "groups": ["g", "h"]}),
            impersonated: None,
            constraint: None,
            source_ips: vec!["10.0.0.1".into()],
            user_agent: "k/1".into(),
            object: json!({"resource": "pods", "namespace": "a", "apiVersion": "v1"}).as_object().cloned(),
            status: None,
            request: Some(json!({"a": 1})),
            response: None,
            received: "2026-01-02T03:04:05.6Z".parse().unwrap(),
            annotations: vec![("b/c".into(), "d".into())],
        };
        let at = "2026-01-02T03:04:06Z".parse().unwrap();
        let json: Value = serde_json::from_slice(&event.json(Stage::RequestReceived, at, true)).unwrap();
        assert_eq!(json["requestReceivedTimestamp"], "2026-01-02T03:04:05.600000Z");
        assert_eq!(json["stageTimestamp"], "2026-01-02T03:04:06.000000Z");
        assert_eq!(json["requestObject"]["a"], 1);
        assert_eq!(json["annotations"], json!({"b/c": "d"}));
        let cut: Value = serde_json::from_slice(&event.json(Stage::RequestReceived, at, false)).unwrap();
        assert_eq!(cut["annotations"]["audit.k8s.io/truncated"], "true");
        assert!(cut.get("requestObject").is_none());
        assert_eq!(
            event.line(Stage::RequestReceived),
            "2026-01-02T03:04:05.6Z AUDIT: id=\"1-2\" stage=\"RequestReceived\" ip=\"10.0.0.1\" method=\"list\" user=\"u\" groups=\"\\\"g\\\",\\\"h\\\"\" as=\"<self>\" asgroups=\"<lookup>\" user-agent=\"k/1\" namespace=\"a\" uri=\"/api/v1/namespaces/a/pods?limit=1\" response=\"<deferred>\""
        );
        event.status = json!({"code": 200}).as_object().cloned();
        assert!(event.line(Stage::ResponseComplete).ends_with("response=\"200\""));
    }

    #[test]
    fn managed_fields_go_everywhere() {
        let metadata = json!({"name": "a", "managedFields": [1]});
        let mut value = json!({
            "metadata": metadata, "items": [{"metadata": metadata}], "rows": [{"object": {"metadata": metadata}}, {}],
        });
        drop_managed_fields(&mut value);
        assert!(!value.to_string().contains("managedFields"));
        assert_eq!(value["rows"][0]["object"]["metadata"]["name"], "a");
    }
}
