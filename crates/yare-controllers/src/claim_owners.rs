//! Who owns the claims of a StatefulSet's pods, by its `persistentVolumeClaimRetentionPolicy` (KEP-1847).
//!
//! A claim that goes with its set has the set as controller, one that goes with a scaled-down pod the pod; the
//! garbage collector does the rest. In: the owners that a claim has. Out: whether they are right, and what they
//! should be.

use serde_json::Value;
use yare_client::{Cached, OwnerRef};

/// The set and the pod of a claim, and what the policy says.
pub struct Claimants<'a> {
    /// The StatefulSet.
    pub set: Party<'a>,
    /// The pod; one that does not exist yet has no uid.
    pub pod: Party<'a>,
    /// Claims go with pods that are scaled away.
    pub when_scaled: bool,
    /// Claims go with the set.
    pub when_deleted: bool,
    /// The pod is beyond the replicas.
    pub surplus: bool,
}

/// Who may own a claim.
#[derive(Clone, Copy)]
pub struct Party<'a> {
    /// `apps/v1`
    pub api_version: &'a str,
    /// `StatefulSet`
    pub kind: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Its uid.
    pub uid: &'a str,
}

impl<'a> Party<'a> {
    /// An object as a party.
    pub fn of(api_version: &'a str, kind: &'a str, object: &'a Cached) -> Self {
        Self { api_version, kind, name: object.name(), uid: object.uid() }
    }

    /// Whether the reference means this object, or one of that name before it.
    fn is(&self, owner: &OwnerRef) -> bool {
        *owner.api_version == *self.api_version && *owner.kind == *self.kind && *owner.name == *self.name
    }

    /// Whether the reference means an object of that name before this one.
    fn is_stale(&self, owners: &[OwnerRef]) -> bool {
        owners.iter().find(|o| self.is(o)).is_some_and(|o| *o.uid != *self.uid)
    }

    fn owns(&self, owners: &[OwnerRef]) -> bool {
        owners.iter().any(|o| *o.uid == *self.uid)
    }
}

