//! Security context: pod's and container's merged into what the runtime enforces.

use async_trait::async_trait;
use yare_runtime::{SeccompProfile as RuntimeProfile, SecurityContext as RuntimeContext};

use super::{ContainerHook, ContainerStart, StartFailure};
use crate::pod::admission;
use crate::view::SeccompProfile;

pub(crate) struct Security;

#[async_trait]
impl ContainerHook for Security {
    fn name(&self) -> &'static str {
        "security"
    }

    async fn apply(&self, start: &mut ContainerStart<'_>) -> Result<(), StartFailure> {
        let pod = start.pod.spec.security_context.clone().unwrap_or_default();
        let own = start.container.security_context.clone().unwrap_or_default();
        let image = start.image.clone().unwrap_or_default();
        let privileged = own.privileged == Some(true);

        let user = own.run_as_user.or(pod.run_as_user);
        let group = own.run_as_group.or(pod.run_as_group);
        if own.run_as_non_root.or(pod.run_as_non_root) == Some(true) {
            check_non_root(start, user, image.uid, &image.username)?;
        }
        let id = |what: &str, n: i64| {
            u32::try_from(n).map_err(|_| StartFailure::config(format!("invalid {what}: {n}")))
        };
        let uid = match user {
            Some(user) => Some(id("runAsUser", user)?),
            // A numeric user of the image; a name is looked up by the runtime in the image itself.
            None => image.uid.and_then(|u| u32::try_from(u).ok()),
        };
        let mut supplemental = Vec::new();
        let by_volumes = start.volumes.groups().map(i64::from);
        for group in pod.fs_group.into_iter().chain(pod.supplemental_groups.iter().copied()).chain(by_volumes)
        {
            let group = id("supplementalGroups", group)?;
            if !supplemental.contains(&group) {
                supplemental.push(group);
            }
        }
        let capabilities = own.capabilities.clone().unwrap_or_default();
        let default_proc = own.proc_mount.as_deref().is_none_or(|m| m == "Default") && !privileged;
        let paths = |list: &[&str]| -> Vec<String> {
            if default_proc { list.iter().map(|p| (*p).to_owned()).collect() } else { Vec::new() }
        };
        start.config.security = RuntimeContext {
            privileged,
            uid,
            gid: group.map(|g| id("runAsGroup", g)).transpose()?,
            username: (uid.is_none() && !image.username.is_empty()).then_some(image.username),
            supplemental_groups: supplemental,
            supplemental_groups_strict: admission::wants_strict_groups(start.pod),
            readonly_rootfs: own.read_only_root_filesystem == Some(true),
            no_new_privs: own.allow_privilege_escalation == Some(false),
            add_caps: capabilities.add,
            drop_caps: capabilities.drop,
            seccomp: seccomp(
                start,
                own.seccomp_profile.as_ref().or(pod.seccomp_profile.as_ref()),
                privileged,
            ),
            apparmor: apparmor(own.app_armor_profile.as_ref().or(pod.app_armor_profile.as_ref())),
            masked_paths: paths(&yare_runtime::DEFAULT_MASKED_PATHS),
            readonly_paths: paths(&yare_runtime::DEFAULT_READONLY_PATHS),
        };
        Ok(())
    }
}

fn check_non_root(
    start: &ContainerStart<'_>,
    user: Option<i64>,
    image_uid: Option<i64>,
    image_user: &str,
) -> Result<(), StartFailure> {
    let place = || format!("(pod: \"{}\", container: {})", start.pod.full_name(), start.container.name);
    match (user, image_uid) {
        (Some(0), _) => {
            Err(StartFailure::config(format!("container's runAsUser breaks non-root policy {}", place())))
        }
        (Some(_), _) => Ok(()),
        (None, Some(uid)) if uid != 0 => Ok(()),
        (None, None) if !image_user.is_empty() => Err(StartFailure::config(format!(
            "container has runAsNonRoot and image has non-numeric user ({image_user}), cannot verify user is non-root {}",
            place()
        ))),
        _ => Err(StartFailure::config(format!(
            "container has runAsNonRoot and image will run as root {}",
            place()
        ))),
    }
}

fn seccomp(start: &ContainerStart<'_>, profile: Option<&SeccompProfile>, privileged: bool) -> RuntimeProfile {
    match profile.map(|p| p.kind.as_str()) {
        _ if privileged => RuntimeProfile::Unconfined,
        Some("RuntimeDefault") => RuntimeProfile::RuntimeDefault,
        Some("Localhost") => {
            let name = profile.and_then(|p| p.localhost_profile.clone()).unwrap_or_default();
            RuntimeProfile::Localhost(start.kubelet.data_dir.join("seccomp").join(name))
        }
        // A pod that says nothing; one that says Unconfined means it.
        None if start.kubelet.config.settings().seccomp_default => RuntimeProfile::RuntimeDefault,
        _ => RuntimeProfile::Unconfined,
    }
}

fn apparmor(profile: Option<&SeccompProfile>) -> String {
    match profile.map(|p| p.kind.as_str()) {
        Some("Unconfined") => "unconfined".to_owned(),
        Some("Localhost") => profile.and_then(|p| p.localhost_profile.clone()).unwrap_or_default(),
        _ => String::new(),
    }
}
