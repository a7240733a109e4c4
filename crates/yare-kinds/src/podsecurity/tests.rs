//! Checks as data: a level, a version, a pod, and what is said of it.

use serde_json::json;
use yare_schema::field::FieldError;

use super::*;

fn at(level: &str, version: &str) -> LevelVersion {
    LevelVersion { level: parse_level(level).unwrap(), version: parse_version(version).unwrap() }
}

#[track_caller]
fn check(level: &str, version: &str, pod: &Value, expect: &str) {
    let found = evaluate(
        at(level, version),
        Pod { metadata: pod.get("metadata").unwrap_or(&Value::Null), spec: &pod["spec"] },
    );
    assert_eq!(found.details(), expect, "{level}:{version} {pod}");
}

/// A pod that every level lets in, with changes.
fn good(change: impl FnOnce(&mut Value)) -> Value {
    let mut pod = json!({"metadata": {}, "spec": {
        "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{"name": "a", "securityContext": {
            "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}],
        "initContainers": [{"name": "i", "securityContext": {
            "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}],
    }});
    change(&mut pod["spec"]);
    pod
}

#[test]
fn the_table_is_in_order() {
    let ids: Vec<(Level, &str)> = checks::TABLE.iter().map(|c| (c.level, c.id)).collect();
    let mut sorted = ids.clone();
    sorted.sort_unstable();
    assert_eq!(ids, sorted);
    for check in checks::TABLE {
        assert!(check.versions.is_sorted_by(|a, b| a.since < b.since), "{}", check.id);
        for id in check.versions.iter().flat_map(|v| v.overrides) {
            assert!(ids.contains(&(Level::Baseline, id)), "{} overrides {id}", check.id);
        }
    }
    assert_eq!(checks::newest(), 35);
}

#[test]
fn a_careful_pod_passes_everywhere() {
    for level in ["privileged", "baseline", "restricted"] {
        for version in ["v1.0", "v1.19", "v1.24", "v1.36", "latest"] {
            check(level, version, &good(|_| {}), "");
        }
    }
}

#[test]
fn a_plain_pod_is_not_restricted() {
    let plain = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}});
    check("baseline", "latest", &plain, "");
    check(
        "restricted",
        "latest",
        &plain,
        "allowPrivilegeEscalation != false (containers \"a\", \"b\" must set securityContext.allowPrivilegeEscalation=false), \
         unrestricted capabilities (containers \"a\", \"b\" must set securityContext.capabilities.drop=[\"ALL\"]), \
         runAsNonRoot != true (pod or containers \"a\", \"b\" must set securityContext.runAsNonRoot=true), \
         seccompProfile (pod or containers \"a\", \"b\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")",
    );
    check(
        "restricted",
        "v1.7",
        &plain,
        "runAsNonRoot != true (pod or containers \"a\", \"b\" must set securityContext.runAsNonRoot=true)",
    );
}

