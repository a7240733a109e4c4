//! Drivers that registered with the node, and what they say of their devices' health.
//!
//! A driver may register more than once while it is replaced: the newest is asked. When the last one is gone and stays
//! away, what it published for this node is removed, so that nothing is scheduled onto it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use tokio_util::sync::{CancellationToken, DropGuard};
use yare_grpc::Client;

use super::api::{self, NodeWatchResourcesRequest, NodeWatchResourcesResponse};

/// Health that is older than this, where the driver names no time, is not known any more.
const HEALTH_TIMEOUT: SignedDuration = SignedDuration::from_secs(30);
/// Between attempts to listen to a driver's health.
const LISTEN_AGAIN: Duration = Duration::from_secs(5);
/// The longest message about a device; upstream's limit.
const MESSAGE_MAX: usize = 1024;
/// Devices of one driver whose health is kept.
const DEVICES_MAX: usize = 65_536;

/// A registered driver.
#[derive(Clone)]
pub(crate) struct Driver {
    pub(crate) endpoint: String,
    pub(crate) client: Client,
    /// Paths of the methods that prepare and unprepare.
    pub(crate) prepare: &'static str,
    pub(crate) unprepare: &'static str,
    /// Ends the listening when the driver is gone.
    _listening: Arc<DropGuard>,
}

/// A device's health.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Health {
    state: &'static str,
    message: String,
    until: Timestamp,
}

#[derive(Default)]
struct State {
    drivers: BTreeMap<String, Vec<Driver>>,
    /// Counts registrations and ends of a driver: whoever waits to clean up after it sees that it came back.
    changes: BTreeMap<String, u64>,
    /// Driver → pool, device.
    health: BTreeMap<String, BTreeMap<(String, String), Health>>,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Drivers(Mutex<State>);

/// The service of a driver that this agent speaks: the first in the driver's list.
pub(crate) fn service(
    name: &str,
    endpoint: &str,
    versions: &[String],
) -> Result<(&'static str, &'static str), String> {
    let context =
        format!("invalid supported gRPC versions of DRA driver plugin {name} at endpoint {endpoint}");
    if versions.is_empty() {
        return Err(format!("{context}: empty list of supported gRPC services (aka supported versions)"));
    }
    let known = |v: &String| api::SERVICES.iter().find(|(name, _, _)| name == v);
    match versions.iter().find_map(known) {
        Some((_, prepare, unprepare)) => Ok((prepare, unprepare)),
        None => {
            let ours: Vec<&str> = api::SERVICES.iter().map(|s| s.0).collect();
            Err(format!(
                "{context}: none of services supported by the plugin ({versions:?}) are supported by the kubelet ({ours:?})"
            ))
        }
    }
}

impl Drivers {
    /// The newest of a driver.
    pub(crate) fn get(&self, name: &str) -> Result<Driver, String> {
        let state = self.0.lock();
        let newest = state.drivers.get(name).and_then(|d| d.last()).cloned();
        newest.ok_or_else(|| format!("DRA driver {name} is not registered"))
    }

    /// Takes a driver into use. `changed` is called with the devices whose health changed.
    pub(crate) fn add(
        self: &Arc<Self>,
        name: &str,
        endpoint: &str,
        versions: &[String],
        now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
        changed: impl Fn(&str, &[(String, String)]) + Send + Sync + 'static,
    ) -> Result<(), String> {
        let (prepare, unprepare) = service(name, endpoint, versions)?;
        let client = Client::unix(endpoint);
        let stop = CancellationToken::new();
        let driver = Driver {
            endpoint: endpoint.to_owned(),
            client: client.clone(),
            prepare,
            unprepare,
            _listening: Arc::new(stop.clone().drop_guard()),
        };
        {
            let mut state = self.0.lock();
            let all = state.drivers.entry(name.to_owned()).or_default();
            if all.iter().any(|d| d.endpoint == endpoint) {
                return Err(format!("endpoint {endpoint} already registered for DRA driver plugin {name}"));
            }
            all.push(driver);
            *state.changes.entry(name.to_owned()).or_default() += 1;
        }
        let (drivers, name) = (Arc::downgrade(self), name.to_owned());
        tokio::spawn(async move {
            let listen = async {
                loop {
                    let stream = client
                        .watch::<_, NodeWatchResourcesResponse>(api::WATCH, NodeWatchResourcesRequest {});
                    match stream.await {
                        Ok(mut stream) => {
                            while let Ok(Some(report)) = stream.message().await {
                                let Some(drivers) = drivers.upgrade() else { return };
                                changed(&name, &drivers.take_in(&name, report, now()));
                            }
                        }
                        // The driver does not tell, and will not.
                        Err(status) if status.code() == yare_grpc::Code::Unimplemented => return,
                        Err(_) => {}
                    }
                    let Some(drivers) = drivers.upgrade() else { return };
                    changed(&name, &drivers.forget_health(&name));
                    drop(drivers);
                    tokio::time::sleep(LISTEN_AGAIN).await;
                }
            };
            tokio::select! {
                () = listen => {}
                () = stop.cancelled() => {}
            }
        });
        Ok(())
    }

