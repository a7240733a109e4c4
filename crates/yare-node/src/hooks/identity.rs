//! Who a sandbox is: names, labels, annotations, cgroup, limits, ports, sysctls.

use async_trait::async_trait;
use yare_runtime::{PortMapping, PortProtocol};

use super::{PodFailure, PodHook, PodStart};
use crate::pod::{limits, qos};
use crate::view::Pod;

pub(crate) struct Identity;

/// Longest host name the kernel takes.
const HOSTNAME_MAX: usize = 63;

#[async_trait]
impl PodHook for Identity {
    fn name(&self) -> &'static str {
        "identity"
    }

    async fn set_up(&self, start: &mut PodStart<'_>) -> Result<(), PodFailure> {
        if !start.fresh {
            return Ok(());
        }
        let pod = start.pod;
        let (hostname, domain) = hostname(pod, &start.kubelet.config.settings().cluster_domain)
            .map_err(|message| PodFailure { reason: "FailedCreatePodSandBox", message })?;
        let sandbox = &mut *start.sandbox;
        sandbox.name.clone_from(&pod.metadata.name);
        sandbox.namespace.clone_from(&pod.metadata.namespace);
        sandbox.uid.clone_from(&pod.metadata.uid);
        sandbox.hostname = match (pod.spec.host_network, pod.spec.set_hostname_as_fqdn, domain.is_empty()) {
            (true, _, _) => String::new(),
            (false, Some(true), false) => format!("{hostname}.{domain}"),
            _ => hostname,
        };
        if sandbox.hostname.len() > HOSTNAME_MAX + 1 {
            let text = format!(
                "Failed to construct FQDN from pod hostname and cluster domain, FQDN {} is too long (64 characters is the max, {} characters requested)",
                sandbox.hostname,
                sandbox.hostname.len()
            );
            return Err(PodFailure { reason: "FailedCreatePodSandBox", message: text });
        }
        sandbox.log_directory.clone_from(&start.dirs.logs);
        sandbox.labels = pod.metadata.labels.clone();
        for (key, value) in [
            ("io.kubernetes.pod.name", &pod.metadata.name),
            ("io.kubernetes.pod.namespace", &pod.metadata.namespace),
            ("io.kubernetes.pod.uid", &pod.metadata.uid),
        ] {
            sandbox.labels.insert(key.to_owned(), value.clone());
        }
        sandbox.annotations = pod.metadata.annotations.clone();
        sandbox.annotations.insert(
            super::labels::GRACE_PERIOD_ANNOTATION.to_owned(),
            pod.spec.termination_grace_period_seconds.unwrap_or(30).to_string(),
        );
        sandbox.cgroup_parent = qos::cgroup_parent(&start.kubelet.resources.root_group(), pod);
        sandbox.resources = limits::pod(&start.kubelet.resources.policy, pod, start.kubelet.pids_limit());
        start.kubelet.managers.place_pod(pod, &mut sandbox.resources);
        sandbox.port_mappings = if pod.spec.host_network { Vec::new() } else { port_mappings(pod) };
        sandbox.sysctls = pod
            .spec
            .security_context
            .iter()
            .flat_map(|c| &c.sysctls)
            .map(|s| (s.name.replace('/', "."), s.value.clone()))
            .collect();
        sandbox.privileged = pod
            .all_containers()
            .any(|c| c.security_context.as_ref().is_some_and(|s| s.privileged == Some(true)));
        Ok(())
    }
}

/// The pod's host name and its domain (`<subdomain>.<namespace>.svc.<cluster domain>`, or empty).
pub(crate) fn hostname(pod: &Pod, cluster_domain: &str) -> Result<(String, String), String> {
    let cut = |name: &str| -> Result<String, String> {
        if name.len() <= HOSTNAME_MAX {
            return Ok(name.to_owned());
        }
        let short = name[..HOSTNAME_MAX].trim_end_matches(['-', '.']);
        if short.is_empty() {
            return Err(format!("hostname for pod {:?} was invalid: {name:?}", pod.metadata.name));
        }
        Ok(short.to_owned())
    };
    if let Some(name) = &pod.spec.hostname_override {
        return Ok((cut(name)?, String::new()));
    }
    let name = if pod.spec.hostname.is_empty() { &pod.metadata.name } else { &pod.spec.hostname };
    let domain = if pod.spec.subdomain.is_empty() {
        String::new()
    } else {
        format!("{}.{}.svc.{cluster_domain}", pod.spec.subdomain, pod.metadata.namespace)
    };
    Ok((cut(name)?, domain))
}

fn port_mappings(pod: &Pod) -> Vec<PortMapping> {
    let sidecars = pod.spec.init_containers.iter().filter(|c| c.is_sidecar());
    pod.spec
        .containers
        .iter()
        .chain(sidecars)
        .flat_map(|c| &c.ports)
        .filter(|p| p.host_port > 0)
        .map(|p| PortMapping {
            protocol: match p.protocol.as_str() {
                "UDP" => PortProtocol::Udp,
                "SCTP" => PortProtocol::Sctp,
                _ => PortProtocol::Tcp,
            },
            container_port: p.container_port,
            host_port: p.host_port,
            host_ip: p.host_ip.parse().ok(),
        })
        .collect()
}
