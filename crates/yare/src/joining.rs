//! The server's side of `yare agent`: what a machine that joins may do, and what it is told of the cluster.
//!
//! The ConfigMap `cluster-info` in `kube-public` says where the API server is and who vouches for it; whoever holds
//! a bootstrap token can tell that it is true, since a controller signs it with every token. The ConfigMap
//! `yare-cluster` in `kube-system` says what nodes share, by the names of the flags; nodes alone read it.

use std::net::IpAddr;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use yare_client::{CONFIG_MAPS, ObjectKey};
use yare_controllers::api::{Api, ApiError, Patch};

/// The group of tokens with which machines join.
pub const JOINERS: &str = "system:bootstrappers:yare:default-node-token";
/// Where the cluster's address is.
pub const INFO: (&str, &str) = ("kube-public", "cluster-info");
/// Where what nodes share is.
pub const SHARED: (&str, &str) = ("kube-system", "yare-cluster");
/// Waits between attempts, while admission webhooks or a full disk say no.
const RETRY: std::time::Duration = std::time::Duration::from_secs(30);

/// What nodes share.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Cluster {
    /// `--cluster-cidr`
    pub cluster_cidr: String,
    /// `--service-cidr`
    pub service_cidr: String,
    /// `--cluster-dns`; none: there is no DNS.
    pub cluster_dns: Option<IpAddr>,
    /// `--cluster-domain`
    pub cluster_domain: String,
}

impl Cluster {
    /// As the ConfigMap has it.
    fn data(&self) -> Value {
        json!({
            "cluster-cidr": self.cluster_cidr,
            "service-cidr": self.service_cidr,
            "cluster-dns": self.cluster_dns.map(|ip| ip.to_string()),
            "cluster-domain": self.cluster_domain,
        })
    }

    /// From the ConfigMap; what is not there is empty.
    pub fn read(map: &Value) -> Self {
        let text = |key: &str| map["data"][key].as_str().unwrap_or_default().to_owned();
        Self {
            cluster_cidr: text("cluster-cidr"),
            service_cidr: text("service-cidr"),
            cluster_dns: text("cluster-dns").parse().ok(),
            cluster_domain: text("cluster-domain"),
        }
    }
}

/// What is published.
pub struct Published {
    /// Where nodes reach the API server.
    pub server: String,
    /// Who vouches for it, PEM.
    pub authority: String,
    /// What they share.
    pub cluster: Cluster,
}

/// The permissions of machines that join, and of nodes beyond upstream's: they are the service proxy and the DNS
/// server of their pods, too.
pub fn bootstrap_objects() -> Vec<Value> {
    const RBAC: &str = "rbac.authorization.k8s.io";
    let meta = |name: &str, namespace: Option<&str>| {
        let mut meta = json!({"name": name, "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"}});
        if let Some(namespace) = namespace {
            meta["namespace"] = namespace.into();
        }
        meta
    };
    let api_version = format!("{RBAC}/v1");
    let binding = |name: &str, namespace: Option<&str>, role: &str, subject: (&str, &str)| {
        let kinds = match namespace {
            None => ("ClusterRoleBinding", "ClusterRole"),
            Some(_) => ("RoleBinding", "Role"),
        };
        json!({
            "apiVersion": api_version, "kind": kinds.0, "metadata": meta(name, namespace),
            "roleRef": {"apiGroup": RBAC, "kind": kinds.1, "name": role},
            "subjects": [{"apiGroup": RBAC, "kind": subject.0, "name": subject.1}],
        })
    };
    let reader = |name: &str, place: (&str, &str)| {
        json!({
            "apiVersion": api_version, "kind": "Role", "metadata": meta(name, Some(place.0)),
            "rules": [
                {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [place.1], "verbs": ["get"]}],
        })
    };
    let approval = |how: &str| format!("system:certificates.k8s.io:certificatesigningrequests:{how}");
    let (joiners, nodes) = (("Group", JOINERS), ("Group", "system:nodes"));
    let node = "system:yare-node";
    vec![
        binding("yare:kubelet-bootstrap", None, "system:node-bootstrapper", joiners),
        binding("yare:node-autoapprove-bootstrap", None, &approval("nodeclient"), joiners),
        binding("yare:node-autoapprove-certificate-rotation", None, &approval("selfnodeclient"), nodes),
        reader("yare:cluster-info", INFO),
        binding("yare:cluster-info", Some(INFO.0), "yare:cluster-info", ("User", "system:anonymous")),
        reader("yare:cluster", SHARED),
        binding("yare:cluster", Some(SHARED.0), "yare:cluster", nodes),
        json!({
            "apiVersion": api_version, "kind": "ClusterRole", "metadata": meta(node, None),
            "rules": [
                {"apiGroups": [""], "resources": ["services", "namespaces"], "verbs": ["list", "watch"]},
                {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
            ],
        }),
        binding(node, None, node, nodes),
    ]
}

