//! What is to be done for one volume, from where it is and where it is wanted.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use yare_client::Cached;

use super::{node::Facts, wanted::Wanted};
use crate::{views::since, volume_views::Volume};

/// How long a node that is not ready is waited for before its volumes are taken from it.
const PATIENCE: Duration = Duration::from_secs(6 * 60);

/// A VolumeAttachment of the volume.
pub struct Attached {
    /// The object.
    pub object: Cached,
    /// Its node.
    pub node: String,
    /// It is being given up.
    pub going: bool,
    /// The driver says that it is done.
    pub attached: bool,
    /// The driver says that it failed.
    pub error: Option<String>,
}

/// Why a volume is not attached to a node that wants it.
#[derive(Default)]
pub struct Blocked<'a> {
    /// Pods on the nodes that have it.
    users: Vec<&'a Cached>,
}

impl Blocked<'_> {
    /// For a pod of a namespace: it must not learn of pods elsewhere.
    pub fn words(&self, namespace: &str) -> String {
        let own = self.users.iter().filter(|p| p.namespace() == namespace);
        let own: Vec<&str> = own.map(|p| p.name()).collect();
        let others = self.users.len() - own.len();
        match (own.is_empty(), others) {
            (true, 0) => {
                "Volume is already exclusively attached to one node and can't be attached to another".into()
            }
            (true, _) => format!("Volume is already used by {others} pod(s) in different namespaces"),
            (false, 0) => format!("Volume is already used by pod(s) {}", own.join(", ")),
            (false, _) => format!(
                "Volume is already used by pod(s) {} and {others} pod(s) in different namespaces",
                own.join(", ")
            ),
        }
    }
}

/// One thing to do.
pub enum Step<'a> {
    /// Give an attachment up.
    Detach(&'a Attached),
    /// Ask for one to a node.
    Attach(&'a str),
    /// Tell the pods of a node why not.
    Blocked(&'a str, Blocked<'a>),
}

/// Whether nodes may have it at the same time. Where a volume does not say, the driver will.
pub fn may_be_shared(volume: &Volume) -> bool {
    let modes = &volume.spec.access_modes;
    modes.is_empty() || modes.iter().any(|m| m == "ReadWriteMany" || m == "ReadOnlyMany")
}

/// All that the decision rests on.
pub struct Plan<'a> {
    /// As nodes name it.
    pub unique_name: &'a str,
    /// Where it is.
    pub attached: &'a [Attached],
    /// Where it is wanted.
    pub wanted: &'a Wanted,
    /// What the nodes say; `None`: there is no such node.
    pub facts: &'a BTreeMap<String, Option<Facts>>,
    /// Since when it is to leave a node.
    pub leaving: &'a BTreeMap<String, Timestamp>,
    /// Several nodes may have it.
    pub shared: bool,
    /// Now.
    pub now: Timestamp,
}

impl<'a> Plan<'a> {
    /// What to do, detachments first, and when to look again if nothing happens.
    pub fn steps(&self) -> (Vec<Step<'a>>, Option<Duration>) {
        let mut steps = Vec::new();
        let mut wait: Option<Duration> = None;
        for attachment in self.attached {
            if attachment.going || self.wanted.contains_key(&attachment.node) {
                continue;
            }
            match self.may_leave(&attachment.node) {
                Ok(()) => steps.push(Step::Detach(attachment)),
                Err(left) => wait = [wait, left].into_iter().flatten().min(),
            }
        }
        let mut taken = !self.attached.is_empty();
        for node in self.wanted.keys() {
            if self.attached.iter().any(|a| a.node == *node) {
                continue;
            }
            if !self.shared && taken {
                let others = self
                    .wanted
                    .iter()
                    .filter(|(other, _)| *other != node && self.attached.iter().any(|a| a.node == **other));
                let users = others.flat_map(|(_, pods)| pods).collect();
                steps.push(Step::Blocked(node, Blocked { users }));
                continue;
            }
            taken = true;
            steps.push(Step::Attach(node));
        }
        (steps, wait)
    }

