//! Feature gates: what of Kubernetes can be switched on and off by name.
//!
//! In: `--feature-gates A=true,B=false`. Out: [`Gates`], which says what is on. The gates themselves, with the
//! stage each had in each release, are the table `gates.txt` beside this file.

use std::{collections::BTreeMap, fmt, sync::LazyLock};

use crate::release::Emulation;

/// How far a feature has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// May change or go at any time.
    Alpha,
    /// Complete, still under observation.
    Beta,
    /// Here to stay; the gate itself goes some releases later.
    Ga,
    /// On its way out.
    Deprecated,
}

impl Stage {
    /// As `kubernetes_feature_enabled` labels it; stable features carry an empty label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Alpha => "ALPHA",
            Self::Beta => "BETA",
            Self::Ga => "",
            Self::Deprecated => "DEPRECATED",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "alpha" => Self::Alpha,
            "beta" => Self::Beta,
            "ga" => Self::Ga,
            "deprecated" => Self::Deprecated,
            _ => return None,
        })
    }
}

/// What a gate became in one release.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    /// The release, as the number behind `1.`.
    pub since_minor: u16,
    /// How far the feature had come.
    pub stage: Stage,
    /// Whether it was on unless asked for otherwise.
    pub on: bool,
    /// Whether nothing but the default was allowed.
    pub locked: bool,
}

/// One gate.
#[derive(Debug)]
pub struct Gate {
    /// `InPlacePodVerticalScaling`
    pub name: &'static str,
    /// Its history, oldest first, never empty.
    pub steps: Box<[Step]>,
    /// Gates that must be on where this one is.
    pub needs: Box<[&'static str]>,
}

impl Gate {
    /// What it is now.
    pub fn now(&self) -> Step {
        self.steps[self.steps.len() - 1]
    }

    /// What it was in a release; `None` before there was one.
    fn at(&self, minor: u16) -> Option<Step> {
        self.steps.iter().rev().find(|step| step.since_minor <= minor).copied()
    }
}

/// Switches all alpha features that are not named themselves.
const ALL_ALPHA: &str = "AllAlpha";
/// Switches all beta features that are not named themselves.
const ALL_BETA: &str = "AllBeta";

static TABLE: LazyLock<Vec<Gate>> = LazyLock::new(|| {
    let lines = include_str!("gates.txt").lines().filter(|l| !l.is_empty() && !l.starts_with('#'));
    // A test holds every line of the table to this form.
    let mut gates: Vec<Gate> = lines.filter_map(parse_line).collect();
    for (name, stage) in [(ALL_ALPHA, Stage::Alpha), (ALL_BETA, Stage::Beta)] {
        let step = Step { since_minor: 0, stage, on: false, locked: false };
        gates.push(Gate { name, steps: Box::new([step]), needs: Box::default() });
    }
    gates.sort_by_key(|gate| gate.name);
    gates
});

fn parse_line(line: &'static str) -> Option<Gate> {
    let (head, needs) = line.split_once(" needs ").unwrap_or((line, ""));
    let mut words = head.split(' ');
    let name = words.next()?;
    let steps: Box<[Step]> = words.map(parse_step).collect::<Option<_>>()?;
    let needs = needs.split(',').filter(|n| !n.is_empty()).collect();
    (!steps.is_empty()).then_some(Gate { name, steps, needs })
}

fn parse_step(text: &str) -> Option<Step> {
    let mut parts = text.split(':');
    let step = Step {
        since_minor: parts.next()?.parse().ok()?,
        stage: Stage::parse(parts.next()?)?,
        on: match parts.next()? {
            "on" => true,
            "off" => false,
            _ => return None,
        },
        locked: match parts.next() {
            None => false,
            Some("lock") => true,
            Some(_) => return None,
        },
    };
    parts.next().is_none().then_some(step)
}

/// Every gate, by name.
pub fn all() -> &'static [Gate] {
    &TABLE
}

/// The gate of this name.
pub fn find(name: &str) -> Option<&'static Gate> {
    let table = all();
    table.binary_search_by(|gate| gate.name.cmp(name)).ok().map(|at| &table[at])
}

/// What is wrong with a wish for gates.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum GateError {
    /// A name without a value.
    #[error("missing bool value for {0}")]
    MissingValue(String),
    /// A value that is neither true nor false.
    #[error("invalid value of {name}={value}, err: strconv.ParseBool: parsing {value:?}: invalid syntax")]
    InvalidValue {
        /// The gate.
        name: String,
        /// What was given.
        value: String,
    },
    /// No gate of that name.
    #[error("unrecognized feature gate: {0}")]
    Unknown(String),
    /// A gate that can no longer be switched.
    #[error("cannot set feature gate {name} to {wanted}, feature is locked to {locked}")]
    Locked {
        /// The gate.
        name: String,
        /// What was asked for.
        wanted: bool,
        /// What it stays.
        locked: bool,
    },
    /// A gate that the emulated release does not have.
    #[error(
        "cannot set feature gate {name} to {wanted}, feature is PreAlpha at emulated version 1.{}, min compatibility version 1.{}",
        at.minor, at.compatible_minor
    )]
    TooNew {
        /// The gate.
        name: String,
        /// What was asked for.
        wanted: bool,
        /// What is emulated.
        at: Emulation,
    },
    /// A gate that is on without what it needs.
    #[error("{name} is enabled, but depends on features that are disabled: [{}]", needs.join(" "))]
    Needs {
        /// The gate.
        name: &'static str,
        /// What it needs and is off.
        needs: Vec<&'static str>,
    },
}