    /// A driver's socket is gone. Answers the count to compare with later, when it was the last one.
    pub(crate) fn remove(&self, name: &str, endpoint: &str) -> Option<u64> {
        let mut state = self.0.lock();
        let all = state.drivers.get_mut(name)?;
        all.retain(|d| d.endpoint != endpoint);
        if !all.is_empty() {
            return None;
        }
        state.drivers.remove(name);
        let changes = state.changes.entry(name.to_owned()).or_default();
        *changes += 1;
        Some(*changes)
    }

    /// Whether a driver is still gone since then.
    pub(crate) fn gone_since(&self, name: &str, changes: u64) -> bool {
        let state = self.0.lock();
        !state.drivers.contains_key(name) && state.changes.get(name) == Some(&changes)
    }

    fn take_in(
        &self,
        driver: &str,
        report: NodeWatchResourcesResponse,
        now: Timestamp,
    ) -> Vec<(String, String)> {
        let mut state = self.0.lock();
        let known = state.health.entry(driver.to_owned()).or_default();
        let mut changed = Vec::new();
        for device in report.devices {
            let Some(id) = device.device else { continue };
            let timeout = match device.health_check_timeout_seconds {
                s if s > 0 => SignedDuration::from_secs(s),
                _ => HEALTH_TIMEOUT,
            };
            let state = match device.health {
                1 => "Healthy",
                2 => "Unhealthy",
                _ => "Unknown",
            };
            let key = (id.pool_name, id.device_name);
            let health = Health {
                state,
                message: truncate(device.message),
                until: now.saturating_add(timeout).unwrap_or(Timestamp::MAX),
            };
            let news = known.get(&key).is_none_or(|old| {
                old.state != health.state || old.message != health.message || old.until < now
            });
            if news {
                changed.push(key.clone());
            }
            if known.len() < DEVICES_MAX || known.contains_key(&key) {
                known.insert(key, health);
            }
        }
        changed
    }

    fn forget_health(&self, driver: &str) -> Vec<(String, String)> {
        self.0.lock().health.remove(driver).unwrap_or_default().into_keys().collect()
    }

    /// A device's health, and what its driver says of it.
    pub(crate) fn health(
        &self,
        driver: &str,
        pool: &str,
        device: &str,
        now: Timestamp,
    ) -> (&'static str, Option<String>) {
        let state = self.0.lock();
        let known = state.health.get(driver).and_then(|d| d.get(&(pool.to_owned(), device.to_owned())));
        match known.filter(|h| h.until >= now) {
            Some(health) => (health.state, Some(health.message.clone()).filter(|m| !m.is_empty())),
            None => ("Unknown", None),
        }
    }
}

fn truncate(mut message: String) -> String {
    if message.len() > MESSAGE_MAX {
        let mut end = MESSAGE_MAX - 3;
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        message.truncate(end);
        message.push_str("...");
    }
    message
}

#[cfg(test)]
mod tests {
    use super::super::api::{DeviceHealth, DeviceIdentifier};
    use super::*;

    #[test]
    fn services_are_chosen() {
        for (versions, want) in [
            (&["v1.DRAPlugin", "v1beta1.DRAPlugin"] as &[&str], Ok("dra.v1.")),
            (&["v1beta1.DRAPlugin"], Ok("dra.v1beta1.")),
            (&["v9.DRAPlugin"], Err("are supported by the kubelet")),
            (&[], Err("empty list of supported gRPC services")),
        ] {
            let versions: Vec<String> = versions.iter().map(|v| (*v).to_owned()).collect();
            match (service("d", "/e", &versions), want) {
                (Ok((prepare, _)), Ok(part)) => assert!(prepare.contains(part), "{prepare}"),
                (Err(error), Err(part)) => assert!(error.contains(part), "{error}"),
                (got, want) => panic!("{got:?} {want:?}"),
            }
        }
    }

    #[test]
    fn health_grows_old() {
        let drivers = Drivers::default();
        let at = |s| Timestamp::from_second(s).unwrap();
        let report = |health, timeout, message: &str| NodeWatchResourcesResponse {
            devices: vec![DeviceHealth {
                device: Some(DeviceIdentifier { pool_name: "p".into(), device_name: "d".into() }),
                health,
                health_check_timeout_seconds: timeout,
                message: message.to_owned(),
                ..DeviceHealth::default()
            }],
        };
        assert_eq!(drivers.health("x", "p", "d", at(0)), ("Unknown", None));
        assert_eq!(drivers.take_in("x", report(1, 0, ""), at(100)).len(), 1);
        assert!(drivers.take_in("x", report(1, 0, ""), at(110)).is_empty());
        assert_eq!(drivers.health("x", "p", "d", at(140)), ("Healthy", None));
        assert_eq!(drivers.health("x", "p", "d", at(141)), ("Unknown", None));
        assert_eq!(drivers.take_in("x", report(2, 5, "hot"), at(150)).len(), 1);
        assert_eq!(drivers.health("x", "p", "d", at(155)), ("Unhealthy", Some("hot".to_owned())));
        assert_eq!(drivers.health("x", "p", "d", at(156)).0, "Unknown");
        drivers.take_in("x", report(1, 5, &"ä".repeat(1000)), at(160));
        assert!(drivers.health("x", "p", "d", at(160)).1.unwrap().len() <= MESSAGE_MAX);
        assert_eq!(drivers.forget_health("x").len(), 1);
    }
}
