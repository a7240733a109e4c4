//! Thresholds: read from the settings, and compared with what is observed.
//!
//! In: four maps of texts. Out: a list of [`Threshold`]s; refused in upstream's words. Comparing is pure.

use std::collections::BTreeMap;
use std::time::Duration;

use yare_schema::gotime;
use yare_schema::quantity::{Format, Quantity};

use super::signals::{Observations, SIGNALS, Signal};
use crate::clock::go_duration;
use crate::resources::EvictionSettings;

/// An amount, or a share of the capacity.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Amount {
    Quantity(Quantity),
    /// Of one. Single precision, as upstream has it, for the amounts to agree to the byte.
    Share(f32),
}

impl Amount {
    /// What it comes to.
    pub(crate) fn of(self, capacity: u64) -> Quantity {
        match self {
            Amount::Quantity(quantity) => quantity,
            #[allow(
                clippy::cast_precision_loss,
                clippy::cast_possible_truncation,
                reason = "a share of a capacity that fits 63 bits fits them, too; upstream rounds just so"
            )]
            Amount::Share(share) => {
                Quantity::new((capacity as f64 * f64::from(share)) as i64, Format::BinarySi)
            }
        }
    }
}

/// Below which amount a signal is acted upon.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Threshold {
    pub(crate) signal: Signal,
    pub(crate) value: Amount,
    /// How long it has to be met before; zero: a hard threshold.
    pub(crate) grace: Duration,
    /// How much more has to be free again.
    pub(crate) minimum_reclaim: Option<Amount>,
}

impl Threshold {
    pub(crate) fn is_hard(&self) -> bool {
        self.grace.is_zero()
    }

    /// Whether too little is left; with `reclaim`, also not as much as has to be won back.
    fn met(&self, observations: &Observations, reclaim: bool) -> bool {
        let Some(observed) = observations.get(&self.signal) else { return false };
        let mut wanted = self.value.of(observed.capacity);
        if reclaim && let Some(more) = self.minimum_reclaim {
            wanted += more.of(observed.capacity);
        }
        wanted > observed.available(self.signal)
    }

    /// The same threshold but for what has to be won back.
    fn same(&self, other: &Self) -> bool {
        self.signal == other.signal && self.grace == other.grace && self.value == other.value
    }
}

/// Those that are met.
pub(crate) fn met(thresholds: &[Threshold], observations: &Observations, reclaim: bool) -> Vec<Threshold> {
    thresholds.iter().filter(|t| t.met(observations, reclaim)).copied().collect()
}

/// Both lists, none twice.
pub(crate) fn merge(mut first: Vec<Threshold>, second: Vec<Threshold>) -> Vec<Threshold> {
    for threshold in second {
        if !first.iter().any(|t| t.same(&threshold)) {
            first.push(threshold);
        }
    }
    first
}

/// Reads the settings. `pods_enforced`: the pods' own limit is kept, so what they may use is watched, too.
pub(crate) fn parse(settings: &EvictionSettings, pods_enforced: bool) -> Result<Vec<Threshold>, String> {
    let mut thresholds = statements(&settings.hard)?;
    let mut soft = statements(&settings.soft)?;
    let graces = grace_periods(&settings.soft_grace_period)?;
    let reclaims = minimum_reclaims(&settings.minimum_reclaim)?;
    for threshold in &mut soft {
        threshold.grace = graces.get(&threshold.signal).copied().ok_or_else(|| {
            let name = threshold.signal.row().name;
            format!("grace period must be specified for the soft eviction threshold {name}")
        })?;
    }
    thresholds.extend(soft);
    for threshold in &mut thresholds {
        threshold.minimum_reclaim = reclaims.get(&threshold.signal).copied();
    }
    if pods_enforced {
        let memory = |t: &&Threshold| t.signal == Signal::MemoryAvailable && t.is_hard();
        let allocatable: Vec<Threshold> = thresholds.iter().filter(memory).copied().collect();
        thresholds
            .extend(allocatable.into_iter().map(|t| Threshold { signal: Signal::AllocatableMemory, ..t }));
    }
    Ok(thresholds)
}

/// The hard thresholds alone: what they hold back is not offered to pods.
pub(crate) fn hard(settings: &EvictionSettings) -> Result<Vec<Threshold>, String> {
    statements(&settings.hard)
}

fn signal(name: &str) -> Result<Signal, String> {
    Signal::named(name).ok_or_else(|| format!("unsupported eviction signal {name}"))
}

