//! Flow schemas and priority levels that every cluster has: upstream's mandatory and suggested ones.

use serde_json::{Value, json};

/// The annotation that says whether the server keeps an object as it is here.
pub const AUTO_UPDATE: &str = "apf.kubernetes.io/autoupdate-spec";
/// The level without limits, and its schema.
pub const EXEMPT: &str = "exempt";
/// The level and schema of what nothing else matches.
pub const CATCH_ALL: &str = "catch-all";

/// An object that must exist.
pub struct Wanted {
    /// The object.
    pub object: Value,
    /// It is kept as it is here whatever its annotation says.
    pub mandatory: bool,
}

/// Name, shares, lendable percent, and queues with the size of a hand.
type Level = (&'static str, u32, u32, Option<(u32, u32)>);

const LEVELS: &[Level] = &[
    (EXEMPT, 0, 0, None),
    (CATCH_ALL, 5, 0, None),
    ("system", 30, 33, Some((64, 6))),
    ("node-high", 40, 25, Some((64, 6))),
    ("leader-election", 10, 0, Some((16, 4))),
    ("workload-high", 40, 50, Some((128, 6))),
    ("workload-low", 100, 90, Some((128, 6))),
    ("global-default", 20, 50, Some((128, 6))),
];
const QUEUE_LENGTH: u32 = 50;

#[derive(Clone, Copy)]
enum Who {
    User(&'static str),
    Group(&'static str),
    SystemAccounts,
}

#[derive(Clone, Copy)]
enum What {
    /// Every resource and every other path.
    Everything,
    /// Verbs, group, resources, and whether also at cluster scope.
    Resources(&'static [(&'static [&'static str], &'static str, &'static [&'static str], bool)]),
    /// GET of these paths.
    Paths(&'static [&'static str]),
}

struct Schema {
    name: &'static str,
    level: &'static str,
    precedence: u32,
    by: &'static str,
    who: &'static [Who],
    what: What,
}

const EVERYBODY: &[Who] = &[Who::Group("system:unauthenticated"), Who::Group("system:authenticated")];
const CONTROLLER_MANAGER: Who = Who::User("system:kube-controller-manager");
const SCHEDULER: Who = Who::User("system:kube-scheduler");
const COORDINATION: &str = "coordination.k8s.io";

const SCHEMAS: &[Schema] = &[
    Schema {
        name: EXEMPT,
        level: EXEMPT,
        precedence: 1,
        by: "",
        who: &[Who::Group("system:masters")],
        what: What::Everything,
    },
    Schema {
        name: "probes",
        level: EXEMPT,
        precedence: 2,
        by: "",
        who: EVERYBODY,
        what: What::Paths(&["/healthz", "/readyz", "/livez"]),
    },
    Schema {
        name: "system-leader-election",
        level: "leader-election",
        precedence: 100,
        by: "ByUser",
        who: &[CONTROLLER_MANAGER, SCHEDULER, Who::SystemAccounts],
        what: What::Resources(&[(&["get", "create", "update"], COORDINATION, &["leases"], false)]),
    },
    Schema {
        name: "system-node-high",
        level: "node-high",
        precedence: 400,
        by: "ByUser",
        who: &[Who::Group("system:nodes")],
        what: What::Resources(&[
            (&["*"], "", &["nodes", "nodes/status"], true),
            (&["*"], COORDINATION, &["leases"], false),
        ]),
    },
    Schema {
        name: "system-nodes",
        level: "system",
        precedence: 500,
        by: "ByUser",
        who: &[Who::Group("system:nodes")],
        what: What::Everything,
    },
    Schema {
        name: "kube-controller-manager",
        level: "workload-high",
        precedence: 800,
        by: "ByNamespace",
        who: &[CONTROLLER_MANAGER],
        what: What::Everything,
    },
    Schema {
        name: "kube-scheduler",
        level: "workload-high",
        precedence: 800,
        by: "ByNamespace",
        who: &[SCHEDULER],
        what: What::Everything,
    },
    Schema {
        name: "kube-system-service-accounts",
        level: "workload-high",
        precedence: 900,
        by: "ByNamespace",
        who: &[Who::SystemAccounts],
        what: What::Everything,
    },
    Schema {
        name: "service-accounts",
        level: "workload-low",
        precedence: 9000,
        by: "ByUser",
        who: &[Who::Group("system:serviceaccounts")],
        what: What::Everything,
    },
    Schema {
        name: "global-default",
        level: "global-default",
        precedence: 9900,
        by: "ByUser",
        who: EVERYBODY,
        what: What::Everything,
    },
    Schema {
        name: CATCH_ALL,
        level: CATCH_ALL,
        precedence: 10_000,
        by: "ByUser",
        who: EVERYBODY,
        what: What::Everything,
    },
];

