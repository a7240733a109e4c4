//! From a container's configuration and its image to the specification that the shim runs.

use std::path::{Path, PathBuf};

use super::Inner;
use super::state::SandboxEntry;
use crate::api::*;
use crate::cdi;
use crate::error::{Result, RuntimeError};
use crate::image::Image;
use crate::proto::{Hooks, Spec, SpecMount, SpecUser};
use crate::shim::{caps, merge_env};

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn invalid(message: String) -> RuntimeError {
    RuntimeError::InvalidArgument(message)
}

impl Inner {
    /// Resolves everything that can be resolved without the container's root filesystem.
    pub(super) fn build_spec(
        &self,
        id: &str,
        sandbox: &SandboxEntry,
        config: &ContainerConfig,
        image: &Image,
        cgroup: &Path,
        log_path: &Path,
    ) -> Result<Spec> {
        let pod = &sandbox.record.config;
        let (run, security) = (&image.config, &config.security);
        let entry = if config.command.is_empty() { &run.entrypoint } else { &config.command };
        // An own command without arguments runs alone: the image's command belongs to the image's entrypoint.
        let args = match (config.args.is_empty(), config.command.is_empty()) {
            (false, _) => &config.args,
            (true, true) => &run.cmd,
            (true, false) => &config.args,
        };
        let argv: Vec<String> = entry.iter().chain(args).cloned().collect();
        if argv.is_empty() {
            return Err(invalid(format!("container {:?}: no command specified", config.name)));
        }
        let host_network = pod.namespaces.network == NamespaceMode::Node;
        let mut base = vec![DEFAULT_PATH.to_owned()];
        if !pod.hostname.is_empty() {
            base.push(format!("HOSTNAME={}", pod.hostname));
        }
        if config.tty {
            base.push("TERM=xterm".to_owned());
        }
        base.extend(run.env.iter().cloned());
        let cwd = match (config.working_dir.as_os_str().is_empty(), run.working_dir.as_str()) {
            (false, _) => config.working_dir.clone(),
            (true, "") => PathBuf::from("/"),
            (true, dir) => PathBuf::from(dir),
        };
        let cwd = Path::new("/").join(cwd);
        let stop_signal = [&config.stop_signal, &run.stop_signal].into_iter().find(|s| !s.is_empty());
        let mut spec = Spec {
            id: id.to_owned(),
            name: config.name.clone(),
            layer_root: self.images.layer_root(),
            layers: image.layers.clone(),
            argv,
            env: merge_env(&base, &config.env),
            cwd,
            tty: config.tty,
            stdin: config.stdin,
            stdin_once: config.stdin_once,
            user: user(security, &run.user),
            capabilities: caps::resolve(security.privileged, &security.add_caps, &security.drop_caps)
                .map_err(|e| invalid(format!("container {:?}: {e}", config.name)))?,
            privileged: security.privileged,
            readonly_rootfs: security.readonly_rootfs,
            no_new_privs: security.no_new_privs,
            seccomp: security.seccomp.clone(),
            apparmor: security.apparmor.clone(),
            masked_paths: paths(security, &security.masked_paths),
            readonly_paths: paths(security, &security.readonly_paths),
            mounts: self.mounts(sandbox, config, image)?,
            devices: config.devices.clone(),
            nodes: Vec::new(),
            hooks: Hooks::default(),
            annotations: config.annotations.clone(),
            resources: config.resources.clone(),
            ulimits: self.config.ulimits.clone(),
            cgroup: cgroup.to_path_buf(),
            log_path: log_path.to_path_buf(),
            stop_signal: match stop_signal {
                Some(s) => signal(s).ok_or_else(|| invalid(format!("unknown stop signal {s:?}")))?,
                None => libc::SIGTERM,
            },
            shm: match pod.namespaces.ipc {
                NamespaceMode::Node => PathBuf::from("/dev/shm"),
                _ => self.shm_path(&sandbox.id),
            },
            host_network,
            // Joined, and so shared: the kernel does not end the others with the first process.
            pid: match pod.namespaces.pid {
                NamespaceMode::Container if config.pid_target.is_some() => NamespaceMode::Pod,
                mode => mode,
            },
            pid_target: config.pid_target.clone().unwrap_or_default(),
        };
        if !config.cdi_devices.is_empty() {
            cdi::Registry::read(&self.config.cdi_directories)
                .inject(&config.cdi_devices, &mut spec)
                .map_err(|e| invalid(format!("CDI device injection failed: {e}")))?;
        }
        Ok(spec)
    }

