//! What the [`Runtime`](crate::Runtime) trait and CRI word differently: the one place where either becomes the other.
//!
//! | the trait | CRI |
//! |---|---|
//! | a container's sandbox is known by its id | its whole configuration is told again with each container, so it is kept in an annotation of the sandbox, [`KEPT`] |
//! | a cgroup relative to the hierarchies' roots | an absolute one, or a path of slices where systemd rules |
//! | absent limits | zeros |
//! | an ID mapping of the pod | one more on each mount |
//! | an AppArmor profile's name | a profile and, for older runtimes, `localhost/<name>` |
//! | a signal's name | a number of CRI's own |

use std::net::IpAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::messages as cri;
use crate::api::*;
use crate::error::{Result, RuntimeError};

/// The annotation of a sandbox with what CRI asks for again when a container is created in it.
pub(super) const KEPT: &str = "yare.io/sandbox";

/// How the runtime names cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupDriver {
    /// By paths.
    Cgroupfs,
    /// By systemd's slices.
    Systemd,
}

/// What [`KEPT`] holds, as JSON. The rest of a configuration is in the sandbox's status.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Kept {
    #[serde(skip_serializing_if = "String::is_empty")]
    hostname: String,
    log_directory: std::path::PathBuf,
    cgroup_parent: String,
    dns: DnsConfig,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    port_mappings: Vec<PortMapping>,
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    sysctls: cri::Text,
    privileged: bool,
    namespaces: NamespaceModes,
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

/// A sandbox to make.
pub(super) fn sandbox(config: &SandboxConfig, driver: CgroupDriver) -> cri::SandboxConfig {
    let kept = Kept {
        hostname: config.hostname.clone(),
        log_directory: config.log_directory.clone(),
        cgroup_parent: config.cgroup_parent.clone(),
        dns: config.dns.clone(),
        port_mappings: config.port_mappings.clone(),
        sysctls: config.sysctls.clone(),
        privileged: config.privileged,
        namespaces: config.namespaces.clone(),
    };
    let mut annotations = config.annotations.clone();
    // Plain data always becomes JSON.
    annotations.insert(KEPT.to_owned(), serde_json::to_string(&kept).unwrap_or_default());
    let dns = &config.dns;
    let own_dns = !(dns.servers.is_empty() && dns.searches.is_empty() && dns.options.is_empty());
    cri::SandboxConfig {
        metadata: Some(cri::SandboxMetadata {
            name: config.name.clone(),
            uid: config.uid.clone(),
            namespace: config.namespace.clone(),
            attempt: config.attempt,
        }),
        hostname: config.hostname.clone(),
        log_directory: text(&config.log_directory),
        dns_config: own_dns.then(|| cri::DnsConfig {
            servers: dns.servers.clone(),
            searches: dns.searches.clone(),
            options: dns.options.clone(),
        }),
        port_mappings: config.port_mappings.iter().map(port_mapping).collect(),
        labels: config.labels.clone(),
        annotations,
        linux: Some(cri::LinuxSandboxConfig {
            cgroup_parent: match config.cgroup_parent.as_str() {
                "" => String::new(),
                group => cgroup(group, driver),
            },
            security_context: Some(cri::SandboxSecurityContext {
                namespace_options: Some(namespaces(&config.namespaces)),
                privileged: config.privileged,
                // Of the sandbox's own process; each container says what it wants itself.
                seccomp: Some(profile(cri::ProfileType::RuntimeDefault, "")),
            }),
            sysctls: config.sysctls.clone(),
            resources: Some(resources(&config.resources)),
        }),
    }
}

