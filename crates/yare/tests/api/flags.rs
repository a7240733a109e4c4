//! What people bring from kube-apiserver: its flags, through `--kube-apiserver-arg` and the configuration file.

use std::{fs, net::Ipv4Addr};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use yare_testkit::{Cluster, Options};

use crate::YARE;

#[test]
fn flags_of_kube_apiserver_are_taken() -> anyhow::Result<()> {
    let files = tempfile::tempdir()?;
    let path = |name: &str| files.path().join(name).display().to_string();
    // For those who ask for a name of outside, and for them alone.
    let outside = rcgen::generate_simple_self_signed(["kube.test".to_owned()])?;
    fs::write(path("outside.crt"), outside.cert.pem())?;
    fs::write(path("outside.key"), outside.signing_key.serialize_pem())?;
    fs::write(
        path("config.yaml"),
        "kube-apiserver-arg:\n- enable-priority-and-fairness=false\n- --max_requests_inflight=37\nanonymous-auth: false\n",
    )?;
    let sni =
        format!("--kube-apiserver-arg=tls-sni-cert-key={},{}", path("outside.crt"), path("outside.key"));
    let config = format!("--config={}", path("config.yaml"));
    let args = [
        "--kube-apiserver-arg=external-hostname=kube.test",
        "--kube-apiserver-arg=strict-transport-security-directives=max-age=60;profiling=false",
        "--kube-apiserver-arg=tls-min-version=VersionTLS13",
        "--kube-apiserver-arg=service-cluster-ip-range=10.77.0.0/24",
        "--feature-gates=ComponentFlagz=true",
        &sni,
        &config,
    ];
    let options = Options { control_plane_only: true, ..Options::with(&args) };
    Cluster::test(YARE, options, |cluster| {
        let flags = cluster.kubectl(&["get", "--raw", "/flagz"])?;
        for (name, value) in [
            ("max-requests-inflight", "37"),
            ("enable-priority-and-fairness", "false"),
            ("anonymous-auth", "false"),
            ("external-hostname", "kube.test"),
            ("service-cidr", "10.77.0.0/24"),
            ("tls-min-version", "VersionTLS13"),
        ] {
            // What stands between them is drawn each time, so that nobody parses it.
            let is = |line: &str| line.starts_with(name) && line.ends_with(value);
            ensure!(flags.lines().any(is), "no {name} {value} in {flags}");
        }
        let service =
            cluster.kubectl(&["get", "service", "kubernetes", "-o", "jsonpath={.spec.clusterIP}"])?;
        ensure!(service.trim() == Ipv4Addr::new(10, 77, 0, 1).to_string(), "{service}");
        let api: Value = serde_json::from_str(&cluster.kubectl(&["get", "--raw", "/api"])?)?;
        let address = api["serverAddressByClientCIDRs"][0]["serverAddress"].as_str().context("no address")?;
        ensure!(address.starts_with("kube.test:"), "{address}");
        // The cluster's own authority vouches for what everybody else is shown.
        let authority = format!("--certificate-authority={}", path("outside.crt"));
        let named = ["--tls-server-name=kube.test", &authority, "get", "--raw", "/readyz"];
        ensure!(cluster.kubectl(&named)?.trim() == "ok", "the certificate of outside is not shown");
        let own = ["--tls-server-name=kube.test", "get", "--raw", "/readyz"];
        let error = cluster.kubectl(&own).err().context("the cluster's authority vouches for it")?;
        ensure!(format!("{error:#}").contains("x509"), "{error:#}");
        Ok(())
    });
    Ok(())
}