fn statements(texts: &BTreeMap<String, String>) -> Result<Vec<Threshold>, String> {
    let mut found = Vec::new();
    // In the order of the table, so that messages do not depend on the order of a map.
    for name in texts.keys() {
        signal(name)?;
    }
    for row in SIGNALS {
        let Some(text) = texts.get(row.name) else { continue };
        if let Some(value) = statement(row.name, text)? {
            found.push(Threshold { signal: row.signal, value, grace: Duration::ZERO, minimum_reclaim: None });
        }
    }
    Ok(found)
}

/// One value; `None` where it means "never".
fn statement(name: &str, text: &str) -> Result<Option<Amount>, String> {
    if text.ends_with('%') {
        if text == "0%" || text == "100%" {
            return Ok(None);
        }
        let share = percentage(text)?;
        if share < 0.0 {
            return Err(format!("eviction percentage threshold {name} must be >= 0%: {text}"));
        }
        if share > 1.0 {
            return Err(format!("eviction percentage threshold {name} must be <= 100%: {text}"));
        }
        return Ok(Some(Amount::Share(share)));
    }
    let quantity = quantity(text)?;
    if quantity.signum() <= 0 {
        return Err(format!("eviction threshold {name} must be positive: {quantity}"));
    }
    Ok(Some(Amount::Quantity(quantity)))
}

fn percentage(text: &str) -> Result<f32, String> {
    let number = text.trim_end_matches('%');
    match number.parse::<f32>() {
        Ok(percent) if percent.is_finite() => Ok(percent / 100.0),
        _ => Err(format!("strconv.ParseFloat: parsing {number:?}: invalid syntax")),
    }
}

fn quantity(text: &str) -> Result<Quantity, String> {
    Quantity::parse(text).map_err(|e| format!("{text:?}: {e}"))
}

fn grace_periods(texts: &BTreeMap<String, String>) -> Result<BTreeMap<Signal, Duration>, String> {
    let mut found = BTreeMap::new();
    for (name, text) in texts {
        let signal = signal(name)?;
        let nanos = u64::try_from(gotime::parse_duration(text)?).map_err(|_| {
            format!("invalid eviction grace period specified: {text}, must be a positive value")
        })?;
        found.insert(signal, Duration::from_nanos(nanos));
    }
    Ok(found)
}

fn minimum_reclaims(texts: &BTreeMap<String, String>) -> Result<BTreeMap<Signal, Amount>, String> {
    let mut found = BTreeMap::new();
    for (name, text) in texts {
        let signal = signal(name)?;
        let amount = if text.ends_with('%') {
            let share = percentage(text)?;
            if share <= 0.0 {
                return Err(format!("eviction percentage minimum reclaim {name} must be positive: {text}"));
            }
            Amount::Share(share)
        } else {
            let quantity = quantity(text)?;
            if quantity.signum() < 0 {
                return Err(format!("negative eviction minimum reclaim specified for {name}"));
            }
            Amount::Quantity(quantity)
        };
        found.insert(signal, amount);
    }
    Ok(found)
}

/// Where images and writable layers are kept, beside the node's own file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Layout {
    /// All on one file system.
    #[default]
    Single,
    /// Images and writable layers on another.
    ImageFs,
    /// Images on another, writable layers with the node.
    Split,
}

/// Writable layers have no thresholds of their own: they follow the file system that they are on. What was set for
/// them is replaced; the second answer names it.
pub(crate) fn follow_layout(thresholds: &[Threshold], layout: Layout) -> (Vec<Threshold>, Vec<String>) {
    let source = match layout {
        Layout::Single | Layout::Split => [Signal::NodeFsAvailable, Signal::NodeFsInodesFree],
        Layout::ImageFs => [Signal::ImageFsAvailable, Signal::ImageFsInodesFree],
    };
    let targets = [Signal::ContainerFsAvailable, Signal::ContainerFsInodesFree];
    let (own, mut kept): (Vec<Threshold>, Vec<Threshold>) =
        thresholds.iter().partition(|t| targets.contains(&t.signal));
    for (from, to) in source.into_iter().zip(targets) {
        let following: Vec<Threshold> = kept.iter().filter(|t| t.signal == from).copied().collect();
        kept.extend(following.into_iter().map(|t| Threshold { signal: to, ..t }));
    }
    let ignored = own.iter().map(|t| {
        let kind = if t.is_hard() { "hard" } else { "soft" };
        format!("found {} for {kind} eviction. ignoring", t.signal.row().name)
    });
    (kept, ignored.collect())
}