/// The configuration that a sandbox was made with, from its status. None: another kubelet made it.
pub(super) fn sandbox_again(status: &cri::SandboxStatus) -> Option<SandboxConfig> {
    let kept: Kept = serde_json::from_str(status.annotations.get(KEPT)?).ok()?;
    let metadata = status.metadata.clone().unwrap_or_default();
    let mut annotations = status.annotations.clone();
    annotations.remove(KEPT);
    Some(SandboxConfig {
        name: metadata.name,
        namespace: metadata.namespace,
        uid: metadata.uid,
        attempt: metadata.attempt,
        hostname: kept.hostname,
        log_directory: kept.log_directory,
        dns: kept.dns,
        port_mappings: kept.port_mappings,
        labels: status.labels.clone(),
        annotations,
        cgroup_parent: kept.cgroup_parent,
        sysctls: kept.sysctls,
        namespaces: kept.namespaces,
        privileged: kept.privileged,
        runtime_handler: status.runtime_handler.clone(),
        resources: Resources::default(),
    })
}

fn port_mapping(mapping: &PortMapping) -> cri::PortMapping {
    let protocol = match mapping.protocol {
        PortProtocol::Tcp => cri::Protocol::Tcp,
        PortProtocol::Udp => cri::Protocol::Udp,
        PortProtocol::Sctp => cri::Protocol::Sctp,
    };
    cri::PortMapping {
        protocol: protocol.into(),
        container_port: mapping.container_port.into(),
        host_port: mapping.host_port.into(),
        host_ip: mapping.host_ip.map(|ip| ip.to_string()).unwrap_or_default(),
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

/// Joins the PID namespace of another container.
fn target(
    mut security: cri::ContainerSecurityContext,
    config: &ContainerConfig,
) -> cri::ContainerSecurityContext {
    if let (Some(id), Some(option)) = (&config.pid_target, &mut security.namespace_options) {
        option.pid = cri::NamespaceMode::Target.into();
        option.target_id.clone_from(id);
    }
    security
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

fn security(s: &SecurityContext, modes: &NamespaceModes) -> cri::ContainerSecurityContext {
    let number = |n: u32| cri::Int64Value { value: n.into() };
    let username = s.username.clone().filter(|name| s.uid.is_none() && !name.is_empty());
    let policy = if s.supplemental_groups_strict {
        cri::SupplementalGroupsPolicy::Strict
    } else {
        cri::SupplementalGroupsPolicy::Merge
    };
    let (apparmor, apparmor_profile) = match s.apparmor.as_str() {
        // The runtime's own, where the kernel has it.
        "" => (None, String::new()),
        "unconfined" => (Some(profile(cri::ProfileType::Unconfined, "")), "unconfined".to_owned()),
        name => (Some(profile(cri::ProfileType::Localhost, name)), format!("localhost/{name}")),
    };
    cri::ContainerSecurityContext {
        capabilities: Some(cri::Capability {
            add_capabilities: s.add_caps.clone(),
            drop_capabilities: s.drop_caps.clone(),
        }),
        privileged: s.privileged,
        namespace_options: Some(namespaces(modes)),
        // Nobody means root, as in an image that names none; a group without a user is refused by CRI.
        run_as_user: s.uid.or(username.is_none().then_some(0)).map(number),
        run_as_username: username.unwrap_or_default(),
        readonly_rootfs: s.readonly_rootfs,
        supplemental_groups: s.supplemental_groups.iter().map(|g| i64::from(*g)).collect(),
        apparmor_profile,
        no_new_privs: s.no_new_privs,
        run_as_group: s.gid.map(number),
        masked_paths: s.masked_paths.clone(),
        readonly_paths: s.readonly_paths.clone(),
        seccomp: Some(match &s.seccomp {
            SeccompProfile::RuntimeDefault => profile(cri::ProfileType::RuntimeDefault, ""),
            SeccompProfile::Unconfined => profile(cri::ProfileType::Unconfined, ""),
            SeccompProfile::Localhost(path) => profile(cri::ProfileType::Localhost, &text(path)),
        }),
        apparmor,
        supplemental_groups_policy: policy.into(),
    }
}

fn mount(m: &Mount, user: Option<&UserNamespace>) -> cri::Mount {
    let propagation = match m.propagation {
        MountPropagation::Private => cri::MountPropagation::Private,
        MountPropagation::HostToContainer => cri::MountPropagation::HostToContainer,
        MountPropagation::Bidirectional => cri::MountPropagation::Bidirectional,
    };
    cri::Mount {
        container_path: text(&m.container_path),
        host_path: if m.image.is_some() { String::new() } else { text(&m.host_path) },
        readonly: m.readonly,
        selinux_relabel: m.selinux_relabel,
        propagation: propagation.into(),
        uid_mappings: user.map(|u| mappings(&u.uids)).unwrap_or_default(),
        gid_mappings: user.map(|u| mappings(&u.gids)).unwrap_or_default(),
        recursive_read_only: m.recursive_readonly,
        image: m.image.as_deref().map(|image| cri::ImageSpec {
            user_specified_image: m.user_specified_image.clone(),
            ..image_spec(image)
        }),
        image_sub_path: m.image_sub_path.as_deref().map(text).unwrap_or_default(),
    }
}

fn mount_back(m: &cri::Mount) -> Mount {
    Mount {
        container_path: (&m.container_path).into(),
        host_path: (&m.host_path).into(),
        readonly: m.readonly,
        recursive_readonly: m.recursive_read_only,
        propagation: match cri::MountPropagation::try_from(m.propagation) {
            Ok(cri::MountPropagation::HostToContainer) => MountPropagation::HostToContainer,
            Ok(cri::MountPropagation::Bidirectional) => MountPropagation::Bidirectional,
            _ => MountPropagation::Private,
        },
        selinux_relabel: m.selinux_relabel,
        image: m.image.as_ref().map(|i| i.image.clone()).filter(|i| !i.is_empty()),
        user_specified_image: m.image.as_ref().map(|i| i.user_specified_image.clone()).unwrap_or_default(),
        image_sub_path: Some(&m.image_sub_path).filter(|p| !p.is_empty()).map(Into::into),
    }
}

/// An image by name or id.
pub(super) fn image_spec(image: &str) -> cri::ImageSpec {
    cri::ImageSpec { image: image.to_owned(), ..cri::ImageSpec::default() }
}

/// A container to make in a sandbox.
pub(super) fn container(config: &ContainerConfig, sandbox: &SandboxConfig) -> Result<cri::ContainerConfig> {
    let stop_signal = signal(&config.stop_signal).ok_or_else(|| {
        RuntimeError::InvalidArgument(format!("stop signal {:?} is none that CRI knows", config.stop_signal))
    })?;
    let user = sandbox.namespaces.user.as_ref();
    let device = |d: &Device| cri::Device {
        container_path: text(&d.container_path),
        host_path: text(&d.host_path),
        permissions: d.permissions.clone(),
    };
    let env = |(key, value): &(String, String)| cri::KeyValue { key: key.clone(), value: value.clone() };
    Ok(cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: config.name.clone(), attempt: config.attempt }),
        image: Some(cri::ImageSpec {
            user_specified_image: config.user_specified_image.clone(),
            ..image_spec(&config.image)
        }),
        command: config.command.clone(),
        args: config.args.clone(),
        working_dir: text(&config.working_dir),
        envs: config.env.iter().map(env).collect(),
        mounts: config.mounts.iter().map(|m| mount(m, user)).collect(),
        devices: config.devices.iter().map(device).collect(),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        log_path: text(&config.log_path),
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        tty: config.tty,
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(resources(&config.resources)),
            security_context: Some(target(security(&config.security, &sandbox.namespaces), config)),
        }),
        cdi_devices: config.cdi_devices.iter().map(|name| cri::CdiDevice { name: name.clone() }).collect(),
        stop_signal,
    })
}

