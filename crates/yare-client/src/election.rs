//! Leader election on a Lease: at most one holder acts, and a holder that cannot renew stops in time.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{Api, api::PostParams};
use tokio::{sync::watch, time::Instant};

use crate::Backoff;

/// What to elect and how patiently.
#[derive(Clone, Debug)]
pub struct ElectorConfig {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Name of the Lease.
    pub name: String,
    /// Who this candidate is; unique among candidates.
    pub identity: String,
    /// Others take over when a lease has not been renewed for so long.
    pub lease_duration: Duration,
    /// The holder gives up when it could not renew for so long; less than `lease_duration`.
    pub renew_deadline: Duration,
    /// Pause between attempts.
    pub retry_period: Duration,
    /// The API server says who holds the Lease ([`Candidate`](crate::Candidate)): it is not taken, only kept, until the
    /// server prefers somebody else.
    pub coordinated: bool,
}

impl ElectorConfig {
    /// With upstream's times: 15 s, 10 s and 2 s.
    pub fn new(namespace: &str, name: &str, identity: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            identity: identity.to_owned(),
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
            coordinated: false,
        }
    }
}

/// A candidate.
pub struct Elector {
    api: Api<Lease>,
    config: ElectorConfig,
    /// The record last seen and when (on this machine's clock; clocks of candidates need not agree).
    observed: Option<(LeaseSpec, Instant)>,
}

/// Proof of leadership, renewed in the background until dropped.
pub struct Leadership {
    lost: watch::Receiver<bool>,
    release: Option<tokio::sync::oneshot::Sender<()>>,
    task: Option<tokio::task::JoinHandle<()>>,
}

impl Leadership {
    /// Returns when leadership has been lost. What depends on it must stop then.
    pub async fn lost(&mut self) {
        // An error means that the renewing task is gone, hence leadership too.
        let _ = self.lost.wait_for(|lost| *lost).await;
    }

    /// Gives leadership back, so that another candidate takes over at once.
    pub async fn release(mut self) {
        if let Some(release) = self.release.take() {
            let _ = release.send(());
        }
        if let Some(task) = self.task.take() {
            let _ = task.await;
        }
    }
}

impl Drop for Leadership {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

impl Elector {
    /// A candidate; nothing happens before [`Elector::acquire`].
    pub fn new(client: impl Into<kube::Client>, config: ElectorConfig) -> Self {
        Self { api: Api::namespaced(client.into(), &config.namespace), config, observed: None }
    }

    /// Waits for leadership.
    pub async fn acquire(mut self) -> Leadership {
        let mut backoff = Backoff::new(self.config.retry_period, self.config.retry_period * 2);
        while !self.attempt().await {
            tokio::time::sleep(backoff.next_delay().max(self.config.retry_period / 2)).await;
            backoff.reset();
        }
        tracing::info!(lease = self.config.name, identity = self.config.identity, "became the leader");
        let (tell, lost) = watch::channel(false);
        let (release, released) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(async move {
            tokio::select! {
                () = self.renew() => {}
                Ok(()) = released => self.give_up().await,
            }
            tell.send_replace(true);
        });
        Leadership { lost, release: Some(release), task: Some(task) }
    }

    /// Renews until that has failed for `renew_deadline`.
    async fn renew(&mut self) {
        let mut deadline = Instant::now() + self.config.renew_deadline;
        loop {
            tokio::time::sleep(self.config.retry_period).await;
            match tokio::time::timeout_at(deadline, self.attempt()).await {
                Ok(true) => deadline = Instant::now() + self.config.renew_deadline,
                Ok(false) if Instant::now() < deadline => {}
                _ => break,
            }
        }
        tracing::error!(lease = self.config.name, identity = self.config.identity, "lost leadership");
    }

