//! What `kubectl get -o wide` shows: an object, and its cells with `|` between.

use serde_json::{Value, json};
use yare_kinds::table::find_kind;

/// The clock stands at 1970-01-02T00:00:00Z, a day after everything was created.
const NOW_S: i64 = 86_400;

#[track_caller]
fn row(group: &str, kind: &str, object: Value, expected: &str) {
    let resource = find_kind(group, kind).unwrap_or_else(|| panic!("no kind {kind}"));
    let mut object = object;
    let meta = object.as_object_mut().expect("an object").entry("metadata").or_insert_with(|| json!({}));
    meta["name"] = json!("x");
    meta["creationTimestamp"] = json!("1970-01-01T00:00:00Z");
    let cells: Vec<String> = (resource.row)(&object, NOW_S)
        .iter()
        .map(|cell| cell.as_str().map_or_else(|| cell.to_string(), str::to_owned))
        .collect();
    assert_eq!(cells.join(" | "), expected, "{kind}");
}

#[test]
fn workloads() {
    let template = json!({"spec": {"containers": [{"name": "a", "image": "i:1"}, {"name": "b", "image": "j"}], "nodeSelector": {"d": "e"}}});
    let selector = json!({"matchLabels": {"app": "x"}});
    row(
        "apps",
        "Deployment",
        json!({"spec": {"replicas": 3, "template": template, "selector": selector}, "status": {"readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 1}}),
        "x | 2/3 | 3 | 1 | 24h | a,b | i:1,j | app=x",
    );
    row(
        "apps",
        "ReplicaSet",
        json!({"spec": {"replicas": 3, "template": template, "selector": {}}, "status": {"replicas": 2}}),
        "x | 3 | 2 | 0 | 24h | a,b | i:1,j | <none>",
    );
    row(
        "apps",
        "StatefulSet",
        json!({"spec": {"replicas": 1, "template": template}}),
        "x | 0/1 | 24h | a,b | i:1,j",
    );
    row(
        "apps",
        "DaemonSet",
        json!({"spec": {"template": template, "selector": selector}, "status": {"desiredNumberScheduled": 2, "numberReady": 1}}),
        "x | 2 | 0 | 1 | 0 | 0 | d=e | 24h | a,b | i:1,j | app=x",
    );
    row(
        "batch",
        "Job",
        json!({"spec": {"completions": 2, "template": template, "selector": selector}, "status": {"succeeded": 1, "startTime": "1970-01-01T23:00:00Z"}}),
        "x | Running | 1/2 | 60m | 24h | a,b | i:1,j | app=x",
    );
    row(
        "batch",
        "Job",
        json!({"spec": {"parallelism": 3}, "status": {"succeeded": 3, "startTime": "1970-01-01T00:00:00Z", "completionTime": "1970-01-01T00:00:05Z", "conditions": [{"type": "Complete", "status": "True"}]}}),
        "x | Complete | 3/1 of 3 | 5s | 24h |  |  | <none>",
    );
    row(
        "batch",
        "CronJob",
        json!({"spec": {"schedule": "* * * * *", "suspend": false, "jobTemplate": {"spec": {"template": template}}}, "status": {"active": [{}], "lastScheduleTime": "1970-01-01T23:59:00Z"}}),
        "x | * * * * * | <none> | False | 1 | 60s | 24h | a,b | i:1,j | <none>",
    );
    row(
        "apps",
        "ControllerRevision",
        json!({"metadata": {"ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "s", "controller": true}]}, "revision": 3}),
        "x | statefulset.apps/s | 3 | 24h",
    );
    row(
        "autoscaling",
        "HorizontalPodAutoscaler",
        json!({"spec": {"scaleTargetRef": {"kind": "Deployment", "name": "d"}, "maxReplicas": 5, "metrics": [
        {"type": "Resource", "resource": {"name": "cpu", "target": {"averageUtilization": 80}}},
        {"type": "Pods", "pods": {"target": {"averageValue": "10"}}}, {"type": "External", "external": {"target": {"value": "3"}}}]},
        "status": {"currentReplicas": 2, "currentMetrics": [{"resource": {"current": {"averageUtilization": 40}}}]}}),
        "x | Deployment/d | cpu: 40%/80%, <unknown>/10 + 1 more... | <unset> | 5 | 2 | 24h",
    );
    row(
        "policy",
        "PodDisruptionBudget",
        json!({"spec": {"minAvailable": "50%"}, "status": {"disruptionsAllowed": 1}}),
        "x | 50% | N/A | 1 | 24h",
    );
}

#[test]
fn core() {
    row(
        "",
        "Node",
        json!({"metadata": {"labels": {"node-role.kubernetes.io/worker": "", "node-role.kubernetes.io/control-plane": "", "kubernetes.io/role": "edge"}},
        "spec": {"unschedulable": true}, "status": {"conditions": [{"type": "Ready", "status": "True"}], "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
        "nodeInfo": {"kubeletVersion": "v1.36.0", "osImage": "Debian", "kernelVersion": "6.1", "architecture": "amd64", "containerRuntimeVersion": "yare://1"}}}),
        "x | Ready,SchedulingDisabled | control-plane,edge,worker | 24h | v1.36.0 | 10.0.0.1 | <none> | Debian | 6.1 (amd64) | yare://1",
    );
    row(
        "",
        "Event",
        json!({"type": "Warning", "reason": "BackOff", "message": " m ", "involvedObject": {"kind": "Pod", "name": "p", "fieldPath": "spec"}, "source": {"component": "kubelet", "host": "n"},
        "firstTimestamp": "1970-01-01T22:00:00Z", "lastTimestamp": "1970-01-01T23:59:30Z", "count": 4}),
        "30s | Warning | BackOff | pod/p | spec | kubelet, n | m | 120m | 4 | x",
    );
    row(
        "",
        "Event",
        json!({"involvedObject": {"kind": "Pod", "name": "p"}, "eventTime": "1970-01-01T23:59:00.000000Z", "reportingComponent": "c", "series": {"count": 7, "lastObservedTime": "1970-01-01T23:59:50.000000Z"}}),
        "10s |  |  | pod/p |  | c |  | 60s | 7 | x",
    );
    row("", "ConfigMap", json!({"data": {"a": "b"}, "binaryData": {"c": ""}}), "x | 2 | 24h");
    row("", "Secret", json!({"type": "Opaque", "data": {"a": ""}}), "x | Opaque | 1 | 24h");
    row("", "Namespace", json!({"status": {"phase": "Active"}}), "x | Active | 24h");
    row("", "ServiceAccount", json!({}), "x | 24h");
    row(
        "",
        "ResourceQuota",
        json!({"status": {"hard": {"pods": "5", "requests.cpu": "1", "limits.cpu": "2"}, "used": {"pods": "1"}}}),
        "x | pods: 1/5, requests.cpu: 0/1 | limits.cpu: 0/2 | 24h",
    );
    row("", "LimitRange", json!({}), "x | 1970-01-01T00:00:00Z");
    row(
        "",
        "ReplicationController",
        json!({"spec": {"replicas": 2, "selector": {"a": "b"}}}),
        "x | 2 | 0 | 0 | 24h |  |  | a=b",
    );
}

#[test]
fn storage_and_access() {
    row(
        "",
        "PersistentVolume",
        json!({"spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteMany", "ReadWriteOnce"], "persistentVolumeReclaimPolicy": "Retain", "claimRef": {"namespace": "n", "name": "c"},
        "storageClassName": "fast", "volumeMode": "Block"}, "status": {"phase": "Bound"}}),
        "x | 1Gi | RWO,RWX | Retain | Bound | n/c | fast | <unset> |  | 24h | Block",
    );
    row(
        "",
        "PersistentVolumeClaim",
        json!({"spec": {"volumeName": "pv"}, "status": {"phase": "Bound", "capacity": {"storage": "2Gi"}, "accessModes": ["ReadWriteOncePod"]}}),
        "x | Bound | pv | 2Gi | RWOP |  | <unset> | 24h | <unset>",
    );
    row(
        "storage.k8s.io",
        "StorageClass",
        json!({"metadata": {"annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}, "provisioner": "p"}),
        "x (default) | p | Delete | Immediate | false | 24h",
    );
    row(
        "rbac.authorization.k8s.io",
        "RoleBinding",
        json!({"roleRef": {"kind": "Role", "name": "r"}, "subjects": [{"kind": "User", "name": "u"}, {"kind": "ServiceAccount", "name": "s", "namespace": "n"}]}),
        "x | Role/r | 24h | u |  | n/s",
    );
    row(
        "certificates.k8s.io",
        "CertificateSigningRequest",
        json!({"spec": {"signerName": "a/b", "username": "u", "expirationSeconds": 3600}, "status": {"conditions": [{"type": "Approved"}], "certificate": "x"}}),
        "x | 24h | a/b | u | 60m | Approved,Issued",
    );
    row(
        "discovery.k8s.io",
        "EndpointSlice",
        json!({"addressType": "IPv4", "ports": [{"port": 80}, {"name": "n"}], "endpoints": [{"addresses": ["a", "b"]}, {"addresses": ["c", "d"]}]}),
        "x | IPv4 | 80,n | a,b,c + 1 more... | 24h",
    );
    row(
        "networking.k8s.io",
        "IngressClass",
        json!({"spec": {"controller": "c", "parameters": {"apiGroup": "g", "kind": "K", "name": "n"}}}),
        "x | c | K.g/n | 24h",
    );
    row(
        "apiregistration.k8s.io",
        "APIService",
        json!({"spec": {"service": {"namespace": "n", "name": "s"}}, "status": {"conditions": [{"type": "Available", "status": "False", "reason": "R"}]}}),
        "x | n/s | False (R) | 24h",
    );
    row("coordination.k8s.io", "Lease", json!({"spec": {"holderIdentity": "h"}}), "x | h | 24h");
    row(
        "flowcontrol.apiserver.k8s.io",
        "PriorityLevelConfiguration",
        json!({"spec": {"type": "Limited", "limited": {"nominalConcurrencyShares": 5}}}),
        "x | Limited | 5 | <none> | <none> | <none> | 24h",
    );
    row(
        "resource.k8s.io",
        "ResourceClaim",
        json!({"status": {"allocation": {}, "reservedFor": [{}]}}),
        "x | allocated,reserved | 24h",
    );
}