/// CRI's own numbers of signals, from the name: the index here. 0 leaves it to the runtime.
const SIGNALS: [&str; 35] = [
    "", "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL",
    "PIPE", "POLL", "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP", "TTIN",
    "TTOU", "URG", "USR1", "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ",
];

/// The number of `SIGTERM`, `SIGRTMIN+3`, `SIGRTMAX-1`. Empty: 0.
pub(super) fn signal(name: &str) -> Option<i32> {
    let name = name.strip_prefix("SIG").unwrap_or(name);
    for (base, first, last) in [("RTMIN", 35, 50), ("RTMAX", 51, 65)] {
        if let Some(rest) = name.strip_prefix(base) {
            let offset = if rest.is_empty() { 0 } else { rest.parse::<i32>().ok()? };
            let number = if base == "RTMIN" { first + offset } else { last + offset };
            return (first..=last).contains(&number).then_some(number);
        }
    }
    SIGNALS.iter().position(|s| *s == name).and_then(|i| i32::try_from(i).ok())
}

/// What is known of a sandbox. Its network namespace and first process are the runtime's own business.
pub(super) fn sandbox_status(status: cri::SandboxStatus) -> SandboxStatus {
    let kept = sandbox_again(&status);
    let metadata = status.metadata.unwrap_or_default();
    let option = status.linux.and_then(|l| l.namespaces).and_then(|n| n.options).unwrap_or_default();
    let network = status.network.unwrap_or_default();
    let addresses = std::iter::once(network.ip).chain(network.additional_ips.into_iter().map(|i| i.ip));
    let mut annotations = status.annotations;
    annotations.remove(KEPT);
    let mut namespaces = namespaces_back(&option);
    let mut cgroup_parent = String::new();
    if let Some(kept) = kept {
        // A runtime that knows no user namespaces does not tell them either.
        namespaces.user = namespaces.user.or(kept.namespaces.user);
        cgroup_parent = kept.cgroup_parent;
    }
    SandboxStatus {
        id: status.id,
        name: metadata.name,
        namespace: metadata.namespace,
        uid: metadata.uid,
        attempt: metadata.attempt,
        state: match cri::SandboxState::try_from(status.state) {
            Ok(cri::SandboxState::Ready) => SandboxState::Ready,
            _ => SandboxState::NotReady,
        },
        created_at_ns: status.created_at,
        ips: addresses.filter_map(|text| text.parse::<IpAddr>().ok()).collect(),
        netns: None,
        shim_pid: 0,
        labels: status.labels,
        annotations,
        namespaces,
        cgroup_parent,
        runtime_handler: status.runtime_handler,
    }
}

