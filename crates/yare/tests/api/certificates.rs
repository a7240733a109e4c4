//! Certificates that the cluster makes for those who ask, and tokens in Secrets, as `kubectl` has them.

use anyhow::{Context as _, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use yare_testkit::Cluster;

use crate::{YARE, control_plane};

/// A request for a certificate of jane in the group dev.
fn request(key: &KeyPair, name: &str, signer: &str) -> anyhow::Result<String> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "dev");
    params.distinguished_name.push(DnType::CommonName, "jane");
    let request = STANDARD.encode(params.serialize_request(key)?.pem()?);
    Ok(format!(
        "apiVersion: certificates.k8s.io/v1\nkind: CertificateSigningRequest\nmetadata: {{name: {name}}}\n\
         spec: {{signerName: {signer}, usages: [client auth], expirationSeconds: 3600, request: {request}}}"
    ))
}

#[test]
fn an_approved_request_is_a_way_in() {
    Cluster::test(YARE, control_plane(), |cluster| {
        let key = KeyPair::generate()?;
        cluster.apply(&request(&key, "jane", "kubernetes.io/kube-apiserver-client")?)?;
        cluster.apply(&request(&key, "server", "kubernetes.io/kubelet-serving")?)?;
        cluster.apply(&request(&key, "denied", "kubernetes.io/kube-apiserver-client")?)?;
        let columns = "custom-columns=:.spec.username,:.spec.groups[0]";
        let who = cluster.kubectl(&["get", "csr", "jane", "--no-headers", "-o", columns])?;
        ensure!(who.split_whitespace().eq(["kubernetes-admin", "system:masters"]), "{who}");
        cluster.kubectl(&["certificate", "approve", "jane", "server"])?;
        cluster.kubectl(&["certificate", "deny", "denied"])?;
        let shown = cluster.soon(|| {
            let shown = cluster.kubectl(&["get", "csr", "--no-headers"])?;
            ensure!(shown.contains("Approved,Issued") && shown.contains("Approved,Failed"), "{shown}");
            Ok(shown)
        })?;
        ensure!(shown.lines().any(|l| l.starts_with("denied") && l.ends_with("Denied")), "{shown}");
        let why = cluster.field("csr/server", ".status.conditions[?(@.type=='Failed')].message")?;
        ensure!(why == "subject organization is not system:nodes", "{why}");

        let certificate = STANDARD.decode(cluster.field("csr/jane", ".status.certificate")?)?;
        let (certificate_path, key_path) = (cluster.path("jane.crt"), cluster.path("jane.key"));
        std::fs::write(&certificate_path, certificate)?;
        std::fs::write(&key_path, key.serialize_pem())?;
        let as_jane = |args: &[&str]| {
            let ca = cluster.path("data/tls/ca.crt").display().to_string();
            let certificate = format!("--client-certificate={}", certificate_path.display());
            let key = format!("--client-key={}", key_path.display());
            let start = ["--kubeconfig=/dev/null", "--server=https://127.0.0.1:6443"];
            let credentials = ["--certificate-authority", &ca, &certificate, &key];
            cluster.kubectl_with(&[&start[..], &credentials, args].concat(), "")
        };
        let user = ["auth", "whoami", "-o", "jsonpath={.status.userInfo.username} {.status.userInfo.groups}"];
        let (status, out, err) = as_jane(&user)?;
        ensure!(status.success() && out == r#"jane ["dev","system:authenticated"]"#, "{out}{err}");
        cluster.kubectl(&["create", "rolebinding", "dev", "--clusterrole=view", "--group=dev"])?;
        cluster.soon(|| {
            let (status, out, err) = as_jane(&["get", "configmaps", "-o", "name"])?;
            ensure!(status.success() && out.contains("kube-root-ca.crt"), "{out}{err}");
            Ok(())
        })?;

        // Nobody gets to be an administrator this way, and nobody signs what is not theirs to sign.
        let masters = request(&key, "masters", "kubernetes.io/kube-apiserver-client")?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::OrganizationName, "system:masters");
        let (asked, wanted) = (
            masters.rsplit("request: ").next().and_then(|t| t.split('}').next()).context("a request")?,
            STANDARD.encode(params.serialize_request(&key)?.pem()?),
        );
        let (status, _, err) =
            cluster.kubectl_with(&["apply", "-f", "-"], &masters.replace(asked, &wanted))?;
        ensure!(!status.success() && err.contains("with system:masters group is not allowed"), "{err}");
        let (status, _, err) = as_jane(&["certificate", "approve", "denied"])?;
        ensure!(!status.success() && err.contains("forbidden"), "{err}");
        Ok(())
    });
}

#[test]
fn a_secret_holds_a_token_of_its_account() {
    Cluster::test(YARE, control_plane(), |cluster| {
        cluster.kubectl(&["create", "serviceaccount", "robot"])?;
        cluster.apply(
            "apiVersion: v1\nkind: Secret\ntype: kubernetes.io/service-account-token\nmetadata:\n  name: robot\n  \
             annotations: {kubernetes.io/service-account.name: robot}",
        )?;
        let text = |field: &str| {
            cluster.soon(|| {
                let value = cluster.field("secret/robot", field)?;
                ensure!(!value.is_empty(), "{field} is empty");
                Ok(String::from_utf8(STANDARD.decode(value)?)?)
            })
        };
        let token = text(".data.token")?;
        ensure!(text(".data.namespace")? == "default");
        ensure!(text(".data.ca\\.crt")? == std::fs::read_to_string(cluster.path("data/tls/ca.crt"))?);
        let client = cluster.https(&token)?;
        let whoami = || {
            let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
            let review = br#"{"kind":"SelfSubjectReview","apiVersion":"authentication.k8s.io/v1"}"#;
            cluster.namespace().run(|| client.send("POST", path, crate::JSON, review))?
        };
        let answer = whoami()?;
        ensure!(answer.body.contains("system:serviceaccount:default:robot"), "{}", answer.body);
        // Its use is on record.
        cluster.soon(|| {
            let day =
                cluster.field("secret/robot", ".metadata.labels.kubernetes\\.io/legacy-token-last-used")?;
            ensure!(day.len() == "2026-01-31".len(), "{day}");
            Ok(())
        })?;
        cluster.kubectl(&["delete", "serviceaccount", "robot"])?;
        cluster.soon(|| {
            let left = cluster.kubectl(&["get", "secrets", "-o", "name"])?;
            ensure!(!left.contains("robot"), "{left}");
            Ok(())
        })?;
        ensure!(whoami()?.code == 401);
        Ok(())
    });
}
