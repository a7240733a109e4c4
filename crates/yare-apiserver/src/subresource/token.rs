//! `serviceaccounts/token`: a signed token for a service account, bound to what it should die with.

use std::sync::Arc;

use http::StatusCode;
use serde_json::{Value, json};
use yare_auth::token::{Reference, credential_id};
use yare_kinds::view::{View, ViewMut};
use yare_schema::field::{FieldError, Path};

use crate::{
    admission::{self, Attributes, Operation},
    auth::{self, TokenSpec},
    body::Reply,
    codec,
    core::{Call, rfc3339},
    options::WriteOptions,
    registry::{Served, TypeHandle},
    render,
    status::{ApiError, ApiResult, GroupResource},
    verbs::write,
};

const KIND: GroupResource<'_> = GroupResource { group: "authentication.k8s.io", resource: "TokenRequest" };
const MIN_SECONDS: i64 = 600;
const DEFAULT_SECONDS: i64 = 3600;
const MAX_SECONDS: i64 = 1 << 32;

/// Issues a token.
pub async fn create(call: &Call, served: &Arc<Served>, body: &[u8]) -> ApiResult<Reply> {
    let options = WriteOptions::parse(&call.query, "CreateOptions", None, call.user_agent())?;
    let expected = codec::Expected { group: KIND.group, version: "v1", kind: KIND.resource, custom: false };
    let ty = codec::builtin_type(KIND.group, "v1", KIND.resource)
        .ok_or_else(|| ApiError::internal("no type for TokenRequest"))?;
    let mut request =
        codec::decode_body(call, &TypeHandle::Static(ty), &expected, body, options.field_validation)?;
    let (namespace, name) = (call.info.namespace.as_str(), call.info.name.as_str());
    write::settle_namespace(served, &mut request, namespace)?;
    let attributes = Attributes::new(call, served, Operation::Create, options.dry_run);
    admission::mutate(&attributes, &mut request, None).await?;
    let metadata = Path::new("metadata");
    for (field, wanted, word) in [("name", name, "name"), ("namespace", namespace, "namespace")] {
        let given = request.at("metadata").str_at(field);
        if !given.is_empty() && given != wanted {
            let detail = format!("must match the service account {word} if specified");
            let error = FieldError::invalid(&metadata.child(field), given, detail);
            return Err(ApiError::invalid(KIND, name, &[error]));
        }
    }
    let Some(account) = call.core.read("serviceaccounts", &format!("{namespace}/{name}")) else {
        return Err(ApiError::not_found(served.group_resource(), name));
    };
    let (uid, given) = (account.str_at("metadata.uid"), request.str_at("metadata.uid"));
    if !given.is_empty() && given != uid {
        let why = format!(
            "the UID in the token request ({given}) does not match the UID of the service account ({uid})"
        );
        if call.core.config.gates.is_on("TokenRequestServiceAccountUIDValidation") {
            return Err(ApiError::conflict(KIND, name, why));
        }
        call.warn(format!(
            "{why} but TokenRequestServiceAccountUIDValidation is not enabled. In the future, this will return a conflict error"
        ));
        call.annotate("authentication.k8s.io/token-request-uid-mismatch", why);
    }
    // Whoever may refuse the request sees it with all that was left to the server.
    if request.items("spec.audiences").is_empty() {
        request.set("spec.audiences", call.core.config.auth.audiences().to_vec());
    }
    request.default_absent("spec.expirationSeconds", DEFAULT_SECONDS);
    // Said also where there is none.
    request.default_absent("spec.boundObjectRef", Value::Null);
    request.set("metadata.name", name);
    request.set("metadata.namespace", namespace);
    request.default_zero("metadata.uid", uid);
    request.set("metadata.creationTimestamp", call.core.now_rfc3339());
    request.remove("status");
    let seconds = request.int_at("spec.expirationSeconds");
    let wrong = if seconds < MIN_SECONDS {
        Some("may not specify a duration less than 10 minutes")
    } else {
        (seconds > MAX_SECONDS).then_some("may not specify a duration larger than 2^32 seconds")
    };
    if let Some(why) = wrong {
        let spec = Path::new("spec");
        let error = FieldError::invalid(&spec.child("expirationSeconds"), seconds, why);
        return Err(ApiError::invalid(KIND, "", &[error]));
    }
    admission::validate(&attributes, Some(&request), None).await?;
    let mut spec = TokenSpec {
        namespace: namespace.to_owned(),
        account: Reference { name: name.to_owned(), uid: uid.to_owned() },
        audiences: request.strings("spec.audiences").iter().map(|a| (*a).to_owned()).collect(),
        expiration_s: seconds,
        ..TokenSpec::default()
    };
    if request.has("spec.boundObjectRef") {
        let (kind, reference, node) = bound(call, &request, namespace, name)?;
        spec.bound = Some((kind, reference));
        spec.node = node;
    }
    if let Some(max) = call.core.config.auth.service_accounts.max_expiration_s
        && spec.expiration_s > max
    {
        call.warn(format!("requested expiration of {seconds} seconds shortened to {max} seconds"));
        spec.expiration_s = max;
    }
    let seconds = spec.expiration_s;
    let issued = auth::issue(&call.core, spec).await?;
    let expires = jiff::Timestamp::from_second(issued.expires_s).map_err(ApiError::internal)?;
    call.annotate("authentication.kubernetes.io/issued-credential-id", credential_id(&issued.jti));
    request.set("spec.audiences", issued.audiences);
    request.set("spec.expirationSeconds", seconds);
    request.set("status", json!({ "token": issued.token, "expirationTimestamp": rfc3339(expires) }));
    render::document(call, StatusCode::CREATED, &request)
}