    async fn give_up(&mut self) {
        let Ok(Some(mut lease)) = self.api.get_opt(&self.config.name).await else { return };
        let Some(spec) =
            lease.spec.as_mut().filter(|s| s.holder_identity.as_ref() == Some(&self.config.identity))
        else {
            return;
        };
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        spec.renew_time = Some(MicroTime(Timestamp::now()));
        if let Err(error) = self.api.replace(&self.config.name, &PostParams::default(), &lease).await {
            tracing::debug!(lease = self.config.name, %error, "could not release the lease");
        }
    }

    /// Takes or renews the lease; whether this candidate holds it now.
    async fn attempt(&mut self) -> bool {
        let tried = if self.config.coordinated { self.try_keep().await } else { self.try_take().await };
        match tried {
            Ok(held) => held,
            Err(error) => {
                tracing::debug!(lease = self.config.name, %error, "could not take the lease");
                false
            }
        }
    }

    /// When the lease that says this runs out.
    fn observe(&mut self, current: &LeaseSpec) -> Instant {
        let now = Instant::now();
        let at = match &self.observed {
            Some((seen, at)) if seen == current => *at,
            _ => {
                self.observed = Some((current.clone(), now));
                now
            }
        };
        let seconds = current.lease_duration_seconds.and_then(|s| u64::try_from(s).ok());
        at + seconds.map_or(self.config.lease_duration, Duration::from_secs)
    }

    /// Renews a lease that was given to this candidate.
    async fn try_keep(&mut self) -> Result<bool, kube::Error> {
        let Some(mut lease) = self.api.get_opt(&self.config.name).await? else { return Ok(false) };
        let current = lease.spec.take().unwrap_or_default();
        let is_over = self.observe(&current) < Instant::now();
        if is_over || current.holder_identity.as_ref() != Some(&self.config.identity) {
            return Ok(false);
        }
        // Its term ends: it runs out, and the other one gets it.
        if current.preferred_holder.as_ref().is_some_and(|preferred| !preferred.is_empty()) {
            return Ok(false);
        }
        let now = MicroTime(Timestamp::now());
        lease.spec = Some(LeaseSpec {
            lease_duration_seconds: i32::try_from(self.config.lease_duration.as_secs()).ok(),
            acquire_time: current.acquire_time.clone().or_else(|| Some(now.clone())),
            renew_time: Some(now),
            ..current
        });
        let stored = self.api.replace(&self.config.name, &PostParams::default(), &lease).await?;
        self.observed = Some((stored.spec.unwrap_or_default(), Instant::now()));
        Ok(true)
    }

    async fn try_take(&mut self) -> Result<bool, kube::Error> {
        let now = MicroTime(Timestamp::now());
        let mut spec = LeaseSpec {
            holder_identity: Some(self.config.identity.clone()),
            lease_duration_seconds: i32::try_from(self.config.lease_duration.as_secs()).ok(),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            lease_transitions: Some(0),
            ..LeaseSpec::default()
        };
        let Some(mut lease) = self.api.get_opt(&self.config.name).await? else {
            let mut lease = Lease { spec: Some(spec.clone()), ..Lease::default() };
            lease.metadata.name = Some(self.config.name.clone());
            self.api.create(&PostParams::default(), &lease).await?;
            self.observed = Some((spec, Instant::now()));
            return Ok(true);
        };
        let current = lease.spec.take().unwrap_or_default();
        let expires = self.observe(&current);
        let holder = current.holder_identity.as_deref().unwrap_or_default();
        let mine = holder == self.config.identity;
        if !mine && !holder.is_empty() && Instant::now() < expires {
            return Ok(false);
        }
        if mine {
            spec.acquire_time = current.acquire_time;
            spec.lease_transitions = current.lease_transitions;
        } else {
            spec.lease_transitions = Some(current.lease_transitions.unwrap_or(0).saturating_add(1));
        }
        lease.spec = Some(spec);
        // The resource version in `lease` makes this fail if another candidate was faster.
        let stored = self.api.replace(&self.config.name, &PostParams::default(), &lease).await?;
        self.observed = Some((stored.spec.unwrap_or_default(), Instant::now()));
        Ok(true)
    }
}
