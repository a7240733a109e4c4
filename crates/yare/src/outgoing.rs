//! Flags about how the API server proves itself to nodes and to the API servers behind it, under kube-apiserver's names.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use yare_apiserver::{
    Config,
    serving::{Pair, Source},
    shown::{ClientPair, Kubelets, NodeAuthority},
};
use yare_auth::pki::{KeyPairPem, Pki};

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
    /// read again when it changes; an authority of --requestheader-client-ca-file vouches for it.
    #[arg(long, env = "YARE_PROXY_CLIENT_CERT_FILE", requires = "proxy_client_key_file")]
    pub proxy_client_cert_file: Option<PathBuf>,
    /// File with its key.
    #[arg(long, env = "YARE_PROXY_CLIENT_KEY_FILE", requires = "proxy_client_cert_file")]
    pub proxy_client_key_file: Option<PathBuf>,
    /// File with certificates (PEM) of authorities that vouch for nodes' own APIs, beside the cluster's; without it,
    /// nodes may show any certificate.
    #[arg(long, env = "YARE_KUBELET_CERTIFICATE_AUTHORITY")]
    pub kubelet_certificate_authority: Option<PathBuf>,
    /// File with the client certificate (PEM) that nodes are shown, instead of the cluster's own. Read again when it changes.
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
        let flag = "--kubelet-client-certificate, --kubelet-client-key, --kubelet-certificate-authority";
        let shown = source(&self.kubelet_client_certificate, &self.kubelet_client_key, own);
        let file = self.kubelet_certificate_authority.clone();
        let authority =
            file.map(|file| NodeAuthority { own: pki.cluster.certificate.clone(), file: Some(file) });
        let kubelets = Kubelets::open(shown, authority).map_err(anyhow::Error::msg).context(flag)?;
        config.kubelets = Some(kubelets);
        config.kubelet_addresses.clone_from(&self.kubelet_preferred_address_types);
        Ok(())
    }

    /// What API servers in the cluster are shown: `own`, where the flags name nothing else.
    pub fn proxy_client(&self, own: KeyPairPem) -> anyhow::Result<ClientPair> {
        let source = source(&self.proxy_client_cert_file, &self.proxy_client_key_file, own);
        let opened = ClientPair::open(source).map_err(anyhow::Error::msg);
        opened.context("--proxy-client-cert-file, --proxy-client-key-file")
    }
}

/// The certificate and key in two files; clap sees to it that either comes with the other.
fn source(certificate: &Option<PathBuf>, key: &Option<PathBuf>, own: KeyPairPem) -> Source {
    match (certificate, key) {
        (Some(certificate), Some(key)) => {
            Source::Files(Pair { certificate: certificate.clone(), key: key.clone() })
        }
        _ => Source::Own(own),
    }
}
