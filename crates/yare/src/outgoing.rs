//! Flags about how the API server proves itself to nodes and to the API servers behind it, under kube-apiserver's names.

use std::{path::Path, path::PathBuf, sync::Arc};

use anyhow::Context as _;
use clap::Args;
use yare_apiserver::{Config, serving::Pair};
use yare_auth::{
    pki::{KeyPairPem, Pki},
    tls::{self, Speaks},
};

/// Flags of `yare server`.
#[derive(Args, Debug, Clone)]
pub struct OutgoingArgs {
    /// Requests to API servers in the cluster go to the endpoints of their service; with =false to its address.
    #[arg(
        long, env = "YARE_ENABLE_AGGREGATOR_ROUTING", default_value_t = true, num_args = 0..=1,
        default_missing_value = "true", require_equals = true, action = clap::ArgAction::Set
    )]
    pub enable_aggregator_routing: bool,
    /// File with the client certificate (PEM) that is shown to API servers in the cluster, instead of the cluster's own;
    /// an authority of --requestheader-client-ca-file vouches for it.
    #[arg(long, env = "YARE_PROXY_CLIENT_CERT_FILE", requires = "proxy_client_key_file")]
    pub proxy_client_cert_file: Option<PathBuf>,
    /// File with its key.
    #[arg(long, env = "YARE_PROXY_CLIENT_KEY_FILE", requires = "proxy_client_cert_file")]
    pub proxy_client_key_file: Option<PathBuf>,
    /// File with certificates (PEM) of authorities that vouch for nodes' own APIs, beside the cluster's; without it,
    /// nodes may show any certificate.
    #[arg(long, env = "YARE_KUBELET_CERTIFICATE_AUTHORITY")]
    pub kubelet_certificate_authority: Option<PathBuf>,
    /// File with the client certificate (PEM) that nodes are shown, instead of the cluster's own.
    #[arg(long, env = "YARE_KUBELET_CLIENT_CERTIFICATE", requires = "kubelet_client_key")]
    pub kubelet_client_certificate: Option<PathBuf>,
    /// File with its key.
    #[arg(long, env = "YARE_KUBELET_CLIENT_KEY", requires = "kubelet_client_certificate")]
    pub kubelet_client_key: Option<PathBuf>,
    /// Types of nodes' addresses at which they are asked, best first.
    #[arg(
        long,
        default_value = "InternalIP,ExternalIP,Hostname",
        env = "YARE_KUBELET_PREFERRED_ADDRESS_TYPES",
        value_delimiter = ','
    )]
    pub kubelet_preferred_address_types: Vec<String>,
}

impl OutgoingArgs {
    /// Sets up how nodes are asked. `own`: the client certificate for that, where the flags name no other.
    pub fn apply(&self, config: &mut Config, pki: &Pki, own: KeyPairPem) -> anyhow::Result<()> {
        let vouching = self.nodes_authority(pki)?;
        let trust = vouching.as_deref().map_or(tls::Trust::Anybody, tls::Trust::Authority);
        let flag = "--kubelet-client-certificate, --kubelet-client-key";
        let pair =
            pair(self.kubelet_client_certificate.as_deref(), self.kubelet_client_key.as_deref(), flag)?;
        let shown = pair.unwrap_or(own);
        let client: Arc<_> = tls::outside_client(trust, Some(&shown), Speaks::Http1).context(flag)?;
        config.kubelet_tls = Some(client);
        config.kubelet_addresses.clone_from(&self.kubelet_preferred_address_types);
        Ok(())
    }

    /// What API servers in the cluster are shown, where the flags name it.
    pub fn proxy_client(&self) -> anyhow::Result<Option<KeyPairPem>> {
        let flag = "--proxy-client-cert-file, --proxy-client-key-file";
        let pair = pair(self.proxy_client_cert_file.as_deref(), self.proxy_client_key_file.as_deref(), flag)?;
        if let Some(pair) = &pair {
            tls::outside_client(tls::Trust::Anybody, Some(pair), Speaks::Both).context(flag)?;
        }
        Ok(pair)
    }

    /// Who vouches for nodes' own APIs; none: nobody needs to.
    fn nodes_authority(&self, pki: &Pki) -> anyhow::Result<Option<String>> {
        let Some(path) = &self.kubelet_certificate_authority else { return Ok(None) };
        let what = || format!("--kubelet-certificate-authority {}", path.display());
        let given = std::fs::read_to_string(path).with_context(what)?;
        tls::check_authority(&given).map_err(anyhow::Error::msg).with_context(what)?;
        Ok(Some(format!("{given}\n{}", pki.cluster.certificate)))
    }
}

/// The certificate and key in two files; clap sees to it that either comes with the other.
fn pair(certificate: Option<&Path>, key: Option<&Path>, flag: &str) -> anyhow::Result<Option<KeyPairPem>> {
    let (Some(certificate), Some(key)) = (certificate, key) else { return Ok(None) };
    let pair = Pair { certificate: certificate.into(), key: key.into() };
    pair.read().map(Some).map_err(anyhow::Error::msg).context(flag.to_owned())
}
