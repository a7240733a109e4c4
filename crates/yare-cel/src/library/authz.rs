//! `authorizer`: checks of what the caller may do, answered by whoever runs the expression.

use std::{any::Any, sync::Arc};

use super::{Cost, Function, row, standard::never};
use crate::{
    error::EvalError,
    value::{OpaqueValue, Value},
};

type Res<'a> = Result<Value<'a>, EvalError>;

pub(super) const FUNCTIONS: &[Function] = &[
    row(
        "path",
        Cost::Unit,
        path,
        &[(
            "authorizer_path",
            ".kubernetes.authorization.Authorizer, string -> kubernetes.authorization.PathCheck",
        )],
    ),
    row(
        "group",
        Cost::Unit,
        group,
        &[(
            "authorizer_group",
            ".kubernetes.authorization.Authorizer, string -> kubernetes.authorization.GroupCheck",
        )],
    ),
    row(
        "serviceAccount",
        Cost::Unit,
        service_account,
        &[(
            "authorizer_serviceaccount",
            ".kubernetes.authorization.Authorizer, string, string -> kubernetes.authorization.Authorizer",
        )],
    ),
    row(
        "resource",
        Cost::Unit,
        resource,
        &[(
            "groupcheck_resource",
            ".kubernetes.authorization.GroupCheck, string -> kubernetes.authorization.ResourceCheck",
        )],
    ),
    row(
        "subresource",
        Cost::Unit,
        subresource,
        &[(
            "resourcecheck_subresource",
            ".kubernetes.authorization.ResourceCheck, string -> kubernetes.authorization.ResourceCheck",
        )],
    ),
    row(
        "namespace",
        Cost::Unit,
        namespace,
        &[(
            "resourcecheck_namespace",
            ".kubernetes.authorization.ResourceCheck, string -> kubernetes.authorization.ResourceCheck",
        )],
    ),
    row(
        "name",
        Cost::Unit,
        name,
        &[(
            "resourcecheck_name",
            ".kubernetes.authorization.ResourceCheck, string -> kubernetes.authorization.ResourceCheck",
        )],
    ),
    row(
        "check",
        Cost::Check,
        check,
        &[
            (
                "pathcheck_check",
                ".kubernetes.authorization.PathCheck, string -> kubernetes.authorization.Decision",
            ),
            (
                "resourcecheck_check",
                ".kubernetes.authorization.ResourceCheck, string -> kubernetes.authorization.Decision",
            ),
        ],
    ),
    row(
        "errored",
        Cost::Unit,
        errored,
        &[("decision_errored", ".kubernetes.authorization.Decision -> bool")],
    ),
    row("error", Cost::Unit, error, &[("decision_error", ".kubernetes.authorization.Decision -> string")]),
    row(
        "allowed",
        Cost::Unit,
        allowed,
        &[("decision_allowed", ".kubernetes.authorization.Decision -> bool")],
    ),
    row("reason", Cost::Unit, reason, &[("decision_reason", ".kubernetes.authorization.Decision -> string")]),
];

pub(super) const SELECTORS: &[Function] = &[
    row(
        "fieldSelector",
        Cost::Selector,
        field_selector,
        &[(
            "authorizer_fieldselector",
            ".kubernetes.authorization.ResourceCheck, string -> kubernetes.authorization.ResourceCheck",
        )],
    ),
    row(
        "labelSelector",
        Cost::Selector,
        label_selector,
        &[(
            "authorizer_labelselector",
            ".kubernetes.authorization.ResourceCheck, string -> kubernetes.authorization.ResourceCheck",
        )],
    ),
];

/// The type of `authorizer`, to declare the variable with.
pub const AUTHORIZER_TYPE: &str = "kubernetes.authorization.Authorizer";
/// The type of `authorizer.requestResource`.
pub const RESOURCE_CHECK_TYPE: &str = "kubernetes.authorization.ResourceCheck";

/// For whom is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Who sent the request.
    Caller,
    /// A service account.
    ServiceAccount {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
}

/// A question to the authorizer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// For whom.
    pub subject: Subject,
    /// What is to be done: an API verb, or an HTTP one on a path.
    pub verb: String,
    /// To what.
    pub target: Target,
}

/// What a question is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A path of the server's.
    Path(String),
    /// A resource, of any version.
    Resource(Resource),
}

/// A resource, and which of its objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resource {
    /// Its group; empty for the core group.
    pub group: String,
    /// Its plural name.
    pub resource: String,
    /// Empty for the object itself.
    pub subresource: String,
    /// Empty for all, and for what has none.
    pub namespace: String,
    /// Empty for all.
    pub name: String,
    /// Unparsed; empty when there is none. One that does not parse is reported to the authorizer as such.
    pub field_selector: String,
    /// Unparsed, as above.
    pub label_selector: String,
}

/// An answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// Whether it is allowed.
    pub allowed: bool,
    /// Why, or why not.
    pub reason: String,
    /// What went wrong while deciding.
    pub error: Option<String>,
}

/// Answers questions, at once: an implementation that must wait does so itself.
pub trait Authorizer: Send + Sync {
    /// Whether the subject may.
    fn authorize(&self, attributes: &Attributes) -> Decision;
}

/// The value of `authorizer`.
pub fn authorizer(by: Arc<dyn Authorizer>) -> Value<'static> {
    Value::opaque(AuthorizerValue { by, subject: Subject::Caller })
}