/// What the token is bound to, checked against the store, and the node of a pod.
fn bound(
    call: &Call,
    request: &Value,
    namespace: &str,
    account: &str,
) -> ApiResult<(String, Reference, Option<Reference>)> {
    let core = &call.core;
    let wanted = request.at("spec.boundObjectRef");
    let (kind, name, uid) = (wanted.str_at("kind"), wanted.str_at("name"), wanted.str_at("uid"));
    let (group, version) =
        wanted.str_at("apiVersion").split_once('/').unwrap_or(("", wanted.str_at("apiVersion")));
    let (plural, key) = match (group, kind) {
        ("", "Pod") => ("pods", format!("{namespace}/{name}")),
        ("", "Secret") => ("secrets", format!("{namespace}/{name}")),
        ("", "Node") => ("nodes", name.to_owned()),
        _ => {
            return Err(ApiError::bad_request(format!(
                "cannot bind token to object of type {group}/{version}, Kind={kind}"
            )));
        }
    };
    if name.is_empty() {
        return Err(ApiError::bad_request("Name parameter required."));
    }
    let what = GroupResource { group: "", resource: plural };
    let Some(object) = core.read(plural, &key) else { return Err(ApiError::not_found(what, name)) };
    let have = object.str_at("metadata.uid");
    let mut node = None;
    if kind == "Pod" {
        if object.str_at("spec.serviceAccountName") != account {
            return Err(ApiError::bad_request(format!(
                "cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount name."
            )));
        }
        let node_name = object.str_at("spec.nodeName");
        if !node_name.is_empty() {
            let uid = core
                .read("nodes", node_name)
                .map(|n| n.str_at("metadata.uid").to_owned())
                .unwrap_or_default();
            node = Some(Reference { name: node_name.to_owned(), uid });
        }
    }
    if !uid.is_empty() && uid != have {
        let what = GroupResource { group: "", resource: kind };
        let why = format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        return Err(ApiError::conflict(what, name, why));
    }
    Ok((kind.to_owned(), Reference { name: name.to_owned(), uid: have.to_owned() }, node))
}
