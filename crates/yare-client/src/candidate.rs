//! A component that offers itself for a Lease which the API server gives away (coordinated leader election, KEP-4355).
//!
//! It says in a LeaseCandidate who it is and of what version, and answers when the server asks whether it is still
//! there. Whether it leads it sees as an [`Elector`](crate::Elector) that is [coordinated](crate::ElectorConfig).

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1beta1::{LeaseCandidate, LeaseCandidateSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{Api, api::PostParams};
use serde::Deserialize;

use crate::{Backoff, Client, Informer, LEASE_CANDIDATES, ObjectKey, Selection};

/// It says that it is there this often also when nobody asks.
const RENEW: Duration = Duration::from_secs(5 * 60);
/// Pauses between attempts to say so.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The strategy that upstream's API server and ours know.
pub const OLDEST_EMULATION_VERSION: &str = "OldestEmulationVersion";

/// Who offers itself, and for what.
#[derive(Clone, Debug)]
pub struct CandidateConfig {
    /// Namespace of the Lease and of the candidate.
    pub namespace: String,
    /// Name of the candidate, and what the Lease will call it; unique among candidates.
    pub identity: String,
    /// Name of the Lease.
    pub lease: String,
    /// Version of the program, without a leading `v`.
    pub binary_version: String,
    /// The version that it behaves as.
    pub emulation_version: String,
    /// How the leader is to be found.
    pub strategy: String,
}

/// An offer, kept up until dropped. The object stays; the server removes it when it was not heard of for long.
pub struct Candidate(tokio::task::JoinHandle<()>);

impl Candidate {
    /// Offers itself.
    pub fn start(client: &Client, config: CandidateConfig) -> Self {
        let fields = Some(format!("metadata.name={}", config.identity));
        let namespace = Some(config.namespace.clone());
        let selection = Selection { namespace, fields, ..Selection::default() };
        let informer = client.informers().select(LEASE_CANDIDATES, selection);
        Self(tokio::spawn(keep(client.kube(), informer, config)))
    }
}

impl Drop for Candidate {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn keep(kube: kube::Client, informer: Informer, config: CandidateConfig) {
    let api = Api::<LeaseCandidate>::namespaced(kube, &config.namespace);
    let key = ObjectKey::new(&config.namespace, &config.identity);
    let mut changes = informer.subscribe();
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    loop {
        if let Err(error) = renew(&api, &config).await {
            tracing::debug!(candidate = config.identity, %error, "could not offer itself");
            tokio::time::sleep(backoff.next_delay()).await;
            continue;
        }
        backoff.reset();
        let asked = async {
            loop {
                let found = informer.get(&key).and_then(|candidate| candidate.view::<View>().ok());
                if found.is_some_and(|candidate| candidate.spec.is_asked()) {
                    return;
                }
                if changes.recv().await.is_none() {
                    std::future::pending::<()>().await;
                }
            }
        };
        let _ = tokio::time::timeout(RENEW, asked).await;
    }
}

/// What a candidate reads of itself.
#[derive(Deserialize)]
struct View {
    spec: Times,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Times {
    ping_time: Option<MicroTime>,
    renew_time: Option<MicroTime>,
}

impl Times {
    /// The server waits for an answer.
    fn is_asked(&self) -> bool {
        match (&self.ping_time, &self.renew_time) {
            (Some(asked), Some(renewed)) => asked.0 > renewed.0,
            (asked, _) => asked.is_some(),
        }
    }
}

/// Says that it is there.
async fn renew(api: &Api<LeaseCandidate>, config: &CandidateConfig) -> Result<(), kube::Error> {
    let now = Some(MicroTime(Timestamp::now()));
    let Some(mut candidate) = api.get_opt(&config.identity).await? else {
        let spec = LeaseCandidateSpec {
            lease_name: config.lease.clone(),
            binary_version: config.binary_version.clone(),
            emulation_version: Some(config.emulation_version.clone()),
            strategy: config.strategy.clone(),
            renew_time: now,
            ping_time: None,
        };
        let metadata = ObjectMeta { name: Some(config.identity.clone()), ..ObjectMeta::default() };
        let candidate = LeaseCandidate { metadata, spec };
        return api.create(&PostParams::default(), &candidate).await.map(drop);
    };
    candidate.spec.renew_time = now;
    api.replace(&config.identity, &PostParams::default(), &candidate).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_newer_than_the_last_answer() {
        let at = |seconds: Option<i64>| seconds.map(|s| MicroTime(Timestamp::from_second(s).unwrap()));
        for (asked, answered, is) in [
            (None, Some(1), false),
            (Some(1), Some(2), false),
            (Some(2), Some(2), false),
            (Some(3), Some(2), true),
            (Some(1), None, true),
        ] {
            let times = Times { ping_time: at(asked), renew_time: at(answered) };
            assert_eq!(times.is_asked(), is, "{asked:?} {answered:?}");
        }
    }
}
