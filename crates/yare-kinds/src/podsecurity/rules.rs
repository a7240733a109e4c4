//! The rules behind the table of checks. Each looks at one aspect of a pod and says what is wrong with it.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Pod, Violation};
use crate::view::View;

/// Types of SELinux labels that may be set; the last one since 1.31.
pub const SELINUX_TYPES: [&str; 5] =
    ["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];

/// Kernel settings of the pod's own namespaces: 5 since ever, 6 since 1.27, 10 since 1.29, all since 1.32.
pub const SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

/// Capabilities that container runtimes give by default.
const DEFAULT_CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

const RESTRICTED_VOLUMES: [&str; 9] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

/// Other volume types, in the order in which the first one found names the volume.
const OTHER_VOLUMES: [&str; 21] = [
    "hostPath",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "gitRepo",
    "nfs",
    "iscsi",
    "glusterfs",
    "rbd",
    "flexVolume",
    "cinder",
    "cephfs",
    "flocker",
    "fc",
    "azureFile",
    "vsphereVolume",
    "quobyte",
    "azureDisk",
    "photonPersistentDisk",
    "portworxVolume",
    "scaleIO",
    "storageos",
];

const APP_ARMOR_ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";
const SECCOMP_POD_ANNOTATION: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_CONTAINER_ANNOTATION: &str = "container.seccomp.security.alpha.kubernetes.io/";

type Names<'a> = BTreeSet<&'a str>;

/// Whether the pod says that it is one for Windows.
pub fn is_windows(pod: Pod<'_>) -> bool {
    pod.spec.str_at("os.name") == "windows"
}

/// Whether the pod's users are not those of its node.
pub fn has_user_namespace(pod: Pod<'_>) -> bool {
    pod.spec.bool_opt("hostUsers") == Some(false)
}

fn containers<'a>(pod: Pod<'a>) -> impl Iterator<Item = &'a Value> {
    ["initContainers", "containers", "ephemeralContainers"]
        .into_iter()
        .flat_map(move |list| pod.spec.items(list))
}

fn name(container: &Value) -> &str {
    container.str_at("name")
}

/// Names of the containers of which `is_bad` holds.
fn bad<'a>(pod: Pod<'a>, is_bad: impl FnMut(&&'a Value) -> bool) -> Vec<&'a str> {
    containers(pod).filter(is_bad).map(name).collect()
}

fn quoted<'a>(items: impl IntoIterator<Item = &'a str>) -> String {
    items.into_iter().map(|i| format!("\"{i}\"")).collect::<Vec<_>>().join(", ")
}

fn number<'a>(count: usize, one: &'a str, many: &'a str) -> &'a str {
    if count == 1 { one } else { many }
}

/// `container "a"`, `containers "a", "b"`
fn the_containers(names: &[&str]) -> String {
    format!("{} {}", number(names.len(), "container", "containers"), quoted(names.iter().copied()))
}

/// `pod and container "a"`; `None` where nobody is to blame.
fn setters(by_pod: bool, names: &[&str]) -> Option<String> {
    match (by_pod, names.is_empty()) {
        (false, true) => None,
        (true, true) => Some("pod".into()),
        (false, false) => Some(the_containers(names)),
        (true, false) => Some(format!("pod and {}", the_containers(names))),
    }
}

fn violation(reason: &str, detail: String) -> Violation {
    Violation { reason: reason.into(), detail }
}

pub fn app_armor(pod: Pod<'_>) -> Option<Violation> {
    let mut types = Names::new();
    let forbidden = |at: &Value| -> bool {
        at.is_object() && !matches!(at.str_at("type"), "RuntimeDefault" | "Localhost")
    };
    let profile = pod.spec.at("securityContext.appArmorProfile");
    let by_pod = forbidden(profile);
    if by_pod {
        types.insert(profile.str_at("type"));
    }
    let names = bad(pod, |c| {
        let profile = c.at("securityContext.appArmorProfile");
        let is_bad = forbidden(profile);
        if is_bad {
            types.insert(profile.str_at("type"));
        }
        is_bad
    });
    let mut annotations: Vec<String> = pod
        .metadata
        .entries("annotations")
        .filter(|(k, _)| k.starts_with(APP_ARMOR_ANNOTATION))
        .map(|(k, v)| (k, v.as_str().unwrap_or_default()))
        .filter(|(_, v)| !v.is_empty() && *v != "runtime/default" && !v.starts_with("localhost/"))
        .map(|(k, v)| format!("{k}={v:?}"))
        .collect();
    annotations.sort();
    let mut who: Vec<String> = setters(by_pod, &names).into_iter().collect();
    if !annotations.is_empty() {
        who.push(number(annotations.len(), "annotation", "annotations").into());
    }
    let values: Vec<&str> = types.into_iter().chain(annotations.iter().map(String::as_str)).collect();
    (!who.is_empty()).then(|| {
        violation(
            number(values.len(), "forbidden AppArmor profile", "forbidden AppArmor profiles"),
            format!("{} must not set AppArmor profile type to {}", who.join(" and "), quoted(values)),
        )
    })
}

