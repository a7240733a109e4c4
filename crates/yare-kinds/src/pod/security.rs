//! Security contexts of pods and containers, sysctls, profiles, and what each operating system allows.

use std::{collections::HashSet, sync::LazyLock};

use regex::Regex;
use serde_json::{Value, json};
use yare_schema::field::{FieldError, Path};

use super::{defaults::CONTAINER_LISTS, volumes::check_descending_path};
use crate::{
    check::{Check, Errors},
    names, shown,
    view::View,
};

/// Calls `f` with the path and value of every container of a pod.
pub fn each_container<'a>(spec: &'a Value, path: &Path<'_>, mut f: impl FnMut(&'a Value, &Path<'_>)) {
    for list in CONTAINER_LISTS {
        let p = path.child(list);
        for (i, container) in spec.items(list).iter().enumerate() {
            f(container, &p.index(i));
        }
    }
}

/// Errors in a container's `securityContext`.
pub fn check_container(errs: &mut Errors, path: &Path<'_>, context: &Value, host_users: bool) {
    if context.is_null() {
        return;
    }
    for field in ["runAsUser", "runAsGroup"] {
        check_id(errs, &path.child(field), context.int_opt(field));
    }
    if let Some(proc_mount) = context.str_opt("procMount") {
        let p = path.child("procMount");
        errs.one_of(&p, proc_mount, &["Default", "Unmasked"]);
        if host_users && proc_mount == "Unmasked" {
            errs.invalid(&p, proc_mount, "`hostUsers` must be false to use `Unmasked`");
        }
    }
    check_seccomp(errs, &path.child("seccompProfile"), context.at("seccompProfile"));
    if context.bool_opt("allowPrivilegeEscalation") == Some(false) {
        let mut refuse = |detail: &str| {
            let error = FieldError::invalid(path, Value::Null, detail);
            errs.push(error.showing(shown::show(context, shown::SECURITY_CONTEXT)));
        };
        if context.bool_at("privileged") {
            refuse("cannot set `allowPrivilegeEscalation` to false and `privileged` to true");
        }
        for _ in context.strings("capabilities.add").iter().filter(|c| **c == "CAP_SYS_ADMIN") {
            refuse("cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN");
        }
    }
    check_windows_options(errs, &path.child("windowsOptions"), context.at("windowsOptions"));
    check_app_armor(errs, &path.child("appArmorProfile"), context.at("appArmorProfile"));
}

/// Errors in a pod's `securityContext`.
pub fn check_pod(errs: &mut Errors, spec_path: &Path<'_>, spec: &Value) {
    let context = spec.at("securityContext");
    let path = spec_path.child("securityContext");
    for field in ["fsGroup", "runAsUser", "runAsGroup"] {
        check_id(errs, &path.child(field), context.int_opt(field));
    }
    let groups = path.child("supplementalGroups");
    for (i, group) in context.items("supplementalGroups").iter().enumerate() {
        check_id(errs, &groups.index(i), group.as_i64());
    }
    if spec.bool_at("shareProcessNamespace") && spec.bool_at("hostPID") {
        errs.invalid(
            &path.child("shareProcessNamespace"),
            true,
            "ShareProcessNamespace and HostPID cannot both be enabled",
        );
    }
    check_sysctls(errs, &path.child("sysctls"), spec);
    let policy = |errs: &mut Errors, field: &str, allowed: [&str; 2]| {
        if let Some(policy) = context.str_opt(field) {
            errs.one_of(&path.child(field), policy, &allowed);
        }
    };
    policy(errs, "fsGroupChangePolicy", ["Always", "OnRootMismatch"]);
    check_seccomp(errs, &path.child("seccompProfile"), context.at("seccompProfile"));
    check_windows_options(errs, &path.child("windowsOptions"), context.at("windowsOptions"));
    check_app_armor(errs, &path.child("appArmorProfile"), context.at("appArmorProfile"));
    policy(errs, "supplementalGroupsPolicy", ["Merge", "Strict"]);
    // Which of the two are allowed depends on a gate: `switched` judges `MountOption`.
    policy(errs, "seLinuxChangePolicy", ["MountOption", "Recursive"]);
}

