//! Coordinated leader election: the real API server gives a Lease to those who offer themselves.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::time::{Duration, Instant};

use common::Cluster;
use serde_json::{Value, json};
use yare_apiserver::runtime_config::RuntimeConfig;
use yare_client::{
    Candidate, CandidateConfig, Elector, ElectorConfig, LEASE_CANDIDATES, LEASES, OLDEST_EMULATION_VERSION,
    ObjectKey,
};
use yare_controllers::{Config, api::Deletion};
use yare_schema::features::Gates;

async fn cluster() -> Cluster {
    let gates = Gates::parse("CoordinatedLeaderElection=true").unwrap();
    Cluster::secure(Config { gates, ..Config::default() }, |server| {
        server.runtime_config = RuntimeConfig::parse("coordination.k8s.io/v1beta1=true").unwrap();
    })
    .await
}

fn candidate(cluster: &Cluster, identity: &str, emulation_version: &str) -> Candidate {
    Candidate::start(
        &cluster.client,
        CandidateConfig {
            namespace: "kube-system".into(),
            identity: identity.into(),
            lease: "thing".into(),
            binary_version: "1.36.0".into(),
            emulation_version: emulation_version.into(),
            strategy: OLDEST_EMULATION_VERSION.into(),
        },
    )
}

fn elector(cluster: &Cluster, identity: &str) -> Elector {
    let config = ElectorConfig {
        lease_duration: Duration::from_secs(2),
        renew_deadline: Duration::from_secs(1),
        retry_period: Duration::from_millis(200),
        coordinated: true,
        ..ElectorConfig::new("kube-system", "thing", identity)
    };
    Elector::new(cluster.client.kube(), config)
}

async fn in_time<T>(what: &str, happens: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), happens).await.unwrap_or_else(|_| panic!("{what}"))
}

#[tokio::test]
async fn the_oldest_version_leads_and_takes_over() {
    let cluster = cluster().await;
    let spec = |lease: &Value| lease["spec"].clone();
    // Nobody is elected whom nobody offers: the Lease is not simply taken.
    let early = tokio::time::timeout(Duration::from_secs(1), elector(&cluster, "new").acquire()).await;
    assert!(early.is_err());
    let _new = candidate(&cluster, "new", "1.36.0");
    let mut leads = in_time("a leader", elector(&cluster, "new").acquire()).await;
    let lease = spec(&cluster.get(&LEASES, "kube-system", "thing").await);
    assert_eq!(
        (&lease["holderIdentity"], &lease["strategy"]),
        (&json!("new"), &json!(OLDEST_EMULATION_VERSION))
    );

    // An older version comes: the leader is told to make room, and does.
    let began = Instant::now();
    let old = candidate(&cluster, "old", "1.35.0");
    in_time("an end of the term", leads.lost()).await;
    let lease = spec(&cluster.get(&LEASES, "kube-system", "thing").await);
    assert!(lease["preferredHolder"] == "old" || lease["holderIdentity"] == "old", "{lease}");
    let successor = in_time("a successor", elector(&cluster, "old").acquire()).await;
    let lease = spec(&cluster.get(&LEASES, "kube-system", "thing").await);
    assert_eq!((&lease["holderIdentity"], lease.get("preferredHolder")), (&json!("old"), None), "{lease}");
    assert!(began.elapsed() < Duration::from_secs(40), "{:?}", began.elapsed());
    // Both were asked before, and both have answered.
    for name in ["old", "new"] {
        let object = cluster.get(&LEASE_CANDIDATES, "kube-system", name).await;
        let (asked, answered) =
            (object["spec"]["pingTime"].as_str(), object["spec"]["renewTime"].as_str().unwrap());
        assert!(asked.is_none_or(|asked| asked <= answered), "{object}");
    }

    // It goes without a word: the Lease runs out, and who is still there gets it.
    drop((successor, old));
    cluster
        .api
        .delete(&LEASE_CANDIDATES, &ObjectKey::new("kube-system", "old"), Deletion::default())
        .await
        .unwrap();
    in_time("the other one again", elector(&cluster, "new").acquire()).await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_strategy_of_others_leaves_the_lease_to_them() {
    let cluster = cluster().await;
    let own = json!({"metadata": {"name": "a"}, "spec": {"leaseName": "theirs", "binaryVersion": "1.36.0",
        "strategy": "example.com/own", "renewTime": jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()}});
    cluster.create(&LEASE_CANDIDATES, "kube-system", own).await;
    let lease = cluster
        .until_is(&LEASES, "kube-system", "theirs", |lease| lease["spec"]["strategy"] == "example.com/own")
        .await;
    assert_eq!(lease["spec"].get("holderIdentity"), None, "{lease}");
    cluster.stop().await;
}
