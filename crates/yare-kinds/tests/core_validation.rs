//! What is wrong with objects of the core group: each case is an object as a client sends it and the errors
//! that it gets, after defaults, in upstream's words.

use serde_json::{Value, json};
use yare_kinds::{
    strategy::Context,
    table::{Resource, find_kind},
};
use yare_schema::features;

const CTX: Context<'_> =
    Context { now: "2026-01-01T00:00:00Z", namespace: "ns", user: "u", gates: &features::DEFAULT };

fn core(kind: &str) -> &'static Resource {
    find_kind("", kind).unwrap_or_else(|| panic!("no kind {kind}"))
}

fn prepared(kind: &str, object: &Value) -> Value {
    let resource = core(kind);
    let mut object = object.clone();
    let meta = object["metadata"].as_object_mut().expect("every case has metadata");
    meta.entry("name").or_insert_with(|| json!("x"));
    if resource.is_namespaced() {
        meta.entry("namespace").or_insert_with(|| json!("ns"));
    }
    resource.strategy.default(&mut object);
    resource.strategy.prepare_for_create(&mut object, &CTX);
    object
}

#[track_caller]
fn create(kind: &str, object: Value, expected: &[&str]) {
    let errs: Vec<String> =
        core(kind).validate_create(&prepared(kind, &object), &CTX).iter().map(ToString::to_string).collect();
    assert_eq!(errs, expected, "{kind} {object:#}");
}

/// Creates `old`, merges `patch` into it, and updates.
#[track_caller]
fn update(kind: &str, old: Value, patch: Value, expected: &[&str]) {
    let resource = core(kind);
    let old = prepared(kind, &old);
    let mut new = old.clone();
    merge(&mut new, &patch);
    resource.strategy.default(&mut new);
    resource.strategy.prepare_for_update(&mut new, &old, &CTX);
    let errs: Vec<String> = resource
        .validate_update(&new, &old, &CTX)
        .iter()
        .map(|e| e.to_string().lines().next().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(errs, expected, "{kind} {patch:#}");
}

fn merge(into: &mut Value, patch: &Value) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => {
            for (key, value) in patch {
                if value.is_null() {
                    into.remove(key);
                } else {
                    merge(into.entry(key).or_insert(Value::Null), value);
                }
            }
        }
        (into, patch) => *into = patch.clone(),
    }
}

fn pod(spec: Value) -> Value {
    let mut pod = json!({"metadata": {}, "spec": {"containers": [{"name": "a", "image": "i"}]}});
    merge(&mut pod["spec"], &spec);
    pod
}

fn container(container: Value) -> Value {
    let mut own = json!({"name": "a", "image": "i"});
    merge(&mut own, &container);
    pod(json!({"containers": [own]}))
}

#[test]
fn pods() {
    create("Pod", pod(json!({})), &[]);
    create("Pod", json!({"metadata": {}, "spec": {}}), &["spec.containers: Required value"]);
    create(
        "Pod",
        pod(
            json!({"containers": [{"name": "A", "image": ""}, {"name": "b", "image": " i"}, {"name": "b", "image": "i"}]}),
        ),
        &[
            "spec.containers[0].name: Invalid value: \"A\": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')",
            "spec.containers[0].image: Required value",
            "spec.containers[2].name: Duplicate value: \"b\"",
            "spec.containers[1].image: Invalid value: \" i\": must not have leading or trailing whitespace",
        ],
    );
    create(
        "Pod",
        pod(json!({"restartPolicy": "Sometimes", "dnsPolicy": "X", "activeDeadlineSeconds": 0})),
        &[
            "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \"Never\"",
            "spec.dnsPolicy: Unsupported value: \"X\": supported values: \"ClusterFirstWithHostNet\", \"ClusterFirst\", \"Default\", \"None\"",
            "spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive",
        ],
    );
    create(
        "Pod",
        pod(json!({"ephemeralContainers": [{"name": "e", "image": "i"}]})),
        &["spec.ephemeralContainers: Forbidden: cannot be set on create"],
    );
    create(
        "Pod",
        pod(json!({"hostNetwork": true, "dnsPolicy": "None"})),
        &["spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None"],
    );
    create(
        "Pod",
        pod(json!({"schedulingGates": [{"name": "a"}, {"name": "a"}], "nodeName": "n"})),
        &[
            "spec.schedulingGates[1]: Duplicate value: \"a\"",
            "spec.nodeName: Forbidden: cannot be set until all schedulingGates have been cleared",
        ],
    );
    create(
        "Pod",
        pod(json!({"hostAliases": [{"ip": "1.2.3", "hostnames": ["_"]}]})).clone(),
        &[
            "spec.hostAliases[0].ip: Invalid value: \"1.2.3\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            "spec.hostAliases[0].hostnames[0]: Invalid value: \"_\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
        ],
    );
}

