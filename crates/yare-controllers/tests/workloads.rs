//! Deployments, ReplicaSets and Jobs against the real API server.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;

use common::{Cluster, condition, names, template};
use serde_json::{Value, json};
use yare_apiserver::runtime_config::RuntimeConfig;
use yare_client::{
    CONTROLLER_REVISIONS, DAEMON_SETS, DEPLOYMENTS, EVENTS, JOBS, ObjectKey, PERSISTENT_VOLUME_CLAIMS,
    POD_GROUPS, PODS, REPLICA_SETS, STATEFUL_SETS, WORKLOADS,
};
use yare_controllers::{
    Config,
    api::{Patch, Propagation},
};
use yare_metrics::text::Page;
use yare_schema::features::Gates;

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

    let events = cluster
        .until_list(&EVENTS, "default", |e| e.iter().any(|e| e["reason"] == "ScalingReplicaSet"))
        .await;
    let scaled = format!("Scaled up replica set web-{hash} from 0 to 3");
    assert!(
        events.iter().any(|e| e["message"] == scaled),
        "{:?}",
        events.iter().map(|e| &e["message"]).collect::<Vec<_>>()
    );

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
        .until_is(&DEPLOYMENTS, "default", "db", |d| {
            condition(d, "Progressing").is_some_and(|c| c["reason"] == "DeploymentPaused")
        })
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
async fn jobs_hold_their_pods_only_as_long_as_they_are_theirs() {
    const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
    let cluster = Cluster::start().await;
    let mut orphan = template("job", "one", "runs");
    orphan["metadata"]["name"] = "orphan".into();
    orphan["spec"]["restartPolicy"] = "Never".into();
    cluster.create(&PODS, "default", orphan.clone()).await;
    let spec = json!({"manualSelector": true, "selector": {"matchLabels": {"app": "job"}}});
    cluster.create(&JOBS, "default", job("job", "runs", spec)).await;
    let adopted = cluster
        .until_is(&PODS, "default", "orphan", |p| p["metadata"]["ownerReferences"][0]["name"] == "job")
        .await;
    assert_eq!(adopted["metadata"]["finalizers"], json!([FINALIZER]));
    cluster.merge(&PODS, "default", "orphan", json!({"metadata": {"labels": {"app": "else"}}})).await;
    let released =
        cluster.until_is(&PODS, "default", "orphan", |p| p["metadata"]["ownerReferences"].is_null()).await;
    assert_eq!(released["metadata"]["finalizers"], json!(null));

    // Nobody's, as what is left of a Job that was deleted without its pods.
    let mut stray = orphan;
    stray["metadata"] = json!({"name": "stray", "finalizers": [FINALIZER, "example.com/hold"]});
    cluster.create(&PODS, "default", stray).await;
    cluster
        .until_is(&PODS, "default", "stray", |p| p["metadata"]["finalizers"] == json!(["example.com/hold"]))
        .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_complete_and_count_every_pod_once() {
    let metrics = Arc::<yare_controllers::Metrics>::default();
    let cluster = Cluster::with(Config { metrics: metrics.clone(), ..Config::default() }).await;
    cluster
        .create(&JOBS, "default", job("plain", "succeeds", json!({"completions": 4, "parallelism": 2})))
        .await;
    let done = cluster
        .until_is(&JOBS, "default", "plain", |j| {
            condition(j, "Complete").is_some_and(|c| c["status"] == "True")
        })
        .await;
    assert_eq!(done["status"]["succeeded"], 4, "{:#}", done["status"]);
    assert_eq!(condition(&done, "SuccessCriteriaMet").unwrap()["reason"], "CompletionsReached");
    assert!(done["status"]["completionTime"].is_string());
    let pods = cluster
        .until_list(&PODS, "default", |p| p.iter().all(|p| p["metadata"]["finalizers"].is_null()))
        .await;
    assert_eq!(pods.len(), 4);

    let spec = json!({"completions": 3, "parallelism": 3, "completionMode": "Indexed"});
    cluster.create(&JOBS, "default", job("indexed", "succeeds", spec)).await;
    let done = cluster
        .until_is(&JOBS, "default", "indexed", |j| {
            condition(j, "Complete").is_some_and(|c| c["status"] == "True")
        })
        .await;
    assert_eq!(
        (&done["status"]["completedIndexes"], &done["status"]["succeeded"]),
        (&json!("0-2"), &json!(3))
    );
    cluster.stop().await;
    let mut page = Page::new();
    metrics.expose(&mut page);
    let page = page.finish();
    for line in [
        "job_controller_jobs_finished_total{completion_mode=\"NonIndexed\",reason=\"CompletionsReached\",result=\"succeeded\"} 1",
        "job_controller_jobs_finished_total{completion_mode=\"Indexed\",reason=\"CompletionsReached\",result=\"succeeded\"} 1",
        "job_controller_job_pods_finished_total{completion_mode=\"NonIndexed\",result=\"succeeded\"} 4",
        "job_controller_job_pods_finished_total{completion_mode=\"Indexed\",result=\"succeeded\"} 3",
        "running_managed_controllers{manager=\"kube-controller-manager\",name=\"job-controller\"} 0",
        "workqueue_depth{name=\"job\"} 0",
    ] {
        assert!(page.lines().any(|l| l == line), "{line}\n{page}");
    }
    let made = "job_controller_job_syncs_total{action=\"pods_created\",completion_mode=\"NonIndexed\",result=\"success\"}";
    assert!(page.contains(made), "{page}");
    for event in ["add", "delete"] {
        let held = format!("job_controller_terminated_pods_tracking_finalizer_total{{event={event:?}}} ");
        assert!(page.contains(&held), "{page}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_fail_at_their_limit_and_suspend() {
    let cluster = Cluster::start().await;
    cluster.create(&JOBS, "default", job("bad", "fails", json!({"backoffLimit": 0}))).await;
    let failed = cluster
        .until_is(&JOBS, "default", "bad", |j| condition(j, "Failed").is_some_and(|c| c["status"] == "True"))
        .await;
    assert_eq!(condition(&failed, "Failed").unwrap()["reason"], "BackoffLimitExceeded");
    assert_eq!(
        condition(&failed, "Failed").unwrap()["message"],
        "Job has reached the specified backoff limit"
    );
    assert_eq!(failed["status"]["failed"], 1);

    cluster.create(&JOBS, "default", job("slow", "runs", json!({"parallelism": 2, "completions": 2}))).await;
    cluster.until_is(&JOBS, "default", "slow", |j| j["status"]["ready"] == 2).await;
    cluster.merge(&JOBS, "default", "slow", json!({"spec": {"suspend": true}})).await;
    let suspended = cluster
        .until_is(&JOBS, "default", "slow", |j| {
            condition(j, "Suspended").is_some_and(|c| c["status"] == "True")
        })
        .await;
    assert!(suspended["status"]["failed"].is_null(), "{:#}", suspended["status"]);
    cluster
        .until_list(&PODS, "default", |p| p.iter().all(|p| p["metadata"]["labels"]["app"] != "slow"))
        .await;
    cluster.merge(&JOBS, "default", "slow", json!({"spec": {"suspend": false}})).await;
    cluster.until_is(&JOBS, "default", "slow", |j| j["status"]["ready"] == 2).await;
    cluster.delete(&JOBS, "default", "slow", Propagation::Background).await;
    cluster
        .until_list(&PODS, "default", |p| p.iter().all(|p| p["metadata"]["labels"]["app"] != "slow"))
        .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn daemons_run_on_every_node_and_roll() {
    let cluster = Cluster::start().await;
    let set = |image: &str| {
        json!({"metadata": {"name": "agent"}, "spec": {"selector": {"matchLabels": {"app": "agent"}},
            "template": template("agent", image, "runs")}})
    };
    cluster.create(&DAEMON_SETS, "default", set("one")).await;
    let is_done = |d: &Value| {
        let s = &d["status"];
        s["desiredNumberScheduled"] == 1
            && s["numberAvailable"] == 1
            && s["updatedNumberScheduled"] == 1
            && s["observedGeneration"] == d["metadata"]["generation"]
    };
    cluster.until_is(&DAEMON_SETS, "default", "agent", is_done).await;
    let first = cluster.list(&PODS, "default").await;
    let field =
        &first[0]["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    assert_eq!(field["nodeSelectorTerms"][0]["matchFields"][0]["values"], json!(["n1"]));
    cluster
        .merge(
            &DAEMON_SETS,
            "default",
            "agent",
            json!({"spec": {"template": template("agent", "two", "runs")}}),
        )
        .await;
    cluster
        .until_list(&PODS, "default", |p| p.len() == 1 && p[0]["spec"]["containers"][0]["image"] == "two")
        .await;
    cluster.until_is(&DAEMON_SETS, "default", "agent", is_done).await;
    assert_eq!(cluster.list(&CONTROLLER_REVISIONS, "default").await.len(), 2);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stateful_sets_keep_names_order_and_claims() {
    let cluster = Cluster::start().await;
    let mut pod = template("db", "one", "runs");
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    let set = json!({"metadata": {"name": "db"}, "spec": {"serviceName": "db", "replicas": 3,
        "selector": {"matchLabels": {"app": "db"}}, "template": pod,
        "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}}}}]}});
    cluster.create(&STATEFUL_SETS, "default", set).await;
    let is_done = |n: i32| {
        move |s: &Value| {
            let t = &s["status"];
            t["readyReplicas"] == n
                && t["updatedReplicas"] == n
                && t["currentRevision"] == t["updateRevision"]
                && t["observedGeneration"] == s["metadata"]["generation"]
        }
    };
    cluster.until_is(&STATEFUL_SETS, "default", "db", is_done(3)).await;
    let pods = cluster.list(&PODS, "default").await;
    assert_eq!(common::names(&pods), ["db-0", "db-1", "db-2"]);
    assert_eq!(pods[1]["spec"]["hostname"], "db-1");
    assert_eq!(pods[1]["spec"]["subdomain"], "db");
    assert_eq!(pods[1]["metadata"]["labels"]["apps.kubernetes.io/pod-index"], "1");
    let volumes = pods[2]["spec"]["volumes"].as_array().unwrap();
    let data = volumes.iter().find(|v| v["name"] == "data").unwrap();
    assert_eq!(data["persistentVolumeClaim"]["claimName"], "data-db-2");
    assert_eq!(cluster.list(&PERSISTENT_VOLUME_CLAIMS, "default").await.len(), 3);

    pod["spec"]["containers"][0]["image"] = "two".into();
    cluster.merge(&STATEFUL_SETS, "default", "db", json!({"spec": {"template": pod, "replicas": 2}})).await;
    cluster.until_is(&STATEFUL_SETS, "default", "db", is_done(2)).await;
    let pods = cluster.until_list(&PODS, "default", |p| p.len() == 2).await;
    assert!(pods.iter().all(|p| p["spec"]["containers"][0]["image"] == "two"));
    assert_eq!(
        cluster.list(&PERSISTENT_VOLUME_CLAIMS, "default").await.len(),
        3,
        "claims outlive their pods"
    );
    cluster.stop().await;
}

/// With RBAC, since the controller's role allows less than it might use.
#[tokio::test(flavor = "multi_thread")]
async fn claims_of_stateful_sets_go_when_the_policy_says_so() {
    let cluster =
        Cluster::secure(Config { root_ca: "CERTIFICATE".into(), ..Config::default() }, |_| {}).await;
    let set = json!({"metadata": {"name": "db"}, "spec": {"serviceName": "db", "replicas": 2,
        "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain", "whenScaled": "Retain"},
        "selector": {"matchLabels": {"app": "db"}}, "template": template("db", "one", "runs"),
        "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}}}}]}});
    cluster.create(&STATEFUL_SETS, "default", set).await;
    cluster.until_is(&STATEFUL_SETS, "default", "db", |s| s["status"]["readyReplicas"] == 2).await;
    let claim = cluster.get(&PERSISTENT_VOLUME_CLAIMS, "default", "data-db-0").await;
    assert!(claim["metadata"]["ownerReferences"].is_null());

    let policy = json!({"spec": {"persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete", "whenScaled": "Delete"}}});
    cluster.merge(&STATEFUL_SETS, "default", "db", policy).await;
    for name in ["data-db-0", "data-db-1"] {
        let owner = |c: &Value| c["metadata"]["ownerReferences"][0].clone();
        let claim = cluster
            .until_is(&PERSISTENT_VOLUME_CLAIMS, "default", name, |c| owner(c)["kind"] == "StatefulSet")
            .await;
        assert_eq!(owner(&claim)["controller"], true);
    }
    cluster.merge(&STATEFUL_SETS, "default", "db", json!({"spec": {"replicas": 1}})).await;
    cluster.until_list(&PERSISTENT_VOLUME_CLAIMS, "default", |c| common::names(c) == ["data-db-0"]).await;
    cluster.delete(&STATEFUL_SETS, "default", "db", Propagation::Background).await;
    cluster.until_list(&PERSISTENT_VOLUME_CLAIMS, "default", |c| c.is_empty()).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_whose_pods_run_together_have_workloads() {
    let gates = Gates::parse("GenericWorkload=true,WorkloadWithJob=true").unwrap();
    let mut cluster = Cluster::secure(Config { gates, ..Config::default() }, |server| {
        server.runtime_config = RuntimeConfig::parse("scheduling.k8s.io/v1alpha2=true").unwrap();
    })
    .await;
    let job = |name: &str, fate: &str| {
        let mut template = template("j", "i", fate);
        template["spec"]["restartPolicy"] = "Never".into();
        json!({"metadata": {"name": name}, "spec": {
            "parallelism": 3, "completions": 3, "completionMode": "Indexed", "template": template}})
    };
    let created = cluster.create(&JOBS, "default", job("gang", "waits")).await;
    let workload = cluster.until_list(&WORKLOADS, "default", |w| !w.is_empty()).await.remove(0);
    let owner = json!({"apiVersion": "batch/v1", "kind": "Job", "name": "gang", "uid": created.uid(),
        "controller": true, "blockOwnerDeletion": true});
    assert_eq!(workload["metadata"]["ownerReferences"], json!([owner]));
    // Upstream's type writes the constraints also where there are none.
    assert_eq!(
        workload["spec"],
        json!({"controllerRef": {"apiGroup": "batch", "kind": "Job", "name": "gang"}, "podGroupTemplates": [{
            "name": "gang-pgt-0", "schedulingPolicy": {"gang": {"minCount": 3}}, "schedulingConstraints": null}]})
    );
    let group = cluster.until_list(&POD_GROUPS, "default", |g| !g.is_empty()).await.remove(0);
    let reference = |kind: &str, object: &Value| {
        json!({"apiVersion": "scheduling.k8s.io/v1alpha2", "kind": kind, "name": object["metadata"]["name"],
            "uid": object["metadata"]["uid"]})
    };
    assert_eq!(group["metadata"]["ownerReferences"], json!([owner, reference("Workload", &workload)]));
    let of = json!({"workload": {"workloadName": workload["metadata"]["name"], "podGroupTemplateName": "gang-pgt-0"}});
    assert_eq!(group["spec"]["podGroupTemplateRef"], of);
    assert_eq!(group["spec"]["schedulingPolicy"], json!({"gang": {"minCount": 3}}));
    let joined = |pods: &[Value]| {
        pods.len() == 3
            && pods.iter().all(|pod| {
                let owners = pod["metadata"]["ownerReferences"].as_array().unwrap();
                pod["spec"]["schedulingGroup"]["podGroupName"] == group["metadata"]["name"]
                    && owners.len() == 2
                    && owners[0]["controller"] == true
                    && owners[1] == reference("PodGroup", &group)
            })
    };
    cluster.until_list(&PODS, "default", joined).await;
    cluster
        .until("the event", || async {
            let events = cluster.list(&EVENTS, "default").await;
            events.iter().any(|e| e["reason"] == "WorkloadCreated").then_some(())
        })
        .await;
    // As many as the group asks for, no more and no less.
    let key = ObjectKey::new("default", "gang");
    let fewer = json!({"spec": {"parallelism": 2}});
    let refused = cluster.api.patch(&JOBS, &key, "", Patch::Merge, &fewer).await.unwrap_err().to_string();
    assert!(
        refused.contains("cannot change parallelism for a Job referencing gang-scheduled PodGroup"),
        "{refused}"
    );

    // New controllers find what is there.
    cluster.restart_controllers().await;
    let pods = cluster.list(&PODS, "default").await;
    let lost = names(&pods)[0];
    cluster.delete(&PODS, "default", lost, Propagation::Background).await;
    cluster.until_gone(&PODS, "default", lost).await;
    cluster.until_list(&PODS, "default", joined).await;
    assert_eq!(cluster.list(&WORKLOADS, "default").await.len(), 1);
    assert_eq!(cluster.list(&POD_GROUPS, "default").await.len(), 1);
    // A group stays while pods belong to it, and what it is made from must be there.
    let name = group["metadata"]["name"].as_str().unwrap();
    assert_eq!(group["metadata"]["finalizers"], json!(["scheduling.k8s.io/podgroup-protection"]));
    let lost = json!({"kind": "PodGroup", "apiVersion": "scheduling.k8s.io/v1alpha2", "metadata": {"name": "lost"},
        "spec": {"schedulingPolicy": {"basic": {}}, "podGroupTemplateRef": {"workload": {
            "workloadName": workload["metadata"]["name"], "podGroupTemplateName": "none"}}}});
    let refused = cluster.api.create(&POD_GROUPS, "default", &lost).await.unwrap_err().to_string();
    assert!(
        refused.contains("PodGroup rejected: PodGroupTemplate \"none\" not found in Workload"),
        "{refused}"
    );
    cluster.delete(&POD_GROUPS, "default", name, Propagation::Background).await;
    cluster
        .until_is(&POD_GROUPS, "default", name, |group| !group["metadata"]["deletionTimestamp"].is_null())
        .await;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert!(cluster.find(&POD_GROUPS, "default", name).await.is_some());
    cluster.delete(&JOBS, "default", "gang", Propagation::Background).await;
    cluster.until_list(&WORKLOADS, "default", <[Value]>::is_empty).await;
    // To the garbage collector the group is an owner as long as it is there, as upstream has it: its pods stay.
    for pod in names(&cluster.list(&PODS, "default").await) {
        cluster.delete(&PODS, "default", pod, Propagation::Background).await;
    }
    cluster.until_list(&POD_GROUPS, "default", <[Value]>::is_empty).await;

    // Others run without.
    let mut loose = job("loose", "succeeds");
    loose["spec"]["completions"] = 4.into();
    cluster.create(&JOBS, "default", loose).await;
    cluster
        .until_is(&JOBS, "default", "loose", |j| {
            condition(j, "Complete").is_some_and(|c| c["status"] == "True")
        })
        .await;
    assert!(cluster.list(&WORKLOADS, "default").await.is_empty());
    // And one runs to its end with its group.
    cluster.create(&JOBS, "default", job("done", "succeeds")).await;
    cluster
        .until_is(&JOBS, "default", "done", |j| {
            condition(j, "Complete").is_some_and(|c| c["status"] == "True")
        })
        .await;
    assert_eq!(cluster.list(&POD_GROUPS, "default").await.len(), 1);
    cluster.stop().await;
}