    fn mounts(
        &self,
        sandbox: &SandboxEntry,
        config: &ContainerConfig,
        image: &Image,
    ) -> Result<Vec<SpecMount>> {
        let mut mounts = Vec::new();
        for bind in &image.binds {
            mounts.push(bind_mount(bind.host.clone(), bind.target.clone(), true));
        }
        let dir = self.sandbox_dir(&sandbox.id);
        for (file, target) in
            [("resolv.conf", "/etc/resolv.conf"), ("hostname", "/etc/hostname"), ("hosts", "/etc/hosts")]
        {
            if !config.mounts.iter().any(|m| m.container_path == Path::new(target)) {
                mounts.push(bind_mount(dir.join(file), target.into(), config.security.readonly_rootfs));
            }
        }
        for m in &config.mounts {
            let target = Path::new("/").join(&m.container_path);
            if target.components().any(|c| matches!(c, std::path::Component::ParentDir))
                || target == Path::new("/")
            {
                return Err(invalid(format!("mount path {:?}", m.container_path)));
            }
            let mut spec = SpecMount {
                source: m.host_path.clone(),
                target,
                readonly: m.readonly,
                recursive_readonly: m.recursive_readonly,
                propagation: m.propagation,
                create_source: true,
                layers: Vec::new(),
                attributes: 0,
            };
            if let Some(reference) = &m.image {
                let image = self
                    .images
                    .get(reference)
                    .ok_or_else(|| RuntimeError::NotFound { kind: "image", id: reference.clone() })?;
                spec.layers = image.layers.clone();
                spec.source = m.image_sub_path.clone().unwrap_or_default();
            } else if !spec.source.is_absolute() {
                return Err(invalid(format!("host path {:?} of mount {:?}", m.host_path, m.container_path)));
            } else if let Ok(real) = std::fs::canonicalize(&spec.source) {
                // Links on the host are followed here, once.
                spec.source = real;
            }
            mounts.push(spec);
        }
        Ok(mounts)
    }
}

fn bind_mount(source: PathBuf, target: PathBuf, readonly: bool) -> SpecMount {
    SpecMount {
        source,
        target,
        readonly,
        recursive_readonly: false,
        propagation: MountPropagation::Private,
        create_source: false,
        layers: Vec::new(),
        attributes: 0,
    }
}

fn paths(security: &SecurityContext, list: &[String]) -> Vec<PathBuf> {
    if security.privileged { Vec::new() } else { list.iter().map(PathBuf::from).collect() }
}

fn user(security: &SecurityContext, image_user: &str) -> SpecUser {
    let user = match (security.uid, &security.username) {
        (Some(uid), _) => uid.to_string(),
        (None, Some(name)) if !name.is_empty() => name.clone(),
        _ => image_user.to_owned(),
    };
    SpecUser {
        user,
        gid: security.gid,
        supplemental_groups: security.supplemental_groups.clone(),
        strict: security.supplemental_groups_strict,
    }
}

/// A signal's number from `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`.
pub(super) fn signal(text: &str) -> Option<i32> {
    let upper = text.trim().to_ascii_uppercase();
    if let Ok(number) = upper.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    // As the C library numbers real-time signals.
    for (base, number) in [("RTMIN", 34), ("RTMAX", 64)] {
        if let Some(rest) = name.strip_prefix(base) {
            let offset = if rest.is_empty() { 0 } else { rest.parse::<i32>().ok()? };
            return Some(number + offset).filter(|n| (34..=64).contains(n));
        }
    }
    format!("SIG{name}").parse::<nix::sys::signal::Signal>().ok().map(|s| s as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_many_spellings() {
        for (text, number) in [
            ("SIGTERM", Some(15)),
            ("term", Some(15)),
            ("9", Some(9)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-1", Some(63)),
            ("SIGNOPE", None),
            ("0", None),
            ("99", None),
        ] {
            assert_eq!(signal(text), number, "{text}");
        }
    }
}
