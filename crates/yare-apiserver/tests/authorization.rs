//! What callers may do: authorizers and their webhooks, acting in another's name, grants, reviews.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;
#[path = "common/outside.rs"]
mod outside;
#[path = "common/secure.rs"]
mod secure;

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::Full;
use outside::{NONE, Outside, metrics, outside};
use secure::{cluster, cluster_with, issue};
use serde_json::{Value, json};
use tower::ServiceExt as _;
use yare_apiserver::auth::Chain;
use yare_auth::{User, config::authorization::AuthorizationConfiguration, pki::Usage};

const PODS: &str = "/api/v1/namespaces/default/pods";

fn chain(hook: &Outside, dir: &Path, policy: &str) -> String {
    let file = hook.kubeconfig(dir, "/access");
    json!({
        "apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthorizationConfiguration",
        "authorizers": [
            {"type": "Webhook", "name": "hook", "webhook": {
                "timeout": "3s", "subjectAccessReviewVersion": "v1", "failurePolicy": policy,
                "authorizedTTL": "1m", "unauthorizedTTL": "1m",
                "connectionInfo": {"type": "KubeConfigFile", "kubeConfigFile": file}}},
            {"type": "Node", "name": "node"},
            {"type": "RBAC", "name": "rbac"},
        ],
    })
    .to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_that_decides() {
    let hook = outside(|_, body| {
        let spec = &body["spec"];
        let resource = &spec["resourceAttributes"];
        let status = match (
            spec["user"].as_str().unwrap_or_default(),
            resource["verb"].as_str().unwrap_or_default(),
        ) {
            ("jane", "list") => json!({"allowed": true, "reason": "she lists"}),
            ("jane", "delete") => json!({"allowed": false, "denied": true, "reason": "never"}),
            ("jane", "bind") | ("jane", "create") => json!({"allowed": true}),
            ("broken", _) => return None,
            _ => json!({"reason": "no idea"}),
        };
        Some(json!({"apiVersion": body["apiVersion"], "kind": "SubjectAccessReview", "status": status}))
    })
    .await;
    let cluster = cluster_with(|config, dir| {
        let file = dir.join("authorization.yaml");
        std::fs::write(&file, chain(&hook, dir, "Deny")).unwrap();
        let parsed = AuthorizationConfiguration::parse(&std::fs::read(&file).unwrap(), &[]).unwrap();
        config.auth.chain.store(Arc::new(Chain::new(&parsed).unwrap()));
        config.auth.files.authorization = Some(file);
        config.auth.files.required = vec!["RBAC".into()];
    })
    .await;
    let jane = issue(&cluster.pki.cluster, Usage::Client, "jane", &["dev"]);
    let list = format!("{PODS}?fieldSelector=spec.nodeName%3Dn1&labelSelector=a%3Db");
    for _ in 0..2 {
        assert_eq!(cluster.json(Some(&jane), Method::GET, &list, &[], &NONE).await.0, 200);
    }
    assert_eq!(hook.count("/access"), 1, "answers are kept");
    let asked = hook.asked.lock()[0]["body"]["spec"].clone();
    assert_eq!(
        asked["resourceAttributes"],
        json!({
            "namespace": "default", "verb": "list", "version": "v1", "resource": "pods",
            "fieldSelector": {"requirements": [{"key": "spec.nodeName", "operator": "In", "values": ["n1"]}]},
            "labelSelector": {"requirements": [{"key": "a", "operator": "In", "values": ["b"]}]},
        })
    );
    let (code, status) = cluster.json(Some(&jane), Method::DELETE, &format!("{PODS}/p"), &[], &NONE).await;
    assert_eq!(code, 403);
    assert!(status["message"].as_str().unwrap().ends_with(": never"), "{status}");
    // Nobody's opinion: the next ones are asked, and all reasons are given.
    let (code, status) = cluster.json(Some(&jane), Method::GET, &format!("{PODS}/p"), &[], &NONE).await;
    assert_eq!(code, 403);
    assert!(status["message"].as_str().unwrap().ends_with(": no idea"), "{status}");
    // The administrator is never in its hands, and a hook inside a write waits for it.
    assert_eq!(cluster.json(Some(&cluster.admin()), Method::GET, PODS, &[], &NONE).await.0, 200);
    let binding = json!({
        "metadata": {"name": "b"}, "subjects": [{"kind": "User", "name": "x", "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"kind": "ClusterRole", "name": "cluster-admin", "apiGroup": "rbac.authorization.k8s.io"},
    });
    let bindings = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
    assert_eq!(cluster.json(Some(&jane), Method::POST, bindings, &[], &binding).await.0, 201);
    // A review shows a denial and what went wrong.
    let reviews = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    let review = |user: &str, verb: &str| json!({"spec": {"user": user, "resourceAttributes": {"verb": verb, "resource": "pods", "namespace": "default"}}});
    let answer = cluster.create(reviews, &review("jane", "delete")).await;
    assert_eq!(answer["status"], json!({"allowed": false, "denied": true, "reason": "never"}));
    let answer = cluster.create(reviews, &review("broken", "get")).await;
    assert_eq!((&answer["status"]["allowed"], &answer["status"]["denied"]), (&json!(false), &json!(true)));
    assert_eq!(answer["status"]["evaluationError"], "the server could not find the requested resource");
    let broken = issue(&cluster.pki.cluster, Usage::Client, "broken", &[]);
    assert_eq!(cluster.json(Some(&broken), Method::GET, PODS, &[], &NONE).await.0, 500);
    let rules = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
    let answer = cluster.create(rules, &json!({"spec": {"namespace": "default"}})).await;
    assert_eq!(answer["status"]["incomplete"], true);
    assert_eq!(
        answer["status"]["evaluationError"],
        "webhook authorizer does not support user rule resolution"
    );
    // The file changes: now a webhook that fails is passed over. A chain without RBAC is not taken.
    let file = cluster.dir.path().join("authorization.yaml");
    std::fs::write(&file, "authorizers: []").unwrap();
    std::fs::write(&file, chain(&hook, cluster.dir.path(), "NoOpinion")).unwrap();
    let mut answer = NONE;
    for _ in 0..500 {
        answer = cluster.create(reviews, &review("broken", "get")).await;
        if answer["status"]["denied"].is_null() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(answer["status"]["denied"], NONE);
    // What is counted, before the file changed and after.
    let page = metrics(&cluster).await;
    for line in [
        "apiserver_authorization_decisions_total{type=\"Webhook\",name=\"hook\",decision=\"denied\"}",
        "apiserver_authorization_webhook_evaluations_total{name=\"hook\",result=\"success\"}",
        "apiserver_authorization_webhook_evaluations_total{name=\"hook\",result=\"error\"}",
        "apiserver_authorization_webhook_evaluations_fail_open_total{name=\"hook\",result=\"error\"} 1",
        "apiserver_authorization_webhook_duration_seconds_count{name=\"hook\",result=\"success\"}",
        "authorization_attempts_total{result=\"denied\"} 1",
        "apiserver_authorization_config_controller_automatic_reloads_total{status=\"success\"",
        "apiserver_authorization_config_controller_last_config_info{",
    ] {
        assert!(page.lines().any(|l| l.starts_with(line)), "{line}\n{page}");
    }
    cluster.api.shutdown().await;
}

/// A webhook is asked only where its conditions hold; one that fails counts as its failure policy says.
#[tokio::test]
async fn conditions_of_a_webhook() {
    let hook = outside(|_, body| {
        Some(json!({"apiVersion": body["apiVersion"], "kind": "SubjectAccessReview", "status": {"allowed": true}}))
    })
    .await;
    let cluster = cluster_with(|config, dir| {
        let mut text: Value = serde_json::from_str(&chain(&hook, dir, "Deny")).unwrap();
        let webhook = &mut text["authorizers"][0]["webhook"];
        webhook["matchConditionSubjectAccessReviewVersion"] = "v1".into();
        webhook["matchConditions"] = json!([
            {"expression": "has(request.resourceAttributes)"},
            {"expression": "request.user != 'joe'"},
            {"expression": "request.resourceAttributes.name != 'broken' || request.extra['missing'].size() > 0"},
            {"expression": "!has(request.resourceAttributes.fieldSelector) || request.resourceAttributes.fieldSelector.requirements.all(r, r.key != 'spec.nodeName')"},
        ]);
        let parsed = AuthorizationConfiguration::parse(text.to_string().as_bytes(), &[]).unwrap();
        config.auth.chain.store(Arc::new(Chain::new(&parsed).unwrap()));
    })
    .await;
    let jane = issue(&cluster.pki.cluster, Usage::Client, "jane", &[]);
    let joe = issue(&cluster.pki.cluster, Usage::Client, "joe", &[]);
    let narrow = format!("{PODS}?fieldSelector=spec.nodeName%3Dn1");
    for (who, path, code) in [
        (&jane, PODS, 200),
        (&joe, PODS, 403),
        (&jane, narrow.as_str(), 403),
        (&jane, "/metrics", 403),
        (&jane, &format!("{PODS}/broken"), 500),
    ] {
        let answer = cluster.json(Some(who), Method::GET, path, &[], &NONE).await;
        assert_eq!(answer.0, code, "{path} {}", answer.1);
    }
    assert_eq!(hook.count("/access"), 1);
    let page = metrics(&cluster).await;
    for line in [
        "apiserver_authorization_match_condition_exclusions_total{type=\"Webhook\",name=\"hook\"} 3",
        "apiserver_authorization_match_condition_evaluation_errors_total{type=\"Webhook\",name=\"hook\"} 1",
        "apiserver_authorization_match_condition_evaluation_seconds_count{type=\"Webhook\",name=\"hook\"} 5",
    ] {
        assert!(page.lines().any(|l| l == line), "{line}\n{page}");
    }
    cluster.api.shutdown().await;
}

#[tokio::test]
async fn acting_in_anothers_name() {
    let cluster = cluster().await;
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let grant = async |who: &str, name: &str, rules: Value| {
        cluster
            .create(&format!("{rbac}/clusterroles"), &json!({"metadata": {"name": name}, "rules": rules}))
            .await;
        let binding = json!({
            "metadata": {"name": name}, "subjects": [{"kind": "User", "name": who, "apiGroup": "rbac.authorization.k8s.io"}],
            "roleRef": {"kind": "ClusterRole", "name": name, "apiGroup": "rbac.authorization.k8s.io"},
        });
        cluster.create(&format!("{rbac}/clusterrolebindings"), &binding).await;
    };
    grant(
        "bob",
        "reads",
        json!([{"apiGroups": [""], "resources": ["pods", "configmaps"], "verbs": ["list"]}]),
    )
    .await;
    // The old way: everything bob may.
    grant("old", "old", json!([{"apiGroups": [""], "resources": ["users"], "resourceNames": ["bob"], "verbs": ["impersonate"]}])).await;
    let old = issue(&cluster.pki.cluster, Usage::Client, "old", &[]);
    let as_bob = [("impersonate-user", "bob")];
    assert_eq!(cluster.json(Some(&old), Method::GET, PODS, &as_bob, &NONE).await.0, 200);
    // Whoever succeeded in one way is told what is missing for that.
    let as_carol = [("impersonate-user", "carol")];
    let (code, status) = cluster.json(Some(&old), Method::GET, PODS, &as_carol, &NONE).await;
    assert_eq!(code, 403);
    assert_eq!(
        status["message"],
        "users \"carol\" is forbidden: User \"old\" cannot impersonate resource \"users\" in API group \"\" at the cluster scope"
    );
    // The constrained way: only pods.
    grant(
        "new",
        "new",
        json!([
            {"apiGroups": ["authentication.k8s.io"], "resources": ["users"], "resourceNames": ["bob"], "verbs": ["impersonate:user-info"]},
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["impersonate-on:user-info:list"]},
        ]),
    )
    .await;
    let new = issue(&cluster.pki.cluster, Usage::Client, "new", &[]);
    assert_eq!(cluster.json(Some(&new), Method::GET, PODS, &as_bob, &NONE).await.0, 200);
    let (code, status) =
        cluster.json(Some(&new), Method::GET, "/api/v1/namespaces/default/configmaps", &as_bob, &NONE).await;
    assert_eq!(code, 403);
    assert_eq!(
        status["message"],
        "configmaps is forbidden: User \"new\" cannot impersonate-on:user-info:list resource \"configmaps\" in API group \"\" in the namespace \"default\""
    );
    // Never the administrators' group, whatever the rules say.
    grant("all", "all", json!([{"apiGroups": ["*"], "resources": ["*"], "verbs": ["impersonate:user-info", "impersonate-on:user-info:list"]}])).await;
    let all = issue(&cluster.pki.cluster, Usage::Client, "all", &[]);
    assert_eq!(cluster.json(Some(&all), Method::GET, PODS, &as_bob, &NONE).await.0, 200);
    let masters = [("impersonate-user", "bob"), ("impersonate-group", "system:masters")];
    let (code, status) = cluster.json(Some(&all), Method::GET, PODS, &masters, &NONE).await;
    assert_eq!(code, 403);
    assert!(
        status["message"]
            .as_str()
            .unwrap()
            .ends_with("impersonating the system:masters group is not allowed"),
        "{status}"
    );
    // A whole identity.
    let admin = cluster.admin();
    let whole = [
        ("impersonate-user", "bob"),
        ("impersonate-uid", "9"),
        ("impersonate-group", "x"),
        ("impersonate-extra-example.org%2fa", "b"),
    ];
    let (code, user) = cluster.who(Some(&admin), &whole).await;
    assert_eq!(code, 201);
    assert_eq!(
        user,
        json!({"username": "bob", "uid": "9", "groups": ["x", "system:authenticated"], "extra": {"example.org/a": ["b"]}})
    );
    let account = [("impersonate-user", "system:serviceaccount:ns:sa")];
    let (_, user) = cluster.who(Some(&admin), &account).await;
    assert_eq!(
        user["groups"],
        json!(["system:serviceaccounts", "system:serviceaccounts:ns", "system:authenticated"])
    );
    let node = [("impersonate-user", "system:node:n1")];
    assert_eq!(
        cluster.who(Some(&admin), &node).await.1["groups"],
        json!(["system:nodes", "system:authenticated"])
    );
    // An anonymous caller may ask for the version, and not who it is.
    let anonymous = [("impersonate-user", "system:anonymous")];
    assert_eq!(cluster.json(Some(&admin), Method::GET, "/version", &anonymous, &NONE).await.0, 200);
    assert_eq!(cluster.who(Some(&admin), &anonymous).await.0, 403);
    let page = metrics(&cluster).await;
    for line in [
        // Of the old one, and all of the administrator's.
        r#"apiserver_impersonation_attempts_total{decision="allowed",mode="legacy"} 1"#,
        r#"apiserver_impersonation_attempts_total{decision="allowed",mode="user-info"} 5"#,
        r#"apiserver_impersonation_attempts_total{decision="denied",mode=""} 3"#,
        r#"apiserver_impersonation_attempts_duration_seconds_count{decision="allowed",mode="user-info"} 5"#,
        r#"apiserver_impersonation_authorization_attempts_total{decision="denied",mode="legacy"} 3"#,
        r#"apiserver_impersonation_authorization_attempts_duration_seconds_count{decision="denied",mode="legacy"} 3"#,
        r#"apiserver_request_filter_duration_seconds_count{filter="constrainedimpersonation"} 11"#,
    ] {
        assert!(page.lines().any(|l| l == line), "{line}\n{page}");
    }
    assert_eq!(cluster.who(Some(&admin), &[("impersonate-group", "x")]).await.0, 400);
    cluster.api.shutdown().await;
}

/// Authorizers follow the store a moment behind; a refusal must not come of that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_last_request_granted_holds() {
    let cluster = cluster().await;
    let send = async |user: User, method: &str, path: &str, body: &Value| {
        let bytes = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
        let request = Request::builder().method(method).uri(path).body(Full::new(bytes)).unwrap();
        cluster.api.service(user).oneshot(request).await.unwrap().status().as_u16()
    };
    let create = async |path: &str, object: Value| {
        assert_eq!(send(User::admin(), "POST", path, &object).await, 201, "{path}");
    };
    create("/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "default"}})).await;
    create("/api/v1/namespaces/default/configmaps", json!({"metadata": {"name": "c"}})).await;
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let rules = json!([{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"]}]);
    create(&format!("{rbac}/clusterroles"), json!({"metadata": {"name": "reads"}, "rules": rules})).await;
    let config_map = "/api/v1/namespaces/default/configmaps/c";
    for n in 0..40 {
        let (node, user) = (format!("n{n}"), format!("u{n}"));
        let agent = User::new(format!("system:node:{node}"), &["system:nodes"]);
        assert_eq!(send(agent.clone(), "GET", config_map, &NONE).await, 403);
        let pod = json!({"metadata": {"name": node}, "spec": {
            "nodeName": node, "containers": [{"name": "c", "image": "i"}],
            "volumes": [{"name": "v", "configMap": {"name": "c"}}],
        }});
        create(PODS, pod).await;
        assert_eq!(send(agent, "GET", config_map, &NONE).await, 200, "{node}");

        let person = User::new(user.clone(), &[]);
        let binding = json!({
            "metadata": {"name": user}, "subjects": [{"kind": "User", "name": user, "apiGroup": "rbac.authorization.k8s.io"}],
            "roleRef": {"kind": "ClusterRole", "name": "reads", "apiGroup": "rbac.authorization.k8s.io"},
        });
        create(&format!("{rbac}/namespaces/default/rolebindings"), binding).await;
        assert_eq!(send(person, "GET", config_map, &NONE).await, 200, "{user}");
    }
    cluster.api.shutdown().await;
}

#[tokio::test]
async fn nobody_grants_more_than_he_holds() {
    let cluster = cluster().await;
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let editor = json!({"metadata": {"name": "editor"}, "rules": [
        {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles", "clusterrolebindings"], "verbs": ["create", "update", "patch", "get", "list"]},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]},
    ]});
    cluster.create(&format!("{rbac}/clusterroles"), &editor).await;
    let binding = json!({
        "metadata": {"name": "editor"}, "subjects": [{"kind": "User", "name": "ed", "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"kind": "ClusterRole", "name": "editor", "apiGroup": "rbac.authorization.k8s.io"},
    });
    cluster.create(&format!("{rbac}/clusterrolebindings"), &binding).await;
    let ed = issue(&cluster.pki.cluster, Usage::Client, "ed", &["g"]);
    let roles = format!("{rbac}/clusterroles");
    assert_eq!(cluster.json(Some(&ed), Method::GET, &roles, &[], &NONE).await.0, 200);
    let role = |name: &str, verbs: &[&str]| json!({"metadata": {"name": name}, "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": verbs}]});
    assert_eq!(cluster.json(Some(&ed), Method::POST, &roles, &[], &role("a", &["get"])).await.0, 201);
    let (code, status) =
        cluster.json(Some(&ed), Method::POST, &roles, &[], &role("b", &["get", "list", "watch"])).await;
    assert_eq!(code, 403);
    assert_eq!(
        status["message"],
        "clusterroles.rbac.authorization.k8s.io \"b\" is forbidden: user \"ed\" (groups=[\"g\" \"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"list\" \"watch\"]}"
    );
    let mut gathering = role("c", &["get"]);
    gathering["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {"a": "b"}}]});
    let (code, status) = cluster.json(Some(&ed), Method::POST, &roles, &[], &gathering).await;
    assert_eq!(code, 403);
    assert!(
        status["message"]
            .as_str()
            .unwrap()
            .ends_with("must have cluster-admin privileges to use the aggregationRule"),
        "{status}"
    );
    // A strong role may not even get a label from him; a finalizer may go.
    let merge = [("content-type", "application/merge-patch+json")];
    let strong = format!("{roles}/cluster-admin");
    let label = json!({"metadata": {"labels": {"x": "y"}}});
    assert_eq!(cluster.json(Some(&ed), Method::PATCH, &strong, &merge, &label).await.0, 403);
    let finalizer = json!({"metadata": {"finalizers": ["a.b/c"]}});
    assert_eq!(cluster.json(Some(&ed), Method::PATCH, &strong, &merge, &finalizer).await.0, 200);
    cluster.api.shutdown().await;
}

#[tokio::test]
async fn access_reviews() {
    let cluster = cluster().await;
    let reviews = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    let ask = async |spec: Value| {
        let (code, answer) =
            cluster.json(Some(&cluster.admin()), Method::POST, reviews, &[], &json!({"spec": spec})).await;
        if code == 201 { answer["status"].clone() } else { answer["message"].clone() }
    };
    let node = |more: Value| {
        let mut resource = json!({"verb": "list", "resource": "pods", "version": "v1"});
        for (k, v) in more.as_object().unwrap() {
            resource[k] = v.clone();
        }
        json!({"user": "system:node:n1", "groups": ["system:nodes"], "resourceAttributes": resource})
    };
    // Selectors narrow what a node agent asks for.
    assert_eq!(ask(node(json!({}))).await["allowed"], false);
    assert_eq!(
        ask(node(json!({"fieldSelector": {"rawSelector": "spec.nodeName=n1"}}))).await,
        json!({"allowed": true})
    );
    let own = json!({"fieldSelector": {"requirements": [{"key": "spec.nodeName", "operator": "In", "values": ["n1"]}]}});
    assert_eq!(ask(node(own)).await["allowed"], true);
    let half = json!({"fieldSelector": {"requirements": [
        {"key": "spec.nodeName", "operator": "In", "values": ["n1"]}, {"key": "a", "operator": "Later", "values": ["b"]}]}});
    assert_eq!(
        ask(node(half)).await,
        json!({"allowed": true, "evaluationError": "spec.resourceAttributes.fieldSelector partially ignored due to parse error"})
    );
    let broken = json!({"labelSelector": {"rawSelector": "a in"}});
    assert_eq!(
        ask(node(broken)).await["evaluationError"],
        "spec.resourceAttributes.labelSelector ignored due to parse error"
    );
    for (spec, error) in [
        (
            json!({"user": "a"}),
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        ),
        (json!({"resourceAttributes": {}}), "at least one of user or group must be specified"),
        (
            json!({"user": "a", "resourceAttributes": {}, "nonResourceAttributes": {}}),
            "cannot be specified in combination with resourceAttributes",
        ),
        (node(json!({"fieldSelector": {}})), "requirements or rawSelector is required"),
    ] {
        let message = ask(spec.clone()).await;
        assert!(message.as_str().unwrap().contains(error), "{spec}: {message}");
    }
    let local = "/apis/authorization.k8s.io/v1/namespaces/default/localsubjectaccessreviews";
    let other = json!({"spec": {"user": "a", "resourceAttributes": {"namespace": "other"}}});
    let (code, status) = cluster.json(Some(&cluster.admin()), Method::POST, local, &[], &other).await;
    assert_eq!(code, 422);
    assert!(status["message"].as_str().unwrap().contains("must match metadata.namespace"), "{status}");
    // What one may do oneself.
    let jane = issue(&cluster.pki.cluster, Usage::Client, "jane", &[]);
    let rules = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
    let (code, answer) =
        cluster.json(Some(&jane), Method::POST, rules, &[], &json!({"spec": {"namespace": "default"}})).await;
    assert_eq!(code, 201);
    let resources = answer["status"]["resourceRules"].as_array().unwrap();
    assert!(resources.iter().any(|r| r["resources"] == json!(["selfsubjectreviews"])), "{answer}");
    assert_eq!(answer["status"]["incomplete"], false);
    cluster.api.shutdown().await;
}
