//! Flags about what the controllers sign and remove of credentials, under kube-controller-manager's names.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use clap::Args;
use yare_auth::pki::{Authority, Pki};
use yare_controllers::{Config, certificates::policy};

use crate::requests::positive;

/// Flags of `yare server`.
#[derive(Args, Debug, Clone)]
pub struct SigningArgs {
    /// Certificate (PEM) of the authority that signs what CertificateSigningRequests ask for; by default the
    /// cluster's own.
    #[arg(long, env = "YARE_CLUSTER_SIGNING_CERT_FILE")]
    pub cluster_signing_cert_file: Option<PathBuf>,
    /// Its key (PEM).
    #[arg(long, env = "YARE_CLUSTER_SIGNING_KEY_FILE")]
    pub cluster_signing_key_file: Option<PathBuf>,
    /// Certificate (PEM) of the authority for clients of the API server. Signers without one then sign nothing.
    #[arg(long, env = "YARE_CLUSTER_SIGNING_KUBE_APISERVER_CLIENT_CERT_FILE")]
    pub cluster_signing_kube_apiserver_client_cert_file: Option<PathBuf>,
    /// Its key (PEM).
    #[arg(long, env = "YARE_CLUSTER_SIGNING_KUBE_APISERVER_CLIENT_KEY_FILE")]
    pub cluster_signing_kube_apiserver_client_key_file: Option<PathBuf>,
    /// Certificate (PEM) of the authority for kubelets as clients. Signers without one then sign nothing.
    #[arg(long, env = "YARE_CLUSTER_SIGNING_KUBELET_CLIENT_CERT_FILE")]
    pub cluster_signing_kubelet_client_cert_file: Option<PathBuf>,
    /// Its key (PEM).
    #[arg(long, env = "YARE_CLUSTER_SIGNING_KUBELET_CLIENT_KEY_FILE")]
    pub cluster_signing_kubelet_client_key_file: Option<PathBuf>,
    /// Certificate (PEM) of the authority for kubelets as servers. Signers without one then sign nothing.
    #[arg(long, env = "YARE_CLUSTER_SIGNING_KUBELET_SERVING_CERT_FILE")]
    pub cluster_signing_kubelet_serving_cert_file: Option<PathBuf>,
    /// Its key (PEM).
    #[arg(long, env = "YARE_CLUSTER_SIGNING_KUBELET_SERVING_KEY_FILE")]
    pub cluster_signing_kubelet_serving_key_file: Option<PathBuf>,
    /// Certificate (PEM) of the authority for whoever asks the signer legacy-unknown. Signers without one then sign nothing.
    #[arg(long, env = "YARE_CLUSTER_SIGNING_LEGACY_UNKNOWN_CERT_FILE")]
    pub cluster_signing_legacy_unknown_cert_file: Option<PathBuf>,
    /// Its key (PEM).
    #[arg(long, env = "YARE_CLUSTER_SIGNING_LEGACY_UNKNOWN_KEY_FILE")]
    pub cluster_signing_legacy_unknown_key_file: Option<PathBuf>,
    /// The longest validity of certificates that it signs.
    #[arg(long, default_value = "8760h0m0s", value_parser = positive, env = "YARE_CLUSTER_SIGNING_DURATION")]
    pub cluster_signing_duration: Duration,
    /// How long a service-account token in a Secret must be unused before it is marked invalid, and marked
    /// before it is removed.
    #[arg(long, default_value = "8760h0m0s", value_parser = positive, env = "YARE_LEGACY_SERVICE_ACCOUNT_TOKEN_CLEAN_UP_PERIOD")]
    pub legacy_service_account_token_clean_up_period: Duration,
}