/// Containers that add other capabilities than `allowed`, and which.
fn adding<'a>(pod: Pod<'a>, allowed: &[&str]) -> (Vec<&'a str>, Names<'a>) {
    let mut forbidden = Names::new();
    let names = bad(pod, |c| {
        let before = c.strings("securityContext.capabilities.add");
        let wrong: Vec<&str> = before.into_iter().filter(|c| !allowed.contains(c)).collect();
        forbidden.extend(&wrong);
        !wrong.is_empty()
    });
    (names, forbidden)
}

fn must_not_add(names: &[&str], forbidden: Names<'_>) -> String {
    format!(
        "{} must not include {} in securityContext.capabilities.add",
        the_containers(names),
        quoted(forbidden)
    )
}

pub fn added_capabilities(pod: Pod<'_>) -> Option<Violation> {
    let (names, forbidden) = adding(pod, &DEFAULT_CAPABILITIES);
    (!names.is_empty()).then(|| violation("non-default capabilities", must_not_add(&names, forbidden)))
}

pub fn dropped_capabilities(pod: Pod<'_>) -> Option<Violation> {
    let keeping = bad(pod, |c| !c.strings("securityContext.capabilities.drop").contains(&"ALL"));
    let (names, forbidden) = adding(pod, &["NET_BIND_SERVICE"]);
    let mut details = Vec::new();
    if !keeping.is_empty() {
        details.push(format!(
            "{} must set securityContext.capabilities.drop=[\"ALL\"]",
            the_containers(&keeping)
        ));
    }
    if !names.is_empty() {
        details.push(must_not_add(&names, forbidden));
    }
    (!details.is_empty()).then(|| violation("unrestricted capabilities", details.join("; ")))
}

pub fn host_namespaces(pod: Pod<'_>) -> Option<Violation> {
    let set: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .into_iter()
        .filter(|field| pod.spec.bool_at(field))
        .map(|field| format!("{field}=true"))
        .collect();
    (!set.is_empty()).then(|| violation("host namespaces", set.join(", ")))
}

pub fn host_path_volumes(pod: Pod<'_>) -> Option<Violation> {
    let names: Vec<&str> = pod.spec.items("volumes").iter().filter(|v| v.has("hostPath")).map(name).collect();
    (!names.is_empty()).then(|| {
        let detail =
            format!("{} {}", number(names.len(), "volume", "volumes"), quoted(names.iter().copied()));
        violation("hostPath volumes", detail)
    })
}

pub fn host_ports(pod: Pod<'_>) -> Option<Violation> {
    let mut ports: BTreeSet<String> = BTreeSet::new();
    let names = bad(pod, |c| {
        let of_host: Vec<i64> =
            c.items("ports").iter().map(|p| p.int_at("hostPort")).filter(|p| *p != 0).collect();
        ports.extend(of_host.iter().map(i64::to_string));
        !of_host.is_empty()
    });
    (!names.is_empty()).then(|| {
        let detail = format!(
            "{} {} {} {}",
            the_containers(&names),
            number(names.len(), "uses", "use"),
            number(ports.len(), "hostPort", "hostPorts"),
            ports.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
        );
        violation("hostPort", detail)
    })
}