#[test]
fn baseline() {
    let pod = |spec: Value| json!({"spec": spec});
    let with = |context: Value| json!({"spec": {"containers": [{"name": "a", "securityContext": context}]}});
    for (pod, expect) in [
        (
            pod(json!({"hostPID": true, "hostNetwork": true})),
            "host namespaces (hostNetwork=true, hostPID=true)",
        ),
        (
            pod(
                json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}, {"name": "e", "emptyDir": {}}]}),
            ),
            "hostPath volumes (volume \"v\")",
        ),
        (
            pod(
                json!({"containers": [{"name": "a", "ports": [{"hostPort": 80}, {"hostPort": 9}]}, {"name": "b"}]}),
            ),
            "hostPort (container \"a\" uses hostPorts 80, 9)",
        ),
        (
            with(json!({"privileged": true})),
            "privileged (container \"a\" must not set securityContext.privileged=true)",
        ),
        (
            with(json!({"capabilities": {"add": ["SYS_ADMIN", "CHOWN", "BPF"]}})),
            "non-default capabilities (container \"a\" must not include \"BPF\", \"SYS_ADMIN\" in securityContext.capabilities.add)",
        ),
        (
            with(json!({"appArmorProfile": {"type": "Unconfined"}})),
            "forbidden AppArmor profile (container \"a\" must not set AppArmor profile type to \"Unconfined\")",
        ),
        (
            with(json!({"seLinuxOptions": {"type": "spc_t", "user": "u", "role": "r"}})),
            "seLinuxOptions (container \"a\" set forbidden securityContext.seLinuxOptions: type \"spc_t\"; user may not be set; role may not be set)",
        ),
        (
            with(json!({"seccompProfile": {"type": "Unconfined"}})),
            "seccompProfile (container \"a\" must not set securityContext.seccompProfile.type to \"Unconfined\")",
        ),
        (
            with(json!({"procMount": "Unmasked"})),
            "procMount (container \"a\" must not set securityContext.procMount to \"Unmasked\")",
        ),
        (
            pod(json!({"securityContext": {"windowsOptions": {"hostProcess": true}}})),
            "hostProcess (pod must not set securityContext.windowsOptions.hostProcess=true)",
        ),
        (
            pod(
                json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax"}, {"name": "net.ipv4.tcp_syncookies"}]}}),
            ),
            "forbidden sysctls (kernel.msgmax)",
        ),
        (
            pod(json!({"ephemeralContainers": [{"name": "e", "livenessProbe": {"httpGet": {"host": "h"}}}]})),
            "probe or lifecycle host (container \"e\" uses probe or lifecycle host \"h\")",
        ),
        (
            json!({"metadata": {"annotations": {"container.apparmor.security.beta.kubernetes.io/a": "unconfined"}}, "spec": {}}),
            "forbidden AppArmor profile (annotation must not set AppArmor profile type to \"container.apparmor.security.beta.kubernetes.io/a=\"unconfined\"\")",
        ),
    ] {
        check("baseline", "latest", &pod, expect);
        check("privileged", "latest", &pod, "");
    }
}

#[test]
fn restricted() {
    for (change, expect) in [
        (
            json!({"securityContext": {"runAsNonRoot": false, "runAsUser": 0}}),
            "runAsNonRoot != true (pod must not set securityContext.runAsNonRoot=false), runAsUser=0 (pod must not set runAsUser=0), \
             seccompProfile (pod or containers \"i\", \"a\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")",
        ),
        // Said once, in the words of the stricter check.
        (
            json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}, {"name": "w", "nfs": {}}]}),
            "restricted volume types (volumes \"v\", \"w\" use restricted volume types \"hostPath\", \"nfs\")",
        ),
        (
            json!({"containers": [{"name": "a", "securityContext": {"allowPrivilegeEscalation": false,
                "capabilities": {"drop": ["ALL"], "add": ["CHOWN", "NET_BIND_SERVICE"]}}}]}),
            "unrestricted capabilities (container \"a\" must not include \"CHOWN\" in securityContext.capabilities.add)",
        ),
    ] {
        let pod = good(|spec| {
            for (k, v) in change.as_object().unwrap() {
                spec[k] = v.clone();
            }
        });
        check("restricted", "latest", &pod, expect);
    }
}

