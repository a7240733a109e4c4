//! What several managers would like, merged into one choice of NUMA nodes.
//!
//! In: per manager and resource, sets of nodes that could serve a request. Out: the best set that suits all, and
//! whether the policy takes it. Upstream walks through the product of all hints; here the partial merges are kept as
//! a set, which has at most a few hundred members whatever the number of resources.

use std::collections::{BTreeMap, BTreeSet};

use super::mask::Mask;
use super::{Policy, Settings};
use crate::managers::machine::Machine;

/// One possible set of nodes for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Hint {
    /// The nodes; none: any will do.
    pub(crate) affinity: Option<Mask>,
    /// Whether it is as narrow as the request allows.
    pub(crate) preferred: bool,
}

/// A manager's hints by resource. No list: it does not care; an empty one: nothing will do.
pub(crate) type Hints = BTreeMap<String, Option<Vec<Hint>>>;

/// Nodes of a machine and how far they are from each other.
#[derive(Debug, Clone, Default)]
pub(crate) struct Distances {
    pub(crate) nodes: Vec<u32>,
    by_node: BTreeMap<u32, Vec<u64>>,
}

impl Distances {
    pub(crate) fn of(machine: &Machine) -> Self {
        Distances {
            nodes: machine.nodes.iter().map(|n| n.id).collect(),
            by_node: machine.nodes.iter().map(|n| (n.id, n.distances.clone())).collect(),
        }
    }

    /// The average distance between the nodes of a set, themselves included.
    fn average(&self, mask: Mask) -> f64 {
        let (mut sum, mut pairs) = (0.0, 0.0);
        for from in mask.nodes() {
            for to in mask.nodes() {
                let distance = self.by_node.get(&from).and_then(|row| row.get(to as usize)).copied();
                sum += distance.unwrap_or(0) as f64;
                pairs += 1.0;
            }
        }
        if pairs == 0.0 { 0.0 } else { sum / pairs }
    }
}

/// A merge under way: what all have in common, the first set that somebody asked for, and whether all want the same
/// and prefer it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Partial {
    common: Mask,
    first: Option<Mask>,
    preferred: bool,
}

/// Merges the managers' hints; answers the best one and whether the policy admits it.
pub(crate) fn merge(settings: &Settings, distances: &Distances, providers: &[Hints]) -> (Hint, bool) {
    let single = settings.policy == Policy::SingleNumaNode;
    let lists: Vec<Vec<Hint>> = lists(providers)
        .into_iter()
        .map(|list| if single { list.into_iter().filter(fits_one).collect() } else { list })
        .collect();
    let all = Mask::of(distances.nodes.iter().copied());
    let mut merges = BTreeSet::from([Partial { common: all, first: None, preferred: true }]);
    for list in &lists {
        let add = |partial: &Partial, hint: &Hint| match hint.affinity {
            None => Partial { preferred: partial.preferred && hint.preferred, ..*partial },
            Some(mask) => {
                let first = partial.first.unwrap_or(mask);
                Partial {
                    common: partial.common.and(mask),
                    first: Some(first),
                    preferred: partial.preferred && hint.preferred && mask == first,
                }
            }
        };
        merges = merges.iter().flat_map(|partial| list.iter().map(move |hint| add(partial, hint))).collect();
    }
    // The most nodes that any resource needs at least: with no perfect match, a set of that size is best.
    let narrowest = |list: &Vec<Hint>| list.iter().filter_map(|h| h.affinity).min_by_key(|m| m.width());
    let wanted = lists.iter().filter_map(narrowest).map(Mask::count).max().unwrap_or(0);
    let best = merges
        .into_iter()
        .filter(|m| !m.common.is_empty())
        .map(|m| (rank(settings, distances, wanted, &m), m))
        .min_by(|a, b| a.0.partial_cmp(&b.0).unwrap_or(std::cmp::Ordering::Equal))
        .map_or((all, false), |(_, m)| (m.common, m.preferred));
    let mut hint = Hint { affinity: Some(best.0), preferred: best.1 };
    if single && best.0 == all {
        hint.affinity = None;
    }
    let admit = match settings.policy {
        Policy::None | Policy::BestEffort => true,
        Policy::Restricted | Policy::SingleNumaNode => hint.preferred,
    };
    (hint, admit)
}

/// Preferred before others; among others those of the wanted size, then smaller ones (the largest first), then larger.
/// Within a kind the narrowest, or with that option the closest.
fn rank(settings: &Settings, distances: &Distances, wanted: usize, merge: &Partial) -> (u8, usize, f64, u64) {
    let (count, bits) = merge.common.width();
    let (kind, size) = match (merge.preferred, count.cmp(&wanted)) {
        (true, _) => (0, count),
        (false, std::cmp::Ordering::Equal) => (1, count),
        (false, std::cmp::Ordering::Less) => (2, 64 - count),
        (false, std::cmp::Ordering::Greater) => (3, count),
    };
    let closest = settings.prefer_closest && settings.policy != Policy::SingleNumaNode;
    (kind, size, if closest { distances.average(merge.common) } else { 0.0 }, bits)
}

/// Every resource's hints: who does not care, takes any; who has none, takes any unwillingly.
fn lists(providers: &[Hints]) -> Vec<Vec<Hint>> {
    let any = |preferred| vec![Hint { affinity: None, preferred }];
    let mut lists = Vec::new();
    for hints in providers {
        if hints.is_empty() {
            lists.push(any(true));
        }
        for list in hints.values() {
            lists.push(match list {
                None => any(true),
                Some(list) if list.is_empty() => any(false),
                Some(list) => list.clone(),
            });
        }
    }
    lists
}

