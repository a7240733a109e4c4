//! Containers: what one is to be, as CRI is told, and what is known of it, as CRI tells.

use super::{image_spec, mappings, namespaces, profile, resources, resources_back, text};
use crate::api::*;
use crate::cri::messages as cri;
use crate::error::{Result, RuntimeError};

/// A container to make in a sandbox.
pub(in crate::cri) fn config(
    config: &ContainerConfig,
    sandbox: &SandboxConfig,
) -> Result<cri::ContainerConfig> {
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

/// CRI's own numbers of signals, from the name: the index here. 0 leaves it to the runtime.
const SIGNALS: [&str; 35] = [
    "", "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL",
    "PIPE", "POLL", "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP", "TTIN",
    "TTOU", "URG", "USR1", "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ",
];

/// The number of `SIGTERM`, `SIGRTMIN+3`, `SIGRTMAX-1`. Empty: 0.
fn signal(name: &str) -> Option<i32> {
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

/// What is known of a container; `sandbox_id` is not in CRI's status.
pub(in crate::cri) fn status(status: cri::ContainerStatus, sandbox_id: SandboxId) -> ContainerStatus {
    let metadata = status.metadata.unwrap_or_default();
    let user = status.user.and_then(|u| u.linux);
    let id = |n: i64| u32::try_from(n).unwrap_or(u32::MAX);
    ContainerStatus {
        id: status.id,
        sandbox_id,
        name: metadata.name,
        attempt: metadata.attempt,
        state: state(status.state),
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

/// The state of a container by its number.
pub(in crate::cri) fn state(number: i32) -> ContainerState {
    match cri::ContainerState::try_from(number) {
        Ok(cri::ContainerState::Created) => ContainerState::Created,
        Ok(cri::ContainerState::Running) => ContainerState::Running,
        Ok(cri::ContainerState::Exited) => ContainerState::Exited,
        _ => ContainerState::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let told = super::config(&config, &sandbox).unwrap();
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
        assert_eq!(super::config(&bad, &sandbox).unwrap_err().code(), "InvalidArgument");
    }
}