pub fn handler_hosts(pod: Pod<'_>) -> Option<Violation> {
    const HANDLERS: [&str; 5] =
        ["livenessProbe", "readinessProbe", "startupProbe", "lifecycle.postStart", "lifecycle.preStop"];
    let mut hosts = Names::new();
    let mut names = Names::new();
    for container in containers(pod) {
        for handler in HANDLERS {
            for action in ["httpGet", "tcpSocket"] {
                let host = container.at(handler).at(action).str_at("host");
                if !host.is_empty() {
                    hosts.insert(host);
                    names.insert(name(container));
                }
            }
        }
    }
    let names: Vec<&str> = names.into_iter().collect();
    (!names.is_empty()).then(|| {
        let detail = format!(
            "{} {} {} {}",
            the_containers(&names),
            number(names.len(), "uses", "use"),
            number(hosts.len(), "probe or lifecycle host", "probe or lifecycle hosts"),
            quoted(hosts)
        );
        violation("probe or lifecycle host", detail)
    })
}

pub fn privileged(pod: Pod<'_>) -> Option<Violation> {
    let names = bad(pod, |c| c.bool_at("securityContext.privileged"));
    (!names.is_empty()).then(|| {
        violation(
            "privileged",
            format!("{} must not set securityContext.privileged=true", the_containers(&names)),
        )
    })
}

pub fn privilege_escalation(pod: Pod<'_>) -> Option<Violation> {
    let names = bad(pod, |c| c.bool_opt("securityContext.allowPrivilegeEscalation") != Some(false));
    (!names.is_empty()).then(|| {
        violation(
            "allowPrivilegeEscalation != false",
            format!("{} must set securityContext.allowPrivilegeEscalation=false", the_containers(&names)),
        )
    })
}

pub fn proc_mount(pod: Pod<'_>) -> Option<Violation> {
    let mut types = Names::new();
    let names = bad(pod, |c| match c.str_opt("securityContext.procMount") {
        None | Some("Default") => false,
        Some(other) => {
            types.insert(other);
            true
        }
    });
    (!names.is_empty()).then(|| {
        violation(
            "procMount",
            format!("{} must not set securityContext.procMount to {}", the_containers(&names), quoted(types)),
        )
    })
}

pub fn selinux(pod: Pod<'_>, allowed: &[&str]) -> Option<Violation> {
    let mut types = Names::new();
    let (mut user, mut role) = (false, false);
    // An inner function, so that the set can hold what it finds.
    fn look<'a>(
        options: &'a Value,
        allowed: &[&str],
        types: &mut Names<'a>,
        user: &mut bool,
        role: &mut bool,
    ) -> bool {
        let ty = options.str_at("type");
        let bad_type = !allowed.contains(&ty);
        if bad_type {
            types.insert(ty);
        }
        let (has_user, has_role) = (options.is_set("user"), options.is_set("role"));
        *user |= has_user;
        *role |= has_role;
        bad_type || has_user || has_role
    }
    const OPTIONS: &str = "securityContext.seLinuxOptions";
    let by_pod = look(pod.spec.at(OPTIONS), allowed, &mut types, &mut user, &mut role);
    let names = bad(pod, |c| look(c.at(OPTIONS), allowed, &mut types, &mut user, &mut role));
    setters(by_pod, &names).map(|who| {
        let mut what = Vec::new();
        if !types.is_empty() {
            what.push(format!("{} {}", number(types.len(), "type", "types"), quoted(types)));
        }
        if user {
            what.push("user may not be set".into());
        }
        if role {
            what.push("role may not be set".into());
        }
        let detail = format!("{who} set forbidden securityContext.seLinuxOptions: {}", what.join("; "));
        violation("seLinuxOptions", detail)
    })
}

pub fn seccomp_annotations(pod: Pod<'_>) -> Option<Violation> {
    let annotations = pod.metadata.at("annotations");
    let keys = std::iter::once(SECCOMP_POD_ANNOTATION.to_owned())
        .chain(containers(pod).map(|c| format!("{SECCOMP_CONTAINER_ANNOTATION}{}", name(c))));
    let forbidden: BTreeSet<String> = keys
        .filter_map(|key| {
            let value = annotations.get(&key)?.as_str()?;
            let good =
                matches!(value, "runtime/default" | "docker/default") || value.starts_with("localhost/");
            (!good).then(|| format!("{key}={value:?}"))
        })
        .collect();
    (!forbidden.is_empty()).then(|| {
        let list: Vec<&str> = forbidden.iter().map(String::as_str).collect();
        let detail =
            format!("forbidden {} {}", number(list.len(), "annotation", "annotations"), list.join(", "));
        violation("seccompProfile", detail)
    })
}