fn check_id(errs: &mut Errors, path: &Path<'_>, id: Option<i64>) {
    if let Some(id) = id {
        errs.each(path, id, names::user_or_group_id(id));
    }
}

fn check_sysctls(errs: &mut Errors, path: &Path<'_>, spec: &Value) {
    const FORMAT: &str = "^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
    static NAME: LazyLock<Regex> = LazyLock::new(|| Regex::new(FORMAT).expect("the pattern is a constant"));
    let mut seen: HashSet<&str> = HashSet::new();
    for (i, sysctl) in spec.items("securityContext.sysctls").iter().enumerate() {
        let p = path.index(i);
        let p = p.child("name");
        let name = sysctl.str_at("name");
        if name.is_empty() {
            errs.required(&p, "");
        } else if name.len() > names::SUBDOMAIN_MAX || !NAME.is_match(name) {
            errs.invalid(&p, name, format!("must have at most 253 characters and match regex {FORMAT}"));
        } else if seen.contains(&name) {
            errs.duplicate(&p, name);
        }
        // Those of namespaces that the host shares are spared in old objects: `switched` judges them.
        seen.insert(name);
    }
}

/// Why a pod may not set this, where it shares the namespace that it belongs to with the host.
pub fn host_sysctl(spec: &Value, name: &str) -> Option<&'static str> {
    const OF_IPC: &[&str] = &[
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
        "kernel.shm",
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.msg",
    ];
    let name = with_dots(name);
    let name = name.split('*').next().unwrap_or_default();
    if spec.bool_at("hostNetwork") && name.starts_with("net.") {
        return Some("may not be specified when 'hostNetwork' is true");
    }
    let of_ipc = OF_IPC.contains(&name) || name.starts_with("fs.mqueue.");
    (spec.bool_at("hostIPC") && of_ipc).then_some("may not be specified when 'hostIPC' is true")
}

/// A name in which slashes separate (and dots belong to names) with the two exchanged.
fn with_dots(name: &str) -> String {
    if name.find(['.', '/']).is_none_or(|i| name.as_bytes()[i] == b'.') {
        return name.to_owned();
    }
    name.chars()
        .map(|c| match c {
            '.' => '/',
            '/' => '.',
            c => c,
        })
        .collect()
}

fn check_seccomp(errs: &mut Errors, path: &Path<'_>, profile: &Value) {
    if profile.is_null() {
        return;
    }
    let kind = profile.str_at("type");
    if kind.is_empty() {
        errs.required(&path.child("type"), "type is required when seccompProfile is set");
    } else {
        errs.one_of(&path.child("type"), kind, &["Localhost", "RuntimeDefault", "Unconfined"]);
    }
    let p = path.child("localhostProfile");
    match (kind == "Localhost", profile.str_opt("localhostProfile")) {
        (true, None) => errs.required(&p, "must be set when seccomp type is Localhost"),
        (true, Some(file)) => check_descending_path(errs, &p, file),
        (false, Some(_)) => {
            let detail = "can only be set when seccomp type is Localhost";
            let shown = shown::show(profile, shown::PROFILE);
            errs.push(FieldError::invalid(&p, Value::Null, detail).showing(shown));
        }
        (false, None) => {}
    }
}

/// The profile that an annotation names, where it names a good one.
pub fn app_armor_of(text: &str) -> Option<Value> {
    match text {
        "runtime/default" => Some(json!({"type": "RuntimeDefault"})),
        "unconfined" => Some(json!({"type": "Unconfined"})),
        _ => {
            let file = text.strip_prefix("localhost/").filter(|file| !file.is_empty())?;
            let profile = json!({"type": "Localhost", "localhostProfile": file});
            let mut errs = Errors::new();
            check_app_armor(&mut errs, &Path::ROOT, &profile);
            errs.is_empty().then_some(profile)
        }
    }
}

