//! Sandboxes: what one is to be, as CRI is told, and what is known of it, as CRI tells.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{CgroupDriver, cgroup, namespaces, namespaces_back, profile, resources, text};
use crate::api::*;
use crate::cri::messages as cri;

/// The annotation of a sandbox with what CRI asks for again when a container is created in it.
const KEPT: &str = "yare.io/sandbox";

/// What [`KEPT`] holds, as JSON. The rest of a configuration is in the sandbox's status.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Kept {
    #[serde(skip_serializing_if = "String::is_empty")]
    hostname: String,
    log_directory: PathBuf,
    cgroup_parent: String,
    dns: DnsConfig,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    port_mappings: Vec<PortMapping>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    sysctls: cri::Text,
    privileged: bool,
    namespaces: NamespaceModes,
}

/// A sandbox to make.
pub(in crate::cri) fn config(config: &SandboxConfig, driver: CgroupDriver) -> cri::SandboxConfig {
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
pub(in crate::cri) fn again(status: &cri::SandboxStatus) -> Option<SandboxConfig> {
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

/// What is known of a sandbox. Its network namespace and first process are the runtime's own business.
pub(in crate::cri) fn status(status: cri::SandboxStatus) -> SandboxStatus {
    let kept = again(&status);
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

#[cfg(test)]
mod tests {
    use super::*;

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
        let told = super::config(&config, CgroupDriver::Cgroupfs);
        assert_eq!(told.linux.as_ref().unwrap().cgroup_parent, "/kubepods/podu");
        let status = cri::SandboxStatus {
            id: "s".into(),
            metadata: told.metadata,
            labels: told.labels,
            annotations: told.annotations,
            ..cri::SandboxStatus::default()
        };
        assert_eq!(again(&status), Some(config.clone()));
        let seen = super::status(status);
        assert_eq!((seen.annotations, seen.cgroup_parent), (config.annotations, config.cgroup_parent));
        // One of upstream's kubelet.
        assert_eq!(again(&cri::SandboxStatus::default()), None);
    }
}
