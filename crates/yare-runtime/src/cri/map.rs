//! What the [`Runtime`](crate::Runtime) trait and CRI word differently: the one place where either becomes the other.
//!
//! | the trait | CRI |
//! |---|---|
//! | a container's sandbox is known by its id | its whole configuration is told again with each container, so it is kept in an annotation of the sandbox, [`sandbox::KEPT`] |
//! | a cgroup relative to the hierarchies' roots | an absolute one, or a path of slices where systemd rules |
//! | absent limits | zeros |
//! | an ID mapping of the pod | one more on each mount |
//! | an AppArmor profile's name | a profile and, for older runtimes, `localhost/<name>` |
//! | a signal's name | a number of CRI's own |

pub(super) mod container;
pub(super) mod sandbox;

use std::path::Path;

use super::messages as cri;
use crate::api::*;

/// How the runtime names cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupDriver {
    /// By paths.
    Cgroupfs,
    /// By systemd's slices.
    Systemd,
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// A cgroup's path as the runtime is told it; with systemd every level is a slice that repeats those above.
pub(super) fn cgroup(group: &str, driver: CgroupDriver) -> String {
    let parts = group.split('/').filter(|p| !p.is_empty());
    match driver {
        CgroupDriver::Cgroupfs => parts.fold(String::new(), |path, part| format!("{path}/{part}")),
        CgroupDriver::Systemd => {
            let (mut path, mut name) = (String::new(), String::new());
            for part in parts {
                if !name.is_empty() {
                    name.push('-');
                }
                name.push_str(&part.replace('-', "_"));
                path.push_str(&format!("/{name}.slice"));
            }
            path
        }
    }
}

fn mode(mode: NamespaceMode) -> i32 {
    match mode {
        NamespaceMode::Pod => cri::NamespaceMode::Pod,
        NamespaceMode::Container => cri::NamespaceMode::Container,
        NamespaceMode::Node => cri::NamespaceMode::Node,
    }
    .into()
}

fn mappings(list: &[IdMapping]) -> Vec<cri::IdMapping> {
    let one =
        |m: &IdMapping| cri::IdMapping { host_id: m.host_id, container_id: m.container_id, length: m.length };
    list.iter().map(one).collect()
}

fn namespaces(modes: &NamespaceModes) -> cri::NamespaceOption {
    cri::NamespaceOption {
        network: mode(modes.network),
        pid: mode(modes.pid),
        ipc: mode(modes.ipc),
        target_id: String::new(),
        userns_options: modes.user.as_ref().map(|user| cri::UserNamespace {
            mode: cri::NamespaceMode::Pod.into(),
            uids: mappings(&user.uids),
            gids: mappings(&user.gids),
        }),
    }
}

fn namespaces_back(option: &cri::NamespaceOption) -> NamespaceModes {
    let mode = |number: i32, default| match cri::NamespaceMode::try_from(number) {
        Ok(cri::NamespaceMode::Pod) => NamespaceMode::Pod,
        Ok(cri::NamespaceMode::Container | cri::NamespaceMode::Target) => NamespaceMode::Container,
        Ok(cri::NamespaceMode::Node) => NamespaceMode::Node,
        Err(_) => default,
    };
    let back = |list: &[cri::IdMapping]| {
        let one = |m: &cri::IdMapping| IdMapping {
            host_id: m.host_id,
            container_id: m.container_id,
            length: m.length,
        };
        list.iter().map(one).collect::<Vec<_>>()
    };
    let user = option.userns_options.as_ref().filter(|u| !u.uids.is_empty());
    NamespaceModes {
        network: mode(option.network, NamespaceMode::Pod),
        pid: mode(option.pid, NamespaceMode::Container),
        ipc: mode(option.ipc, NamespaceMode::Pod),
        user: user.map(|u| UserNamespace { uids: back(&u.uids), gids: back(&u.gids) }),
    }
}

/// Limits; CRI's zero is the trait's absence.
pub(super) fn resources(r: &Resources) -> cri::LinuxResources {
    let number = |n: Option<u64>| n.and_then(|n| i64::try_from(n).ok()).unwrap_or(0);
    let limit =
        |(size, bytes): (&String, &u64)| cri::HugepageLimit { page_size: size.clone(), limit: *bytes };
    cri::LinuxResources {
        cpu_period: number(r.cpu_period_us),
        cpu_quota: r.cpu_quota_us.unwrap_or(0),
        cpu_shares: number(r.cpu_shares),
        memory_limit_in_bytes: r.memory_limit_bytes.unwrap_or(0),
        oom_score_adj: r.oom_score_adj.unwrap_or(0).into(),
        cpuset_cpus: r.cpuset_cpus.clone().unwrap_or_default(),
        cpuset_mems: r.cpuset_mems.clone().unwrap_or_default(),
        hugepage_limits: r.hugepages.iter().map(limit).collect(),
        unified: r.unified.clone(),
        memory_swap_limit_in_bytes: r.memory_swap_limit_bytes.unwrap_or(0),
    }
}