impl Claimants<'_> {
    /// Whether the set is to own the claim, and whether the pod is.
    fn wanted(&self) -> (bool, bool) {
        let pod = self.when_scaled && self.surplus;
        (self.when_deleted && !pod, pod)
    }

    /// Whether another controller manages the claim, so that the policy cannot be followed.
    pub fn conflict(&self, owners: &[OwnerRef]) -> bool {
        if !self.when_scaled && !self.when_deleted {
            return false;
        }
        owners.iter().any(|o| match [self.set, self.pod].iter().find(|p| p.is(o)) {
            Some(party) => *o.uid != *party.uid,
            None => o.controller,
        })
    }

    /// Whether the claim is that of an earlier pod, and goes with it.
    pub fn is_of_earlier_pod(&self, owners: &[OwnerRef]) -> bool {
        self.when_scaled && self.pod.is_stale(owners)
    }

    /// Whether nothing is to be changed.
    pub fn is_right(&self, owners: &[OwnerRef]) -> bool {
        let parties = [self.set, self.pod];
        if parties.iter().any(|p| p.is_stale(owners)) {
            return true;
        }
        let owns = (self.set.owns(owners), self.pod.owns(owners));
        if self.conflict(owners) {
            return owns == (false, false);
        }
        let ours = |o: &&OwnerRef| parties.iter().any(|p| *o.uid == *p.uid);
        owners.iter().filter(ours).all(|o| o.controller) && owns == self.wanted()
    }

    /// The owner references of a claim as they should be; those of others stay. `references`: what to write for
    /// the set and for the pod.
    pub fn write(&self, owners: &[OwnerRef], claim: &mut Value, references: [Value; 2]) {
        let mut kept: Vec<Value> =
            claim["metadata"]["ownerReferences"].as_array().cloned().unwrap_or_default();
        let mut at = owners.iter();
        kept.retain(|_| at.next().is_none_or(|o| !self.set.is(o) && !self.pod.is(o)));
        if !self.conflict(owners) {
            let (set, pod) = self.wanted();
            let wanted = [set, pod].into_iter().zip(references);
            kept.extend(wanted.filter(|(wanted, _)| *wanted).map(|(_, reference)| reference));
        }
        claim["metadata"]["ownerReferences"] = kept.into();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn owner(kind: &str, name: &str, uid: &str, controller: bool) -> OwnerRef {
        let api_version = if kind == "Pod" { "v1" } else { "apps/v1" };
        OwnerRef {
            api_version: api_version.into(),
            kind: kind.into(),
            name: name.into(),
            uid: uid.into(),
            controller,
            block_owner_deletion: controller,
        }
    }

    #[test]
    fn owners_follow_the_policy() {
        let set = || owner("StatefulSet", "db", "set", true);
        let pod = || owner("Pod", "db-0", "pod", true);
        let other = |controller| owner("Deployment", "x", "other", controller);
        /// Scaled, deleted, surplus; owners that are there; whether they are right, conflict; uids afterwards.
        type Case<'a> = ((bool, bool, bool), Vec<OwnerRef>, (bool, bool), &'a [&'a str]);
        let cases: &[Case<'_>] = &[
            ((false, false, false), vec![], (true, false), &[]),
            ((false, false, false), vec![other(true)], (true, false), &["other"]),
            ((false, false, false), vec![set(), other(false)], (false, false), &["other"]),
            ((false, true, false), vec![], (false, false), &["set"]),
            ((false, true, false), vec![set()], (true, false), &["set"]),
            ((false, true, true), vec![set()], (true, false), &["set"]),
            // Without being its controller, as earlier versions wrote it.
            ((false, true, false), vec![owner("StatefulSet", "db", "set", false)], (false, false), &["set"]),
            ((true, false, false), vec![], (true, false), &[]),
            ((true, false, true), vec![], (false, false), &["pod"]),
            ((true, false, false), vec![pod()], (false, false), &[]),
            ((true, true, false), vec![pod()], (false, false), &["set"]),
            ((true, true, true), vec![set()], (false, false), &["pod"]),
            ((true, true, true), vec![pod()], (true, false), &["pod"]),
            // Somebody else manages it.
            ((true, true, false), vec![other(true)], (true, true), &["other"]),
            ((true, true, false), vec![set(), other(true)], (false, true), &["other"]),
            ((true, true, false), vec![other(false)], (false, false), &["other", "set"]),
            // Of a set or a pod before: for the garbage collector.
            ((true, true, false), vec![owner("StatefulSet", "db", "old", true)], (true, true), &[]),
            ((true, true, true), vec![owner("Pod", "db-0", "old", true)], (true, true), &[]),
        ];
        for ((when_scaled, when_deleted, surplus), owners, (right, conflict), after) in cases {
            let claimants = Claimants {
                set: Party { api_version: "apps/v1", kind: "StatefulSet", name: "db", uid: "set" },
                pod: Party { api_version: "v1", kind: "Pod", name: "db-0", uid: "pod" },
                when_scaled: *when_scaled,
                when_deleted: *when_deleted,
                surplus: *surplus,
            };
            let case = format!("{when_scaled} {when_deleted} {surplus} {owners:?}");
            assert_eq!(claimants.is_right(owners), *right, "{case}");
            assert_eq!(claimants.conflict(owners), *conflict, "{case}");
            let list: Vec<Value> = owners.iter().map(|o| json!({"uid": o.uid})).collect();
            let mut claim = json!({"metadata": {"ownerReferences": list}});
            claimants.write(owners, &mut claim, [json!({"uid": "set"}), json!({"uid": "pod"})]);
            let uids: Vec<&str> = claim["metadata"]["ownerReferences"]
                .as_array()
                .unwrap()
                .iter()
                .map(|o| o["uid"].as_str().unwrap())
                .collect();
            assert_eq!(uids, *after, "{case}");
        }
    }

    #[test]
    fn a_claim_of_an_earlier_pod_is_not_used() {
        let mut claimants = Claimants {
            set: Party { api_version: "apps/v1", kind: "StatefulSet", name: "db", uid: "set" },
            pod: Party { api_version: "v1", kind: "Pod", name: "db-0", uid: "" },
            when_scaled: true,
            when_deleted: false,
            surplus: false,
        };
        let owners = [owner("Pod", "db-0", "old", true)];
        assert!(claimants.is_of_earlier_pod(&owners));
        assert!(!claimants.is_of_earlier_pod(&[owner("Pod", "db-1", "old", true)]));
        claimants.when_scaled = false;
        assert!(!claimants.is_of_earlier_pod(&owners));
    }
}