    /// `Err`: not yet, and how long to wait at most, if time alone will change that.
    fn may_leave(&self, node: &str) -> Result<(), Option<Duration>> {
        let facts = self.facts.get(node).and_then(Option::as_ref);
        // A node that is gone may still be writing: it is waited for like a silent one.
        let in_use = facts.is_none_or(|f| f.in_use.iter().any(|name| name == self.unique_name));
        if !in_use || facts.is_some_and(|f| f.out_of_service) {
            return Ok(());
        }
        if facts.is_some_and(|f| f.ready) {
            return Err(None);
        }
        let waited = self.leaving.get(node).map_or(Duration::ZERO, |at| since(self.now, *at));
        if waited >= PATIENCE { Ok(()) } else { Err(Some(PATIENCE - waited)) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(namespace: &str, name: &str) -> Cached {
        let metadata = json!({"metadata": {"namespace": namespace, "name": name}});
        Cached::new(metadata.to_string().into()).unwrap()
    }

    fn attached(node: &str, going: bool) -> Attached {
        let object = Cached::new(json!({"metadata": {"name": node}}).to_string().into()).unwrap();
        Attached { object, node: node.into(), going, attached: true, error: None }
    }

    /// What is decided, in short.
    fn told(plan: &Plan<'_>) -> (Vec<String>, Option<u64>) {
        let (steps, wait) = plan.steps();
        let word = |step: Step<'_>| match step {
            Step::Detach(a) => format!("detach {}", a.node),
            Step::Attach(node) => format!("attach {node}"),
            Step::Blocked(node, why) => format!("{node}: {}", why.words("a")),
        };
        (steps.into_iter().map(word).collect(), wait.map(|w| w.as_secs()))
    }

    #[test]
    fn steps() {
        let ready = Facts { managed: true, ready: true, ..Facts::default() };
        let in_use = |f: &Facts| Facts { in_use: vec!["v".into()], ..f.clone() };
        let silent = Facts { ready: false, ..ready.clone() };
        let off = Facts { out_of_service: true, ..silent.clone() };
        let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let exclusive = "Volume is already exclusively attached to one node and can't be attached to another";
        type Case<'a> = (
            &'a str,
            Vec<Attached>,
            &'a [(&'a str, &'a str)],
            bool,
            Option<Facts>,
            i64,
            Vec<String>,
            Option<u64>,
        );
        let cases: Vec<Case<'_>> = vec![
            ("wanted", vec![], &[("n1", "a")], false, Some(ready.clone()), 0, vec!["attach n1".into()], None),
            (
                "there",
                vec![attached("n1", false)],
                &[("n1", "a")],
                false,
                Some(ready.clone()),
                0,
                vec![],
                None,
            ),
            (
                "let go of",
                vec![attached("n1", false)],
                &[],
                false,
                Some(ready.clone()),
                0,
                vec!["detach n1".into()],
                None,
            ),
            (
                "still in use",
                vec![attached("n1", false)],
                &[],
                false,
                Some(in_use(&ready)),
                9999,
                vec![],
                None,
            ),
            ("silent", vec![attached("n1", false)], &[], false, Some(in_use(&silent)), 60, vec![], Some(300)),
            (
                "silent too long",
                vec![attached("n1", false)],
                &[],
                false,
                Some(in_use(&silent)),
                360,
                vec!["detach n1".into()],
                None,
            ),
            (
                "out of service",
                vec![attached("n1", false)],
                &[],
                false,
                Some(in_use(&off)),
                0,
                vec!["detach n1".into()],
                None,
            ),
            ("gone", vec![attached("n1", false)], &[], false, None, 0, vec![], Some(360)),
            (
                "gone too long",
                vec![attached("n1", false)],
                &[],
                false,
                None,
                400,
                vec!["detach n1".into()],
                None,
            ),
            ("on its way", vec![attached("n1", true)], &[], false, Some(ready.clone()), 0, vec![], None),
            (
                "moves on",
                vec![attached("n1", false)],
                &[("n2", "a")],
                false,
                Some(ready.clone()),
                0,
                vec!["detach n1".into(), format!("n2: {exclusive}")],
                None,
            ),
            (
                "used elsewhere",
                vec![attached("n1", false)],
                &[("n1", "a"), ("n2", "a")],
                false,
                Some(ready.clone()),
                0,
                vec!["n2: Volume is already used by pod(s) p-n1".into()],
                None,
            ),
            (
                "used by somebody else",
                vec![attached("n1", false)],
                &[("n1", "b"), ("n2", "a")],
                false,
                Some(ready.clone()),
                0,
                vec!["n2: Volume is already used by 1 pod(s) in different namespaces".into()],
                None,
            ),
            (
                "shared",
                vec![attached("n1", false)],
                &[("n1", "a"), ("n2", "a")],
                true,
                Some(ready.clone()),
                0,
                vec!["attach n2".into()],
                None,
            ),
            (
                "only one of two",
                vec![],
                &[("n1", "a"), ("n2", "a")],
                false,
                Some(ready),
                0,
                vec!["attach n1".into(), format!("n2: {exclusive}")],
                None,
            ),
        ];
        for (what, attached, wants, shared, facts, seconds, expected, wait) in cases {
            let wanted: Wanted = wants
                .iter()
                .map(|(node, ns)| ((*node).to_owned(), vec![pod(ns, &format!("p-{node}"))]))
                .collect();
            let facts: BTreeMap<_, _> = [("n1".to_owned(), facts.clone()), ("n2".to_owned(), facts)].into();
            let leaving = [("n1".to_owned(), start)].into();
            let plan = Plan {
                unique_name: "v",
                attached: &attached,
                wanted: &wanted,
                facts: &facts,
                leaving: &leaving,
                shared,
                now: start + Duration::from_secs(u64::try_from(seconds).unwrap()),
            };
            assert_eq!(told(&plan), (expected, wait), "{what}");
        }
    }
}