/// What is known of a container; `sandbox_id` is not in CRI's status.
pub(super) fn container_status(status: cri::ContainerStatus, sandbox_id: SandboxId) -> ContainerStatus {
    let metadata = status.metadata.unwrap_or_default();
    let user = status.user.and_then(|u| u.linux);
    let id = |n: i64| u32::try_from(n).unwrap_or(u32::MAX);
    ContainerStatus {
        id: status.id,
        sandbox_id,
        name: metadata.name,
        attempt: metadata.attempt,
        state: container_state(status.state),
        created_at_ns: status.created_at,
        started_at_ns: status.started_at,
        finished_at_ns: status.finished_at,
        exit_code: status.exit_code,
        reason: status.reason,
        message: status.message,
        image: status.image.map(|i| i.image).unwrap_or_default(),
        image_id: status.image_ref,
        labels: status.labels,
        annotations: status.annotations,
        log_path: status.log_path.into(),
        pid: 0,
        mounts: status.mounts.iter().map(mount_back).collect(),
        resources: status.resources.and_then(|r| r.linux).map(|r| resources_back(&r)).unwrap_or_default(),
        user: user.map(|u| ContainerUser {
            uid: id(u.uid),
            gid: id(u.gid),
            supplemental_groups: u.supplemental_groups.into_iter().map(id).collect(),
        }),
    }
}

