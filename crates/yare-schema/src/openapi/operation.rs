//! Items: what can be done at one path, written in either dialect.

use serde_json::{Map, Value, json};

use super::{Dialect, parameters::Parameter, schema::Definitions};

pub(super) type Codes = &'static [(u16, &'static str)];

pub(super) const OK: Codes = &[(200, "OK")];
pub(super) const OK_CREATED: Codes = &[(200, "OK"), (201, "Created")];
pub(super) const OK_ACCEPTED: Codes = &[(200, "OK"), (202, "Accepted")];
pub(super) const ALL: Codes = &[(200, "OK"), (201, "Created"), (202, "Accepted")];

pub(super) const PATCH_BODY: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch";
pub(super) const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";

/// What can be done at a path.
pub(super) struct Item {
    pub(super) path: String,
    /// `core_v1`
    pub(super) tag: String,
    /// Group, version and kind that it is about, where it is about objects.
    pub(super) gvk: Option<[String; 3]>,
    pub(super) operations: Vec<Operation>,
}

/// One way to call a path.
pub(super) struct Operation {
    /// HTTP method, in lower case.
    pub(super) method: &'static str,
    /// `readCoreV1NamespacedPod`
    pub(super) id: String,
    /// `x-kubernetes-action`; empty where it is not about objects.
    pub(super) action: &'static str,
    pub(super) description: String,
    pub(super) parameters: Vec<Parameter>,
    /// Definition of the body.
    pub(super) body: Option<String>,
    /// Definition of the answer; `None`: text.
    pub(super) answer: Option<String>,
    pub(super) codes: Codes,
    pub(super) consumes: Vec<&'static str>,
    pub(super) produces: Vec<&'static str>,
}

/// Text as a part of an operation's name: what is between letters and digits goes, and a capital follows.
pub(super) fn camel(text: &str, mut capital: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for (i, c) in text.chars().enumerate() {
        match c {
            c if c.is_alphabetic() || c == '_' || (i > 0 && c.is_numeric()) => {
                if capital {
                    out.extend(c.to_uppercase());
                } else {
                    out.push(c);
                }
                capital = false;
            }
            _ => capital = true,
        }
    }
    out
}

/// A group in an operation's name: `rbac.authorization.k8s.io` as `RbacAuthorization`.
pub(super) fn group_name(group: &str, capital: bool) -> String {
    let group = if group.is_empty() { "core" } else { group };
    camel(group.strip_suffix(".k8s.io").unwrap_or(group), capital)
}

impl Item {
    /// The item as documents have it. What every operation takes is said once, of the path.
    pub(super) fn write(&self, dialect: Dialect, definitions: &mut Definitions<'_>) -> Value {
        let everywhere = |parameter: &Parameter| {
            self.operations.iter().all(|o| o.parameters.iter().any(|p| p.is_same_as(parameter)))
        };
        let mut out = Map::new();
        let common = self.operations.first().map(|o| o.parameters.as_slice()).unwrap_or_default();
        let common = written(dialect, common.iter().filter(|p| everywhere(p)), None);
        if !common.is_empty() {
            out.insert("parameters".into(), common.into());
        }
        for operation in &self.operations {
            let own = operation.parameters.iter().filter(|p| !everywhere(p));
            let mut written = operation.write(dialect, own, definitions);
            written.insert("tags".into(), json!([self.tag]));
            if let Some([group, version, kind]) = &self.gvk {
                written.insert("x-kubernetes-action".into(), operation.action.into());
                written.insert(
                    "x-kubernetes-group-version-kind".into(),
                    json!({"group": group, "kind": kind, "version": version}),
                );
            }
            out.insert(operation.method.to_owned(), written.into());
        }
        out.into()
    }
}

impl Operation {
    fn write<'p>(
        &self,
        dialect: Dialect,
        parameters: impl Iterator<Item = &'p Parameter>,
        definitions: &mut Definitions<'_>,
    ) -> Map<String, Value> {
        let mut out = Map::new();
        out.insert("description".into(), self.description.as_str().into());
        out.insert("operationId".into(), self.id.as_str().into());
        let body = self.body.as_ref().map(|body| definitions.reference(body));
        // What is to be deleted may say how; all else comes from the body.
        let required = self.body.as_deref() != Some(DELETE_OPTIONS);
        let content = |types: &[&'static str], schema: &Value| -> Value {
            let types = types.iter().map(|t| ((*t).to_owned(), json!({ "schema": schema })));
            types.collect::<Map<_, _>>().into()
        };
        let mut body_parameter = None;
        match (dialect, body) {
            (_, None) => {}
            (Dialect::V3, Some(schema)) => {
                let mut body = json!({ "content": content(&self.consumes, &schema) });
                if required {
                    body["required"] = true.into();
                }
                out.insert("requestBody".into(), body);
            }
            (Dialect::V2, Some(schema)) => {
                let mut body = json!({"in": "body", "name": "body", "schema": schema});
                if required {
                    body["required"] = true.into();
                }
                body_parameter = Some(body);
            }
        }
        if dialect == Dialect::V2 {
            for (name, types) in [("consumes", &self.consumes), ("produces", &self.produces)] {
                if !types.is_empty() {
                    out.insert(name.into(), types.clone().into());
                }
            }
            out.insert("schemes".into(), json!(["https"]));
        }
        let parameters = written(dialect, parameters, body_parameter);
        if !parameters.is_empty() {
            out.insert("parameters".into(), parameters.into());
        }
        let schema = match &self.answer {
            Some(answer) => definitions.reference(answer),
            None => json!({"type": "string"}),
        };
        let mut responses = Map::new();
        for (code, text) in self.codes {
            let response = match dialect {
                Dialect::V3 => json!({"description": text, "content": content(&self.produces, &schema)}),
                Dialect::V2 => json!({"description": text, "schema": schema}),
            };
            responses.insert(code.to_string(), response);
        }
        responses.insert("401".into(), json!({"description": "Unauthorized"}));
        out.insert("responses".into(), responses.into());
        out
    }
}

/// Parameters by their names, and by their places where the names are the same.
fn written<'p>(
    dialect: Dialect,
    parameters: impl Iterator<Item = &'p Parameter>,
    body: Option<Value>,
) -> Vec<Value> {
    let mut all: Vec<Value> = parameters.map(|p| p.write(dialect)).chain(body).collect();
    let key = |p: &Value| ["name", "in"].map(|f| p[f].as_str().unwrap_or_default().to_owned());
    all.sort_by_key(key);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_in_names() {
        for (group, name, tag) in [
            ("", "Core", "core"),
            ("rbac.authorization.k8s.io", "RbacAuthorization", "rbacAuthorization"),
            ("stable.example.com", "StableExampleCom", "stableExampleCom"),
            ("my-group.example.com", "MyGroupExampleCom", "myGroupExampleCom"),
            ("3d.example.com", "DExampleCom", "DExampleCom"),
        ] {
            assert_eq!(
                (group_name(group, true), group_name(group, false)),
                (name.to_owned(), tag.to_owned())
            );
        }
        assert_eq!(camel("v1beta1", true), "V1beta1");
    }
}
