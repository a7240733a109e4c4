//! Flags about what the controllers sign and remove of credentials, under kube-controller-manager's names.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use clap::Args;
use yare_auth::pki::{Authority, Pki};
use yare_controllers::Config;

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
        let authority = match (&self.cluster_signing_cert_file, &self.cluster_signing_key_file) {
            (None, None) => pki.cluster.clone(),
            (Some(certificate), Some(key)) => {
                let read = |path: &PathBuf, flag: &str| {
                    std::fs::read_to_string(path).with_context(|| format!("--{flag} {}", path.display()))
                };
                let certificate = read(certificate, "cluster-signing-cert-file")?;
                let authority = Authority::from_pem(&certificate, &read(key, "cluster-signing-key-file")?);
                Arc::new(authority.context("--cluster-signing-cert-file, --cluster-signing-key-file")?)
            }
            _ => bail!("--cluster-signing-cert-file and --cluster-signing-key-file must be given together"),
        };
        Ok(Config {
            cluster_signing: Some(authority),
            cluster_signing_duration: self.cluster_signing_duration,
            legacy_token_clean_up_period: self.legacy_service_account_token_clean_up_period,
            ..Config::default()
        })
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
        for (args, part) in [
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