/// Everything that is wrong with a wish, in one message.
#[derive(Debug, PartialEq, Eq)]
pub struct GateErrors(pub Vec<GateError>);

impl fmt::Display for GateErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        match &all[..] {
            [one] => f.write_str(one),
            _ => write!(f, "[{}]", all.join(", ")),
        }
    }
}

impl std::error::Error for GateErrors {}

/// Which features are on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gates {
    /// The release whose gates these are.
    emulation: Emulation,
    /// What differs from the defaults, or was named.
    set: BTreeMap<&'static str, bool>,
}

/// The gates of a server that was told nothing about them.
pub static DEFAULT: Gates = Gates { emulation: Emulation::NONE, set: BTreeMap::new() };

impl Gates {
    /// Reads `A=true,B=false`. The last wish for a gate holds; `AllAlpha` and `AllBeta` leave alone what is
    /// named beside them.
    pub fn parse(text: &str) -> Result<Self, GateErrors> {
        Self::emulating(Emulation::NONE, text)
    }

    /// The same for a server that behaves as another release.
    pub fn emulating(emulation: Emulation, text: &str) -> Result<Self, GateErrors> {
        let mut wishes: BTreeMap<&str, bool> = BTreeMap::new();
        for wish in text.split(',').filter(|w| !w.is_empty()) {
            let (name, value) = wish
                .split_once('=')
                .ok_or_else(|| GateErrors(vec![GateError::MissingValue(wish.trim().to_owned())]))?;
            let (name, value) = (name.trim(), value.trim());
            let on = parse_bool(value).ok_or_else(|| {
                GateErrors(vec![GateError::InvalidValue { name: name.to_owned(), value: value.to_owned() }])
            })?;
            wishes.insert(name, on);
        }
        Self::of(emulation, &wishes)
    }

    fn of(emulation: Emulation, wishes: &BTreeMap<&str, bool>) -> Result<Self, GateErrors> {
        let mut errors = Vec::new();
        let mut set: BTreeMap<&'static str, bool> = BTreeMap::new();
        for (all_of, stage) in [(ALL_ALPHA, Stage::Alpha), (ALL_BETA, Stage::Beta)] {
            if let Some(&on) = wishes.get(all_of) {
                let is_of = |gate: &&Gate| gate.at(emulation.minor).is_some_and(|step| step.stage == stage);
                set.extend(all().iter().filter(is_of).map(|gate| (gate.name, on)));
                // The switches themselves are gates of their stage, but not of each other's.
                set.insert(all_of, on);
            }
        }
        for (name, &on) in wishes {
            let Some(gate) = find(name) else {
                errors.push(GateError::Unknown((*name).to_owned()));
                continue;
            };
            match gate.at(emulation.minor) {
                None => {
                    errors.push(GateError::TooNew { name: (*name).to_owned(), wanted: on, at: emulation });
                    continue;
                }
                Some(step) if step.locked && step.on != on => {
                    errors.push(GateError::Locked { name: (*name).to_owned(), wanted: on, locked: step.on });
                    continue;
                }
                Some(_) => {}
            }
            set.insert(gate.name, on);
        }
        let gates = Self { emulation, set };
        if errors.is_empty() {
            for gate in all().iter().filter(|gate| gates.is_on(gate.name)) {
                let off: Vec<&'static str> = gate.needs.iter().copied().filter(|n| !gates.is_on(n)).collect();
                if !off.is_empty() {
                    errors.push(GateError::Needs { name: gate.name, needs: off });
                }
            }
        }
        if errors.is_empty() { Ok(gates) } else { Err(GateErrors(errors)) }
    }

    /// Whether the feature is on. A name that is no gate is off.
    pub fn is_on(&self, name: &str) -> bool {
        match self.set.get(name) {
            Some(on) => *on,
            None => {
                let step = find(name).and_then(|gate| gate.at(self.emulation.minor));
                step.is_some_and(|step| step.on)
            }
        }
    }

    /// The release whose gates these are.
    pub fn emulation(&self) -> Emulation {
        self.emulation
    }

    /// Every gate that the release has, by name: how far it has come, and whether it is on.
    pub fn iter(&self) -> impl Iterator<Item = (&'static Gate, Stage, bool)> + '_ {
        let there = |gate: &'static Gate| Some((gate, gate.at(self.emulation.minor)?));
        all().iter().filter_map(there).map(|(gate, step)| (gate, step.stage, self.is_on(gate.name)))
    }
}

/// What Go's `strconv.ParseBool` takes.
pub fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::release::{MINOR, OLDEST_MINOR};

