//! What is kept for the system and the node agent, and what is left for pods.
//!
//! ```text
//! capacity ─ systemReserved ─ kubeReserved ─────────────────► limit of the pods' tree of cgroups
//!          └───────────────────────────── ─ evictionHard ───► status.allocatable
//! ```

use std::collections::BTreeMap;

use yare_runtime::{Resources, hugepage_name};
use yare_schema::quantity::{Format, Quantity};

use super::settings::{Amounts, ResourceSettings};
use crate::eviction::signals::Signal;
use crate::eviction::thresholds::Threshold;
use crate::node::capacity::Capacity;
use crate::pod::limits;

/// What can be reserved. Process ids are not offered, but kept.
const RESERVABLE: &[&str] = &["cpu", "memory", "ephemeral-storage", PIDS];
const PIDS: &str = "pid";

/// What is kept back.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Reservations {
    system: BTreeMap<String, Quantity>,
    kube: BTreeMap<String, Quantity>,
    /// Held back by hard thresholds.
    eviction: BTreeMap<&'static str, Quantity>,
}

impl Reservations {
    /// Reads the settings; refuses what a machine of this capacity cannot give.
    pub(crate) fn resolve(
        settings: &ResourceSettings,
        hard: &[Threshold],
        capacity: &Capacity,
    ) -> Result<Self, String> {
        let mut eviction = BTreeMap::new();
        for threshold in hard {
            let (name, of) = match threshold.signal {
                Signal::MemoryAvailable => ("memory", capacity.memory_bytes),
                Signal::NodeFsAvailable => ("ephemeral-storage", capacity.ephemeral_storage_bytes),
                _ => continue,
            };
            eviction.insert(name, threshold.value.of(of));
        }
        let made = Reservations {
            system: parse(&settings.system_reserved)?,
            kube: parse(&settings.kube_reserved)?,
            eviction,
        };
        let mut errors = Vec::new();
        for (name, has) in amounts(capacity) {
            let reserved =
                made.reserved(&name) + made.eviction.get(name.as_str()).copied().unwrap_or_default();
            if reserved > has {
                errors.push(format!(
                    "Resource {name:?} has a reservation of {reserved} but capacity of {has}. \
                     Expected capacity >= reservation."
                ));
            }
        }
        if errors.is_empty() {
            return Ok(made);
        }
        Err(format!("invalid Node Allocatable configuration. {}", errors.join(" ")))
    }

    /// Of one resource, without what thresholds hold back.
    fn reserved(&self, name: &str) -> Quantity {
        let of = |map: &BTreeMap<String, Quantity>| map.get(name).copied().unwrap_or_default();
        of(&self.system) + of(&self.kube)
    }

    /// What is kept back of each resource, for the system, the node agent and by thresholds.
    pub(crate) fn kept(&self, capacity: &Capacity) -> BTreeMap<String, Quantity> {
        let held = |name: &str| self.eviction.get(name).copied().unwrap_or_default();
        amounts(capacity).into_keys().map(|name| (name.clone(), self.reserved(&name) + held(&name))).collect()
    }

    /// `status.allocatable`.
    pub(crate) fn allocatable(&self, capacity: &Capacity) -> Amounts {
        let all = amounts(capacity);
        let huge: Quantity = all
            .iter()
            .filter(|(name, _)| name.starts_with("hugepages-"))
            .fold(Quantity::ZERO, |sum, (_, amount)| sum + *amount);
        all.into_iter()
            .map(|(name, has)| {
                let held = self.eviction.get(name.as_str()).copied().unwrap_or_default();
                let mut left = floor(has - self.reserved(&name) - held);
                if name == "memory" {
                    // Huge pages are taken out of memory when the machine starts.
                    left = floor(left - huge);
                }
                (name, left.to_string())
            })
            .collect()
    }

    /// Limits of all pods together: of the whole capacity unless `enforced`.
    pub(crate) fn pods_limits(&self, capacity: &Capacity, enforced: bool) -> Resources {
        let mut left: BTreeMap<String, Quantity> = amounts(capacity);
        left.insert(PIDS.to_owned(), Quantity::new(number(capacity.pids), Format::DecimalSi));
        if enforced {
            for (name, amount) in &mut left {
                *amount = floor(*amount - self.reserved(name));
            }
        }
        limits(&left, false)
    }

    /// Limits of the system's (`true`) or the node agent's own group.
    pub(crate) fn own_limits(&self, system: bool, compressible: bool) -> Resources {
        limits(if system { &self.system } else { &self.kube }, compressible)
    }
}