fn fits_one(hint: &Hint) -> bool {
    hint.preferred && hint.affinity.is_none_or(|mask| mask.count() == 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::managers::machine::NumaNode;

    fn machine(nodes: u32, distances: &[&[u64]]) -> Distances {
        let nodes = (0..nodes).map(|id| NumaNode {
            id,
            distances: distances.get(id as usize).map(|d| d.to_vec()).unwrap_or_default(),
            ..NumaNode::default()
        });
        Distances::of(&Machine { nodes: nodes.collect(), ..Machine::default() })
    }

    /// `01+ 1- *+`: nodes or `*` for any, and whether it is preferred.
    fn hints(text: &str) -> Hints {
        let mut hints = Hints::new();
        for (i, resource) in text.split('/').enumerate() {
            let list = match resource.trim() {
                "any" => None,
                "none" => Some(Vec::new()),
                list => Some(
                    list.split(' ')
                        .map(|word| Hint {
                            affinity: (!word.starts_with('*'))
                                .then(|| Mask::of(word.chars().filter_map(|c| c.to_digit(10)))),
                            preferred: word.ends_with('+'),
                        })
                        .collect(),
                ),
            };
            hints.insert(format!("r{i}"), list);
        }
        hints
    }

    fn check(policy: Policy, nodes: u32, providers: &[&str], want: &str) {
        let settings = Settings { policy, ..Settings::default() };
        let providers: Vec<Hints> =
            providers.iter().map(|t| if t.is_empty() { Hints::new() } else { hints(t) }).collect();
        let (hint, admit) = merge(&settings, &machine(nodes, &[]), &providers);
        let nodes =
            hint.affinity.map_or("*".to_owned(), |m| m.nodes().map(|n| n.to_string()).collect::<String>());
        let got =
            format!("{nodes}{} {}", if hint.preferred { '+' } else { '-' }, if admit { "yes" } else { "no" });
        assert_eq!(got, want, "{policy:?} {providers:?}");
    }

    #[test]
    fn hints_merge_as_documented() {
        use Policy::{BestEffort, Restricted, SingleNumaNode};
        for (policy, nodes, providers, want) in [
            (BestEffort, 2, &[""] as &[&str], "01+ yes"),
            (BestEffort, 2, &["any"], "01+ yes"),
            (BestEffort, 2, &["none"], "01- yes"),
            (BestEffort, 2, &["0+"], "0+ yes"),
            (BestEffort, 2, &["0+ 1+", "0+ 1+"], "0+ yes"),
            (BestEffort, 2, &["0+", "1+"], "01- yes"),
            (BestEffort, 2, &["0+", "01-"], "0- yes"),
            (BestEffort, 2, &["0+ 1+ 01-", "0+ 01-", "1-"], "1- yes"),
            (BestEffort, 2, &["0+ 01-", "0+ 1+"], "0+ yes"),
            (BestEffort, 4, &["01-", "01+"], "01- yes"),
            // The one that needs most decides how many nodes are good.
            (BestEffort, 4, &["012-", "0- 01- 012-"], "012- yes"),
            (Restricted, 2, &["0+"], "0+ yes"),
            (Restricted, 2, &["0+", "1+"], "01- no"),
            (Restricted, 2, &["none"], "01- no"),
            (Restricted, 2, &["01+", "01+"], "01+ yes"),
            (SingleNumaNode, 2, &["01+", "01+"], "*- no"),
            (SingleNumaNode, 2, &["0+ 1+ 01-", "1+ 01-"], "1+ yes"),
            (SingleNumaNode, 2, &["any"], "*+ yes"),
            (SingleNumaNode, 2, &["0+", "1+"], "*- no"),
            (SingleNumaNode, 2, &["0-"], "*- no"),
            (SingleNumaNode, 2, &["1+ / any", ""], "1+ yes"),
        ] {
            check(policy, nodes, providers, want);
        }
    }

    #[test]
    fn closest_nodes_win_with_that_option() {
        let distances =
            machine(4, &[&[10, 11, 12, 12], &[11, 10, 12, 12], &[12, 12, 10, 11], &[12, 12, 11, 10]]);
        let providers = [hints("02+ 03+ 23+ 12+")];
        let plain = Settings { policy: Policy::BestEffort, ..Settings::default() };
        assert_eq!(merge(&plain, &distances, &providers).0.affinity, Some(Mask::of([0, 2])));
        let closest = Settings { prefer_closest: true, ..plain };
        assert_eq!(merge(&closest, &distances, &providers).0.affinity, Some(Mask::of([2, 3])));
    }

    #[test]
    fn many_resources_stay_cheap() {
        let all: Vec<Hint> = super::super::mask::combinations(&[0, 1, 2, 3, 4, 5, 6, 7])
            .into_iter()
            .map(|m| Hint { affinity: Some(m), preferred: m.count() == 1 })
            .collect();
        let hints: Hints = (0..12).map(|i| (format!("r{i}"), Some(all.clone()))).collect();
        let settings = Settings { policy: Policy::SingleNumaNode, ..Settings::default() };
        assert_eq!(merge(&settings, &machine(8, &[]), &[hints]).0.affinity, Some(Mask::of([0])));
    }
}
