//! Policies from a file decide, beside RBAC.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;
#[path = "common/secure.rs"]
mod secure;

use std::sync::Arc;

use http::Method;
use secure::{cluster_with, issue};
use serde_json::{Value, json};
use yare_apiserver::auth::Chain;
use yare_auth::{abac::Abac, config::authorization::AuthorizationConfiguration, pki::Usage};

const PODS: &str = "/api/v1/namespaces/default/pods";
const NONE: Value = Value::Null;

#[tokio::test]
async fn policies_decide_and_are_listed() {
    let modes = ["ABAC".to_owned(), "RBAC".to_owned()];
    let policy = json!({
        "apiVersion": "abac.authorization.kubernetes.io/v1beta1", "kind": "Policy",
        "spec": {"user": "jane", "namespace": "default", "resource": "pods", "readonly": true},
    });
    let cluster = cluster_with(|config, _| {
        let chain = AuthorizationConfiguration::of_modes(&modes, None).unwrap();
        config.auth.chain.store(Arc::new(Chain::new(&chain).unwrap()));
        config.auth.abac = Some(Abac::parse(&policy.to_string()).unwrap());
    })
    .await;
    let [jane, joe] = ["jane", "joe"].map(|name| issue(&cluster.pki.cluster, Usage::Client, name, &[]));
    for (who, method, path, code) in [
        (&jane, Method::GET, PODS, 200),
        (&jane, Method::GET, "/api/v1/pods", 403),
        (&jane, Method::DELETE, "/api/v1/namespaces/default/pods/x", 403),
        (&joe, Method::GET, PODS, 403),
        // What RBAC gives everybody.
        (&joe, Method::GET, "/version", 200),
    ] {
        let (found, status) = cluster.json(Some(who), method.clone(), path, &[], &NONE).await;
        assert_eq!(found, code, "{method} {path}: {status}");
    }
    let (_, refused) = cluster.json(Some(&joe), Method::GET, PODS, &[], &NONE).await;
    let message = refused["message"].as_str().unwrap();
    assert!(message.ends_with("in the namespace \"default\": No policy matched."), "{message}");
    let review = json!({"spec": {"namespace": "default"}});
    let path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
    let (_, rules) = cluster.json(Some(&jane), Method::POST, path, &[], &review).await;
    let wanted = json!({"verbs": ["get", "list", "watch"], "apiGroups": [""], "resources": ["pods"]});
    assert!(rules["status"]["resourceRules"].as_array().unwrap().contains(&wanted), "{rules}");
    cluster.api.shutdown().await;
}