#[test]
fn containers() {
    create(
        "Pod",
        container(
            json!({"ports": [{"containerPort": 0}, {"containerPort": 80, "name": "a--b"}, {"containerPort": 99999, "protocol": "X"}]}),
        ),
        &[
            "spec.containers[0].ports[0].containerPort: Required value",
            "spec.containers[0].ports[1].name: Invalid value: \"a--b\": must not contain consecutive hyphens",
            "spec.containers[0].ports[2].containerPort: Invalid value: 99999: must be between 1 and 65535, inclusive",
            "spec.containers[0].ports[2].protocol: Unsupported value: \"X\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
        ],
    );
    create(
        "Pod",
        container(json!({"env": [
        {"name": ""},
        {"name": "a=b", "value": "x"},
        {"name": "B", "valueFrom": {}},
        {"name": "C", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "D", "valueFrom": {"fieldRef": {"fieldPath": "status.phase"}}},
        {"name": "E", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['a']"}}},
        {"name": "F", "valueFrom": {"resourceFieldRef": {"resource": "limits.disk"}}},
        {"name": "G", "valueFrom": {"configMapKeyRef": {"name": "x", "key": "a b"}}}]})),
        &[
            "spec.containers[0].env[0].name: Required value",
            "spec.containers[0].env[1].name: Invalid value: \"a=b\": a valid environment variable name must consist only of printable ASCII characters other than '='",
            "spec.containers[0].env[2].valueFrom: Invalid value: \"\": must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
            "spec.containers[0].env[3].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty",
            "spec.containers[0].env[4].valueFrom.fieldRef.fieldPath: Unsupported value: \"status.phase\": supported values: \"metadata.name\", \"metadata.namespace\", \"metadata.uid\", \"spec.nodeName\", \"spec.serviceAccountName\", \"status.hostIP\", \"status.hostIPs\", \"status.podIP\", \"status.podIPs\"",
            "spec.containers[0].env[6].valueFrom.resourceFieldRef.resource: Unsupported value: \"limits.disk\": supported values: \"limits.cpu\", \"limits.ephemeral-storage\", \"limits.memory\", \"requests.cpu\", \"requests.ephemeral-storage\", \"requests.memory\"",
            "spec.containers[0].env[7].valueFrom.configMapKeyRef.key: Invalid value: \"a b\": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')",
        ],
    );
    create(
        "Pod",
        container(json!({"livenessProbe": {"successThreshold": 2, "exec": {"command": ["x"]}},
        "readinessProbe": {"terminationGracePeriodSeconds": 5, "httpGet": {"port": "No_Good"}},
        "startupProbe": {}, "lifecycle": {"preStop": {"sleep": {"seconds": 60}}}})),
        &[
            "spec.containers[0].lifecycle.preStop.sleep: Invalid value: 60: must be non-negative and less than terminationGracePeriodSeconds (30)",
            "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1",
            "spec.containers[0].readinessProbe.httpGet.port: Invalid value: \"No_Good\": must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)",
            "spec.containers[0].readinessProbe.terminationGracePeriodSeconds: Invalid value: 5: must not be set for readinessProbes",
            "spec.containers[0].startupProbe: Required value: must specify a handler type",
        ],
    );
    create(
        "Pod",
        container(json!({"imagePullPolicy": "X", "volumeMounts": [{"name": "v", "mountPath": ""}],
        "resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}, "claims": [{"name": "c"}]}})),
        &[
            "spec.containers[0].volumeMounts[0].name: Not found: \"v\"",
            "spec.containers[0].volumeMounts[0].mountPath: Required value",
            "spec.containers[0].imagePullPolicy: Unsupported value: \"X\": supported values: \"Always\", \"IfNotPresent\", \"Never\"",
            "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
            "spec.containers[0].resources.claims[0]: Not found: \"c\": must be one of the names in pod.spec.resourceClaims which is empty",
        ],
    );
    create(
        "Pod",
        pod(json!({"initContainers": [
        {"name": "a", "image": "i"},
        {"name": "b", "image": "i", "livenessProbe": {"exec": {"command": ["x"]}}},
        {"name": "c", "image": "i", "restartPolicy": "Always", "livenessProbe": {"exec": {"command": ["x"]}}}]})),
        &[
            "spec.initContainers[0].name: Duplicate value: \"a\"",
            "spec.initContainers[1].livenessProbe: Forbidden: may not be set for init containers without restartPolicy=Always",
        ],
    );
    create(
        "Pod",
        pod(json!({"containers": [
        {"name": "a", "image": "i", "ports": [{"containerPort": 1, "hostPort": 80}]},
        {"name": "b", "image": "i", "ports": [{"containerPort": 2, "hostPort": 80}]}]})),
        &["spec.containers[1].ports[0].hostPort: Duplicate value: \"TCP//80\""],
    );
}

#[test]
fn security() {
    create(
        "Pod",
        container(
            json!({"securityContext": {"runAsUser": -1, "privileged": true, "allowPrivilegeEscalation": false,
        "seccompProfile": {"type": "Localhost"}, "procMount": "Unmasked"}}),
        ),
        &[
            "spec.containers[0].securityContext.runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive",
            "spec.containers[0].securityContext.procMount: Invalid value: \"Unmasked\": `hostUsers` must be false to use `Unmasked`",
            "spec.containers[0].securityContext.seccompProfile.localhostProfile: Required value: must be set when seccomp type is Localhost",
            "spec.containers[0].securityContext: Invalid value: {\"Capabilities\":null,\"Privileged\":true,\"SELinuxOptions\":null,\"WindowsOptions\":null,\"RunAsUser\":-1,\"RunAsGroup\":null,\"RunAsNonRoot\":null,\"ReadOnlyRootFilesystem\":null,\"AllowPrivilegeEscalation\":false,\"ProcMount\":\"Unmasked\",\"SeccompProfile\":{\"Type\":\"Localhost\",\"LocalhostProfile\":null},\"AppArmorProfile\":null}: cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
        ],
    );
    create(
        "Pod",
        pod(json!({"hostPID": true, "shareProcessNamespace": true, "hostNetwork": true,
        "securityContext": {"sysctls": [{"name": "net.core.somaxconn", "value": "1"}, {"name": "Bad", "value": ""}], "fsGroupChangePolicy": "X"}})),
        &[
            "spec.securityContext.shareProcessNamespace: Invalid value: true: ShareProcessNamespace and HostPID cannot both be enabled",
            "spec.securityContext.sysctls[1].name: Invalid value: \"Bad\": must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$",
            "spec.securityContext.fsGroupChangePolicy: Unsupported value: \"X\": supported values: \"Always\", \"OnRootMismatch\"",
            "spec.securityContext.sysctls[0].name: Invalid value: \"net.core.somaxconn\": may not be specified when 'hostNetwork' is true",
        ],
    );
    create(
        "Pod",
        pod(json!({"os": {"name": "windows"}, "hostPID": true, "securityContext": {"runAsUser": 1}})),
        &[
            "spec.hostPID: Forbidden: cannot be set for a windows pod",
            "spec.securityContext.runAsUser: Forbidden: cannot be set for a windows pod",
        ],
    );
    create(
        "Pod",
        pod(json!({"hostUsers": false, "hostPID": true})),
        &["spec.HostPID: Forbidden: when `hostUsers` is false"],
    );
}

#[test]
fn volumes() {
    let volumes = |volumes: Value| pod(json!({"volumes": volumes}));
    create(
        "Pod",
        volumes(json!([{"name": "a", "emptyDir": {}}, {"name": "a", "hostPath": {"path": "/x/../y"}}])),
        &[
            "spec.volumes[1].hostPath.path: Invalid value: \"/x/../y\": must not contain '..'",
            "spec.volumes[1].name: Duplicate value: \"a\"",
        ],
    );
    create(
        "Pod",
        volumes(
            json!([{"name": "a", "emptyDir": {}, "secret": {"secretName": "s"}}, {"name": "b", "nfs": {"server": "", "path": "x"}}]),
        ),
        &[
            "spec.volumes[0].secret: Forbidden: may not specify more than 1 volume type",
            "spec.volumes[1].nfs.server: Required value",
            "spec.volumes[1].nfs.path: Invalid value: \"x\": must be an absolute path",
        ],
    );
    create(
        "Pod",
        volumes(
            json!([{"name": "a", "configMap": {"name": "c", "defaultMode": 0o1000, "items": [{"key": "k", "path": "../x"}]}}]),
        ),
        &[
            "spec.volumes[0].configMap.defaultMode: Invalid value: 512: must be a number between 0 and 0777 (octal), both inclusive",
            "spec.volumes[0].configMap.items[0].path: Invalid value: \"../x\": must not contain '..'",
        ],
    );
    create(
        "Pod",
        volumes(json!([{"name": "a", "projected": {"sources": [
        {"secret": {"name": "s", "items": [{"key": "k", "path": "p"}]}},
        {"configMap": {"name": "c", "items": [{"key": "k", "path": "p"}]}},
        {"serviceAccountToken": {"path": "t", "expirationSeconds": 10}}]}}])),
        &[
            "spec.volumes[0].projected: Invalid value: \"c\": conflicting duplicate paths",
            "spec.volumes[0].projected.sources[2].serviceAccountToken.expirationSeconds: Invalid value: 10: may not specify a duration less than 10 minutes",
            "spec.volumes[0].projected.sources[2].serviceAccountToken: Forbidden: must not be specified when serviceAccountName is not set",
        ],
    );
    create(
        "Pod",
        volumes(
            json!([{"name": "a", "ephemeral": {"volumeClaimTemplate": {"metadata": {"name": "n"}, "spec": {"accessModes": ["X"], "resources": {}}}}}]),
        ),
        &[
            "spec.volumes[0].ephemeral.volumeClaimTemplate.metadata.name: Forbidden: cannot be set",
            "spec.volumes[0].ephemeral.volumeClaimTemplate.spec.accessModes: Unsupported value: \"X\": supported values: \"ReadOnlyMany\", \"ReadWriteMany\", \"ReadWriteOnce\", \"ReadWriteOncePod\"",
            "spec.volumes[0].ephemeral.volumeClaimTemplate.spec.resources[storage]: Required value",
        ],
    );
}

#[test]
fn affinity() {
    create(
        "Pod",
        pod(json!({"affinity": {
        "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []},
            "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 0, "preference": {"matchExpressions": [{"key": "a", "operator": "In"}]}}]},
        "podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"labelSelector": {}, "topologyKey": ""}]}}})),
        &[
            "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms: Required value: must have at least one node selector term",
            "spec.affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].weight: Invalid value: 0: must be in the range 1-100",
            "spec.affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].preference.matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'",
            "spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].topologyKey: Required value: can not be empty",
            "spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].topologyKey: Invalid value: \"\": name part must be non-empty",
            "spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].topologyKey: Invalid value: \"\": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')",
        ],
    );
    create(
        "Pod",
        pod(json!({"topologySpreadConstraints": [
        {"maxSkew": 0, "topologyKey": "z", "whenUnsatisfiable": "DoNotSchedule"},
        {"maxSkew": 1, "topologyKey": "z", "whenUnsatisfiable": "DoNotSchedule", "matchLabelKeys": ["a"]}]})),
        &[
            "spec.topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than zero",
            "spec.topologySpreadConstraints[0].{topologyKey, whenUnsatisfiable}: Duplicate value: \"{z, DoNotSchedule}\"",
            "spec.topologySpreadConstraints[1].matchLabelKeys: Forbidden: must not be specified when labelSelector is not set",
        ],
    );
    create(
        "Pod",
        pod(
            json!({"tolerations": [{"operator": "Equal"}, {"key": "a", "operator": "Exists", "value": "v"}, {"key": "a", "effect": "X", "tolerationSeconds": 1}]}),
        ),
        &[
            "spec.tolerations[0].operator: Invalid value: \"Equal\": operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            "spec.tolerations[1].operator: Invalid value: \"v\": value must be empty when `operator` is 'Exists'",
            "spec.tolerations[2].effect: Invalid value: \"X\": effect must be 'NoExecute' when `tolerationSeconds` is set",
            "spec.tolerations[2].effect: Unsupported value: \"X\": supported values: \"NoSchedule\", \"PreferNoSchedule\", \"NoExecute\"",
        ],
    );
}

#[test]
fn pod_updates() {
    let old =
        || pod(json!({"tolerations": [{"key": "a", "operator": "Exists"}], "activeDeadlineSeconds": 10}));
    update("Pod", old(), json!({"metadata": {"labels": {"a": "b"}}}), &[]);
    update("Pod", old(), json!({"spec": {"containers": [{"name": "a", "image": "new"}]}}), &[]);
    update(
        "Pod",
        old(),
        json!({"spec": {"tolerations": [{"key": "a", "operator": "Exists"}, {"key": "b", "operator": "Exists"}]}}),
        &[],
    );
    update(
        "Pod",
        old(),
        json!({"spec": {"tolerations": []}}),
        &[
            "spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds",
        ],
    );
    update(
        "Pod",
        old(),
        json!({"spec": {"activeDeadlineSeconds": 20}}),
        &["spec.activeDeadlineSeconds: Invalid value: 20: must be less than or equal to previous value"],
    );
    update(
        "Pod",
        old(),
        json!({"spec": {"containers": []}}),
        &[
            "spec.containers: Required value",
            "spec.containers: Forbidden: pod updates may not add or remove containers",
        ],
    );
    update(
        "Pod",
        old(),
        json!({"spec": {"hostNetwork": true}}),
        &[
            "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)",
        ],
    );
    let gated = || pod(json!({"schedulingGates": [{"name": "g"}], "nodeSelector": {"a": "b"}}));
    update("Pod", gated(), json!({"spec": {"schedulingGates": null, "nodeSelector": {"c": "d"}}}), &[]);
    update(
        "Pod",
        gated(),
        json!({"spec": {"schedulingGates": [{"name": "h"}], "nodeSelector": {"a": "x"}}}),
        &[
            "spec.schedulingGates[0].name: Forbidden: only deletion is allowed, but found new scheduling gate 'h'",
            "spec.nodeSelector: Invalid value: {\"a\":\"x\"}: only additions to spec.nodeSelector are allowed (no mutations or deletions)",
        ],
    );
}

#[test]
fn services() {
    let service = |spec: Value| json!({"metadata": {}, "spec": spec});
    create("Service", service(json!({"ports": [{"port": 80}]})), &[]);
    create("Service", service(json!({})), &["spec.ports: Required value"]);
    create("Service", service(json!({"clusterIP": "None"})), &[]);
    create("Service", service(json!({"type": "ExternalName"})), &["spec.externalName: Required value"]);
    create(
        "Service",
        service(
            json!({"type": "X", "ports": [{"port": 0}, {"port": 80, "name": "a"}, {"port": 80, "name": "a"}], "sessionAffinity": "Y"}),
        ),
        &[
            "spec.ports[0].name: Required value",
            "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
            "spec.ports[0].targetPort: Invalid value: 0: must be between 1 and 65535, inclusive",
            "spec.ports[2].name: Duplicate value: \"a\"",
            "spec.sessionAffinity: Unsupported value: \"Y\": supported values: \"ClientIP\", \"None\"",
            "spec.type: Unsupported value: \"X\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"",
            "spec.ports[2]: Duplicate value: {\"Name\":\"\",\"Protocol\":\"TCP\",\"AppProtocol\":null,\"Port\":80,\"TargetPort\":0,\"NodePort\":0}",
        ],
    );
    create(
        "Service",
        service(
            json!({"ports": [{"port": 80, "nodePort": 30000}], "externalIPs": ["127.0.0.1"], "clusterIP": "1.2.3"}),
        ),
        &[
            "spec.clusterIPs[0]: Invalid value: \"1.2.3\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            "spec.externalIPs[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
            "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
        ],
    );
    let old = || {
        service(
            json!({"ports": [{"port": 80}], "clusterIP": "10.0.0.1", "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack"}),
        )
    };
    update(
        "Service",
        old(),
        json!({"spec": {"clusterIP": "10.0.0.2"}}),
        &["spec.clusterIPs[0]: Invalid value: [\"10.0.0.2\"]: may not change once set"],
    );
    update("Service", old(), json!({"spec": {"clusterIP": null, "clusterIPs": null}}), &[]);
    update("Service", old(), json!({"spec": {"type": "ExternalName", "externalName": "a.b"}}), &[]);
    update("Service", old(), json!({"spec": {"type": "NodePort"}}), &[]);
}

#[test]
fn config() {
    create(
        "ConfigMap",
        json!({"metadata": {}, "data": {"a b": "x", "c": "y"}, "binaryData": {"c": "eA=="}}),
        &[
            "data[a b]: Invalid value: \"a b\": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')",
            "data[c]: Invalid value: \"c\": duplicate of key present in binaryData",
        ],
    );
    update(
        "ConfigMap",
        json!({"metadata": {}, "data": {"a": "b"}, "immutable": true}),
        json!({"data": {"a": "c"}, "immutable": null}),
        &[
            "immutable: Forbidden: field is immutable when `immutable` is set",
            "data: Forbidden: field is immutable when `immutable` is set",
        ],
    );
    create(
        "Secret",
        json!({"metadata": {}, "type": "kubernetes.io/tls", "stringData": {"tls.crt": "x"}}),
        &["data[tls.key]: Required value"],
    );
    create(
        "Secret",
        json!({"metadata": {}, "type": "kubernetes.io/service-account-token"}),
        &["metadata.annotations[kubernetes.io/service-account.name]: Required value"],
    );
    create(
        "Secret",
        json!({"metadata": {}, "type": "kubernetes.io/dockerconfigjson", "stringData": {".dockerconfigjson": "{}"}}),
        &[],
    );
    update(
        "Secret",
        json!({"metadata": {}}),
        json!({"type": "x"}),
        &["type: Invalid value: \"x\": field is immutable"],
    );
}

#[test]
fn storage() {
    let claim = || json!({"metadata": {}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    create("PersistentVolumeClaim", claim(), &[]);
    create(
        "PersistentVolumeClaim",
        json!({"metadata": {}, "spec": {}}),
        &[
            "spec.accessModes: Required value: at least 1 access mode is required",
            "spec.resources[storage]: Required value",
        ],
    );
    update("PersistentVolumeClaim", claim(), json!({"spec": {"volumeName": "pv"}}), &[]);
    update("PersistentVolumeClaim", claim(), json!({"spec": {"storageClassName": "fast"}}), &[]);
    update(
        "PersistentVolumeClaim",
        claim(),
        json!({"spec": {"accessModes": ["ReadOnlyMany"]}}),
        &[
            "spec: Forbidden: spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
        ],
    );
    let volume = || json!({"metadata": {}, "spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "hostPath": {"path": "/x"}}});
    create("PersistentVolume", volume(), &[]);
    create(
        "PersistentVolume",
        json!({"metadata": {}, "spec": {"local": {"path": "/x"}, "capacity": {"storage": "0"}}}),
        &[
            "spec.accessModes: Required value",
            "spec.capacity[storage]: Invalid value: \"0\": must be greater than zero",
            "spec.nodeAffinity: Required value: Local volume requires node affinity",
        ],
    );
    update(
        "PersistentVolume",
        volume(),
        json!({"spec": {"hostPath": {"path": "/y"}}}),
        &["spec.persistentvolumesource: Forbidden: spec.persistentvolumesource is immutable after creation"],
    );
}

#[test]
fn quotas() {
    create(
        "LimitRange",
        json!({"metadata": {}, "spec": {"limits": [{"type": "Container", "max": {"cpu": "1"}, "min": {"cpu": "2"}}, {"type": "Pod", "default": {"cpu": "1"}}]}}),
        &[
            "spec.limits[0].min[cpu]: Invalid value: \"2\": min value 2 is greater than max value 1",
            "spec.limits[0].defaultRequest[cpu]: Invalid value: \"1\": min value 2 is greater than default request value 1",
            "spec.limits[0].default[cpu]: Invalid value: \"2\": min value 2 is greater than default value 1",
            "spec.limits[1].default: Forbidden: may not be specified when `type` is 'Pod'",
        ],
    );
    create(
        "ResourceQuota",
        json!({"metadata": {}, "spec": {"hard": {"pods": "0.5", "disk": "1"}, "scopes": ["BestEffort", "NotBestEffort"]}}),
        &[
            "spec.hard[disk]: Invalid value: \"disk\": must be a standard resource type or fully qualified",
            "spec.hard[disk]: Invalid value: \"disk\": must be a standard resource for quota",
            "spec.hard[pods]: Invalid value: \"500m\": must be an integer",
            "spec.scopes: Invalid value: [\"BestEffort\",\"NotBestEffort\"]: conflicting scopes",
        ],
    );
}

#[test]
fn cluster_objects() {
    create(
        "Namespace",
        json!({"metadata": {"name": "a.b"}}),
        &["metadata.name: Invalid value: \"a.b\": must not contain dots"],
    );
    create(
        "Node",
        json!({"metadata": {}, "spec": {"podCIDR": "10.0.0.1/24", "taints": [{"key": "a", "effect": "X"}]}}),
        &[
            "metadata.taints[0].effect: Unsupported value: \"X\": supported values: \"NoSchedule\", \"PreferNoSchedule\", \"NoExecute\"",
            "spec.podCIDRs[0]: Invalid value: \"10.0.0.1/24\": must not have bits set beyond the prefix length",
        ],
    );
    update(
        "Node",
        json!({"metadata": {}, "spec": {"podCIDR": "10.0.0.0/24"}}),
        json!({"spec": {"podCIDR": "10.0.1.0/24", "podCIDRs": ["10.0.1.0/24"]}}),
        &["spec.podCIDRs: Forbidden: node updates may not change podCIDR except from \"\" to valid"],
    );
    create(
        "Endpoints",
        json!({"metadata": {}, "subsets": [{"addresses": [{"ip": "169.254.1.1"}], "ports": [{"port": 1}, {"port": 2, "name": "x"}]}, {}]}),
        &[
            "subsets[0].addresses[0].ip: Invalid value: \"169.254.1.1\": may not be in the link-local range (169.254.0.0/16, fe80::/10)",
            "subsets[0].ports[0].name: Required value",
            "subsets[1]: Required value: must specify `addresses` or `notReadyAddresses`",
        ],
    );
    create(
        "ReplicationController",
        json!({"metadata": {}, "spec": {"selector": {"a": "b"}, "template": {"metadata": {"labels": {"a": "c"}}, "spec": {"restartPolicy": "Never", "containers": [{"name": "a", "image": "i"}]}}}}),
        &[
            "spec.template.metadata.labels: Invalid value: {\"a\":\"c\"}: `selector` does not match template `labels`",
            "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
        ],
    );
    create(
        "Event",
        json!({"metadata": {}, "involvedObject": {"namespace": "other"}}),
        &["involvedObject.namespace: Invalid value: \"other\": does not match event.namespace"],
    );
    create(
        "Binding",
        json!({"metadata": {}, "target": {"kind": "Pod"}}),
        &[
            "target.kind: Unsupported value: \"Pod\": supported values: \"Node\", \"<empty>\"",
            "target.name: Required value",
        ],
    );
}

/// One pod that uses nearly everything, rightly.
fn full_pod() -> Value {
    serde_json::from_str(include_str!("full_pod.json")).expect("the file is JSON")
}

#[test]
fn what_is_right_is_accepted() {
    create("Pod", full_pod(), &[]);
    update("Pod", full_pod(), json!({"metadata": {"labels": {"more": "labels"}}}), &[]);
    let template = json!({"metadata": {"labels": {"app": "x"}}, "spec": full_pod()["spec"]});
    create("PodTemplate", json!({"metadata": {}, "template": template}), &[]);
    let mut always = template;
    always["spec"].as_object_mut().expect("a spec").remove("activeDeadlineSeconds");
    create(
        "ReplicationController",
        json!({"metadata": {}, "spec": {"replicas": 0, "template": always}}),
        &[],
    );
    let service = json!({"metadata": {"name": "1-may-start-with-a-digit"}, "spec": {"type": "LoadBalancer", "loadBalancerClass": "example.com/lb", "externalTrafficPolicy": "Local",
        "healthCheckNodePort": 30001, "sessionAffinity": "ClientIP", "clusterIP": "10.0.0.1", "ipFamilies": ["IPv4"], "ipFamilyPolicy": "PreferDualStack", "trafficDistribution": "PreferSameNode",
        "loadBalancerSourceRanges": ["10.0.0.0/8"], "ports": [{"name": "a", "port": 80, "targetPort": "web", "nodePort": 30000, "appProtocol": "kubernetes.io/h2c"}, {"name": "b", "port": 80, "protocol": "UDP"}]}});
    create("Service", service.clone(), &[]);
    update(
        "Service",
        service.clone(),
        json!({"spec": {"type": "ClusterIP"}}),
        &["spec.LoadBalancerSourceRanges: Forbidden: may only be used when `type` is 'LoadBalancer'"],
    );
    update("Service", service, json!({"metadata": {"annotations": {"a": "b"}}}), &[]);
    create(
        "Node",
        json!({"metadata": {"name": "n"}, "spec": {"podCIDRs": ["10.0.0.0/24", "fd00::/64"], "taints": [{"key": "a", "effect": "NoSchedule"}, {"key": "a", "effect": "NoExecute"}]},
        "status": {"capacity": {"cpu": "2", "memory": "1Gi", "pods": "110", "example.com/gpu": "1", "hugepages-2Mi": "0"}}}),
        &[],
    );
    create(
        "ResourceQuota",
        json!({"metadata": {}, "spec": {"hard": {"pods": "1", "requests.cpu": "1", "count/deployments.apps": "3", "requests.example.com/gpu": "1", "gold.storageclass.storage.k8s.io/requests.storage": "1Gi"},
        "scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "In", "values": ["high"]}]}}}),
        &[],
    );
    create(
        "LimitRange",
        json!({"metadata": {}, "spec": {"limits": [{"type": "Container", "max": {"cpu": "2"}, "min": {"cpu": "1"}, "maxLimitRequestRatio": {"cpu": "2"}}, {"type": "PersistentVolumeClaim", "max": {"storage": "1Gi"}}]}}),
        &[],
    );
    create(
        "Event",
        json!({"metadata": {"namespace": "default"}, "involvedObject": {"kind": "Node", "name": "n"}}),
        &[],
    );
}
