//! Whom to believe to be the cluster's API server, when all there is is an address and a token.
//!
//! The server's own word for it, the ConfigMap `cluster-info`, is read from whoever answers. It is believed if it is
//! signed with the token's secret, which only the cluster knows, or if the authority in it has the hash that came
//! with the token. Then the same must be served under that authority.

use std::{fmt, time::Duration};

use anyhow::Context as _;
use serde_json::Value;
use yare_auth::{
    bootstrap_token, pki,
    tls::{Speaks, Trust, outside_client},
    token::secrets_equal,
};
use yare_client::{Backoff, HangUp, get_bytes, remote};

use crate::{joining, progress::complain, token::Token};

/// The largest ConfigMap that is read.
const INFO_MAX_BYTES: usize = 3 << 20;
/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Between attempts.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(15);

/// Why nobody is believed.
#[derive(Debug)]
pub enum Refusal {
    /// Waiting does not help.
    Final(String),
    /// The server is on its way, or the token was made a moment ago.
    NotYet(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Final(why) | Self::NotYet(why)) = self;
        f.write_str(why)
    }
}

/// Finds the authority (PEM) of the cluster at `server`; waits for it. `pins`: keys of authorities (`sha256:HEX`).
pub async fn authority(server: &str, token: &Token, pins: &[String]) -> anyhow::Result<String> {
    let mut backoff = Backoff::new(RETRY_MIN, RETRY_MAX);
    let mut said = String::new();
    loop {
        match attempt(server, token, pins).await {
            Ok(authority) => return Ok(authority),
            Err(Refusal::Final(why)) => anyhow::bail!("{server}: {why}"),
            Err(Refusal::NotYet(why)) => {
                if said != why {
                    complain(&format!("{server}: {why}; will retry"));
                    said = why;
                }
            }
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

async fn attempt(server: &str, token: &Token, pins: &[String]) -> Result<String, Refusal> {
    let data = read(server, Trust::Anybody).await.map_err(|e| Refusal::NotYet(format!("{e:#}")))?;
    let authority = believed(&data, token, pins)?;
    let again = read(server, Trust::Authority(&authority));
    let again = again.await.map_err(|e| Refusal::NotYet(format!("under the cluster's authority: {e:#}")))?;
    if again["kubeconfig"] != data["kubeconfig"] {
        return Err(Refusal::NotYet("cluster-info changed while it was read".to_owned()));
    }
    Ok(authority)
}

/// The data of `cluster-info`.
async fn read(server: &str, trust: Trust<'_>) -> anyhow::Result<Value> {
    let (namespace, name) = joining::INFO;
    let path = format!("/api/v1/namespaces/{namespace}/configmaps/{name}");
    let client =
        remote(server, outside_client(trust, None, Speaks::Both)?, None, &HangUp::default(), super::KUBELET)?;
    let answer = tokio::time::timeout(TIMEOUT, get_bytes(&client, &path, INFO_MAX_BYTES)).await;
    let bytes = answer.context("no answer in time")?.map_err(|e| anyhow::anyhow!(causes(&*e)))?;
    let map: Value = serde_json::from_slice(&bytes).context("the answer is no ConfigMap")?;
    Ok(map["data"].clone())
}

/// An error and what caused it, in one line.
fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut at = error.source();
    while let Some(cause) = at {
        let text = cause.to_string();
        if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
        at = cause.source();
    }
    line
}

/// The authority that `cluster-info` names, if there is reason to believe it.
fn believed(data: &Value, token: &Token, pins: &[String]) -> Result<String, Refusal> {
    let not_yet = |why: String| Refusal::NotYet(why);
    let kubeconfig = data["kubeconfig"]
        .as_str()
        .ok_or_else(|| not_yet("there is no kubeconfig in the cluster-info ConfigMap".to_owned()))?;
    let authority = joining::authority_of(kubeconfig).map_err(|e| not_yet(format!("{e:#}")))?;
    let mut reasons = 0;
    if let Some(pin) = &token.pin {
        if pki::file_pin(&authority) != *pin {
            return Err(Refusal::Final(
                "the cluster's authority is not the one that the token names: another cluster, or somebody in between"
                    .to_owned(),
            ));
        }
        reasons += 1;
    }
    if !pins.is_empty() {
        let keys = pki::key_pins(&authority);
        if !keys.iter().any(|key| pins.iter().any(|pin| pin.eq_ignore_ascii_case(key))) {
            return Err(Refusal::Final(format!("none of the public keys {:?} are pinned", keys.join(":"))));
        }
        reasons += 1;
    }
    if let Some((id, secret)) = bootstrap_token::parse(&token.bearer) {
        let signature = data[format!("jws-kubeconfig-{id}")].as_str();
        let expected = bootstrap_token::detached_signature(kubeconfig, id, secret);
        match signature {
            Some(signature) if secrets_equal(signature.as_bytes(), expected.as_bytes()) => reasons += 1,
            Some(_) => {
                return Err(not_yet(
                    "failed to verify JWS signature of the cluster-info ConfigMap".to_owned(),
                ));
            }
            None => {
                return Err(not_yet(format!(
                    "there is no JWS signed token in the cluster-info ConfigMap. This token id {id:?} is invalid for this cluster, can't connect"
                )));
            }
        }
    }
    if reasons == 0 {
        return Err(Refusal::Final(
            "this token does not show whom to believe: put the hash of the cluster's authority in front of it (K10HASH::TOKEN), or give --discovery-token-ca-cert-hash"
                .to_owned(),
        ));
    }
    Ok(authority)
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use serde_json::json;
    use yare_auth::pki::Pki;

    use super::*;

    #[test]
    fn whom_to_believe() {
        let directory = tempfile::tempdir().unwrap();
        let pki = Pki::open(directory.path()).unwrap();
        let (own, other) = (&pki.cluster.certificate, &pki.front_proxy.certificate);
        let config = |pem: &str| {
            let data = STANDARD.encode(pem);
            format!("clusters: [{{name: '', cluster: {{certificate-authority-data: {data}}}}}]")
        };
        let text = config(own);
        let signature = bootstrap_token::detached_signature(&text, "abcdef", "0123456789abcdef");
        let signed = json!({"kubeconfig": text, "jws-kubeconfig-abcdef": signature});
        let unsigned = json!({"kubeconfig": text});
        let replaced = json!({"kubeconfig": config(other), "jws-kubeconfig-abcdef": signature});
        let token = "abcdef.0123456789abcdef";
        let pinned = |pem: &str, token: &str| format!("K10{}::{token}", pki::file_pin(pem));
        let (key, foreign) = (pki::key_pins(own), pki::key_pins(other));
        let none: &[String] = &[];
        for (data, token, pins, expect) in [
            (&signed, token.to_owned(), none, ""),
            (&signed, pinned(own, token), &key, ""),
            (&unsigned, pinned(own, "another"), none, ""),
            (&unsigned, "another".to_owned(), &key, ""),
            (&signed, pinned(other, token), none, "! the cluster's authority is not the one"),
            (&signed, token.to_owned(), &foreign, "! none of the public keys"),
            (&unsigned, "another".to_owned(), none, "! this token does not show whom to believe"),
            (&unsigned, token.to_owned(), none, "? there is no JWS signed token"),
            (&unsigned, pinned(own, token), none, "? there is no JWS signed token"),
            (&replaced, token.to_owned(), none, "? failed to verify JWS signature"),
            (&signed, "abcdef.0123456789abcdee".to_owned(), none, "? failed to verify JWS signature"),
            (&json!({}), token.to_owned(), none, "? there is no kubeconfig"),
        ] {
            let found = believed(data, &Token::parse(&token).unwrap(), pins);
            let said = match &found {
                Ok(pem) => {
                    assert_eq!(pem, own);
                    String::new()
                }
                Err(Refusal::Final(why)) => format!("! {why}"),
                Err(Refusal::NotYet(why)) => format!("? {why}"),
            };
            assert!(said.starts_with(expect) && said.is_empty() == expect.is_empty(), "{expect}: {said}");
        }
    }
}