/// A threshold as logs show it.
pub(crate) fn describe(threshold: &Threshold) -> String {
    let value = match threshold.value {
        Amount::Quantity(quantity) => quantity.to_string(),
        Amount::Share(share) => format!("{}%", share * 100.0),
    };
    format!("{}<{value} for {}", threshold.signal.row().name, go_duration(threshold.grace))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eviction::signals::Observation;

    fn settings(
        hard: &[(&str, &str)],
        soft: &[(&str, &str)],
        grace: &[(&str, &str)],
        reclaim: &[(&str, &str)],
    ) -> EvictionSettings {
        let map = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<BTreeMap<_, _>>()
        };
        EvictionSettings {
            hard: map(hard),
            soft: map(soft),
            soft_grace_period: map(grace),
            minimum_reclaim: map(reclaim),
            ..EvictionSettings::default()
        }
    }

    #[test]
    fn settings_are_read() {
        let got = parse(
            &settings(
                &[("memory.available", "150Mi"), ("nodefs.available", "10%"), ("imagefs.available", "0%")],
                &[("memory.available", "300Mi")],
                &[("memory.available", "30s")],
                &[("memory.available", "50Mi")],
            ),
            true,
        )
        .unwrap();
        let names: Vec<String> = got.iter().map(describe).collect();
        assert_eq!(
            names,
            [
                "memory.available<150Mi for 0s",
                "nodefs.available<10% for 0s",
                "memory.available<300Mi for 30s",
                "allocatableMemory.available<150Mi for 0s"
            ]
        );
        assert!(got.iter().filter(|t| t.minimum_reclaim.is_some()).count() == 3);
    }

    #[test]
    fn what_is_wrong_is_said_in_upstreams_words() {
        let hard = |name: &'static str, value: &'static str| settings(&[(name, value)], &[], &[], &[]);
        for (settings, want) in [
            (hard("cpu.available", "1"), "unsupported eviction signal cpu.available"),
            (hard("memory.available", "0"), "eviction threshold memory.available must be positive: 0"),
            (hard("memory.available", "-1Gi"), "eviction threshold memory.available must be positive: -1Gi"),
            (
                hard("nodefs.available", "-3%"),
                "eviction percentage threshold nodefs.available must be >= 0%: -3%",
            ),
            (
                hard("nodefs.available", "101%"),
                "eviction percentage threshold nodefs.available must be <= 100%: 101%",
            ),
            (
                settings(&[], &[("memory.available", "1Gi")], &[], &[]),
                "grace period must be specified for the soft eviction threshold memory.available",
            ),
            (
                settings(&[], &[], &[("memory.available", "-30s")], &[]),
                "invalid eviction grace period specified: -30s, must be a positive value",
            ),
            (
                settings(&[], &[], &[], &[("memory.available", "0%")]),
                "eviction percentage minimum reclaim memory.available must be positive: 0%",
            ),
            (
                settings(&[], &[], &[], &[("memory.available", "-1")]),
                "negative eviction minimum reclaim specified for memory.available",
            ),
        ] {
            assert_eq!(parse(&settings, false).unwrap_err(), want);
        }
    }

    #[test]
    fn thresholds_are_met() {
        let thresholds = parse(
            &settings(
                &[("memory.available", "100Mi"), ("nodefs.inodesFree", "5%")],
                &[],
                &[],
                &[("memory.available", "50Mi")],
            ),
            false,
        )
        .unwrap();
        let look = |available: u64, inodes: u64, reclaim| {
            let observations = Observations::from([
                (Signal::MemoryAvailable, Observation { available, capacity: 1 << 30 }),
                (Signal::NodeFsInodesFree, Observation { available: inodes, capacity: 1000 }),
            ]);
            met(&thresholds, &observations, reclaim).iter().map(|t| t.signal).collect::<Vec<_>>()
        };
        assert_eq!(look(100 << 20, 50, false), []);
        assert_eq!(look((100 << 20) - 1, 50, false), [Signal::MemoryAvailable]);
        assert_eq!(look(120 << 20, 49, true), [Signal::MemoryAvailable, Signal::NodeFsInodesFree]);
        assert_eq!(look(150 << 20, 50, true), []);
        assert_eq!(met(&thresholds, &Observations::new(), false), []);
    }

    #[test]
    fn writable_layers_follow_their_file_system() {
        let thresholds = parse(
            &settings(
                &[
                    ("nodefs.available", "10%"),
                    ("imagefs.available", "15%"),
                    ("containerfs.available", "50%"),
                ],
                &[],
                &[],
                &[],
            ),
            false,
        )
        .unwrap();
        for (layout, share) in [(Layout::Single, 0.1), (Layout::Split, 0.1), (Layout::ImageFs, 0.15)] {
            let (followed, ignored) = follow_layout(&thresholds, layout);
            assert_eq!(ignored, ["found containerfs.available for hard eviction. ignoring"]);
            let found: Vec<_> =
                followed.iter().filter(|t| t.signal == Signal::ContainerFsAvailable).collect();
            assert_eq!(found.len(), 1);
            assert_eq!(found[0].value, Amount::Share(share), "{layout:?}");
        }
    }
}