pub(super) fn container_state(number: i32) -> ContainerState {
    match cri::ContainerState::try_from(number) {
        Ok(cri::ContainerState::Created) => ContainerState::Created,
        Ok(cri::ContainerState::Running) => ContainerState::Running,
        Ok(cri::ContainerState::Exited) => ContainerState::Exited,
        _ => ContainerState::Unknown,
    }
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
    fn signals_have_numbers_of_their_own() {
        for (name, number) in [
            ("", Some(0)),
            ("SIGABRT", Some(1)),
            ("SIGKILL", Some(13)),
            ("SIGTERM", Some(23)),
            ("SIGXFSZ", Some(34)),
            ("SIGRTMIN", Some(35)),
            ("SIGRTMIN+15", Some(50)),
            ("SIGRTMAX-14", Some(51)),
            ("SIGRTMAX-1", Some(64)),
            ("SIGRTMAX", Some(65)),
            ("SIGRTMIN+16", None),
            ("SIGWHAT", None),
            ("15", None),
        ] {
            assert_eq!(signal(name), number, "{name}");
        }
    }

    #[test]
    fn a_sandbox_is_found_again_in_its_status() {
        let config = SandboxConfig {
            name: "p".into(),
            namespace: "n".into(),
            uid: "u".into(),
            attempt: 3,
            hostname: "h".into(),
            log_directory: "/var/log/pods/n_p_u".into(),
            dns: DnsConfig { servers: vec!["10.43.0.10".into()], ..DnsConfig::default() },
            port_mappings: vec![PortMapping {
                protocol: PortProtocol::Udp,
                container_port: 53,
                host_port: 5353,
                host_ip: Some("127.0.0.1".parse().unwrap()),
            }],
            labels: [("a".to_owned(), "b".to_owned())].into(),
            annotations: [("c".to_owned(), "d".to_owned())].into(),
            cgroup_parent: "kubepods/podu".into(),
            sysctls: [("net.core.somaxconn".to_owned(), "9".to_owned())].into(),
            namespaces: NamespaceModes { pid: NamespaceMode::Pod, ..NamespaceModes::default() },
            privileged: true,
            ..SandboxConfig::default()
        };
        let told = sandbox(&config, CgroupDriver::Cgroupfs);
        assert_eq!(told.linux.as_ref().unwrap().cgroup_parent, "/kubepods/podu");
        let status = cri::SandboxStatus {
            id: "s".into(),
            metadata: told.metadata,
            labels: told.labels,
            annotations: told.annotations,
            ..cri::SandboxStatus::default()
        };
        assert_eq!(sandbox_again(&status), Some(config.clone()));
        let seen = sandbox_status(status);
        assert_eq!((seen.annotations, seen.cgroup_parent), (config.annotations, config.cgroup_parent));
        // One of upstream's kubelet.
        assert_eq!(sandbox_again(&cri::SandboxStatus::default()), None);
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

    #[test]
    fn who_a_container_is() {
        let sandbox = SandboxConfig {
            namespaces: NamespaceModes {
                user: Some(UserNamespace {
                    uids: vec![IdMapping { host_id: 65536, container_id: 0, length: 65536 }],
                    gids: vec![],
                }),
                ..NamespaceModes::default()
            },
            ..SandboxConfig::default()
        };
        let config = ContainerConfig {
            mounts: vec![
                Mount { host_path: "/a".into(), container_path: "/b".into(), ..Mount::default() },
                Mount {
                    image: Some("sha256:1".into()),
                    user_specified_image: "i:1".into(),
                    image_sub_path: Some("x".into()),
                    ..Mount::default()
                },
            ],
            security: SecurityContext {
                uid: Some(5),
                username: Some("x".into()),
                apparmor: "mine".into(),
                seccomp: SeccompProfile::Localhost("/seccomp/a.json".into()),
                ..SecurityContext::default()
            },
            ..ContainerConfig::default()
        };
        let told = container(&config, &sandbox).unwrap();
        let security = told.linux.unwrap().security_context.unwrap();
        assert_eq!(
            (security.run_as_user, security.run_as_username),
            (Some(cri::Int64Value { value: 5 }), String::new())
        );
        assert_eq!(security.apparmor_profile, "localhost/mine");
        assert_eq!(security.seccomp.unwrap().localhost_ref, "/seccomp/a.json");
        assert_eq!(told.mounts[0].uid_mappings.len(), 1);
        let image = told.mounts[1].image.as_ref().unwrap();
        assert_eq!((image.image.as_str(), image.user_specified_image.as_str()), ("sha256:1", "i:1"));
        let bad = ContainerConfig { stop_signal: "SIGNONE".into(), ..config };
        assert_eq!(container(&bad, &sandbox).unwrap_err().code(), "InvalidArgument");
    }
}