    #[test]
    fn the_table_reads_and_is_consistent() {
        let lines = include_str!("gates.txt").lines().filter(|l| !l.is_empty() && !l.starts_with('#'));
        let mut count = 2;
        for line in lines {
            assert!(parse_line(line).is_some(), "{line}");
            count += 1;
        }
        assert_eq!(all().len(), count);
        assert!(all().is_sorted_by(|a, b| a.name < b.name), "a gate stands twice");
        for gate in all() {
            assert!(gate.steps.is_sorted_by_key(|s| s.since_minor), "{}", gate.name);
            assert!(gate.now().since_minor <= MINOR, "{}", gate.name);
            let locks = gate.steps.iter().map(|s| s.locked);
            assert!(locks.is_sorted(), "{}: a lock never opens", gate.name);
            for need in &gate.needs {
                let needed = find(need).unwrap_or_else(|| panic!("{} needs {need}", gate.name));
                assert!(!gate.now().on || needed.now().on, "{} is on without {need}", gate.name);
            }
        }
        assert_eq!(Gates::parse(""), Ok(Gates::default()), "the defaults satisfy each other's needs");
    }

    #[test]
    fn releases_before_have_the_gates_that_they_had() {
        let at = |minor: u16, text: &str| {
            Gates::emulating(Emulation { minor, compatible_minor: minor.max(34) - 1 }, text)
        };
        for minor in OLDEST_MINOR..=MINOR {
            at(minor, "").expect("the defaults satisfy each other's needs");
        }
        // Beta and on since 1.36, alpha before, locked by none.
        let gate = "DRAConsumableCapacity";
        assert!(at(36, "").unwrap().is_on(gate));
        assert!(!at(35, "").unwrap().is_on(gate));
        assert!(at(35, "DRAConsumableCapacity=true").unwrap().is_on(gate));
        assert!(at(35, "AllAlpha=true").unwrap().is_on(gate));
        let stages = |minor| at(minor, "").unwrap().iter().find(|(g, ..)| g.name == gate).map(|(_, s, _)| s);
        assert_eq!([33, 35, 36].map(stages), [None, Some(Stage::Alpha), Some(Stage::Beta)]);
        assert_eq!(
            at(33, "DRAConsumableCapacity=false").unwrap_err().to_string(),
            "cannot set feature gate DRAConsumableCapacity to false, feature is PreAlpha at emulated version 1.33, min compatibility version 1.33"
        );
        // Locked since 1.34.
        assert!(at(34, "AuthorizeWithSelectors=false").is_err());
        assert!(
            !at(33, "AuthorizeWithSelectors=false,AuthorizeNodeWithSelectors=false")
                .unwrap()
                .is_on("AuthorizeWithSelectors")
        );
    }

    #[test]
    fn wishes() {
        for (text, gate, expect) in [
            ("", "WatchList", true),
            ("", "HPAScaleToZero", false),
            ("HPAScaleToZero=true", "HPAScaleToZero", true),
            ("HPAScaleToZero=true,HPAScaleToZero=0", "HPAScaleToZero", false),
            ("AllAlpha=true", "HPAScaleToZero", true),
            ("AllAlpha=true,HPAScaleToZero=false", "HPAScaleToZero", false),
            ("HPAScaleToZero=false, AllAlpha = true", "HPAScaleToZero", false),
            ("AllAlpha=true", "AllBeta", false),
            ("AllBeta=true", "CoordinatedLeaderElection", true),
            ("DynamicResourceAllocation=true", "DynamicResourceAllocation", true),
            ("", "NoSuchThing", false),
        ] {
            assert_eq!(Gates::parse(text).map(|g| g.is_on(gate)), Ok(expect), "{text:?} {gate}");
        }
    }

    #[test]
    fn wrong_wishes() {
        for (text, expect) in [
            ("HPAScaleToZero", "missing bool value for HPAScaleToZero"),
            (
                "HPAScaleToZero=maybe",
                "invalid value of HPAScaleToZero=maybe, err: strconv.ParseBool: parsing \"maybe\": invalid syntax",
            ),
            ("NoSuchThing=true", "unrecognized feature gate: NoSuchThing"),
            (
                "NoSuchThing=true,Other=true",
                "[unrecognized feature gate: NoSuchThing, unrecognized feature gate: Other]",
            ),
            (
                "DynamicResourceAllocation=false",
                "cannot set feature gate DynamicResourceAllocation to false, feature is locked to true",
            ),
            (
                "GangScheduling=true",
                "GangScheduling is enabled, but depends on features that are disabled: [GenericWorkload]",
            ),
        ] {
            assert_eq!(Gates::parse(text).unwrap_err().to_string(), expect, "{text}");
        }
    }
}
