//! `/etc/hosts`, managed: the pod's own addresses and its `hostAliases`.

use std::fmt::Write as _;
use std::path::Path;

use async_trait::async_trait;
use yare_runtime::Mount;

use super::{ContainerHook, ContainerStart, StartFailure, identity};
use crate::view::{HostAlias, Pod};

pub(crate) struct Hosts;

const PATH: &str = "/etc/hosts";

#[async_trait]
impl ContainerHook for Hosts {
    fn name(&self) -> &'static str {
        "hosts"
    }

    async fn apply(&self, start: &mut ContainerStart<'_>) -> Result<(), StartFailure> {
        // A volume mounted there is the user's own file.
        if start.config.mounts.iter().any(|m| m.container_path == Path::new(PATH)) {
            return Ok(());
        }
        let file = start.dirs.hosts_file();
        let text = content(
            start.pod,
            &start.facts.pod_ips,
            &start.kubelet.config.settings().cluster_domain,
            Path::new(PATH),
        )
        .map_err(StartFailure::config)?;
        std::fs::write(&file, text)
            .and_then(|()| {
                std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o644))
            })
            .map_err(|e| StartFailure::config(format!("write {}: {e}", file.display())))?;
        let readonly =
            start.container.security_context.as_ref().and_then(|s| s.read_only_root_filesystem) == Some(true);
        start.config.mounts.push(Mount {
            container_path: PATH.into(),
            host_path: file,
            readonly,
            selinux_relabel: true,
            ..Mount::default()
        });
        Ok(())
    }
}

fn content(pod: &Pod, ips: &[String], cluster_domain: &str, node_file: &Path) -> Result<String, String> {
    let mut out = String::new();
    if pod.spec.host_network {
        out.push_str("# Kubernetes-managed hosts file (host network).\n");
        out.push_str(
            &std::fs::read_to_string(node_file).map_err(|e| format!("read {}: {e}", node_file.display()))?,
        );
    } else {
        out.push_str("# Kubernetes-managed hosts file.\n");
        out.push_str("127.0.0.1\tlocalhost\n");
        out.push_str("::1\tlocalhost ip6-localhost ip6-loopback\n");
        out.push_str("fe00::0\tip6-localnet\n");
        out.push_str("fe00::0\tip6-mcastprefix\n");
        out.push_str("fe00::1\tip6-allnodes\n");
        out.push_str("fe00::2\tip6-allrouters\n");
        let (hostname, domain) = identity::hostname(pod, cluster_domain)?;
        for ip in ips {
            let _ = if domain.is_empty() {
                writeln!(out, "{ip}\t{hostname}")
            } else {
                writeln!(out, "{ip}\t{hostname}.{domain}\t{hostname}")
            };
        }
    }
    aliases(&pod.spec.host_aliases, &mut out);
    Ok(out)
}

fn aliases(list: &[HostAlias], out: &mut String) {
    if list.is_empty() {
        return;
    }
    out.push_str("\n# Entries added by HostAliases.\n");
    for alias in list {
        let _ = writeln!(out, "{}\t{}", alias.ip, alias.hostnames.join("\t"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn managed_file() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "n"},
            "spec": {"hostname": "h", "subdomain": "s", "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]}}))
        .unwrap();
        let text = content(&pod, &["10.42.0.2".into()], "cluster.local", Path::new(PATH)).unwrap();
        assert!(text.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"));
        assert!(text.contains("10.42.0.2\th.s.n.svc.cluster.local\th\n"));
        assert!(text.ends_with("\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"));
    }
}