fn resources_back(r: &cri::LinuxResources) -> Resources {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    Resources {
        cpu_period_us: u64::try_from(r.cpu_period).ok().filter(|n| *n > 0),
        cpu_quota_us: Some(r.cpu_quota).filter(|n| *n != 0),
        cpu_shares: u64::try_from(r.cpu_shares).ok().filter(|n| *n > 0),
        memory_limit_bytes: Some(r.memory_limit_in_bytes).filter(|n| *n != 0),
        memory_swap_limit_bytes: Some(r.memory_swap_limit_in_bytes).filter(|n| *n != 0),
        oom_score_adj: i32::try_from(r.oom_score_adj).ok(),
        cpuset_cpus: some(&r.cpuset_cpus),
        cpuset_mems: some(&r.cpuset_mems),
        pids_limit: None,
        hugepages: r.hugepage_limits.iter().map(|h| (h.page_size.clone(), h.limit)).collect(),
        unified: r.unified.clone(),
    }
}

fn profile(kind: cri::ProfileType, localhost_ref: &str) -> cri::SecurityProfile {
    cri::SecurityProfile { profile_type: kind.into(), localhost_ref: localhost_ref.to_owned() }
}

/// An image by name or id.
pub(super) fn image_spec(image: &str) -> cri::ImageSpec {
    cri::ImageSpec { image: image.to_owned(), ..cri::ImageSpec::default() }
}

/// What is known of an image. CRI leaves entry point, environment and the like to the runtime.
pub(super) fn image(image: cri::Image) -> ImageStatus {
    ImageStatus {
        id: image.id,
        repo_tags: image.repo_tags,
        repo_digests: image.repo_digests,
        size_bytes: image.size,
        uid: image.uid.map(|u| u.value),
        username: image.username,
        pinned: image.pinned,
        ..ImageStatus::default()
    }
}

/// A registry's login.
pub(super) fn auth(auth: RegistryAuth) -> cri::AuthConfig {
    cri::AuthConfig {
        username: auth.username,
        password: auth.password,
        identity_token: auth.identity_token,
        registry_token: auth.registry_token,
    }
}

/// Readiness and abilities.
pub(super) fn runtime_status(answer: cri::StatusResponse) -> RuntimeStatus {
    let features = answer.features.unwrap_or_default();
    let handler = |h: cri::Handler| {
        let features = h.features.unwrap_or_default();
        RuntimeHandler {
            name: h.name,
            recursive_readonly_mounts: features.recursive_read_only_mounts,
            user_namespaces: features.user_namespaces,
        }
    };
    let condition = |c: cri::Condition| RuntimeCondition {
        kind: c.kind,
        holds: c.status,
        reason: c.reason,
        message: c.message,
    };
    RuntimeStatus {
        conditions: answer.status.unwrap_or_default().conditions.into_iter().map(condition).collect(),
        handlers: answer.runtime_handlers.into_iter().map(handler).collect(),
        supplemental_groups_policy: features.supplemental_groups_policy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroups_by_driver() {
        use CgroupDriver::{Cgroupfs, Systemd};
        for (group, driver, want) in [
            ("kubepods/burstable/poda-b", Cgroupfs, "/kubepods/burstable/poda-b"),
            ("/kubepods", Cgroupfs, "/kubepods"),
            (
                "kubepods/burstable/poda-b",
                Systemd,
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-poda_b.slice",
            ),
        ] {
            assert_eq!(cgroup(group, driver), want, "{group} {driver:?}");
        }
    }

    #[test]
    fn limits_go_there_and_back() {
        let limits = Resources {
            cpu_period_us: Some(100_000),
            cpu_quota_us: Some(-1),
            cpu_shares: Some(2),
            memory_limit_bytes: Some(1 << 20),
            oom_score_adj: Some(-997),
            hugepages: [("2MB".to_owned(), 0)].into(),
            ..Resources::default()
        };
        assert_eq!(resources_back(&resources(&limits)), limits);
        let none = resources(&Resources::default());
        assert_eq!(none, cri::LinuxResources::default());
    }
}
