//! Checks the expressions of ValidatingAdmissionPolicies against the types of what they are about, and says in
//! their status what will not work. What is found there changes nothing about what the policy does.

use std::{collections::BTreeSet, sync::Arc};

use async_trait::async_trait;
use serde_json::{Value, json};
use yare_client::{Informer, ObjectKey, VALIDATING_ADMISSION_POLICIES};
use yare_kinds::{
    expressions::{Age, Compiler, Scope, Shapes, shapes},
    view::{View, ViewMut},
};
use yare_schema::builtin::builtin;

use crate::{
    context::{Context, Error},
    harness::{Next, Reconcile},
};

/// So many types are looked at for each rule.
const MAX_TYPES: usize = 10;

struct PolicyStatus {
    context: Context,
    policies: Informer,
}

/// The controller; keys are policies.
pub fn new(context: &Context) -> Arc<dyn Reconcile> {
    Arc::new(PolicyStatus {
        policies: context.informer(VALIDATING_ADMISSION_POLICIES),
        context: context.clone(),
    })
}

#[async_trait]
impl Reconcile for PolicyStatus {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(object) = self.policies.get(key) else { return Ok(Next::Done) };
        let policy: Value =
            serde_json::from_slice(object.bytes()).map_err(|e| Error::Other(format!("policy {key}: {e}")))?;
        let generation = policy.int_at("metadata.generation");
        if policy.int_at("status.observedGeneration") >= generation {
            return Ok(Next::Done);
        }
        let mut types = Vec::new();
        for kind in self.kinds_to_check(policy.items("spec.matchConstraints.resourceRules")).await? {
            types.extend(self.type_of(&kind).await?.map(|decl| (kind, decl)));
        }
        let param_kind = policy.at("spec.paramKind");
        let params = match param_kind.str_at("apiVersion").rsplit_once('/') {
            _ if param_kind.is_null() => None,
            Some((group, version)) => {
                self.type_of(&Kind::new(group, version, param_kind.str_at("kind"))).await?
            }
            None => {
                let version = param_kind.str_at("apiVersion");
                self.type_of(&Kind::new("", version, param_kind.str_at("kind"))).await?
            }
        };
        let warnings = check(policy.at("spec"), &types, params.as_ref());
        let mut status = policy.at("status").clone();
        if !status.is_object() {
            status = json!({});
        }
        status.set("observedGeneration", generation);
        status.set("typeChecking", json!({}));
        if !warnings.is_empty() {
            status.set("typeChecking.expressionWarnings", warnings);
        }
        self.context.api.update_status(&VALIDATING_ADMISSION_POLICIES, &object, &status).await?;
        Ok(Next::Done)
    }
}

/// A kind in a version, in the order in which warnings name them.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Kind {
    group: String,
    version: String,
    kind: String,
}

impl Kind {
    fn new(group: &str, version: &str, kind: &str) -> Self {
        Self { group: group.to_owned(), version: version.to_owned(), kind: kind.to_owned() }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}, Kind={}", self.group, self.version, self.kind)
    }
}

