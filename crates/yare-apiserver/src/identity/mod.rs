//! Who this server is among the API servers of a cluster (KEP-1965): a name made of the machine's, and a Lease of that
//! name in `kube-system` that says that the server is up. Leases of servers that have fallen silent are removed.
//!
//! In: the machine's name, the clock. Out: the Lease, renewed until the server stops; then it goes.

pub mod versions;

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use data_encoding::BASE32_NOPAD;
use ring::digest;
use serde_json::{Value, json};
use tokio::time::{interval, sleep};
use yare_kinds::view::{View, ViewMut};

use crate::{
    bootstrap::{ensure, remove, rewrite},
    core::Core,
    lease::{is_expired, micro_time},
    verbs::write,
};

const NAMESPACE: &str = "kube-system";
const GROUP: &str = "coordination.k8s.io";
const LEASES: (&str, &str) = (GROUP, "leases");
/// The label that tells these Leases from others.
const LABEL: &str = "apiserver.kubernetes.io/identity";
const COMPONENT: &str = "kube-apiserver";
/// Where other API servers reach this one.
const PEER: &str = "kubernetes.io/peer-advertise-address";
const GATE: &str = "APIServerIdentity";

/// Pauses between attempts to write the Lease: the first, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(7);

/// How the Lease is kept.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Between two renewals.
    pub renew: Duration,
    /// What the Lease says of how long it holds.
    pub duration_s: i64,
    /// Between two looks at the Leases of others.
    pub gc: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self { renew: Duration::from_secs(10), duration_s: 3600, gc: Duration::from_secs(3600) }
    }
}

/// The machine's name.
fn host() -> &'static str {
    static HOST: OnceLock<String> = OnceLock::new();
    HOST.get_or_init(|| {
        std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
    })
}

/// This server's name among the API servers of the cluster.
pub fn id() -> &'static str {
    static ID: OnceLock<String> = OnceLock::new();
    ID.get_or_init(|| name_of(host()))
}

/// The name of a server on the machine `host`.
fn name_of(host: &str) -> String {
    let mut data = Vec::new();
    for part in [host, COMPONENT] {
        let length = u16::try_from(part.len()).unwrap_or(u16::MAX);
        data.extend_from_slice(&length.to_be_bytes());
        data.extend_from_slice(part.as_bytes());
    }
    let hash = digest::digest(&digest::SHA256, &data);
    format!("apiserver-{}", BASE32_NOPAD.encode(&hash.as_ref()[..16]).to_lowercase())
}

/// How the Lease is kept, where there is one.
fn timing(core: &Core) -> Option<Timing> {
    core.config.identity.filter(|_| core.config.gates.is_on(GATE))
}

/// Takes the place of whoever had this name before, and says so until the server stops. Then tells in which versions
/// objects are written, where that is asked for.
pub async fn start(core: &Arc<Core>) {
    let Some(timing) = timing(core) else { return };
    let holder = format!("{}_{}", id(), core.new_uid());
    if let Err(error) = remove(core, LEASES, (NAMESPACE, id())).await {
        tracing::warn!(why = error.message, lease = id(), "the Lease of the server before stays");
    }
    let taken = hold(core, &timing, &holder).await;
    tokio::spawn(renew(core.clone(), timing, holder, taken.err()));
    tokio::spawn(collect(core.clone(), timing));
    versions::start(core).await;
}

/// The server is about to stop: others need not wait for it.
pub async fn stop(core: &Arc<Core>) {
    if timing(core).is_some()
        && let Err(error) = remove(core, LEASES, (NAMESPACE, id())).await
    {
        tracing::warn!(why = error.message, lease = id(), "the server's Lease stays");
    }
}