impl SigningArgs {
    /// The controllers' configuration, as far as these flags say it.
    pub fn config(&self, pki: &Pki) -> anyhow::Result<Config> {
        let common =
            authority("cluster-signing", &self.cluster_signing_cert_file, &self.cluster_signing_key_file)?;
        let mut signer_authorities = BTreeMap::new();
        for (signer, flag, certificate, key) in [
            (
                policy::CLIENT,
                "cluster-signing-kube-apiserver-client",
                &self.cluster_signing_kube_apiserver_client_cert_file,
                &self.cluster_signing_kube_apiserver_client_key_file,
            ),
            (
                policy::KUBELET_CLIENT,
                "cluster-signing-kubelet-client",
                &self.cluster_signing_kubelet_client_cert_file,
                &self.cluster_signing_kubelet_client_key_file,
            ),
            (
                policy::KUBELET_SERVING,
                "cluster-signing-kubelet-serving",
                &self.cluster_signing_kubelet_serving_cert_file,
                &self.cluster_signing_kubelet_serving_key_file,
            ),
            (
                policy::LEGACY_UNKNOWN,
                "cluster-signing-legacy-unknown",
                &self.cluster_signing_legacy_unknown_cert_file,
                &self.cluster_signing_legacy_unknown_key_file,
            ),
        ] {
            if let Some(authority) = authority(flag, certificate, key)? {
                signer_authorities.insert(signer, authority);
            }
        }
        if common.is_some() && !signer_authorities.is_empty() {
            bail!(
                "cannot specify --cluster-signing-{{cert,key}}-file and other --cluster-signing-*-file flags at the same time"
            );
        }
        Ok(Config {
            cluster_signing: Some(common.unwrap_or_else(|| pki.cluster.clone())),
            signer_authorities,
            cluster_signing_duration: self.cluster_signing_duration,
            legacy_token_clean_up_period: self.legacy_service_account_token_clean_up_period,
            ..Config::default()
        })
    }
}

/// The authority of the flags `--FLAG-cert-file` and `--FLAG-key-file`, if they are given.
fn authority(
    flag: &str,
    certificate: &Option<PathBuf>,
    key: &Option<PathBuf>,
) -> anyhow::Result<Option<Arc<Authority>>> {
    let read = |path: &PathBuf, what: &str| {
        std::fs::read_to_string(path).with_context(|| format!("--{flag}-{what}-file {}", path.display()))
    };
    match (certificate, key) {
        (None, None) => Ok(None),
        (Some(certificate), Some(key)) => {
            let authority = Authority::from_pem(&read(certificate, "cert")?, &read(key, "key")?);
            Ok(Some(Arc::new(authority.with_context(|| format!("--{flag}-cert-file, --{flag}-key-file"))?)))
        }
        _ => bail!("--{flag}-cert-file and --{flag}-key-file must be given together"),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        signing: SigningArgs,
    }

    #[test]
    fn flags() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(dir.path()).unwrap();
        let config = |args: &[&str]| {
            let flags = Flags::try_parse_from([&["x"], args].concat()).map_err(|e| e.to_string())?;
            flags.signing.config(&pki).map_err(|e| format!("{e:#}"))
        };
        let usual = config(&[]).unwrap();
        assert_eq!(usual.cluster_signing_duration, Duration::from_secs(365 * 24 * 3600));
        assert_eq!(usual.cluster_signing.unwrap().certificate, pki.cluster.certificate);
        let path = |name: &str| dir.path().join(name).display().to_string();
        let certificate = format!("--cluster-signing-cert-file={}", path("front-proxy-ca.crt"));
        let key = |name: &str| format!("--cluster-signing-key-file={}", path(name));
        let other = config(&[&certificate, &key("front-proxy-ca.key"), "--cluster-signing-duration=1h"]);
        let other = other.unwrap();
        assert_eq!(other.cluster_signing.unwrap().certificate, pki.front_proxy.certificate);
        assert_eq!(other.cluster_signing_duration, Duration::from_secs(3600));
        let one = |what: &str| {
            let flag = "--cluster-signing-kubelet-serving";
            [
                format!("{flag}-cert-file={}", path(&format!("{what}.crt"))),
                format!("{flag}-key-file={}", path(&format!("{what}.key"))),
            ]
        };
        let [one_certificate, one_key] = one("front-proxy-ca");
        let single = config(&[&one_certificate, &one_key]).unwrap();
        let signers: Vec<&str> = single.signer_authorities.keys().copied().collect();
        assert_eq!(signers, ["kubernetes.io/kubelet-serving"]);
        for (args, part) in [
            (
                vec![one_certificate.clone()],
                "--cluster-signing-kubelet-serving-key-file must be given together",
            ),
            (
                vec![one_certificate, one_key, certificate.clone(), key("front-proxy-ca.key")],
                "at the same time",
            ),
            (vec![certificate.clone()], "must be given together"),
            (vec![certificate.clone(), key("ca.key")], "of another key"),
            (vec![certificate, key("none")], "cluster-signing-key-file"),
            (vec!["--cluster-signing-duration=0s".to_owned()], "more than zero"),
        ] {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            let error = config(&args).err().unwrap();
            assert!(error.contains(part), "{args:?}: {error}");
        }
    }
}
