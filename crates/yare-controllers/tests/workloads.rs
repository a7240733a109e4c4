//! Deployments, ReplicaSets and Jobs against the real API server.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Cluster, condition, template};
use serde_json::{Value, json};
use yare_client::{DEPLOYMENTS, EVENTS, JOBS, PODS, REPLICA_SETS};
use yare_controllers::api::Propagation;

fn deployment(name: &str, replicas: i32) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": template(name, "one", "runs"),
        },
    })
}

fn available(n: i32) -> impl Fn(&Value) -> bool {
    move |d| {
        let s = &d["status"];
        s["availableReplicas"] == n
            && s["updatedReplicas"] == n
            && s["replicas"] == n
            && s["observedGeneration"] == d["metadata"]["generation"]
            && condition(d, "Progressing").is_some_and(|c| c["reason"] == "NewReplicaSetAvailable")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_rolls_out_scales_and_goes() {
    let cluster = Cluster::start().await;
    cluster.create(&DEPLOYMENTS, "default", deployment("web", 3)).await;
    let first = cluster.until_is(&DEPLOYMENTS, "default", "web", available(3)).await;
    assert_eq!(first["metadata"]["annotations"]["deployment.kubernetes.io/revision"], "1");
    assert_eq!(condition(&first, "Available").unwrap()["status"], "True");
    let sets = cluster.list(&REPLICA_SETS, "default").await;
    assert_eq!(sets.len(), 1);
    let hash = sets[0]["metadata"]["labels"]["pod-template-hash"].as_str().unwrap();
    assert_eq!(sets[0]["metadata"]["name"], format!("web-{hash}"));
    let pods = cluster.list(&PODS, "default").await;
    assert!(pods.iter().all(|p| p["metadata"]["labels"]["pod-template-hash"] == hash));

    // A new image: another replica set takes over.
    let image = json!({"spec": {"template": template("web", "two", "runs")}});
    cluster.merge(&DEPLOYMENTS, "default", "web", image).await;
    let second = cluster
        .until_is(&DEPLOYMENTS, "default", "web", |d| {
            available(3)(d) && d["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == "2"
        })
        .await;
    assert!(second["status"]["unavailableReplicas"].is_null());
    let sets = cluster.until_list(&REPLICA_SETS, "default", |s| s.len() == 2).await;
    let sizes: Vec<_> = sets.iter().map(|s| s["spec"]["replicas"].as_i64().unwrap()).collect();
    assert_eq!(sizes.iter().sum::<i64>(), 3);
    cluster.until_list(&PODS, "default", |p| p.len() == 3).await;

    cluster.merge(&DEPLOYMENTS, "default", "web", json!({"spec": {"replicas": 5}})).await;
    cluster.until_is(&DEPLOYMENTS, "default", "web", available(5)).await;

    // Back to the first image: the first replica set becomes the third revision.
    let image = json!({"spec": {"template": template("web", "one", "runs")}});
    cluster.merge(&DEPLOYMENTS, "default", "web", image).await;
    cluster
        .until_is(&DEPLOYMENTS, "default", "web", |d| {
            available(5)(d) && d["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == "3"
        })
        .await;
    let sets = cluster.list(&REPLICA_SETS, "default").await;
    assert_eq!(sets.len(), 2);
    let current = sets.iter().find(|s| s["spec"]["replicas"] == 5).unwrap();
    assert_eq!(current["metadata"]["annotations"]["deployment.kubernetes.io/revision-history"], "1");

    let events = cluster.until_list(&EVENTS, "default", |e| e.iter().any(|e| e["reason"] == "ScalingReplicaSet")).await;
    let scaled = format!("Scaled up replica set web-{hash} from 0 to 3");
    assert!(events.iter().any(|e| e["message"] == scaled), "{:?}", events.iter().map(|e| &e["message"]).collect::<Vec<_>>());

    cluster.delete(&DEPLOYMENTS, "default", "web", Propagation::Background).await;
    cluster.until_list(&REPLICA_SETS, "default", <[Value]>::is_empty).await;
    cluster.until_list(&PODS, "default", <[Value]>::is_empty).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn recreate_leaves_a_gap_and_pause_stops_everything() {
    let cluster = Cluster::start().await;
    let mut body = deployment("db", 2);
    body["spec"]["strategy"] = json!({"type": "Recreate"});
    cluster.create(&DEPLOYMENTS, "default", body).await;
    cluster.until_is(&DEPLOYMENTS, "default", "db", available(2)).await;
    cluster.merge(&DEPLOYMENTS, "default", "db", json!({"spec": {"paused": true}})).await;
    cluster
        .until_is(&DEPLOYMENTS, "default", "db", |d| condition(d, "Progressing").is_some_and(|c| c["reason"] == "DeploymentPaused"))
        .await;
    let change = json!({"spec": {"paused": false, "template": template("db", "two", "runs")}});
    cluster.merge(&DEPLOYMENTS, "default", "db", change).await;
    cluster
        .until_is(&DEPLOYMENTS, "default", "db", |d| {
            available(2)(d) && d["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == "2"
        })
        .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replica_sets_adopt_release_and_replace() {
    let cluster = Cluster::start().await;
    let mut orphan = template("rs", "one", "runs");
    orphan["metadata"]["name"] = "orphan".into();
    cluster.create(&PODS, "default", orphan).await;
    let set = json!({
        "metadata": {"name": "rs"},
        "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "rs"}}, "template": template("rs", "one", "runs")},
    });
    cluster.create(&REPLICA_SETS, "default", set).await;
    cluster.until_is(&REPLICA_SETS, "default", "rs", |s| s["status"]["readyReplicas"] == 2).await;
    let adopted = cluster.get(&PODS, "default", "orphan").await;
    assert_eq!(adopted["metadata"]["ownerReferences"][0]["name"], "rs");
    // No longer matching, it is let go and replaced.
    cluster.merge(&PODS, "default", "orphan", json!({"metadata": {"labels": {"app": "else"}}})).await;
    cluster.until_is(&PODS, "default", "orphan", |p| p["metadata"]["ownerReferences"].is_null()).await;
    cluster.until_list(&PODS, "default", |p| p.len() == 3).await;
    cluster.until_is(&REPLICA_SETS, "default", "rs", |s| s["status"]["readyReplicas"] == 2).await;
    cluster.merge(&REPLICA_SETS, "default", "rs", json!({"spec": {"replicas": 0}})).await;
    cluster.until_list(&PODS, "default", |p| p.len() == 1).await;
    cluster.stop().await;
}

fn job(name: &str, fate: &str, spec: Value) -> Value {
    let mut pod = template(name, "one", fate);
    pod["spec"]["restartPolicy"] = "Never".into();
    let mut job = json!({"metadata": {"name": name}, "spec": {"template": pod}});
    for (field, value) in spec.as_object().unwrap() {
        job["spec"][field] = value.clone();
    }
    job
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_complete_and_count_every_pod_once() {
    let cluster = Cluster::start().await;
    cluster.create(&JOBS, "default", job("plain", "succeeds", json!({"completions": 4, "parallelism": 2}))).await;
    let done = cluster
        .until_is(&JOBS, "default", "plain", |j| condition(j, "Complete").is_some_and(|c| c["status"] == "True"))
        .await;
    assert_eq!(done["status"]["succeeded"], 4, "{:#}", done["status"]);
    assert_eq!(condition(&done, "SuccessCriteriaMet").unwrap()["reason"], "CompletionsReached");
    assert!(done["status"]["completionTime"].is_string());
    let pods = cluster.until_list(&PODS, "default", |p| p.iter().all(|p| p["metadata"]["finalizers"].is_null())).await;
    assert_eq!(pods.len(), 4);

    let spec = json!({"completions": 3, "parallelism": 3, "completionMode": "Indexed"});
    cluster.create(&JOBS, "default", job("indexed", "succeeds", spec)).await;
    let done = cluster
        .until_is(&JOBS, "default", "indexed", |j| condition(j, "Complete").is_some_and(|c| c["status"] == "True"))
        .await;
    assert_eq!((&done["status"]["completedIndexes"], &done["status"]["succeeded"]), (&json!("0-2"), &json!(3)));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_fail_at_their_limit_and_suspend() {
    let cluster = Cluster::start().await;
    cluster.create(&JOBS, "default", job("bad", "fails", json!({"backoffLimit": 0}))).await;
    let failed = cluster
        .until_is(&JOBS, "default", "bad", |j| condition(j, "Failed").is_some_and(|c| c["status"] == "True"))
        .await;
    assert_eq!(condition(&failed, "Failed").unwrap()["reason"], "BackoffLimitExceeded");
    assert_eq!(condition(&failed, "Failed").unwrap()["message"], "Job has reached the specified backoff limit");
    assert_eq!(failed["status"]["failed"], 1);

    cluster.create(&JOBS, "default", job("slow", "runs", json!({"parallelism": 2, "completions": 2}))).await;
    cluster.until_is(&JOBS, "default", "slow", |j| j["status"]["ready"] == 2).await;
    cluster.merge(&JOBS, "default", "slow", json!({"spec": {"suspend": true}})).await;
    let suspended = cluster
        .until_is(&JOBS, "default", "slow", |j| condition(j, "Suspended").is_some_and(|c| c["status"] == "True"))
        .await;
    assert!(suspended["status"]["failed"].is_null(), "{:#}", suspended["status"]);
    cluster.until_list(&PODS, "default", |p| p.iter().all(|p| p["metadata"]["labels"]["app"] != "slow")).await;
    cluster.merge(&JOBS, "default", "slow", json!({"spec": {"suspend": false}})).await;
    cluster.until_is(&JOBS, "default", "slow", |j| j["status"]["ready"] == 2).await;
    cluster.delete(&JOBS, "default", "slow", Propagation::Background).await;
    cluster.until_list(&PODS, "default", |p| p.iter().all(|p| p["metadata"]["labels"]["app"] != "slow")).await;
    cluster.stop().await;
}