fn number(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// Negative amounts make no sense.
fn floor(amount: Quantity) -> Quantity {
    if amount.signum() < 0 { Quantity::ZERO.with_format(amount.format()) } else { amount }
}

/// A capacity as quantities, by resource name.
pub(crate) fn amounts(capacity: &Capacity) -> BTreeMap<String, Quantity> {
    let bytes = |n: u64| Quantity::new(number(n), Format::BinarySi);
    let mut all = BTreeMap::from([
        ("cpu".to_owned(), Quantity::from_milli(number(capacity.cpu_milli), Format::DecimalSi)),
        ("memory".to_owned(), bytes(capacity.memory_bytes)),
        ("ephemeral-storage".to_owned(), bytes(capacity.ephemeral_storage_bytes)),
        ("pods".to_owned(), Quantity::new(i64::from(capacity.pods), Format::DecimalSi)),
    ]);
    all.extend(capacity.hugepages.iter().map(|(name, n)| (name.clone(), bytes(*n))));
    all
}

fn parse(texts: &Amounts) -> Result<BTreeMap<String, Quantity>, String> {
    let mut found = BTreeMap::new();
    for (name, text) in texts {
        if !RESERVABLE.contains(&name.as_str()) {
            return Err(format!("cannot reserve {name:?} resource"));
        }
        let amount = Quantity::parse(text)
            .map_err(|e| format!("failed to parse quantity {text:?} for {name:?} resource: {e}"))?;
        if amount.signum() < 0 {
            return Err(format!("resource quantity for {name:?} cannot be negative: {text}"));
        }
        found.insert(name.clone(), amount);
    }
    Ok(found)
}

/// A group's limits; `compressible`: only those that slow down and do not kill.
fn limits(amounts: &BTreeMap<String, Quantity>, compressible: bool) -> Resources {
    let mut limits = Resources {
        cpu_shares: amounts.get("cpu").map(|q| limits::shares(q.milli_value())),
        ..Resources::default()
    };
    if compressible {
        return limits;
    }
    limits.memory_limit_bytes = amounts.get("memory").map(|q| q.value());
    limits.pids_limit = amounts.get(PIDS).map(|q| q.value());
    for (name, amount) in amounts {
        if let Some(size) = name.strip_prefix("hugepages-").and_then(|s| Quantity::parse(s).ok()) {
            let page = hugepage_name(u64::try_from(size.value()).unwrap_or(0));
            limits.hugepages.insert(page, u64::try_from(amount.value()).unwrap_or(0));
        }
    }
    limits
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eviction::thresholds;
    use crate::resources::EvictionSettings;

    fn capacity() -> Capacity {
        Capacity {
            cpu_milli: 4000,
            memory_bytes: 8 << 30,
            ephemeral_storage_bytes: 100 << 30,
            hugepages: BTreeMap::from([("hugepages-2Mi".into(), 64 << 20)]),
            pods: 110,
            pids: 32768,
            swap_bytes: 0,
        }
    }

    fn map(pairs: &[(&str, &str)]) -> Amounts {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn settings(system: &[(&str, &str)], kube: &[(&str, &str)], hard: &[(&str, &str)]) -> ResourceSettings {
        ResourceSettings {
            system_reserved: map(system),
            kube_reserved: map(kube),
            eviction: EvictionSettings { hard: map(hard), ..EvictionSettings::default() },
            ..ResourceSettings::default()
        }
    }

    fn resolve(settings: &ResourceSettings) -> Result<Reservations, String> {
        Reservations::resolve(settings, &thresholds::hard(&settings.eviction).unwrap(), &capacity())
    }

    #[test]
    fn pods_get_what_is_left() {
        let settings = settings(
            &[("cpu", "500m"), ("memory", "1Gi"), ("ephemeral-storage", "10Gi"), ("pid", "1000")],
            &[("cpu", "250m"), ("memory", "512Mi"), ("pid", "768")],
            &[("memory.available", "100Mi"), ("nodefs.available", "10%")],
        );
        let made = resolve(&settings).unwrap();
        let left = made.allocatable(&capacity());
        let want = map(&[
            ("cpu", "3250m"),
            ("memory", "6492Mi"),
            ("ephemeral-storage", "85899345760"),
            ("hugepages-2Mi", "64Mi"),
            ("pods", "110"),
        ]);
        assert_eq!(left, want);
        // The tree keeps pods off what is reserved; thresholds are for evictions to keep.
        let tree = made.pods_limits(&capacity(), true);
        assert_eq!(tree.cpu_shares, Some(3328));
        assert_eq!(tree.memory_limit_bytes, Some((8 << 30) - (1536 << 20)));
        assert_eq!(tree.pids_limit, Some(31000));
        assert_eq!(tree.hugepages["2MB"], 64 << 20);
        assert_eq!(made.pods_limits(&capacity(), false).memory_limit_bytes, Some(8 << 30));
        assert_eq!(made.own_limits(true, false).memory_limit_bytes, Some(1 << 30));
        let slow = made.own_limits(false, true);
        assert_eq!((slow.cpu_shares, slow.memory_limit_bytes, slow.pids_limit), (Some(256), None, None));
    }

    #[test]
    fn what_cannot_be_is_refused_in_upstreams_words() {
        for (settings, want) in [
            (settings(&[("cpu", "-1")], &[], &[]), "resource quantity for \"cpu\" cannot be negative: -1"),
            (settings(&[("gpu", "1")], &[], &[]), "cannot reserve \"gpu\" resource"),
            (
                settings(&[("memory", "6Gi")], &[("memory", "2Gi")], &[("memory.available", "100Mi")]),
                "invalid Node Allocatable configuration. Resource \"memory\" has a reservation of 8292Mi but capacity \
                 of 8Gi. Expected capacity >= reservation.",
            ),
        ] {
            assert_eq!(resolve(&settings).unwrap_err(), want);
        }
        let error = resolve(&settings(&[("memory", "much")], &[], &[])).unwrap_err();
        assert!(error.starts_with("failed to parse quantity \"much\" for \"memory\" resource: "), "{error}");
    }
}
