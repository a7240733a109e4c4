//! Service-account tokens that an external signer signs: a real gRPC server on a socket, whose keys come and go.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;
#[path = "common/outside.rs"]
mod outside;
#[path = "common/secure.rs"]
mod secure;

use std::{path::Path, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{Method, header};
use http_body_util::BodyExt as _;
use outside::{NONE, metrics};
use secure::{Cluster, cluster_with};
use serde_json::{Value, json};
use yare_apiserver::{
    SystemClock,
    auth::{ExternalError, ExternalSigner, SignerTimings},
};
use yare_auth::{
    jws,
    pki::Pki,
    token::{self, Signer},
};
use yare_grpc::Code;
use yare_testkit::{SignerKey, TokenSigner};

const ISSUER: &str = "https://kubernetes.default.svc";
const TOKENS: &str = "/api/v1/namespaces/default/serviceaccounts/robot/token";

/// A key as a signer has it: PEM.
fn pem() -> String {
    let dir = tempfile::tempdir().unwrap();
    Pki::open(dir.path()).unwrap().service_account_key
}

fn key(id: &str) -> SignerKey {
    SignerKey::new(id, &pem()).unwrap()
}

/// A signer that runs, with one key.
fn signer(dir: &Path) -> TokenSigner {
    let mut signer = TokenSigner::new(&dir.join("signer.sock"));
    let first = key("first");
    signer.change(|behaviour| {
        behaviour.keys = vec![first.clone()];
        behaviour.signs_with = Some(first);
    });
    signer.start().unwrap();
    signer
}

fn timings() -> SignerTimings {
    SignerTimings { retry: Duration::from_millis(50), ..SignerTimings::default() }
}

async fn open(
    endpoint: &str,
    timings: SignerTimings,
) -> Result<(Arc<Signer>, Arc<ExternalSigner>), ExternalError> {
    let [issuers, audiences] = [[ISSUER.to_owned()], [ISSUER.to_owned()]];
    let options = token::Options { issuers: &issuers, audiences: &audiences, ..token::Options::default() };
    let signer = Arc::new(Signer::with(&options).unwrap());
    let external = ExternalSigner::open(endpoint, signer.clone(), Arc::new(SystemClock), timings).await?;
    Ok((signer, Arc::new(external)))
}

/// A cluster with that signer, and the account `robot` in it.
async fn cluster(signer: &TokenSigner, timings: SignerTimings) -> Cluster {
    let (verifier, external) = open(&signer.endpoint(), timings).await.unwrap();
    let cluster = cluster_with(move |config, _| {
        config.auth.signer = Some(verifier);
        config.auth.service_accounts.max_expiration_s = Some(external.max_expiration_s());
        config.auth.external = Some(external);
    })
    .await;
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    cluster.create(accounts, &json!({"metadata": {"name": "robot"}})).await;
    cluster
}

impl Cluster {
    async fn token(&self) -> String {
        let answer = self.create(TOKENS, &json!({"spec": {}})).await;
        answer["status"]["token"].as_str().unwrap().to_owned()
    }

    /// The names of the keys that are published, and for how many seconds they may be kept.
    async fn published(&self) -> (Vec<String>, u64) {
        let admin = self.admin();
        let answer = self.request(Some(&admin), Method::GET, "/openid/v1/jwks", &[], &NONE).await;
        assert_eq!(answer.status(), 200);
        let control = answer.headers()[header::CACHE_CONTROL].to_str().unwrap();
        let max_age_s = control.strip_prefix("public, max-age=").unwrap().parse().unwrap();
        let bytes = answer.into_body().collect().await.unwrap().to_bytes();
        let jwks: Value = serde_json::from_slice(&bytes).unwrap();
        let ids = jwks["keys"].as_array().unwrap().iter().map(|k| k["kid"].as_str().unwrap().to_owned());
        (ids.collect(), max_age_s)
    }

    async fn knows(&self, token: &str) -> bool {
        let (code, user) = self.by_token(token).await;
        assert!(code == 401 || user["username"] == "system:serviceaccount:default:robot", "{user}");
        code != 401
    }
}

fn header_of(token: &str) -> Value {
    let header = URL_SAFE_NO_PAD.decode(token.split('.').next().unwrap()).unwrap();
    serde_json::from_slice(&header).unwrap()
}

#[tokio::test]
async fn tokens_are_signed_by_somebody_else() {
    let dir = tempfile::tempdir().unwrap();
    let plugin = signer(dir.path());
    let (second, mut old) = (key("second"), key("old"));
    old.excluded = true;
    plugin.change(|behaviour| behaviour.keys.push(old.clone()));
    let cluster = cluster(&plugin, timings()).await;
    let (published, max_age_s) = cluster.published().await;
    assert_eq!(published, ["first"]);
    assert!((1..=3600).contains(&max_age_s), "{max_age_s}");

    let token = cluster.token().await;
    assert_eq!(header_of(&token), json!({"alg": "ES256", "kid": "first", "typ": "JWT"}));
    assert!(cluster.knows(&token).await);
    let forged = token.replacen('.', ".x", 1);
    assert!(!cluster.knows(&forged).await);
    assert_eq!(plugin.count("FetchKeys"), 1);
    // Tokens live no longer than the signer has it.
    let answer = cluster.create(TOKENS, &json!({"spec": {"expirationSeconds": 864_000}})).await;
    assert_eq!(answer["spec"]["expirationSeconds"], 86_400);

    // It signs with a key that is not known here: the keys are fetched, and then they are known.
    plugin.change(|behaviour| {
        behaviour.keys.push(second.clone());
        behaviour.signs_with = Some(second.clone());
    });
    let newer = cluster.token().await;
    assert_eq!(header_of(&newer)["kid"], "second");
    assert_eq!(plugin.count("FetchKeys"), 2);
    assert!(cluster.knows(&newer).await && cluster.knows(&token).await);
    assert_eq!(cluster.published().await.0, ["first", "second"]);

    // A token of a key that is not known has them fetched, too; what was signed with a key that is gone is not
    // accepted any more.
    let elsewhere = jws::private_key(&pem()).unwrap();
    let id = elsewhere.public().id();
    let payload = URL_SAFE_NO_PAD.decode(newer.split('.').nth(1).unwrap()).unwrap();
    let third = jws::sign(&elsewhere, &payload).unwrap();
    assert!(!cluster.knows(&third).await);
    assert_eq!(plugin.count("FetchKeys"), 3);
    // Neither its refusal nor anything else is remembered of it.
    assert!(!cluster.knows(&third).await);
    assert_eq!(plugin.count("FetchKeys"), 4);
    plugin.change(|behaviour| behaviour.keys.retain(|key| key.id == "second"));
    assert!(!cluster.knows(&third).await);
    assert!(cluster.knows(&newer).await && !cluster.knows(&token).await);
    assert_eq!(cluster.published().await.0, ["second"]);
    assert_eq!(id.len(), 43);

    let page = metrics(&cluster).await;
    for line in [
        "apiserver_externaljwt_fetch_keys_data_timestamp 1700000000",
        "apiserver_externaljwt_sign_request_total{code=\"OK\"} 3",
        "apiserver_externaljwt_request_duration_seconds_count{code=\"OK\",method=\"/v1.ExternalJWTSigner/Sign\"} 3",
        "apiserver_externaljwt_request_duration_seconds_count{code=\"OK\",method=\"/v1.ExternalJWTSigner/Metadata\"} 1",
    ] {
        assert!(page.lines().any(|l| l == line), "{line}");
    }
    assert!(page.contains("\napiserver_externaljwt_fetch_keys_request_total{code=\"OK\"} "));
    assert!(page.contains("\napiserver_externaljwt_fetch_keys_success_timestamp "));
    cluster.api.shutdown().await;
}

#[tokio::test]
async fn what_a_signer_does_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let mut plugin = signer(dir.path());
    let cluster = cluster(&plugin, SignerTimings { call: Duration::from_secs(3), ..timings() }).await;
    let good = cluster.token().await;
    let admin = cluster.admin();
    let refused = async |part: &str| {
        let (code, answer) =
            cluster.json(Some(&admin), Method::POST, TOKENS, &[], &json!({"spec": {}})).await;
        let message = answer["message"].as_str().unwrap_or_default();
        let start = "Internal error occurred: failed to generate token: ";
        assert!(code == 500 && message.starts_with(start) && message.contains(part), "{part}: {answer}");
    };
    let mut hidden = key("hidden");
    hidden.excluded = true;
    plugin.change(|behaviour| {
        behaviour.keys.push(hidden.clone());
        behaviour.signs_with = Some(hidden);
    });
    refused("while validating header: key used for signing JWT (kid: hidden) is excluded from OIDC discovery docs")
        .await;
    for (header, part) in [
        (r#"{"alg":"none","kid":"first","typ":"JWT"}"#, r#"bad signing algorithm "none""#),
        (r#"{"alg":"ES256","typ":"JWT"}"#, "key id missing"),
        (r#"{"alg":"ES256","kid":"first"}"#, "bad type"),
        (r#"{"alg":"ES256","kid":"first","typ":"JWT","crit":["a"]}"#, "while parsing header JSON"),
    ] {
        plugin.change(|behaviour| behaviour.header = Some(header.into()));
        refused(part).await;
    }
    plugin.change(|behaviour| {
        behaviour.header = None;
        behaviour.signs_with = Some(behaviour.keys[0].clone());
        behaviour.signature = Some(String::new());
    });
    refused("empty signature returned").await;
    plugin.change(|behaviour| behaviour.fails = Some(Code::PermissionDenied));
    refused("while signing jwt: rpc error: code = PermissionDenied desc = not today").await;
    // What was signed before is good as long as the keys are known.
    assert!(cluster.knows(&good).await);
    plugin.change(|behaviour| {
        behaviour.fails = None;
        behaviour.hangs = true;
    });
    refused("while signing jwt: rpc error: code = DeadlineExceeded").await;
    plugin.stop();
    refused("while signing jwt: rpc error: code = DeadlineExceeded").await;
    assert!(cluster.knows(&good).await);
    plugin.change(|behaviour| {
        behaviour.hangs = false;
        behaviour.signature = None;
    });
    plugin.start().unwrap();
    let again = cluster.token().await;
    assert!(cluster.knows(&again).await);
    let page = metrics(&cluster).await;
    for (code, count) in
        [("OK", 2), ("PermissionDenied", 1), ("DeadlineExceeded", 2), ("unknown-non-grpc", 6)]
    {
        let line = format!("apiserver_externaljwt_sign_request_total{{code=\"{code}\"}} {count}");
        assert!(page.lines().any(|l| l == line), "{line}\n{page}");
    }
    cluster.api.shutdown().await;
}

#[tokio::test]
async fn keys_are_fetched_when_the_signer_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let plugin = signer(dir.path());
    plugin.change(|behaviour| behaviour.refresh_hint_s = 1);
    let cluster = cluster(&plugin, timings()).await;
    assert_eq!(cluster.published().await.0, ["first"]);
    let until = async |wanted: &[&str]| {
        for _ in 0..600 {
            if cluster.published().await.0 == wanted {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{:?} and not {wanted:?}", cluster.published().await);
    };
    // What it cannot say does not take away what is known; then it is well again.
    plugin.change(|behaviour| behaviour.refresh_hint_s = -1);
    let failed = "apiserver_externaljwt_fetch_keys_request_total{code=\"unknown-non-grpc\"} ";
    for _ in 0..600 {
        if metrics(&cluster).await.contains(failed) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(metrics(&cluster).await.contains(failed));
    assert_eq!(cluster.published().await, (vec!["first".to_owned()], 0));
    let second = key("second");
    plugin.change(|behaviour| {
        behaviour.refresh_hint_s = 1;
        behaviour.keys.insert(0, second);
    });
    until(&["second", "first"]).await;
    cluster.api.shutdown().await;
}

#[tokio::test]
async fn a_server_does_not_start_without_its_signer() {
    let dir = tempfile::tempdir().unwrap();
    let soon = SignerTimings { call: Duration::from_millis(300), ..timings() };
    let error = async |endpoint: &str| open(endpoint, soon).await.err().unwrap().to_string();
    let nobody = error(&dir.path().join("none").display().to_string()).await;
    let start = "while initially filling key cache: while performing initial cache fill: while fetching token verification keys: while getting externally supported jwt signing keys: rpc error: code = DeadlineExceeded";
    assert!(nobody.starts_with(start), "{nobody}");
    assert!(nobody.contains("connect: no such file or directory"), "{nobody}");
    let plugin = signer(dir.path());
    let long = SignerTimings::default();
    plugin.change(|behaviour| behaviour.max_expiration_s = 599);
    let short = open(&plugin.endpoint(), long).await.err().unwrap().to_string();
    assert_eq!(
        short,
        "max token life supported by external-jwt-signer (599s) is less than acceptable (min 600s)"
    );
    plugin.change(|behaviour| behaviour.max_expiration_s = 600);
    assert_eq!(open(&plugin.endpoint(), long).await.unwrap().1.max_expiration_s(), 600);
    plugin.change(|behaviour| behaviour.keys.clear());
    let empty = open(&plugin.endpoint(), long).await.err().unwrap().to_string();
    assert!(empty.ends_with("while fetching token verification keys: found no keys"), "{empty}");
}