fn check_app_armor(errs: &mut Errors, path: &Path<'_>, profile: &Value) {
    if profile.is_null() {
        return;
    }
    let p = path.child("localhostProfile");
    let file = profile.str_opt("localhostProfile");
    match profile.str_at("type") {
        "" => errs.required(&path.child("type"), "type is required when appArmorProfile is set"),
        "Localhost" => {
            match file {
                None => errs.required(&p, "must be set when AppArmor type is Localhost"),
                Some(file) if file.trim() != file => {
                    errs.invalid(&p, file, "must not be padded with whitespace")
                }
                Some("") => errs.required(&p, "must be set when AppArmor type is Localhost"),
                Some(_) => {}
            }
            if file.is_some_and(|f| f.len() > 4095) {
                errs.push(FieldError::too_long(&p, 4095));
            }
        }
        "RuntimeDefault" | "Unconfined" => {
            if let Some(file) = file {
                errs.invalid(&p, file, "can only be set when AppArmor type is Localhost");
            }
        }
        other => errs.one_of(&path.child("type"), other, &["Localhost", "RuntimeDefault", "Unconfined"]),
    }
}

/// Errors in what a user namespace of the pod's own does not go with.
pub fn check_host_users(errs: &mut Errors, path: &Path<'_>, spec: &Value) {
    if spec.bool_opt("hostUsers") != Some(false) {
        return;
    }
    const DETAIL: &str = "when `hostUsers` is false";
    // Whether the host's network is allowed depends on a gate: `switched` judges that.
    for (field, reported) in [("hostPID", "HostPID"), ("hostIPC", "HostIPC")] {
        if spec.bool_at(field) {
            errs.forbidden(&path.child(reported), DETAIL);
        }
    }
}

/// Errors in `os`, and in what does not go with it.
pub fn check_os(errs: &mut Errors, path: &Path<'_>, spec: &Value) {
    if !spec.has("os") {
        return;
    }
    let p = path.child("os");
    match spec.str_at("os.name") {
        "" => errs.required(&p.child("name"), ""),
        "linux" => {
            const DETAIL: &str = "windows options cannot be set for a linux pod";
            if spec.has("securityContext.windowsOptions") {
                errs.forbidden(&path.child("securityContext").child("windowsOptions"), DETAIL);
            }
            each_container(spec, path, |container, p| {
                if container.has("securityContext.windowsOptions") {
                    errs.forbidden(&p.child("securityContext").child("windowsOptions"), DETAIL);
                }
            });
        }
        "windows" => check_windows(errs, path, spec),
        other => errs.one_of(&p, other, &["linux", "windows"]),
    }
}

/// Windows pods may not set what only Linux has.
fn check_windows(errs: &mut Errors, path: &Path<'_>, spec: &Value) {
    /// In the order in which upstream looks; the second says whether it stands in the security context.
    const POD: &[(&str, bool)] = &[
        ("appArmorProfile", true),
        ("seLinuxOptions", true),
        ("hostUsers", false),
        ("hostPID", false),
        ("hostIPC", false),
        ("seccompProfile", true),
        ("fsGroup", true),
        ("fsGroupChangePolicy", true),
        ("sysctls", true),
        ("shareProcessNamespace", false),
        ("runAsUser", true),
        ("runAsGroup", true),
        ("supplementalGroups", true),
        ("supplementalGroupsPolicy", true),
        ("seLinuxChangePolicy", true),
    ];
    const CONTAINER_CONTEXT: &[&str] = &[
        "appArmorProfile",
        "seLinuxOptions",
        "seccompProfile",
        "capabilities",
        "readOnlyRootFilesystem",
        "privileged",
        "allowPrivilegeEscalation",
        "procMount",
        "runAsUser",
        "runAsGroup",
    ];
    const DETAIL: &str = "cannot be set for a windows pod";
    let context = path.child("securityContext");
    for (field, in_context) in POD {
        // A plain flag and a list count when they are set, what is optional when it is there.
        let plain = matches!(*field, "hostPID" | "hostIPC" | "sysctls");
        let owner = if *in_context { spec.at("securityContext") } else { spec };
        if if plain { owner.is_set(field) } else { owner.has(field) } {
            errs.forbidden(&if *in_context { context.child(field) } else { path.child(field) }, DETAIL);
        }
    }
    each_container(spec, path, |container, p| {
        let context = p.child("securityContext");
        for field in CONTAINER_CONTEXT.iter().filter(|f| container.at("securityContext").has(f)) {
            errs.forbidden(&context.child(field), DETAIL);
        }
    });
}