#[test]
fn versions_differ() {
    let sysctl = |name: &str| json!({"spec": {"securityContext": {"sysctls": [{"name": name}]}}});
    let windows = json!({"spec": {"os": {"name": "windows"}, "securityContext": {"runAsNonRoot": true}, "containers": [{"name": "a"}]}});
    let user_namespace = good(|spec| {
        spec["hostUsers"] = false.into();
        spec["securityContext"]["runAsUser"] = 0.into();
        spec["containers"][0]["securityContext"]["procMount"] = "Unmasked".into();
    });
    let proc_mount = "procMount (container \"a\" must not set securityContext.procMount to \"Unmasked\")";
    let probe =
        json!({"spec": {"containers": [{"name": "a", "readinessProbe": {"tcpSocket": {"host": "h"}}}]}});
    let engine = json!({"spec": {"securityContext": {"seLinuxOptions": {"type": "container_engine_t"}}}});
    let annotated = json!({"metadata": {"annotations": {"seccomp.security.alpha.kubernetes.io/pod": "unconfined"}}, "spec": {}});
    for (level, version, pod, expect) in [
        (
            "baseline",
            "v1.26",
            sysctl("net.ipv4.ip_local_reserved_ports"),
            "forbidden sysctls (net.ipv4.ip_local_reserved_ports)",
        ),
        ("baseline", "v1.27", sysctl("net.ipv4.ip_local_reserved_ports"), ""),
        ("baseline", "v1.31", sysctl("net.ipv4.tcp_wmem"), "forbidden sysctls (net.ipv4.tcp_wmem)"),
        ("baseline", "v1.32", sysctl("net.ipv4.tcp_wmem"), ""),
        ("baseline", "v1.33", probe.clone(), ""),
        (
            "baseline",
            "v1.34",
            probe,
            "probe or lifecycle host (container \"a\" uses probe or lifecycle host \"h\")",
        ),
        (
            "baseline",
            "v1.30",
            engine.clone(),
            "seLinuxOptions (pod set forbidden securityContext.seLinuxOptions: type \"container_engine_t\")",
        ),
        ("baseline", "v1.31", engine, ""),
        (
            "baseline",
            "v1.18",
            annotated.clone(),
            "seccompProfile (forbidden annotation seccomp.security.alpha.kubernetes.io/pod=\"unconfined\")",
        ),
        ("baseline", "v1.19", annotated, ""),
        ("restricted", "v1.25", windows.clone(), ""),
        (
            "restricted",
            "v1.8",
            windows,
            "allowPrivilegeEscalation != false (container \"a\" must set securityContext.allowPrivilegeEscalation=false)",
        ),
        (
            "restricted",
            "v1.34",
            user_namespace.clone(),
            &format!("{proc_mount}, runAsUser=0 (pod must not set runAsUser=0)"),
        ),
        ("restricted", "v1.35", user_namespace.clone(), proc_mount),
        ("baseline", "v1.34", user_namespace.clone(), proc_mount),
        ("baseline", "v1.99", user_namespace, ""),
    ] {
        check(level, version, &pod, expect);
    }
}

#[test]
fn labels() {
    let policy = |labels: &[(&str, &str)]| {
        let labels: Vec<(String, &str)> = labels.iter().map(|(k, v)| (format!("{LABELS}{k}"), *v)).collect();
        let (policy, errors) =
            Policy::of(|k| labels.iter().find(|(l, _)| l == k).map(|(_, v)| *v), &Policy::default());
        let errors: Vec<String> = errors.iter().map(FieldError::to_string).collect();
        (format!("{} {} {}", policy.enforce, policy.audit, policy.warn), errors.join("; "))
    };
    for (labels, expect, errors) in [
        (&[][..], "privileged:latest privileged:latest privileged:latest", ""),
        // Warnings follow what is enforced unless told otherwise.
        (
            &[("enforce", "baseline"), ("enforce-version", "v1.20")],
            "baseline:v1.20 privileged:latest baseline:v1.20",
            "",
        ),
        (
            &[("enforce", "baseline"), ("warn", "privileged")],
            "baseline:latest privileged:latest privileged:latest",
            "",
        ),
        (
            &[("audit", "restricted"), ("audit-version", "v1.0")],
            "privileged:latest restricted:v1.0 privileged:latest",
            "",
        ),
        (
            &[("enforce", "strict"), ("warn-version", "v1.01"), ("audit", "")],
            "restricted:latest privileged:latest privileged:latest",
            "metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: \"strict\": must be one of privileged, baseline, restricted; \
             metadata.labels[pod-security.kubernetes.io/audit]: Invalid value: \"\": must be one of privileged, baseline, restricted; \
             metadata.labels[pod-security.kubernetes.io/warn-version]: Invalid value: \"v1.01\": must be \"latest\" or \"v1.x\"",
        ),
    ] {
        assert_eq!(policy(labels), (expect.to_owned(), errors.to_owned()), "{labels:?}");
    }
}