async fn renew(core: Arc<Core>, timing: Timing, holder: String, mut failed: Option<String>) {
    let mut pause = FIRST_PAUSE;
    loop {
        let wait = match failed {
            Some(_) => {
                let wait = pause;
                pause = (pause * 2).min(LONGEST_PAUSE);
                wait
            }
            None => {
                pause = FIRST_PAUSE;
                timing.renew.mul_f64(1.0 + 0.04 * fraction(&core))
            }
        };
        tokio::select! {
            () = sleep(wait) => {}
            () = core.stop.cancelled() => return,
        }
        if core.closing.load(std::sync::atomic::Ordering::Acquire) {
            return;
        }
        failed = hold(&core, &timing, &holder).await.err();
        if let Some(why) = &failed {
            tracing::warn!(why, lease = id(), "cannot renew the server's Lease");
        }
    }
}

/// Between 0 and 1: servers that start together do not renew together.
fn fraction(core: &Core) -> f64 {
    let mut bytes = [0; 4];
    core.config.random.fill(&mut bytes);
    f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX)
}

/// Makes the Lease where it is absent, and renews it where it is there.
async fn hold(core: &Arc<Core>, timing: &Timing, holder: &str) -> Result<(), String> {
    let set = |lease: &mut Value| {
        lease.set("spec.leaseDurationSeconds", timing.duration_s);
        lease.set("spec.renewTime", micro_time(core.now()));
        let mut labels = lease.at("metadata.labels").clone();
        let mut annotations = lease.at("metadata.annotations").clone();
        for map in [&mut labels, &mut annotations] {
            if !map.is_object() {
                *map = json!({});
            }
        }
        labels[LABEL] = COMPONENT.into();
        labels["kubernetes.io/hostname"] = host().into();
        if let Some((ip, port)) = core.config.advertise
            && core.config.gates.is_on("UnknownVersionInteroperabilityProxy")
        {
            annotations[PEER] = std::net::SocketAddr::new(ip, port).to_string().into();
        }
        lease.set("metadata.labels", labels);
        if annotations.as_object().is_some_and(|map| !map.is_empty()) {
            lease.set("metadata.annotations", annotations);
        }
    };
    let key = format!("{NAMESPACE}/{}", id());
    if core.store().get(&format!("{GROUP}/leases"), &key).is_none() {
        let mut lease = json!({
            "apiVersion": format!("{GROUP}/v1"), "kind": "Lease",
            "metadata": { "name": id(), "namespace": NAMESPACE }, "spec": { "holderIdentity": holder },
        });
        set(&mut lease);
        return ensure(core, lease).await.map_err(|e| e.to_string());
    }
    let make = |lease: &Value| {
        let mut lease = lease.clone();
        set(&mut lease);
        Ok(lease)
    };
    let renewed = rewrite(core, LEASES, &write::MAIN, (NAMESPACE, id()), &make).await;
    renewed.map_err(|e| e.message)
}

/// Removes the Leases of servers that have fallen silent, now and again until the server stops.
async fn collect(core: Arc<Core>, timing: Timing) {
    let mut again = interval(timing.gc);
    loop {
        tokio::select! {
            _ = again.tick() => {}
            () = core.stop.cancelled() => return,
        }
        let snapshot = core.store().snapshot(&format!("{GROUP}/leases"));
        let prefix = format!("{NAMESPACE}/");
        let expired: Vec<String> = snapshot
            .range(std::ops::Bound::Unbounded, &prefix)
            .filter(|object| object.attrs.labels.iter().any(|(k, v)| (&**k, &**v) == (LABEL, COMPONENT)))
            .filter(|object| {
                serde_json::from_slice::<Value>(&object.bytes).is_ok_and(|l| is_expired(&l, core.now()))
            })
            .filter_map(|object| Some(object.key.strip_prefix(&*prefix)?.to_owned()))
            .collect();
        for name in expired {
            if let Err(error) = remove(&core, LEASES, (NAMESPACE, &name)).await {
                tracing::warn!(why = error.message, lease = name, "the Lease of a silent server stays");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        // What upstream's server calls itself on a machine of this name.
        assert_eq!(name_of("test-hostname"), "apiserver-rct6iizfamabra7x6d53lwb3oa");
    }
}