/// `required`: a profile must be set, not only be a good one where it is.
pub fn seccomp(pod: Pod<'_>, required: bool) -> Option<Violation> {
    const PROFILE: &str = "securityContext.seccompProfile";
    let is_bad = |profile: &Value| {
        profile.is_object() && !matches!(profile.str_at("type"), "RuntimeDefault" | "Localhost")
    };
    let mut values = Names::new();
    let of_pod = pod.spec.at(PROFILE);
    let by_pod = is_bad(of_pod);
    if by_pod {
        values.insert(of_pod.str_at("type"));
    }
    let names = bad(pod, |c| {
        let profile = c.at(PROFILE);
        let wrong = is_bad(profile);
        if wrong {
            values.insert(profile.str_at("type"));
        }
        wrong
    });
    if let Some(who) = setters(by_pod, &names) {
        let detail = format!("{who} must not set securityContext.seccompProfile.type to {}", quoted(values));
        return Some(violation("seccompProfile", detail));
    }
    if !required || of_pod.is_object() {
        return None;
    }
    let without = bad(pod, |c| !c.at(PROFILE).is_object());
    (!without.is_empty()).then(|| {
        let detail = format!(
            "pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"",
            the_containers(&without)
        );
        violation("seccompProfile", detail)
    })
}

pub fn sysctls(pod: Pod<'_>, allowed: &[&str]) -> Option<Violation> {
    let set = pod.spec.items("securityContext.sysctls").iter().map(name);
    let forbidden: Vec<&str> = set.filter(|s| !allowed.contains(s)).collect();
    (!forbidden.is_empty()).then(|| violation("forbidden sysctls", forbidden.join(", ")))
}

pub fn windows_host_process(pod: Pod<'_>) -> Option<Violation> {
    const HOST_PROCESS: &str = "securityContext.windowsOptions.hostProcess";
    let names = bad(pod, |c| c.bool_at(HOST_PROCESS));
    setters(pod.spec.bool_at(HOST_PROCESS), &names).map(|who| {
        let detail = format!("{who} must not set securityContext.windowsOptions.hostProcess=true");
        violation("hostProcess", detail)
    })
}

pub fn volume_types(pod: Pod<'_>) -> Option<Violation> {
    let mut types = Names::new();
    let mut names = Vec::new();
    for volume in pod.spec.items("volumes") {
        if RESTRICTED_VOLUMES.iter().any(|t| volume.get(*t).is_some_and(|v| !v.is_null())) {
            continue;
        }
        names.push(name(volume));
        let found = OTHER_VOLUMES.iter().find(|t| volume.get(**t).is_some_and(|v| !v.is_null()));
        types.insert(found.copied().unwrap_or("unknown"));
    }
    (!names.is_empty()).then(|| {
        let detail = format!(
            "{} {} {} {} {}",
            number(names.len(), "volume", "volumes"),
            quoted(names.iter().copied()),
            number(names.len(), "uses", "use"),
            number(types.len(), "restricted volume type", "restricted volume types"),
            quoted(types)
        );
        violation("restricted volume types", detail)
    })
}

pub fn run_as_non_root(pod: Pod<'_>) -> Option<Violation> {
    const FIELD: &str = "securityContext.runAsNonRoot";
    const REASON: &str = "runAsNonRoot != true";
    let of_pod = pod.spec.bool_opt(FIELD);
    let names = bad(pod, |c| c.bool_opt(FIELD) == Some(false));
    if let Some(who) = setters(of_pod == Some(false), &names) {
        return Some(violation(REASON, format!("{who} must not set securityContext.runAsNonRoot=false")));
    }
    if of_pod == Some(true) {
        return None;
    }
    let silent = bad(pod, |c| c.bool_opt(FIELD).is_none());
    (!silent.is_empty()).then(|| {
        let detail = format!("pod or {} must set securityContext.runAsNonRoot=true", the_containers(&silent));
        violation(REASON, detail)
    })
}

pub fn run_as_user(pod: Pod<'_>) -> Option<Violation> {
    const FIELD: &str = "securityContext.runAsUser";
    let names = bad(pod, |c| c.int_opt(FIELD) == Some(0));
    setters(pod.spec.int_opt(FIELD) == Some(0), &names)
        .map(|who| violation("runAsUser=0", format!("{who} must not set runAsUser=0")))
}
