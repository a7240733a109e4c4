//! The topology manager: which NUMA nodes a container's resources should come from.
//!
//! In: hints of the device, CPU and memory managers. Out: one [`Hint`] per container, which they follow when they
//! allocate, or a rejection. Policies and options are upstream's (KEP-693, KEP-2902, KEP-3545).

mod mask;
mod policy;

pub(crate) use mask::{Mask, combinations};
pub(crate) use policy::{Distances, Hint, Hints, merge};

use std::collections::BTreeMap;

use super::machine::Machine;

/// More NUMA nodes than this need to be allowed by an option.
const NODES_MAX: usize = 8;

/// How strict the manager is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Policy {
    /// No alignment.
    #[default]
    None,
    /// Align where it goes.
    BestEffort,
    /// Refuse what does not align.
    Restricted,
    /// Refuse what does not come from one node.
    SingleNumaNode,
}

/// What is aligned as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Scope {
    /// Each container.
    #[default]
    Container,
    /// All of a pod.
    Pod,
}

/// The configuration, read.
#[derive(Debug, Clone, Default)]
pub(crate) struct Settings {
    pub(crate) policy: Policy,
    pub(crate) scope: Scope,
    /// `prefer-closest-numa-nodes`.
    pub(crate) prefer_closest: bool,
}

impl Settings {
    /// Reads policy, scope and options for a machine.
    pub(crate) fn new(
        policy: &str,
        scope: &str,
        options: &BTreeMap<String, String>,
        machine: &Machine,
    ) -> Result<Self, String> {
        let policy = match policy {
            // Scope and options do not matter then, and are not looked at.
            "none" => return Ok(Settings::default()),
            "best-effort" => Policy::BestEffort,
            "restricted" => Policy::Restricted,
            "single-numa-node" => Policy::SingleNumaNode,
            other => return Err(format!("unknown policy: \"{other}\"")),
        };
        let mut settings = Settings { policy, ..Settings::default() };
        let mut nodes_max = NODES_MAX;
        for (name, value) in options {
            match name.as_str() {
                "prefer-closest-numa-nodes" => settings.prefer_closest = super::go_bool(name, value)?,
                "max-allowable-numa-nodes" => {
                    nodes_max = value
                        .parse()
                        .map_err(|e| format!("unable to convert policy option to integer {name:?}: {e}"))?;
                    if nodes_max < NODES_MAX {
                        return Err(format!(
                            "the minimum value of {name:?} should not be less than {NODES_MAX}"
                        ));
                    }
                }
                _ => return Err(format!("unknown Topology Manager Policy option: {name:?}")),
            }
        }
        if settings.prefer_closest && machine.nodes.iter().any(|n| n.distances.is_empty()) {
            return Err("cannot discover NUMA topology: no distances between NUMA nodes are known".to_owned());
        }
        if machine.nodes.len() > nodes_max {
            return Err(format!("unsupported on machines with more than {nodes_max} NUMA Nodes"));
        }
        settings.scope = match scope {
            "" | "container" => Scope::Container,
            "pod" => Scope::Pod,
            other => return Err(format!("unknown scope: \"{other}\"")),
        };
        Ok(settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::managers::machine::NumaNode;

    #[test]
    fn settings_are_checked() {
        let machine = |nodes: u32| Machine {
            nodes: (0..nodes).map(|id| NumaNode { id, ..NumaNode::default() }).collect(),
            ..Machine::default()
        };
        for (policy, scope, options, nodes, want) in [
            ("none", "nonsense", &[("what", "ever")] as &[(&str, &str)], 20, "None"),
            ("best-effort", "", &[], 2, "BestEffort"),
            ("restricted", "pod", &[("max-allowable-numa-nodes", "9")], 9, "Restricted"),
            ("single-numa-node", "container", &[], 9, "unsupported on machines with more than 8 NUMA Nodes"),
            ("best", "container", &[], 1, "unknown policy: \"best\""),
            ("best-effort", "node", &[], 1, "unknown scope: \"node\""),
            ("best-effort", "pod", &[("x", "true")], 1, "unknown Topology Manager Policy option: \"x\""),
            (
                "best-effort",
                "pod",
                &[("max-allowable-numa-nodes", "4")],
                1,
                "the minimum value of \"max-allowable-numa-nodes\" should not be less than 8",
            ),
            (
                "best-effort",
                "pod",
                &[("prefer-closest-numa-nodes", "maybe")],
                1,
                "bad value for option \"prefer-closest-numa-nodes\": strconv.ParseBool: parsing \"maybe\": invalid syntax",
            ),
        ] {
            let options = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            let got = Settings::new(policy, scope, &options, &machine(nodes));
            let got = got.map_or_else(|e| e, |s| format!("{:?}", s.policy));
            assert_eq!(got, want);
        }
    }
}
