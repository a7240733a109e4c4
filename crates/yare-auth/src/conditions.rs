//! Match conditions of authorization webhooks: a webhook is asked only where all of them hold
//! (`k8s.io/apiserver/pkg/authorization/cel`).

use serde_json::{Value, json};
use yare_schema::selector::{FieldOperator, FieldRequirement, Operator, Requirement};

use crate::{Action, User, expressions::Expression, gotext};

/// The conditions of one webhook.
#[derive(Debug, Default)]
pub struct Conditions {
    all: Vec<Expression>,
}

impl Conditions {
    pub(crate) fn new(all: Vec<Expression>) -> Self {
        Self { all }
    }

    /// Whether there are none, so that all matches.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Whether all hold of a question. One that is false decides, whatever became of others.
    ///
    /// # Errors
    /// What could not be evaluated, in one line.
    pub fn hold(&self, user: &User, action: &Action<'_>) -> Result<bool, String> {
        let request = request(user, action);
        let mut errors = Vec::new();
        for condition in &self.all {
            match condition.eval(&request).map(|value| value.as_bool()) {
                Ok(Some(true)) => {}
                Ok(Some(false)) => return Ok(false),
                Ok(None) => errors.push(format!(
                    "cel evaluation error: expression '{}' eval result type should be bool",
                    condition.text()
                )),
                Err(why) => errors.push(format!("cel evaluation error: {why}")),
            }
        }
        if errors.is_empty() { Ok(true) } else { Err(gotext::aggregate(&errors)) }
    }
}

/// `request`: other than on the wire, every string is there, also an empty one.
fn request(user: &User, action: &Action<'_>) -> Value {
    let mut spec = json!({
        "user": user.name, "groups": user.groups, "uid": user.uid, "extra": user.extra,
    });
    if action.resource.is_empty() {
        spec["nonResourceAttributes"] = json!({ "verb": action.verb, "path": action.path });
        return spec;
    }
    let mut resource = json!({
        "namespace": action.namespace, "verb": action.verb, "group": action.group, "version": action.version,
        "resource": action.resource, "subresource": action.subresource, "name": action.name,
    });
    for (field, requirements) in
        [("fieldSelector", fields(action.fields)), ("labelSelector", labels(action.labels))]
    {
        if !requirements.is_empty() {
            resource[field] = json!({ "requirements": requirements });
        }
    }
    spec["resourceAttributes"] = resource;
    spec
}

/// The requirements of a field selector, as reviews have them.
pub fn fields(all: &[FieldRequirement]) -> Vec<Value> {
    let one = |r: &FieldRequirement| {
        let operator = if r.operator == FieldOperator::Equals { "In" } else { "NotIn" };
        json!({ "key": &*r.field, "operator": operator, "values": [&*r.value] })
    };
    all.iter().map(one).collect()
}

/// The requirements of a label selector. Those of operators that reviews do not have are left out: without them
/// the question is a wider one.
pub fn labels(all: &[Requirement]) -> Vec<Value> {
    let one = |r: &Requirement| {
        let operator = match r.operator() {
            Operator::In | Operator::Equals | Operator::DoubleEquals => "In",
            Operator::NotIn | Operator::NotEquals => "NotIn",
            Operator::Exists => "Exists",
            Operator::DoesNotExist => "DoesNotExist",
            Operator::GreaterThan | Operator::LessThan => return None,
        };
        Some(json!({ "key": r.key(), "operator": operator, "values": r.values().collect::<Vec<_>>() }))
    };
    all.iter().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use yare_schema::selector::{FieldSelector, LabelSelector};

    use super::*;
    use crate::expressions::{About, Returns};

    #[test]
    fn they_hold_or_not() {
        let field_selector = FieldSelector::parse("spec.nodeName=n1").unwrap();
        let label_selector = LabelSelector::parse("a in (b,c),!d").unwrap();
        let pods = Action {
            verb: "list",
            version: "v1",
            resource: "pods",
            namespace: "ns",
            fields: field_selector.requirements(),
            labels: label_selector.requirements(),
            ..Action::default()
        };
        let path = Action { verb: "get", path: "/healthz", ..Action::default() };
        let jane = User::new("jane", &["dev"]);
        let hold = |texts: &[&str], action: &Action<'_>| {
            let compile =
                |text: &&str| Expression::compile(text, About::Request, Returns::NamedBool).unwrap().0;
            Conditions::new(texts.iter().map(compile).collect()).hold(&jane, action)
        };
        for (texts, action, expect) in [
            (
                &["has(request.resourceAttributes)", "request.user == 'jane' && request.uid == ''"][..],
                &pods,
                Ok(true),
            ),
            (&["has(request.resourceAttributes)"], &path, Ok(false)),
            (&["request.nonResourceAttributes.path == '/healthz'"], &path, Ok(true)),
            (
                &["request.resourceAttributes.name == '' && request.resourceAttributes.group == ''"],
                &pods,
                Ok(true),
            ),
            (
                &["'dev' in request.groups && !('ops' in request.groups) && request.extra.size() == 0"],
                &pods,
                Ok(true),
            ),
            (
                &[
                    "request.resourceAttributes.fieldSelector.requirements.exists(r, r.key == 'spec.nodeName' && r.operator == 'In' && r.values == ['n1'])",
                ],
                &pods,
                Ok(true),
            ),
            (
                &[
                    "request.resourceAttributes.labelSelector.requirements.map(r, r.operator) == ['In', 'DoesNotExist'] && request.resourceAttributes.labelSelector.requirements[1].values.size() == 0",
                ],
                &pods,
                Ok(true),
            ),
            (
                &["request.resourceAttributes.name == 'x'", "request.user == 'jane'"],
                &path,
                Err(
                    "cel evaluation error: expression 'request.resourceAttributes.name == 'x'' resulted in error: no such key: resourceAttributes",
                ),
            ),
            // What is false decides, also behind an error.
            (&["request.resourceAttributes.name == 'x'", "request.user == 'joe'"], &path, Ok(false)),
        ] {
            assert_eq!(hold(texts, action), expect.map_err(str::to_owned), "{texts:?}");
        }
    }
}
