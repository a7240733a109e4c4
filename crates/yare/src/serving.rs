//! Flags about where the API server is found and how it is spoken to, under kube-apiserver's names.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail, ensure};
use clap::{Args, ValueEnum};
use yare_apiserver::{
    Config,
    browsers::Browsers,
    server::Http,
    serving::{Certificates, Pair, Source},
};
use yare_auth::{
    pki::{KeyPairPem, is_signed_by},
    tls::{Limits, Speaks},
};

/// Who writes where the service `kubernetes` leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EndpointReconciler {
    /// This server does.
    Lease,
    /// Somebody else does.
    None,
}

/// Flags of `yare server`.
#[derive(Args, Debug, Clone)]
pub struct ServingArgs {
    /// Address at which the cluster reaches this server; by default the node's.
    #[arg(long, env = "YARE_ADVERTISE_ADDRESS")]
    pub advertise_address: Option<IpAddr>,
    /// Name (HOST or HOST:PORT) under which clients outside know this server: in discovery, and where the keys of
    /// service-account tokens are said to be.
    #[arg(long, env = "YARE_EXTERNAL_HOSTNAME")]
    pub external_hostname: Option<String>,
    /// Who keeps the endpoints of the service kubernetes.
    #[arg(long, default_value = "lease", env = "YARE_ENDPOINT_RECONCILER_TYPE")]
    pub endpoint_reconciler_type: EndpointReconciler,
    /// Port of nodes at which the service kubernetes is; 0 for none.
    #[arg(long, default_value_t = 0, env = "YARE_KUBERNETES_SERVICE_NODE_PORT")]
    pub kubernetes_service_node_port: u16,
    /// File with the certificate (PEM) that the server shows, instead of its own, and those between it and its
    /// authority. Read again when it changes. Nodes and pods believe it if the cluster's authority signed it.
    #[arg(long, env = "YARE_TLS_CERT_FILE", requires = "tls_private_key_file")]
    pub tls_cert_file: Option<PathBuf>,
    /// File with its key.
    #[arg(long, env = "YARE_TLS_PRIVATE_KEY_FILE", requires = "tls_cert_file")]
    pub tls_private_key_file: Option<PathBuf>,
    /// Files with a certificate and its key for those who ask by name: CERT,KEY or CERT,KEY:NAME,NAME; without names,
    /// those in the certificate. Several times, or with `;` between them.
    #[arg(long, env = "YARE_TLS_SNI_CERT_KEY", value_delimiter = ';', value_parser = named)]
    pub tls_sni_cert_key: Vec<NamedFiles>,
    /// Least version of TLS: VersionTLS12 or VersionTLS13.
    #[arg(long, default_value = "", env = "YARE_TLS_MIN_VERSION")]
    pub tls_min_version: String,
    /// Cipher suites of TLS 1.2 (those of 1.3 are all there); by default all that are known.
    #[arg(long, env = "YARE_TLS_CIPHER_SUITES", value_delimiter = ',')]
    pub tls_cipher_suites: Vec<String>,
    /// Key exchange groups by their IANA numbers; by default all that are known.
    #[arg(long, env = "YARE_TLS_CURVE_PREFERENCES", value_delimiter = ',')]
    pub tls_curve_preferences: Vec<i32>,
    /// Requests at a time on one connection of HTTP/2; 0 for the default.
    #[arg(long, default_value_t = 0, env = "YARE_HTTP2_MAX_STREAMS_PER_CONNECTION")]
    pub http2_max_streams_per_connection: u32,
    /// Speak HTTP/1.1 only.
    #[arg(long, env = "YARE_DISABLE_HTTP2_SERVING")]
    pub disable_http2_serving: bool,
    /// Let others listen on the same port.
    #[arg(long, env = "YARE_PERMIT_PORT_SHARING")]
    pub permit_port_sharing: bool,
    /// Regular expressions of the origins whose pages may ask this server: '^https://example\.com(:|$)'.
    #[arg(long, env = "YARE_CORS_ALLOWED_ORIGINS", value_delimiter = ',')]
    pub cors_allowed_origins: Vec<String>,
    /// What browsers are told about TLS: max-age=31536000,includeSubDomains,preload.
    #[arg(long, env = "YARE_STRICT_TRANSPORT_SECURITY_DIRECTIVES", value_delimiter = ',')]
    pub strict_transport_security_directives: Vec<String>,
}

