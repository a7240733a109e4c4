//! Options of the static policy.

use std::collections::BTreeMap;

use crate::managers::go_bool;
use crate::managers::machine::Machine;
use crate::managers::topology::Policy;

/// How the static policy chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Options {
    pub(crate) full_pcpus_only: bool,
    pub(crate) distribute_across_numa: bool,
    pub(crate) align_by_socket: bool,
    pub(crate) distribute_across_cores: bool,
    pub(crate) strict_reservation: bool,
    pub(crate) prefer_uncore: bool,
}

/// How far an option has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Alpha,
    Beta,
    Stable,
}

type Set = fn(&mut Options, bool);

/// Every option: name, stage, what it sets.
const ROWS: &[(&str, Stage, Set)] = &[
    ("align-by-socket", Stage::Alpha, |o, on| o.align_by_socket = on),
    ("distribute-cpus-across-cores", Stage::Alpha, |o, on| o.distribute_across_cores = on),
    ("distribute-cpus-across-numa", Stage::Beta, |o, on| o.distribute_across_numa = on),
    ("full-pcpus-only", Stage::Stable, |o, on| o.full_pcpus_only = on),
    ("prefer-align-cpus-by-uncorecache", Stage::Stable, |o, on| o.prefer_uncore = on),
    ("strict-cpu-reservation", Stage::Stable, |o, on| o.strict_reservation = on),
];

/// Options that exclude each other.
const EXCLUSIVE: &[(&str, &str)] = &[
    ("full-pcpus-only", "distribute-cpus-across-cores"),
    ("distribute-cpus-across-numa", "distribute-cpus-across-cores"),
    ("prefer-align-cpus-by-uncorecache", "distribute-cpus-across-cores"),
    ("prefer-align-cpus-by-uncorecache", "distribute-cpus-across-numa"),
];

impl Options {
    /// Reads options; `alpha` and `beta` ones have to be allowed.
    pub(crate) fn parse(given: &BTreeMap<String, String>, alpha: bool, beta: bool) -> Result<Self, String> {
        let mut options = Options::default();
        let mut on = Vec::new();
        for (name, value) in given {
            let Some((name, stage, set)) = ROWS.iter().find(|row| row.0 == name) else {
                return Err(format!("unknown CPU Manager Policy option: {name:?}"));
            };
            let refused = |stage: &str| {
                format!("CPU Manager Policy {stage}-level Options not enabled, but option {name:?} provided")
            };
            match stage {
                Stage::Alpha if !alpha => return Err(refused("Alpha")),
                Stage::Beta if !beta => return Err(refused("Beta")),
                _ => {}
            }
            let value = go_bool(name, value)?;
            set(&mut options, value);
            if value {
                on.push(*name);
            }
        }
        match EXCLUSIVE.iter().find(|(a, b)| on.contains(a) && on.contains(b)) {
            Some((a, b)) => {
                Err(format!("static policy options {a} and {b} can not be used at the same time"))
            }
            None => Ok(options),
        }
    }

    /// Whether they go with a machine and a topology policy.
    pub(crate) fn check(&self, machine: &Machine, topology: Policy) -> Result<(), String> {
        if !self.align_by_socket {
            return Ok(());
        }
        if topology == Policy::SingleNumaNode {
            return Err(
                "Topolgy manager single-numa-node policy is incompatible with CPUManager align-by-socket policy option"
                    .to_owned(),
            );
        }
        let sockets: std::collections::BTreeSet<u32> = machine.cpus.values().map(|p| p.socket).collect();
        let nodes: std::collections::BTreeSet<u32> = machine.cpus.values().map(|p| p.node).collect();
        if sockets.len() > nodes.len() {
            return Err(
                "Align by socket is not compatible with hardware where number of sockets are more than number of NUMA"
                    .to_owned(),
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_checked() {
        for (given, alpha, beta, want) in [
            (&[("full-pcpus-only", "true")] as &[(&str, &str)], false, false, ""),
            (&[("full-pcpus-only", "true"), ("distribute-cpus-across-numa", "1")], false, true, ""),
            (&[("what", "true")], true, true, "unknown CPU Manager Policy option: \"what\""),
            (
                &[("align-by-socket", "true")],
                false,
                true,
                "CPU Manager Policy Alpha-level Options not enabled, but option \"align-by-socket\" provided",
            ),
            (
                &[("distribute-cpus-across-numa", "true")],
                true,
                false,
                "CPU Manager Policy Beta-level Options not enabled, but option \"distribute-cpus-across-numa\" provided",
            ),
            (
                &[("strict-cpu-reservation", "x")],
                true,
                true,
                "bad value for option \"strict-cpu-reservation\": strconv.ParseBool: parsing \"x\": invalid syntax",
            ),
            (
                &[("full-pcpus-only", "true"), ("distribute-cpus-across-cores", "true")],
                true,
                true,
                "static policy options full-pcpus-only and distribute-cpus-across-cores can not be used at the same time",
            ),
            (&[("full-pcpus-only", "false"), ("distribute-cpus-across-cores", "true")], true, true, ""),
        ] {
            let given = given.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            let got = Options::parse(&given, alpha, beta).err().unwrap_or_default();
            assert_eq!(got, want);
        }
    }
}