/// The priority levels.
pub fn levels() -> impl Iterator<Item = Wanted> {
    LEVELS.iter().map(|(name, shares, lendable, queues)| {
        let spec = if *name == EXEMPT {
            let exempt = json!({ "nominalConcurrencyShares": shares, "lendablePercent": lendable });
            json!({ "type": "Exempt", "exempt": exempt })
        } else {
            let response = match queues {
                Some((queues, hand)) => json!({
                    "type": "Queue",
                    "queuing": { "queues": queues, "handSize": hand, "queueLengthLimit": QUEUE_LENGTH },
                }),
                None => json!({ "type": "Reject" }),
            };
            json!({ "type": "Limited", "limited": {
                "nominalConcurrencyShares": shares, "lendablePercent": lendable, "limitResponse": response,
            } })
        };
        wanted("PriorityLevelConfiguration", name, spec)
    })
}

/// The flow schemas.
pub fn schemas() -> impl Iterator<Item = Wanted> {
    SCHEMAS.iter().map(|schema| {
        let subjects: Vec<Value> = schema.who.iter().map(subject).collect();
        let mut rule = json!({ "subjects": subjects });
        match schema.what {
            What::Everything => {
                rule["resourceRules"] = json!([resources(&["*"], "*", &["*"], true)]);
                rule["nonResourceRules"] = json!([{ "verbs": ["*"], "nonResourceURLs": ["*"] }]);
            }
            What::Resources(rows) => {
                let rows = rows
                    .iter()
                    .map(|(verbs, group, names, cluster)| resources(verbs, group, names, *cluster));
                rule["resourceRules"] = rows.collect();
            }
            What::Paths(paths) => {
                rule["nonResourceRules"] = json!([{ "verbs": ["get"], "nonResourceURLs": paths }]);
            }
        }
        let mut spec = json!({
            "priorityLevelConfiguration": { "name": schema.level },
            "matchingPrecedence": schema.precedence,
            "rules": [rule],
        });
        if !schema.by.is_empty() {
            spec["distinguisherMethod"] = json!({ "type": schema.by });
        }
        wanted("FlowSchema", schema.name, spec)
    })
}

fn wanted(kind: &str, name: &str, spec: Value) -> Wanted {
    let object = json!({
        "apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": kind,
        "metadata": { "name": name, "annotations": { AUTO_UPDATE: "true" } },
        "spec": spec,
    });
    Wanted { object, mandatory: matches!(name, EXEMPT | CATCH_ALL) }
}

fn subject(who: &Who) -> Value {
    match who {
        Who::User(name) => json!({ "kind": "User", "user": { "name": name } }),
        Who::Group(name) => json!({ "kind": "Group", "group": { "name": name } }),
        Who::SystemAccounts => json!({
            "kind": "ServiceAccount", "serviceAccount": { "name": "*", "namespace": "kube-system" },
        }),
    }
}

fn resources(verbs: &[&str], group: &str, names: &[&str], cluster: bool) -> Value {
    let mut rule = json!({ "verbs": verbs, "apiGroups": [group], "resources": names, "namespaces": ["*"] });
    if cluster {
        rule["clusterScope"] = true.into();
    }
    rule
}

#[cfg(test)]
mod tests {
    use yare_kinds::strategy::{Context, Strategy};

    use super::*;

    #[test]
    fn objects_are_valid_and_have_their_defaults() {
        let of = |strategy: &dyn Strategy, wanted: Wanted| {
            let mut object = wanted.object.clone();
            strategy.default(&mut object);
            assert_eq!(object, wanted.object, "defaults change nothing");
            let gates = &yare_schema::features::DEFAULT;
            let ctx = Context { now: "2026-01-01T00:00:00Z", namespace: "", user: "u", gates };
            assert!(strategy.validate(&object, &ctx).is_empty(), "{object}");
            object["metadata"]["name"].as_str().unwrap().to_owned()
        };
        use yare_kinds::strategy::flowcontrol::{FLOW_SCHEMA, PRIORITY_LEVEL_CONFIGURATION};
        let levels: Vec<String> = levels().map(|l| of(PRIORITY_LEVEL_CONFIGURATION, l)).collect();
        let mut schemas: Vec<String> = Vec::new();
        for wanted in super::schemas() {
            let level = wanted.object["spec"]["priorityLevelConfiguration"]["name"].as_str().unwrap();
            assert!(levels.iter().any(|l| l == level), "{level}");
            schemas.push(of(FLOW_SCHEMA, wanted));
        }
        assert_eq!((levels.len(), schemas.len()), (8, 11));
    }
}