/// What [`ServingArgs::read`] reads.
type Spoken = (Limits, Browsers);

/// A certificate and its key, and for whom.
#[derive(Clone, Debug)]
pub struct NamedFiles {
    pair: Pair,
    names: Vec<String>,
}

/// `CERT,KEY` or `CERT,KEY:NAME,NAME`, with upstream's errors.
fn named(text: &str) -> Result<NamedFiles, String> {
    let trimmed = |list: &str| list.split(',').map(|part| part.trim().to_owned()).collect::<Vec<_>>();
    let (files, names) = match text.split_once(':') {
        Some((_, names)) if names.trim().is_empty() => return Err("empty names list is not allowed".into()),
        Some((files, names)) => (files, trimmed(names.trim())),
        None => (text, Vec::new()),
    };
    match trimmed(files).as_slice() {
        [certificate, key] => {
            Ok(NamedFiles { pair: Pair { certificate: certificate.into(), key: key.into() }, names })
        }
        _ => Err("expected comma separated certificate and key file paths".into()),
    }
}

impl ServingArgs {
    /// What the server shows: `own`, where the flags do not say otherwise. `authority`: the cluster's.
    fn certificates(&self, own: KeyPairPem, authority: &str) -> anyhow::Result<Certificates> {
        let usual = match (&self.tls_cert_file, &self.tls_private_key_file) {
            (Some(certificate), Some(key)) => {
                Source::Files(Pair { certificate: certificate.clone(), key: key.clone() })
            }
            // Either requires the other.
            _ => Source::Own(own),
        };
        let named = self.tls_sni_cert_key.iter().map(|files| (files.pair.clone(), files.names.clone()));
        let opened = Certificates::open(usual, named.collect()).map_err(anyhow::Error::msg);
        let opened = opened.context("--tls-cert-file, --tls-private-key-file, --tls-sni-cert-key")?;
        if let Some(path) = &self.tls_cert_file
            && !is_of(path, authority)?
        {
            tracing::warn!(
                file = %path.display(),
                "the cluster's authority did not sign this certificate: nodes, pods and the kubeconfig will not believe it (--tls-sni-cert-key shows it to those alone who ask for its names)"
            );
        }
        Ok(opened)
    }

    /// Where the cluster reaches the server. `node`: this machine's address.
    pub fn advertised(&self, node: IpAddr, services: IpAddr) -> anyhow::Result<IpAddr> {
        let Some(address) = self.advertise_address.filter(|address| !address.is_unspecified()) else {
            return Ok(node);
        };
        if self.endpoint_reconciler_type != EndpointReconciler::None {
            ensure!(
                address.is_ipv4() == services.is_ipv4(),
                "service IP family {services:?} must match public address family {address:?}"
            );
        }
        Ok(address)
    }

    /// Further names in the server's own certificate.
    pub fn names(&self) -> impl Iterator<Item = String> {
        let external = self.external_hostname.as_ref().map(|name| match name.parse::<SocketAddr>() {
            Ok(address) => address.ip().to_string(),
            Err(_) if name.parse::<IpAddr>().is_ok() => name.clone(),
            Err(_) => name.rsplit_once(':').map_or(&**name, |(host, _)| host).to_owned(),
        });
        self.advertise_address.map(|address| address.to_string()).into_iter().chain(external)
    }