/// The value of `authorizer.requestResource`: a check of the resource that the request is for.
pub fn request_resource(by: Arc<dyn Authorizer>, resource: Resource) -> Value<'static> {
    Value::opaque(ResourceCheck { authorizer: AuthorizerValue { by, subject: Subject::Caller }, resource })
}

#[derive(Clone)]
struct AuthorizerValue {
    by: Arc<dyn Authorizer>,
    subject: Subject,
}

impl std::fmt::Debug for AuthorizerValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authorizer").field("subject", &self.subject).finish_non_exhaustive()
    }
}

#[derive(Clone, Debug)]
struct PathCheck {
    authorizer: AuthorizerValue,
    path: String,
}

#[derive(Clone, Debug)]
struct GroupCheck {
    authorizer: AuthorizerValue,
    group: String,
}

#[derive(Clone, Debug)]
struct ResourceCheck {
    authorizer: AuthorizerValue,
    resource: Resource,
}

macro_rules! opaque {
    ($($of:ty: $name:literal,)*) => {
        $(impl OpaqueValue for $of {
            fn type_name(&self) -> &'static str {
                $name
            }
            fn equals(&self, _other: &dyn OpaqueValue) -> Option<bool> {
                None
            }
            fn as_any(&self) -> &dyn Any {
                self
            }
        })*
    };
}

opaque! {
    AuthorizerValue: "kubernetes.authorization.Authorizer",
    PathCheck: "kubernetes.authorization.PathCheck",
    GroupCheck: "kubernetes.authorization.GroupCheck",
    ResourceCheck: "kubernetes.authorization.ResourceCheck",
    Decision: "kubernetes.authorization.Decision",
}

/// The receiver and one string.
fn own<'v, T: 'static>(args: &'v [Value<'_>]) -> Result<(&'v T, &'v str), EvalError> {
    let receiver = args[0].downcast::<T>().ok_or(EvalError::NoSuchOverload)?;
    let text = args.get(1).and_then(Value::as_str).ok_or(EvalError::NoSuchOverload)?;
    Ok((receiver, text))
}

fn path<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    let (authorizer, path) = own::<AuthorizerValue>(args)?;
    if path.trim().is_empty() {
        return Err(EvalError::failed("path must not be empty"));
    }
    Ok(Value::opaque(PathCheck { authorizer: authorizer.clone(), path: path.to_owned() }))
}

fn group<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    let (authorizer, group) = own::<AuthorizerValue>(args)?;
    Ok(Value::opaque(GroupCheck { authorizer: authorizer.clone(), group: group.to_owned() }))
}

fn service_account<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    let (authorizer, namespace) = own::<AuthorizerValue>(args)?;
    let Some(name) = args.get(2).and_then(Value::as_str) else { return never(args) };
    if !super::format::is_dns1123_subdomain(name) {
        return Err(EvalError::failed("Invalid service account name"));
    }
    if !super::format::is_dns1123_label(namespace) {
        return Err(EvalError::failed("Invalid service account namespace"));
    }
    let subject = Subject::ServiceAccount { namespace: namespace.to_owned(), name: name.to_owned() };
    Ok(Value::opaque(AuthorizerValue { by: authorizer.by.clone(), subject }))
}

fn resource<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    let (check, resource) = own::<GroupCheck>(args)?;
    if resource.trim().is_empty() {
        return Err(EvalError::failed("resource must not be empty"));
    }
    let resource =
        Resource { group: check.group.clone(), resource: resource.to_owned(), ..Resource::default() };
    Ok(Value::opaque(ResourceCheck { authorizer: check.authorizer.clone(), resource }))
}

/// The same check with something added to its resource.
fn with<'a>(args: &[Value<'a>], set: impl FnOnce(&mut Resource, String)) -> Res<'a> {
    let (check, text) = own::<ResourceCheck>(args)?;
    let mut check = check.clone();
    set(&mut check.resource, text.to_owned());
    Ok(Value::opaque(check))
}

fn subresource<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    with(args, |resource, text| resource.subresource = text)
}

fn namespace<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    with(args, |resource, text| resource.namespace = text)
}

fn name<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    with(args, |resource, text| resource.name = text)
}

fn field_selector<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    with(args, |resource, text| resource.field_selector = text)
}

fn label_selector<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    with(args, |resource, text| resource.label_selector = text)
}

fn check<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    let (authorizer, verb, target) = if let Ok((check, verb)) = own::<PathCheck>(args) {
        (&check.authorizer, verb, Target::Path(check.path.clone()))
    } else {
        let (check, verb) = own::<ResourceCheck>(args)?;
        (&check.authorizer, verb, Target::Resource(check.resource.clone()))
    };
    let attributes = Attributes { subject: authorizer.subject.clone(), verb: verb.to_owned(), target };
    Ok(Value::opaque(authorizer.by.authorize(&attributes)))
}

fn decision<'v>(args: &'v [Value<'_>]) -> Result<&'v Decision, EvalError> {
    args[0].downcast::<Decision>().ok_or(EvalError::NoSuchOverload)
}

fn errored<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    Ok(Value::Bool(decision(args)?.error.is_some()))
}

fn error<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    Ok(Value::string(decision(args)?.error.as_deref().unwrap_or_default()))
}

fn allowed<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    Ok(Value::Bool(decision(args)?.allowed))
}

fn reason<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    Ok(Value::string(decision(args)?.reason.as_str()))
}