/// What `/apis/GROUP/VERSION` is for the core group as well.
fn root(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

impl PolicyStatus {
    /// A document of the server's; `None` where there is none.
    async fn document(&self, path: &str) -> Result<Option<Value>, Error> {
        match self.context.api.read(path, "application/json").await {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The kinds that the rules name outright: wildcards and subresources say nothing about types.
    async fn kinds_to_check(&self, rules: &[Value]) -> Result<BTreeSet<Kind>, Error> {
        let mut kinds = BTreeSet::new();
        for rule in rules {
            let names = |field: &str| -> BTreeSet<String> {
                rule.strings(field).iter().map(|s| (*s).to_owned()).collect()
            };
            let (groups, versions) = (names("apiGroups"), names("apiVersions"));
            if groups.iter().chain(&versions).any(|name| name.contains('*')) {
                continue;
            }
            let resources: BTreeSet<String> =
                names("resources").into_iter().filter(|r| !r.contains(['*', '/'])).collect();
            let mut found = 0;
            for group in &groups {
                for version in &versions {
                    let Some(list) = self.document(&format!("/{}", root(group, version))).await? else {
                        continue;
                    };
                    for resource in list.items("resources") {
                        if resources.contains(resource.str_at("name")) && found < MAX_TYPES {
                            kinds.insert(Kind::new(group, version, resource.str_at("kind")));
                            found += 1;
                        }
                    }
                }
            }
        }
        Ok(kinds)
    }

    /// The type of a kind; `None` where it is not known.
    async fn type_of(&self, kind: &Kind) -> Result<Option<yare_cel::Decl>, Error> {
        let Kind { group, version, kind: name } = kind;
        if let Some(ty) = builtin().lookup(group, version, name) {
            return Ok(Some(shapes::of_builtin(ty, name)));
        }
        let path = format!("/openapi/v3/{}", root(group, version));
        let Some(document) = self.document(&path).await? else { return Ok(None) };
        let of_kind = |schema: &&Value| {
            let marks = schema.get("x-kubernetes-group-version-kind").and_then(Value::as_array);
            marks.into_iter().flatten().any(|mark| {
                (mark.str_at("group"), mark.str_at("version"), mark.str_at("kind"))
                    == (group.as_str(), version.as_str(), name.as_str())
            })
        };
        let schemas = document.at("components.schemas").as_object();
        let schema = schemas.and_then(|all| all.values().find(of_kind));
        Ok(schema.and_then(|schema| shapes::of_schema(schema, name)))
    }
}

/// What is wrong with the expressions of a policy, for each type that it is about.
fn check(spec: &Value, types: &[(Kind, yare_cel::Decl)], params: Option<&yare_cel::Decl>) -> Vec<Value> {
    let scope = Scope::of_policy(spec.has("paramKind"));
    let mut compilers: Vec<(&Kind, Compiler<'_>)> = types
        .iter()
        .map(|(kind, decl)| {
            let mut compiler = Compiler::typed(Shapes { object: Some(decl), params });
            for variable in spec.items("variables") {
                // Its mistakes show where it is read.
                let (name, expression) = (variable.str_at("name"), variable.str_at("expression"));
                let _ = compiler.variable(name, expression, scope, Age::Stored);
            }
            (kind, compiler)
        })
        .collect();
    let mut warnings = Vec::new();
    for (i, validation) in spec.items("validations").iter().enumerate() {
        for field in ["expression", "messageExpression"] {
            let expression = validation.str_at(field);
            if expression.is_empty() {
                continue;
            }
            let found: Vec<String> = compilers
                .iter_mut()
                .filter_map(|(kind, compiler)| {
                    let wrong = compiler.check(expression, scope, Age::Stored)?;
                    Some(format!("{kind}: {wrong}\n"))
                })
                .collect();
            if !found.is_empty() {
                let at = format!("spec.validations[{i}].{field}");
                warnings.push(json!({"fieldRef": at, "warning": found.join("\n")}));
            }
        }
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_are_told_by_type() {
        let ty = |kind: &str| {
            let ty = builtin().lookup("apps", "v1", kind).unwrap();
            (Kind::new("apps", "v1", kind), shapes::of_builtin(ty, kind))
        };
        let types = [ty("DaemonSet"), ty("Deployment")];
        for (validation, expect) in [
            (
                json!({"expression": "object.metadata.name.startsWith('a') && object.spec.template.spec.containers.all(c, c.image != '')"}),
                vec![],
            ),
            (
                json!({"expression": "object.spec.replicas > 1"}),
                vec![
                    "spec.validations[0].expression: apps/v1, Kind=DaemonSet: ERROR: <input>:1:12: undefined field 'replicas'\n | object.spec.replicas > 1\n | ...........^\n",
                ],
            ),
            (
                json!({"expression": "object.metadata.name == 1", "messageExpression": "string(object.nothing)"}),
                vec![
                    "spec.validations[0].expression: apps/v1, Kind=DaemonSet: ERROR: <input>:1:22: found no matching overload for '_==_' applied to '(string, int)'\n | object.metadata.name == 1\n | .....................^\n\napps/v1, Kind=Deployment: ERROR: <input>:1:22: found no matching overload for '_==_' applied to '(string, int)'\n | object.metadata.name == 1\n | .....................^\n",
                    "spec.validations[0].messageExpression: apps/v1, Kind=DaemonSet: ERROR: <input>:1:14: undefined field 'nothing'\n | string(object.nothing)\n | .............^\n\napps/v1, Kind=Deployment: ERROR: <input>:1:14: undefined field 'nothing'\n | string(object.nothing)\n | .............^\n",
                ],
            ),
            (json!({"expression": "variables.r > 1 || variables.a == authorizer"}), vec![]),
        ] {
            let spec = json!({"validations": [validation], "variables": [{"name": "r", "expression": "object.spec.template.spec.containers.size()"}, {"name": "a", "expression": "broken("}]});
            let found: Vec<String> = check(&spec, &types, None)
                .iter()
                .map(|w| format!("{}: {}", w.str_at("fieldRef"), w.str_at("warning")))
                .collect();
            assert_eq!(found, expect, "{validation}");
        }
    }
}