fn check_windows_options(errs: &mut Errors, path: &Path<'_>, options: &Value) {
    if let Some(name) = options.str_opt("gmsaCredentialSpecName") {
        errs.each(&path.child("gmsaCredentialSpecName"), name, names::dns1123_subdomain(name));
    }
    if let Some(spec) = options.str_opt("gmsaCredentialSpec") {
        let p = path.child("gmsaCredentialSpec");
        if spec.is_empty() {
            errs.invalid(&p, spec, "gmsaCredentialSpec cannot be an empty string");
        } else if spec.len() > 64 * 1024 {
            errs.invalid(&p, spec, "gmsaCredentialSpec size must be under 64 KiB");
        }
    }
    if let Some(name) = options.str_opt("runAsUserName") {
        check_windows_user(errs, &path.child("runAsUserName"), name);
    }
}

fn check_windows_user(errs: &mut Errors, path: &Path<'_>, name: &str) {
    static NET_BIOS: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r#"^[^\\/:*?"<>|.][^\\/:*?"<>|]{0,14}$"#).expect("the pattern is a constant")
    });
    static DNS: LazyLock<Regex> = LazyLock::new(|| {
        let label = "[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?";
        Regex::new(&format!(r"^{label}(?:\.{label})*$")).expect("the pattern is a constant")
    });
    let mut invalid = |detail: &str| errs.invalid(path, name, format!("runAsUserName{detail}"));
    if name.is_empty() {
        return invalid(" cannot be an empty string");
    }
    if name.chars().any(|c| c.is_ascii_control()) {
        return invalid(" cannot contain control characters");
    }
    let (domain, user) = match name.split('\\').collect::<Vec<_>>()[..] {
        [user] => (None, user),
        [domain, user] => (Some(domain), user),
        _ => return invalid(" cannot contain more than one backslash"),
    };
    if let Some(domain) = domain {
        if domain.len() >= 256 {
            invalid("'s Domain length must be under 256 characters");
        }
        if !NET_BIOS.is_match(domain) && !DNS.is_match(domain) {
            invalid("'s Domain doesn't match the NetBios nor the DNS format");
        }
    }
    if user.is_empty() {
        invalid("'s User cannot be empty");
    } else if user.len() > 104 {
        invalid("'s User length must not be longer than 104 characters");
    }
    if !user.is_empty() && user.chars().all(|c| c == '.' || c == ' ') {
        invalid("'s User cannot contain only periods or spaces");
    }
    if user.contains(['"', '/', '\\', ':', ';', '|', '=', ',', '+', '*', '?', '<', '>', '@', '[', ']']) {
        invalid("'s User cannot contain the following characters: \"/\\:;|=,+*?<>@[]");
    }
}

/// Errors in which containers of a Windows pod run as processes of the host.
pub fn check_host_process(errs: &mut Errors, path: &Path<'_>, spec: &Value) {
    let of_pod = spec.bool_opt("securityContext.windowsOptions.hostProcess");
    let (mut all, mut host_process) = (0, 0);
    each_container(spec, path, |container, p| {
        all += 1;
        let own = container.bool_opt("securityContext.windowsOptions.hostProcess");
        if let (Some(pod), Some(own)) = (of_pod, own)
            && pod != own
        {
            errs.invalid(
                &p.child("securityContext").child("windowsOptions").child("hostProcess"),
                own,
                format!("pod hostProcess value must be identical if both are specified, was {pod}"),
            );
        }
        host_process += usize::from(own.or(of_pod) == Some(true));
    });
    if host_process == 0 {
        return;
    }
    if host_process != all {
        errs.invalid(
            path,
            "",
            "If pod contains any hostProcess containers then all containers must be HostProcess containers",
        );
    }
    if !spec.bool_at("hostNetwork") {
        errs.invalid(
            &path.child("hostNetwork"),
            false,
            "hostNetwork must be true if pod contains any hostProcess containers",
        );
    }
}