/// Publishes; tries until it is done.
pub async fn keep(api: Api, published: Published) {
    let shared = published.cluster.data();
    let info = json!({ "kubeconfig": kubeconfig(&published.server, &published.authority) });
    for (place, data) in [(INFO, info), (SHARED, shared)] {
        while let Err(error) = put(&api, place, &data).await {
            tracing::warn!(%error, map = place.1, "publishing what machines that join need: will retry");
            tokio::time::sleep(RETRY).await;
        }
    }
}

async fn put(api: &Api, (namespace, name): (&str, &str), data: &Value) -> Result<(), ApiError> {
    let key = ObjectKey::new(namespace, name);
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data});
    let Some(found) = api.get(&CONFIG_MAPS, &key).await? else {
        return match api.create(&CONFIG_MAPS, namespace, &map).await {
            Err(error) if !error.is_already_exists() => Err(error),
            _ => Ok(()),
        };
    };
    let found: Value = serde_json::from_slice(found.bytes()).unwrap_or_default();
    let differs = |(key, value): (&String, &Value)| found["data"].get(key).unwrap_or(&Value::Null) != value;
    // Signatures and what others wrote there stay.
    if data.as_object().into_iter().flatten().any(differs) {
        api.patch(&CONFIG_MAPS, &key, "", Patch::Merge, &map).await?;
    }
    Ok(())
}

/// A kubeconfig of a cluster without users. JSON strings are YAML strings, so nothing in them can break out.
fn kubeconfig(server: &str, authority: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: \"\"\ncontexts: null\nusers: null\npreferences: {{}}\n\
         clusters:\n- name: \"\"\n  cluster:\n    server: {}\n    certificate-authority-data: {}\n",
        json!(server),
        STANDARD.encode(authority)
    )
}

/// Who vouches for the API server (PEM), by the kubeconfig in `cluster-info`.
pub fn authority_of(kubeconfig: &str) -> anyhow::Result<String> {
    let (document, _) =
        yare_schema::decode::yaml_to_json(kubeconfig.as_bytes()).map_err(|e| anyhow::anyhow!("{e}"))?;
    let document: Value = serde_json::from_slice(&document)?;
    let data = &document["clusters"][0]["cluster"]["certificate-authority-data"];
    let pem = data.as_str().and_then(|text| STANDARD.decode(text).ok());
    let pem = pem.and_then(|bytes| String::from_utf8(bytes).ok());
    let pem = pem.ok_or_else(|| anyhow::anyhow!("cluster-info names no authority"))?;
    yare_auth::tls::check_authority(&pem).map_err(|e| anyhow::anyhow!("cluster-info's authority: {e}"))?;
    Ok(pem)
}

#[cfg(test)]
mod tests {
    use yare_auth::pki::Pki;

    use super::*;

    #[test]
    fn what_is_published_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let authority = Pki::open(directory.path()).unwrap().cluster.certificate.clone();
        let text = kubeconfig("https://[::1]:6443", &authority);
        assert_eq!(authority_of(&text).unwrap(), authority);
        for bad in ["", "clusters: []", "a: [", &kubeconfig("https://a", "no certificate")] {
            assert!(authority_of(bad).is_err(), "{bad}");
        }
        let cluster = Cluster {
            cluster_cidr: "10.42.0.0/16".into(),
            service_cidr: "10.43.0.0/16".into(),
            cluster_dns: Some([10, 43, 0, 10].into()),
            cluster_domain: "cluster.local".into(),
        };
        assert_eq!(Cluster::read(&json!({ "data": cluster.data() })), cluster);
        assert_eq!(Cluster::read(&json!({})), Cluster::default());
    }
}