    /// Host and port under which clients outside know the server.
    pub fn external(&self, port: u16) -> Option<String> {
        let name = self.external_hostname.clone().filter(|name| !name.is_empty())?;
        Some(match name.parse::<IpAddr>() {
            Ok(address) => SocketAddr::new(address, port).to_string(),
            Err(_) if name.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) => name,
            Err(_) => format!("{name}:{port}"),
        })
    }

    /// What can be told before anything is there: how TLS is spoken, and what browsers are told.
    pub fn read(&self) -> anyhow::Result<Spoken> {
        let limits = Limits::new(&self.tls_min_version, &self.tls_cipher_suites, &self.tls_curve_preferences)
            .map_err(anyhow::Error::msg)
            .context("--tls-min-version, --tls-cipher-suites, --tls-curve-preferences")?;
        let browsers = Browsers::new(&self.cors_allowed_origins, &self.strict_transport_security_directives)
            .map_err(anyhow::Error::msg)?;
        Ok((limits, browsers))
    }

    /// Sets up the API server, whose authentication is set up. `own`: its own certificate; `authority`: the cluster's.
    pub fn apply(
        &self,
        config: &mut Config,
        (limits, browsers): Spoken,
        own: KeyPairPem,
        authority: &str,
    ) -> anyhow::Result<()> {
        let certificates = self.certificates(own, authority)?;
        let speaks = if self.disable_http2_serving { Speaks::Http1 } else { Speaks::Both };
        let authorities = config.auth.authorities.load_full();
        config.tls = Some(authorities.server(certificates.serving(), &limits, speaks)?);
        config.certificates = Some(certificates);
        config.http.only_http1 = self.disable_http2_serving;
        config.http.max_streams = match self.http2_max_streams_per_connection {
            0 => Http::default().max_streams,
            given => given,
        };
        config.browsers = browsers;
        config.own_endpoints = self.endpoint_reconciler_type == EndpointReconciler::Lease;
        let (port, (from, to)) = (self.kubernetes_service_node_port, config.node_ports);
        if port > 0 && !(from..=to).contains(&port) {
            bail!("kubernetes service node port range {from}-{to} doesn't contain {port}");
        }
        config.own_node_port = (port > 0).then_some(port);
        Ok(())
    }
}

/// Whether the authority signed what is in the file.
fn is_of(path: &Path, authority: &str) -> anyhow::Result<bool> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    Ok(is_signed_by(&text, authority))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        serving: ServingArgs,
    }

    fn parse(args: &[&str]) -> Result<ServingArgs, String> {
        Flags::try_parse_from([&["x"], args].concat()).map(|f| f.serving).map_err(|e| e.to_string())
    }

    #[test]
    fn pairs_by_name() {
        let args =
            parse(&["--tls-sni-cert-key=a.crt, a.key", "--tls-sni-cert-key=b.crt,b.key:*.b.test, b.test"]);
        let pairs = args.unwrap().tls_sni_cert_key;
        assert_eq!(pairs[0].pair.key, PathBuf::from("a.key"));
        assert!(pairs[0].names.is_empty());
        assert_eq!(pairs[1].names, ["*.b.test", "b.test"]);
        for (arg, part) in [
            ("--tls-sni-cert-key=a.crt", "expected comma separated certificate and key file paths"),
            ("--tls-sni-cert-key=a.crt,a.key:", "empty names list is not allowed"),
            ("--tls-cert-file=a.crt", "--tls-private-key-file"),
            ("--endpoint-reconciler-type=master-count", "[possible values: lease, none]"),
        ] {
            let error = parse(&[arg]).unwrap_err();
            assert!(error.contains(part), "{arg}: {error}");
        }
    }

    #[test]
    fn names_and_addresses() {
        for (name, external, certified) in [
            ("a.test", "a.test:6443", "a.test"),
            ("a.test:443", "a.test:443", "a.test"),
            ("192.0.2.1", "192.0.2.1:6443", "192.0.2.1"),
            ("fd00::1", "[fd00::1]:6443", "fd00::1"),
            ("[fd00::1]:443", "[fd00::1]:443", "fd00::1"),
        ] {
            let args = parse(&[&format!("--external-hostname={name}")]).unwrap();
            assert_eq!(args.external(6443).as_deref(), Some(external), "{name}");
            assert_eq!(args.names().collect::<Vec<_>>(), [certified], "{name}");
        }
        let node = "192.0.2.9".parse().unwrap();
        let services = "10.43.0.0".parse().unwrap();
        let advertised = |args: &[&str]| {
            parse(args).unwrap().advertised(node, services).map(|a| a.to_string()).map_err(|e| e.to_string())
        };
        assert_eq!(advertised(&[]).as_deref(), Ok("192.0.2.9"));
        assert_eq!(advertised(&["--advertise-address=0.0.0.0"]).as_deref(), Ok("192.0.2.9"));
        assert_eq!(advertised(&["--advertise-address=192.0.2.7"]).as_deref(), Ok("192.0.2.7"));
        let error = advertised(&["--advertise-address=fd00::1"]).unwrap_err();
        assert!(error.contains("must match public address family"), "{error}");
        let none = ["--advertise-address=fd00::1", "--endpoint-reconciler-type=none"];
        assert_eq!(advertised(&none).as_deref(), Ok("fd00::1"));
    }
}
