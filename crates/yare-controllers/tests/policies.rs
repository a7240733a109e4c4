//! Budgets, quotas, schedules, lifetimes and mirrors against the real API server.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{Cluster, condition, template};
use serde_json::{Value, json};
use yare_client::{
    CLUSTER_ROLES, CONFIG_MAPS, CRON_JOBS, CUSTOM_RESOURCE_DEFINITIONS, ENDPOINT_SLICES, ENDPOINTS, EVENTS,
    IP_ADDRESSES, JOBS, ObjectKey, PERSISTENT_VOLUME_CLAIMS, PERSISTENT_VOLUMES, POD_DISRUPTION_BUDGETS,
    PODS, REPLICA_SETS, RESOURCE_QUOTAS, SERVICE_CIDRS, SERVICES, VALIDATING_ADMISSION_POLICIES,
    VOLUME_ATTRIBUTES_CLASSES,
};
use yare_controllers::{
    Config,
    api::{Deletion, Propagation},
};

#[tokio::test(flavor = "multi_thread")]
async fn budgets_and_quotas_count() {
    let cluster = Cluster::start().await;
    let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {"pods": "10", "requests.cpu": "4", "count/configmaps": "5", "count/replicasets.apps": "2"}}});
    cluster.create(&RESOURCE_QUOTAS, "default", quota).await;
    // Admission refuses what a quota counts until it shows what is used.
    cluster.until_is(&RESOURCE_QUOTAS, "default", "q", |q| q["status"]["hard"].is_object()).await;
    let budget = json!({"metadata": {"name": "b"}, "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {"app": "rs"}}}});
    cluster.create(&POD_DISRUPTION_BUDGETS, "default", budget).await;
    let mut pod = template("rs", "one", "runs");
    pod["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "500m"}});
    let set = json!({"metadata": {"name": "rs"}, "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "rs"}}, "template": pod}});
    cluster.create(&REPLICA_SETS, "default", set).await;
    let status = cluster
        .until_is(&POD_DISRUPTION_BUDGETS, "default", "b", |b| b["status"]["currentHealthy"] == 3)
        .await;
    let status = &status["status"];
    assert_eq!(
        (&status["expectedPods"], &status["desiredHealthy"], &status["disruptionsAllowed"]),
        (&json!(3), &json!(2), &json!(1))
    );
    assert_eq!(status["conditions"][0]["reason"], "SufficientPods");
    cluster
        .until_is(&RESOURCE_QUOTAS, "default", "q", |q| {
            let used = &q["status"]["used"];
            used["pods"] == "3"
                && used["requests.cpu"] == "1500m"
                && used["count/configmaps"] == "1"
                && used["count/replicasets.apps"] == "1"
        })
        .await;
    cluster.merge(&REPLICA_SETS, "default", "rs", json!({"spec": {"replicas": 1}})).await;
    cluster.until_is(&RESOURCE_QUOTAS, "default", "q", |q| q["status"]["used"]["pods"] == "1").await;
    // What the table does not watch is given back at once too.
    cluster.delete(&REPLICA_SETS, "default", "rs", Propagation::Background).await;
    cluster
        .until_is(&RESOURCE_QUOTAS, "default", "q", |q| q["status"]["used"]["count/replicasets.apps"] == "0")
        .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn schedules_make_jobs_that_go_when_their_time_is_up() {
    // Ten minutes from now it has been time.
    let later: yare_controllers::Clock =
        std::sync::Arc::new(|| jiff::Timestamp::now() + jiff::SignedDuration::from_secs(600));
    let cluster = Cluster::with(Config { clock: later, ..Config::default() }).await;
    let mut pod = template("tick", "one", "succeeds");
    pod["spec"]["restartPolicy"] = "Never".into();
    let cron = json!({"metadata": {"name": "tick"}, "spec": {"schedule": "*/1 * * * *", "timeZone": "Etc/UTC",
        "jobTemplate": {"metadata": {"labels": {"from": "cron"}}, "spec": {"template": pod}}}});
    cluster.create(&CRON_JOBS, "default", cron).await;
    let jobs =
        cluster.until_list(&JOBS, "default", |j| j.iter().any(|j| condition(j, "Complete").is_some())).await;
    assert_eq!(jobs[0]["metadata"]["labels"]["from"], "cron");
    assert!(jobs[0]["metadata"]["name"].as_str().unwrap().starts_with("tick-"));
    assert!(
        jobs[0]["metadata"]["annotations"]["batch.kubernetes.io/cronjob-scheduled-timestamp"].is_string()
    );
    let done = cluster
        .until_is(&CRON_JOBS, "default", "tick", |c| {
            c["status"]["lastSuccessfulTime"].is_string() && c["status"]["active"].is_null()
        })
        .await;
    assert!(done["status"]["lastScheduleTime"].is_string());
    cluster.merge(&CRON_JOBS, "default", "tick", json!({"spec": {"suspend": true}})).await;
    for job in cluster.list(&JOBS, "default").await {
        let name = job["metadata"]["name"].as_str().unwrap();
        cluster.merge(&JOBS, "default", name, json!({"spec": {"ttlSecondsAfterFinished": 1}})).await;
    }
    cluster.until_list(&JOBS, "default", <[Value]>::is_empty).await;
    cluster.until_list(&PODS, "default", <[Value]>::is_empty).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn schedules_know_their_own_jobs() {
    let now = jiff::Timestamp::now();
    let later: yare_controllers::Clock =
        std::sync::Arc::new(|| jiff::Timestamp::now() + jiff::SignedDuration::from_secs(600));
    let cluster = Cluster::with(Config { clock: later, ..Config::default() }).await;
    let mut pod = template("once", "one", "runs");
    pod["spec"]["restartPolicy"] = "Never".into();
    // Due once: five minutes from here, which by the controllers' clock is over.
    let due = (now + jiff::SignedDuration::from_secs(300)).to_zoned(jiff::tz::TimeZone::UTC);
    let schedule = format!("{} {} * * *", due.minute(), due.hour());
    let cron = json!({"metadata": {"name": "once"}, "spec": {"schedule": schedule, "timeZone": "Etc/UTC",
        "jobTemplate": {"spec": {"template": pod}}}});
    cluster.create(&CRON_JOBS, "default", cron).await;
    cluster.until_list(&JOBS, "default", |j| j.len() == 1 && j[0]["status"]["active"] == 1).await;
    let count = |c: &Value| c["status"]["active"].as_array().map_or(0, Vec::len);
    cluster.until_is(&CRON_JOBS, "default", "once", |c| count(c) == 1).await;
    let events =
        cluster.until_list(&EVENTS, "default", |e| e.iter().any(|e| e["reason"] == "SuccessfulCreate")).await;
    assert!(events.iter().all(|e| e["reason"] != "UnexpectedJob"), "{events:#?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_aggregate_claims_are_protected_and_endpoints_mirrored() {
    let cluster = Cluster::start().await;
    let rule = |resource: &str| json!([{"apiGroups": [""], "resources": [resource], "verbs": ["get"]}]);
    let part = json!({"metadata": {"name": "part", "labels": {"to": "whole"}}, "rules": rule("pods")});
    cluster.create(&CLUSTER_ROLES, "", part).await;
    let whole = json!({"metadata": {"name": "whole"}, "rules": [],
        "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"to": "whole"}}]}});
    cluster.create(&CLUSTER_ROLES, "", whole).await;
    cluster.until_is(&CLUSTER_ROLES, "", "whole", |r| r["rules"] == rule("pods")).await;
    cluster.merge(&CLUSTER_ROLES, "", "part", json!({"rules": rule("secrets")})).await;
    cluster.until_is(&CLUSTER_ROLES, "", "whole", |r| r["rules"] == rule("secrets")).await;

    let claim = json!({"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}}}});
    cluster.create(&PERSISTENT_VOLUME_CLAIMS, "default", claim).await;
    let mut pod = template("user", "one", "runs");
    pod["metadata"]["name"] = "user".into();
    pod["spec"]["volumes"] = json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]);
    cluster.create(&PODS, "default", pod).await;
    cluster.until_is(&PODS, "default", "user", |p| p["status"]["phase"] == "Running").await;
    cluster
        .until_is(&PERSISTENT_VOLUME_CLAIMS, "default", "data", |c| {
            c["metadata"]["finalizers"] == json!(["kubernetes.io/pvc-protection"])
        })
        .await;
    cluster.delete(&PERSISTENT_VOLUME_CLAIMS, "default", "data", Propagation::Background).await;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert!(cluster.find(&PERSISTENT_VOLUME_CLAIMS, "default", "data").await.is_some(), "a pod uses it");
    cluster.delete(&PODS, "default", "user", Propagation::Background).await;
    cluster
        .until("claim to go", || async {
            cluster.find(&PERSISTENT_VOLUME_CLAIMS, "default", "data").await.is_none().then_some(())
        })
        .await;

    let service = json!({"metadata": {"name": "far"}, "spec": {"ports": [{"port": 80}]}});
    cluster.create(&SERVICES, "default", service).await;
    let endpoints = json!({"metadata": {"name": "far"}, "subsets": [{"addresses": [{"ip": "192.0.2.1"}], "ports": [{"port": 80}]}]});
    cluster.create(&ENDPOINTS, "default", endpoints).await;
    let address =
        |ip: &'static str| move |s: &[Value]| s.iter().any(|s| s["endpoints"][0]["addresses"] == json!([ip]));
    cluster.until_list(&ENDPOINT_SLICES, "default", address("192.0.2.1")).await;
    let change = json!({"subsets": [{"addresses": [{"ip": "192.0.2.2"}], "ports": [{"port": 80}]}]});
    cluster.merge(&ENDPOINTS, "default", "far", change).await;
    cluster.until_list(&ENDPOINT_SLICES, "default", address("192.0.2.2")).await;
    cluster.delete(&ENDPOINTS, "default", "far", Propagation::Background).await;
    cluster
        .until_list(&ENDPOINT_SLICES, "default", |s| {
            !s.iter().any(|s| s["metadata"]["labels"]["kubernetes.io/service-name"] == "far")
        })
        .await;
    assert!(cluster.find(&CONFIG_MAPS, "default", "kube-root-ca.crt").await.is_some());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_get_the_smallest_volume_that_fits() {
    let cluster = Cluster::start().await;
    for (name, size) in [("small", "1Gi"), ("right", "5Gi"), ("large", "50Gi")] {
        let volume = json!({"metadata": {"name": name}, "spec": {"capacity": {"storage": size}, "storageClassName": "manual",
            "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/data"}, "persistentVolumeReclaimPolicy": "Retain"}});
        cluster.create(&PERSISTENT_VOLUMES, "", volume).await;
        cluster.until_is(&PERSISTENT_VOLUMES, "", name, |v| v["status"]["phase"] == "Available").await;
    }
    let claim = json!({"metadata": {"name": "c"}, "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "manual",
        "resources": {"requests": {"storage": "2Gi"}}}});
    cluster.create(&PERSISTENT_VOLUME_CLAIMS, "default", claim).await;
    let bound = cluster
        .until_is(&PERSISTENT_VOLUME_CLAIMS, "default", "c", |c| c["status"]["phase"] == "Bound")
        .await;
    assert_eq!(
        (&bound["spec"]["volumeName"], &bound["status"]["capacity"]["storage"]),
        (&json!("right"), &json!("5Gi"))
    );
    cluster.until_is(&PERSISTENT_VOLUMES, "", "right", |v| v["status"]["phase"] == "Bound").await;
    cluster.delete(&PERSISTENT_VOLUME_CLAIMS, "default", "c", Propagation::Background).await;
    cluster.until_is(&PERSISTENT_VOLUMES, "", "right", |v| v["status"]["phase"] == "Released").await;

    let mut pod = template("scratch", "one", "runs");
    pod["metadata"]["name"] = "scratch".into();
    pod["spec"]["volumes"] = json!([{"name": "tmp", "ephemeral": {"volumeClaimTemplate": {"spec": {
        "accessModes": ["ReadWriteOnce"], "storageClassName": "manual", "resources": {"requests": {"storage": "20Gi"}}}}}}]);
    cluster.create(&PODS, "default", pod).await;
    cluster
        .until_is(&PERSISTENT_VOLUME_CLAIMS, "default", "scratch-tmp", |c| c["spec"]["volumeName"] == "large")
        .await;
    cluster.delete(&PODS, "default", "scratch", Propagation::Background).await;
    cluster.until_list(&PERSISTENT_VOLUME_CLAIMS, "default", <[Value]>::is_empty).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attributes_classes_stay_while_claims_name_them() {
    let cluster = Cluster::start().await;
    let class = |name: &str| json!({"metadata": {"name": name}, "driverName": "example.com/d", "parameters": {"iops": "1"}});
    for name in ["used", "unused"] {
        cluster.create(&VOLUME_ATTRIBUTES_CLASSES, "", class(name)).await;
    }
    let made = cluster.get(&VOLUME_ATTRIBUTES_CLASSES, "", "used").await;
    assert_eq!(made["metadata"]["finalizers"], json!(["kubernetes.io/vac-protection"]));
    let claim = json!({"metadata": {"name": "c"}, "spec": {"accessModes": ["ReadWriteOnce"], "volumeAttributesClassName": "used",
        "storageClassName": "", "resources": {"requests": {"storage": "1Gi"}}}});
    cluster.create(&PERSISTENT_VOLUME_CLAIMS, "default", claim).await;
    for name in ["used", "unused"] {
        cluster.delete(&VOLUME_ATTRIBUTES_CLASSES, "", name, Propagation::Background).await;
    }
    let gone = async |name: &'static str| {
        cluster.find(&VOLUME_ATTRIBUTES_CLASSES, "", name).await.is_none().then_some(())
    };
    cluster.until("the unused class is gone", || gone("unused")).await;
    assert!(cluster.find(&VOLUME_ATTRIBUTES_CLASSES, "", "used").await.is_some());
    cluster.delete(&PERSISTENT_VOLUME_CLAIMS, "default", "c", Propagation::Background).await;
    cluster.until("the used class is gone", || gone("used")).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn expressions_are_checked_against_types() {
    let cluster = Cluster::start().await;
    let definition = json!({"metadata": {"name": "limits.example.com"}, "spec": {
        "group": "example.com", "scope": "Namespaced", "names": {"plural": "limits", "kind": "Limit"},
        "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object",
            "properties": {"spec": {"type": "object", "properties": {"max": {"type": "integer"}}}}}}}]}});
    cluster.create(&CUSTOM_RESOURCE_DEFINITIONS, "", definition).await;
    cluster
        .until_is(&CUSTOM_RESOURCE_DEFINITIONS, "", "limits.example.com", |d| {
            condition(d, "Established").is_some()
        })
        .await;
    let policy = |name: &str, group: &str, resource: &str, expression: &str| {
        json!({"metadata": {"name": name}, "spec": {
            "matchConstraints": {"resourceRules": [{"apiGroups": [group], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": [resource]}]},
            "validations": [{"expression": expression}]}})
    };
    for (name, group, resource, expression, expect) in [
        ("good", "apps", "deployments", "object.spec.replicas > 1", None),
        (
            "bad",
            "apps",
            "deployments",
            "object.spec.replicas > 'x'",
            Some(
                "apps/v1, Kind=Deployment: ERROR: <input>:1:22: found no matching overload for '_>_' applied to '(int, string)'",
            ),
        ),
        (
            "crd-good",
            "example.com",
            "limits",
            "object.spec.max > 1 && object.metadata.labels.size() > 0",
            None,
        ),
        (
            "crd-bad",
            "example.com",
            "limits",
            "object.spec.maximum > 1",
            Some("example.com/v1, Kind=Limit: ERROR: <input>:1:12: undefined field 'maximum'"),
        ),
    ] {
        cluster.create(&VALIDATING_ADMISSION_POLICIES, "", policy(name, group, resource, expression)).await;
        let found = cluster
            .until_is(&VALIDATING_ADMISSION_POLICIES, "", name, |p| p["status"]["observedGeneration"] == 1)
            .await;
        let warnings = &found["status"]["typeChecking"]["expressionWarnings"];
        match expect {
            None => assert!(warnings.is_null(), "{name}: {found}"),
            Some(text) => {
                assert_eq!(warnings[0]["fieldRef"], "spec.validations[0].expression");
                assert!(warnings[0]["warning"].as_str().unwrap().starts_with(text), "{name}: {found}");
            }
        }
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_are_ready_and_stay_while_addresses_need_them() {
    let cluster = Cluster::secure(Config::default(), |_| {}).await;
    let ready = |range: &Value, status: &str, reason: &str| {
        condition(range, "Ready").is_some_and(|c| c["status"] == status && c["reason"] == reason)
    };
    let own = cluster.until_is(&SERVICE_CIDRS, "", "kubernetes", |r| ready(r, "True", "")).await;
    assert_eq!(own["metadata"]["finalizers"], json!(["networking.k8s.io/service-cidr-finalizer"]));
    let range = json!({"metadata": {"name": "more"}, "spec": {"cidrs": ["10.99.0.0/24"]}});
    cluster.create(&SERVICE_CIDRS, "", range).await;
    cluster.until_is(&SERVICE_CIDRS, "", "more", |r| ready(r, "True", "")).await;
    let service =
        json!({"metadata": {"name": "far"}, "spec": {"clusterIP": "10.99.0.5", "ports": [{"port": 80}]}});
    cluster.create(&SERVICES, "default", service).await;
    cluster.get(&IP_ADDRESSES, "", "10.99.0.5").await;
    let key = ObjectKey::cluster("more");
    cluster.api.delete(&SERVICE_CIDRS, &key, Deletion::default()).await.unwrap();
    cluster.until_is(&SERVICE_CIDRS, "", "more", |r| ready(r, "False", "Terminating")).await;
    cluster.delete(&SERVICES, "default", "far", Propagation::Background).await;
    cluster.until_gone(&SERVICE_CIDRS, "", "more").await;
    cluster.stop().await;
}
