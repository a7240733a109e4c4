//! The table of checks: which level each belongs to, and since which minor release which rule of
//! [`super::rules`] holds.

use super::{Level, Pod, Violation, rules};

/// What looks at a pod.
pub type Run = fn(Pod<'_>) -> Option<Violation>;

/// One check.
pub struct Check {
    /// Upstream's name.
    pub id: &'static str,
    /// Baseline checks hold for restricted namespaces too.
    pub level: Level,
    /// Its forms, oldest first.
    pub versions: &'static [Form],
}

/// A check as of a minor release.
pub struct Form {
    /// The release.
    pub since: u32,
    /// The rule.
    pub run: Run,
    /// Baseline checks that this one says more strictly.
    pub overrides: &'static [&'static str],
}

const fn form(since: u32, run: Run) -> Form {
    Form { since, run, overrides: &[] }
}

const fn baseline(id: &'static str, versions: &'static [Form]) -> Check {
    Check { id, level: Level::Baseline, versions }
}

const fn restricted(id: &'static str, versions: &'static [Form]) -> Check {
    Check { id, level: Level::Restricted, versions }
}

/// Baseline before restricted, then by name: the order of messages.
pub const TABLE: &[Check] = &[
    baseline("appArmorProfile", &[form(0, rules::app_armor)]),
    baseline("capabilities_baseline", &[form(0, rules::added_capabilities)]),
    baseline("hostNamespaces", &[form(0, rules::host_namespaces)]),
    baseline("hostPathVolumes", &[form(0, rules::host_path_volumes)]),
    baseline("hostPorts", &[form(0, rules::host_ports)]),
    baseline("hostProbesAndHostLifecycle", &[form(34, rules::handler_hosts)]),
    baseline("privileged", &[form(0, rules::privileged)]),
    baseline(
        "procMount",
        &[form(0, rules::proc_mount), form(35, |p| unless_user_namespace(p, rules::proc_mount))],
    ),
    baseline(
        "seLinuxOptions",
        &[
            form(0, |p| rules::selinux(p, &rules::SELINUX_TYPES[..4])),
            form(31, |p| rules::selinux(p, &rules::SELINUX_TYPES)),
        ],
    ),
    baseline(
        "seccompProfile_baseline",
        &[form(0, rules::seccomp_annotations), form(19, |p| rules::seccomp(p, false))],
    ),
    baseline(
        "sysctls",
        &[
            form(0, |p| rules::sysctls(p, &rules::SYSCTLS[..5])),
            form(27, |p| rules::sysctls(p, &rules::SYSCTLS[..6])),
            form(29, |p| rules::sysctls(p, &rules::SYSCTLS[..10])),
            form(32, |p| rules::sysctls(p, &rules::SYSCTLS)),
        ],
    ),
    baseline("windowsHostProcess", &[form(0, rules::windows_host_process)]),
    restricted(
        "allowPrivilegeEscalation",
        &[form(8, rules::privilege_escalation), form(25, |p| unless_windows(p, rules::privilege_escalation))],
    ),
    restricted(
        "capabilities_restricted",
        &[
            Form { since: 22, run: rules::dropped_capabilities, overrides: &["capabilities_baseline"] },
            Form {
                since: 25,
                run: |p| unless_windows(p, rules::dropped_capabilities),
                overrides: &["capabilities_baseline"],
            },
        ],
    ),
    restricted(
        "procMount_restricted",
        &[Form { since: 35, run: rules::proc_mount, overrides: &["procMount"] }],
    ),
    restricted(
        "restrictedVolumes",
        &[Form { since: 0, run: rules::volume_types, overrides: &["hostPathVolumes"] }],
    ),
    restricted(
        "runAsNonRoot",
        &[form(0, rules::run_as_non_root), form(35, |p| unless_user_namespace(p, rules::run_as_non_root))],
    ),
    restricted(
        "runAsUser",
        &[form(23, rules::run_as_user), form(35, |p| unless_user_namespace(p, rules::run_as_user))],
    ),
    restricted(
        "seccompProfile_restricted",
        &[
            Form { since: 19, run: |p| rules::seccomp(p, true), overrides: &["seccompProfile_baseline"] },
            Form {
                since: 25,
                run: |p| unless_windows(p, |p| rules::seccomp(p, true)),
                overrides: &["seccompProfile_baseline"],
            },
        ],
    ),
];

/// The last release in which a check changed; later policy versions have its rules.
pub fn newest() -> u32 {
    TABLE.iter().flat_map(|c| c.versions).map(|v| v.since).max().unwrap_or_default()
}

/// Windows knows none of this, and validation refuses a Windows pod that sets it.
fn unless_windows(pod: Pod<'_>, run: Run) -> Option<Violation> {
    if rules::is_windows(pod) { None } else { run(pod) }
}

/// Root of a user namespace is nobody outside of it (KEP-127).
fn unless_user_namespace(pod: Pod<'_>, run: Run) -> Option<Violation> {
    if rules::has_user_namespace(pod) { None } else { run(pod) }
}
