//! Services beside the server that its flags name: who signs service-account tokens, who collects traces.

use anyhow::{Context as _, ensure};
use yare_testkit::{Cluster, SignerKey, TokenSigner, TraceCollector};

use crate::{TOKEN, YARE, control_plane};

#[test]
fn a_signer_and_a_collector() {
    let directory = tempfile::tempdir().unwrap();
    let mut signer = TokenSigner::new(&directory.path().join("signer.sock"));
    let pem = rcgen::KeyPair::generate().unwrap().serialize_pem();
    let key = SignerKey::new("theirs", &pem).unwrap();
    signer.change(|behaviour| {
        behaviour.keys = vec![key.clone()];
        behaviour.signs_with = Some(key);
    });
    signer.start().unwrap();
    let collector = TraceCollector::started(&directory.path().join("collector.sock")).unwrap();
    let tracing = directory.path().join("tracing.yaml");
    let text = format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: TracingConfiguration\nendpoint: {}\nsamplingRatePerMillion: 1000000\n",
        collector.endpoint()
    );
    std::fs::write(&tracing, text).unwrap();
    let mut options = control_plane();
    options.args.extend([
        format!("--service-account-signing-endpoint={}", signer.endpoint()),
        format!("--tracing-config-file={}", tracing.display()),
    ]);
    Cluster::test(YARE, options, |cluster| {
        cluster.kubectl(&["create", "serviceaccount", "robot"])?;
        let token = cluster.kubectl(&["create", "token", "robot", "--duration=10m"])?;
        // Only the signer's key is published, and only its tokens are known.
        let jwks = cluster.kubectl(&["get", "--raw", "/openid/v1/jwks"])?;
        ensure!(jwks.contains(r#""kid":"theirs""#) && jwks.matches("kid").count() == 1, "{jwks}");
        let robot = cluster.https(token.trim())?;
        let reviews = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
        let me = cluster.namespace().run(|| robot.send("POST", reviews, "application/json", b"{}"))??;
        let name = &me.json()?["status"]["userInfo"]["username"];
        ensure!(name == "system:serviceaccount:default:robot", "{name}");
        // The end sends what waits.
        let administrator = cluster.https(TOKEN)?;
        let account = "/api/v1/namespaces/default/serviceaccounts/robot";
        cluster.namespace().run(|| administrator.get(account))??;
        cluster.stop()?;
        let name = "GET /api/v1/namespaces/{:namespace}/serviceaccounts/{:name}";
        let span = collector.until(|span| span.name == name).context("no span of the request")?;
        ensure!(span.attributes["http.response.status_code"] == "200", "{span:?}");
        // Made of the machine's name, as the server's Lease is.
        let instance = &span.resource["service.instance.id"];
        ensure!(instance.starts_with("apiserver-") && instance.len() == 36, "{span:?}");
        Ok(())
    });
}
