//! What claims get, as data; and that the search finds a solution exactly where there is one.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use serde_json::{Value, json};
use yare_client::Cached;

use super::*;
use crate::devices::{
    programs::Programs,
    requests::SpecView,
    rules::Rules,
    taken::Holding,
    types::{Amount, DeviceId, PoolId},
};

mod exhaustive;

pub(super) const DRIVER: &str = "gpu.example.com";

pub(super) fn cached(value: &Value) -> Cached {
    Cached::new(Bytes::from(value.to_string())).unwrap()
}

pub(super) fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}

/// A complete pool of one slice on the node.
pub(super) fn slice(name: &str, devices: Value, extra: Value) -> Value {
    let mut out = json!({"metadata": {"name": name}, "spec": {
        "driver": DRIVER, "nodeName": "n1", "devices": devices,
        "pool": {"name": name, "generation": 1, "resourceSliceCount": 1}}});
    merge(&mut out, &extra);
    out
}

pub(super) fn device(name: &str, extra: Value) -> Value {
    let mut out = json!({"name": name});
    merge(&mut out, &extra);
    out
}

pub(super) fn claim(requests: Value, extra: Value) -> Value {
    let mut out = json!({"devices": {"requests": requests}});
    merge(&mut out["devices"], &extra);
    out
}

/// A request of the class `gpu`.
pub(super) fn request(name: &str, extra: Value) -> Value {
    let mut exactly = json!({"deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 1});
    merge(&mut exactly, &extra);
    if exactly["allocationMode"] == "All" {
        exactly["count"] = 0.into();
    }
    json!({"name": name, "exactly": exactly})
}

fn list(name: &str, entries: &[(&str, Value)]) -> Value {
    let entry = |(name, extra): &(&str, Value)| {
        let mut out =
            json!({"name": name, "deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 1});
        merge(&mut out, extra);
        out
    };
    json!({"name": name, "firstAvailable": entries.iter().map(entry).collect::<Vec<_>>()})
}

fn wants(expression: &str) -> Value {
    json!({"selectors": [{"cel": {"expression": expression}}]})
}

/// Everything that allocation looks at.
pub(super) struct Fixture {
    slices: Slices,
    classes: HashMap<Box<str>, Arc<Class>>,
    taken: Taken,
    features: Features,
    programs: Programs,
}

impl Fixture {
    pub(super) fn new(slices: &[Value]) -> Self {
        let mut programs = Programs::default();
        let mut out = Slices::default();
        for slice in slices {
            out.set(Slice::new(&cached(slice)).unwrap());
        }
        let class = |name: &str, extra: Value| {
            let mut class = json!({"metadata": {"name": name}, "spec": {}});
            merge(&mut class["spec"], &extra);
            class
        };
        let opaque = |value: &str| json!({"opaque": {"driver": DRIVER, "parameters": {"of": value}}});
        let classes = [
            class("gpu", json!({})),
            class("big", wants(&format!(r#"device.attributes["{DRIVER}"].size == "big""#))),
            class("broken", wants("device.nothing")),
            class("configured", json!({"config": [opaque("class")]})),
        ];
        let classes = classes.iter().map(|c| Class::new(&cached(c), &mut programs).unwrap());
        Self {
            classes: classes.map(|c| (c.name.clone(), Arc::new(c))).collect(),
            slices: out,
            taken: Taken::default(),
            features: Features::default(),
            programs,
        }
    }

    pub(super) fn take(&mut self, pool: &str, device: &str, share: Option<&str>) {
        let pool = PoolId { driver: DRIVER.into(), pool: pool.into() };
        let amount = |text: &str| Amount(text.parse().unwrap());
        let share = share.map(|text| [("memory".into(), amount(text))].into());
        self.taken.add(&[Holding { device: DeviceId { pool, device: device.into() }, share }]);
    }

    pub(super) fn claims(&mut self, claims: &[Value]) -> Vec<Arc<ClaimSpec>> {
        let spec = |(i, value): (usize, &Value)| {
            let view: SpecView = serde_json::from_value(value.clone()).unwrap();
            Arc::new(ClaimSpec::new(format!("default/c{i}").into(), view, &mut self.programs))
        };
        claims.iter().enumerate().map(spec).collect()
    }

    pub(super) fn allocate(
        &self,
        claims: &[Arc<ClaimSpec>],
        steps: u64,
    ) -> Result<Option<Vec<Allocation>>, Failure> {
        let world = World {
            slices: &self.slices,
            classes: &self.classes,
            taken: &self.taken,
            rules: &Rules::default(),
            features: self.features,
        };
        let labels: Vec<(Box<str>, Box<str>)> = vec![("zone".into(), "a".into())];
        allocate_within(&world, Node { name: "n1", labels: &labels }, claims, steps)
    }

    fn answer(&mut self, claims: &[Value]) -> String {
        let claims = self.claims(claims);
        match self.allocate(&claims, 100_000) {
            Ok(None) => "none".into(),
            Ok(Some(made)) => made.iter().map(short).collect::<Vec<_>>().join("; "),
            Err(Failure::Fatal(why)) => format!("fatal: {why}"),
            Err(Failure::Node(why)) => format!("node: {why}"),
            Err(Failure::TooLong) => "too long".into(),
        }
    }
}

/// `request=pool/device …`
fn short(allocation: &Allocation) -> String {
    let value = allocation.to_json(|| "share".into());
    let one = |r: &Value| {
        let text = |field: &str| r[field].as_str().unwrap_or_default().to_owned();
        let mut out = format!("{}={}/{}", text("request"), text("pool"), text("device"));
        if r["adminAccess"] == true {
            out += "!";
        }
        if let Some(amount) = r["consumedCapacity"]["memory"].as_str() {
            out += &format!("({amount})");
        }
        out
    };
    value["devices"]["results"].as_array().unwrap().iter().map(one).collect::<Vec<_>>().join(" ")
}

/// What it shows, slices, what is in use, claims, the answer.
type Case = (&'static str, Vec<Value>, &'static [(&'static str, &'static str)], Vec<Value>, &'static str);

fn numbered(names: &[&str]) -> Value {
    let one = |(i, name): (usize, &&str)| {
        device(
            name,
            json!({"attributes": {
                "index": {"int": i}, "half": {"int": i / 2}, "size": {"string": if i > 1 { "big" } else { "small" }}}}),
        )
    };
    names.iter().enumerate().map(one).collect()
}

fn two_pools() -> Vec<Value> {
    vec![slice("b", numbered(&["x", "y"]), json!({})), slice("a", numbered(&["x", "y", "z", "w"]), json!({}))]
}

#[test]
fn requests() {
    let half = format!("{DRIVER}/half");
    let index = format!("{DRIVER}/index");
    let attribute = |name: &str| format!(r#"device.attributes["{DRIVER}"].{name}"#);
    let alike = json!({"constraints": [{"matchAttribute": half}]});
    let differ = json!({"constraints": [{"distinctAttribute": index}]});
    let n = |count: u64| json!({"count": count});
    let cases: Vec<Case> = vec![
        (
            "the first pool by name",
            two_pools(),
            &[],
            vec![claim(json!([request("r", json!({}))]), json!({}))],
            "r=a/x",
        ),
        (
            "what is in use is left",
            two_pools(),
            &[("a", "x"), ("a", "y")],
            vec![claim(json!([request("r", n(3))]), json!({}))],
            "r=a/z r=a/w r=b/x",
        ),
        (
            "not enough",
            two_pools(),
            &[("a", "x")],
            vec![claim(json!([request("r", n(6))]), json!({}))],
            "none",
        ),
        (
            "several claims",
            two_pools(),
            &[],
            vec![
                claim(json!([request("r", json!({})), request("s", json!({}))]), json!({})),
                claim(json!([request("t", n(2))]), json!({})),
            ],
            "r=a/x s=a/y; t=a/z t=a/w",
        ),
        (
            "a selector",
            two_pools(),
            &[],
            vec![claim(json!([request("r", wants(&format!("{} > 2", attribute("index"))))]), json!({}))],
            "r=a/w",
        ),
        (
            "a class with a selector",
            two_pools(),
            &[],
            vec![claim(json!([request("r", json!({"deviceClassName": "big"}))]), json!({}))],
            "r=a/z",
        ),
        (
            "what the later request needs is left to it",
            vec![slice("a", numbered(&["x", "y"]), json!({}))],
            &[],
            vec![claim(
                json!([
                    request("r", json!({})),
                    request("s", wants(&format!("{} == 0", attribute("index"))))
                ]),
                json!({}),
            )],
            "r=a/y s=a/x",
        ),
        (
            "devices that are alike",
            two_pools(),
            &[("a", "x")],
            vec![claim(json!([request("r", n(2))]), alike.clone())],
            "r=a/y r=b/x",
        ),
        (
            "three that are alike",
            two_pools(),
            &[],
            vec![claim(json!([request("r", n(3))]), alike)],
            "r=a/x r=a/y r=b/x",
        ),
        (
            "devices that differ",
            two_pools(),
            &[("a", "z")],
            vec![claim(json!([request("r", n(3))]), differ.clone())],
            "r=a/x r=a/y r=a/w",
        ),
        ("more than can differ", two_pools(), &[], vec![claim(json!([request("r", n(5))]), differ)], "none"),
        (
            "an attribute that nobody has",
            two_pools(),
            &[],
            vec![claim(
                json!([request("r", json!({}))]),
                json!({"constraints": [{"matchAttribute": "d/none"}]}),
            )],
            "none",
        ),
        (
            "a constraint on some requests",
            two_pools(),
            &[],
            vec![claim(
                json!([request("q", n(1)), request("r", n(1)), request("s", n(1))]),
                json!({"constraints": [{"requests": ["q", "s"], "matchAttribute": half}]}),
            )],
            "q=a/x r=a/y s=b/x",
        ),
        (
            "all",
            vec![slice("a", numbered(&["x", "y", "z"]), json!({}))],
            &[],
            vec![claim(
                json!([request("r", json!({"allocationMode": "All", "deviceClassName": "big"}))]),
                json!({}),
            )],
            "r=a/z",
        ),
        (
            "all, but one is in use",
            two_pools(),
            &[("b", "y")],
            vec![claim(json!([request("r", json!({"allocationMode": "All"}))]), json!({}))],
            "none",
        ),
        (
            "all of nothing",
            two_pools(),
            &[],
            vec![claim(
                json!([request(
                    "r",
                    json!({"allocationMode": "All", "selectors": [{"cel": {"expression": "false"}}]})
                )]),
                json!({}),
            )],
            "none",
        ),
        (
            "all, which are not alike",
            two_pools(),
            &[],
            vec![claim(
                json!([request("r", json!({"allocationMode": "All"}))]),
                json!({"constraints": [{"matchAttribute": half}]}),
            )],
            "fatal: claim default/c0, request r: cannot add device gpu.example.com/a/z because a claim constraint would not be satisfied",
        ),
        (
            "administrative access",
            two_pools(),
            &[("a", "x")],
            vec![claim(
                json!([request("r", json!({"adminAccess": true, "count": 2})), request("s", json!({}))]),
                json!({}),
            )],
            "r=a/x! r=a/y! s=a/z",
        ),
        (
            "the first of a list",
            two_pools(),
            &[],
            vec![claim(json!([list("l", &[("one", n(1)), ("two", n(2))])]), json!({}))],
            "l/one=a/x",
        ),
        (
            "the second of a list",
            two_pools(),
            &[],
            vec![claim(
                json!([list("l", &[("many", n(7)), ("big", json!({"deviceClassName": "big"}))])]),
                json!({}),
            )],
            "l/big=a/z",
        ),
        (
            "a list gives way to the next request",
            vec![slice("a", numbered(&["x", "y"]), json!({}))],
            &[],
            vec![claim(
                json!([list("l", &[("two", n(2)), ("one", n(1))]), request("r", json!({}))]),
                json!({}),
            )],
            "l/one=a/x r=a/y",
        ),
        (
            "a constraint on an entry",
            two_pools(),
            &[],
            vec![claim(
                json!([list("l", &[("two", n(2))]), request("r", json!({}))]),
                json!({"constraints": [{"requests": ["l/two"], "distinctAttribute": half}]}),
            )],
            "l/two=a/x l/two=a/z r=a/y",
        ),
        (
            "too many for a claim",
            two_pools(),
            &[],
            vec![claim(json!([request("r", n(20)), request("s", n(13))]), json!({}))],
            "fatal: claim default/c0: number of requested devices 33 exceeds the claim limit of 32",
        ),
        (
            "a list that would be too many",
            vec![slice("a", (0..40).map(|i| device(&format!("d{i:02}"), json!({}))).collect(), json!({}))],
            &[],
            vec![claim(json!([request("r", n(31)), list("l", &[("two", n(2)), ("one", n(1))])]), json!({}))],
            &ONE_AND_THIRTY,
        ),
        (
            "no such class",
            two_pools(),
            &[],
            vec![claim(json!([request("r", json!({"deviceClassName": "none"}))]), json!({}))],
            "fatal: claim default/c0, request r: could not retrieve device class none: deviceclass.resource.k8s.io \"none\" not found",
        ),
        (
            "a selector that fails",
            two_pools(),
            &[],
            vec![claim(json!([request("r", wants(&attribute("none")))]), json!({}))],
            "fatal: claim default/c0: selector #0: CEL runtime error: no such key: none",
        ),
    ];
    for (what, slices, used, claims, expected) in cases {
        let mut fixture = Fixture::new(&slices);
        for (pool, device) in used {
            fixture.take(pool, device, None);
        }
        assert_eq!(fixture.answer(&claims), expected, "{what}");
    }
    let mut fixture = Fixture::new(&two_pools());
    let broken = claim(json!([request("r", json!({"deviceClassName": "broken"}))]), json!({}));
    let answer = fixture.answer(&[broken]);
    assert!(
        answer.starts_with("fatal: class broken: selector #0: CEL compile error: compilation failed"),
        "{answer}"
    );
}

static ONE_AND_THIRTY: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| {
    let all: Vec<String> = (0..31).map(|i| format!("r=a/d{i:02}")).collect();
    format!("{} l/one=a/d31", all.join(" "))
});

#[test]
fn pools() {
    let any = || vec![claim(json!([request("r", json!({}))]), json!({}))];
    let all = || vec![claim(json!([request("r", json!({"allocationMode": "All"}))]), json!({}))];
    let one = |name: &str| json!([device(name, json!({}))]);
    let of = |pool: &str, generation: u64, count: u64| json!({"spec": {"pool": {"name": pool, "generation": generation, "resourceSliceCount": count}}});
    let on = |node: &str, extra: Value| {
        let mut out = json!({"spec": {"nodeName": node}});
        merge(&mut out, &extra);
        out
    };
    let zone = |zone: &str| {
        json!({"spec": {"nodeName": null, "nodeSelector": {"nodeSelectorTerms": [{"matchExpressions": [
            {"key": "zone", "operator": "In", "values": [zone]}]}]}}})
    };
    let per_device = json!({"spec": {"nodeName": null, "perDeviceNodeSelection": true}});
    let cases: Vec<Case> = vec![
        ("another node's", vec![slice("a", one("x"), on("n2", json!({})))], &[], any(), "none"),
        (
            "everywhere",
            vec![slice("a", one("x"), json!({"spec": {"nodeName": null, "allNodes": true}}))],
            &[],
            any(),
            "r=a/x",
        ),
        ("a selector that matches", vec![slice("a", one("x"), zone("a"))], &[], any(), "r=a/x"),
        ("a selector that does not", vec![slice("a", one("x"), zone("b"))], &[], any(), "none"),
        (
            "each device says",
            vec![slice(
                "a",
                json!([device("x", json!({"nodeName": "n2"})), device("y", json!({"allNodes": true}))]),
                per_device,
            )],
            &[],
            any(),
            "r=a/y",
        ),
        ("incomplete", vec![slice("a", one("x"), of("a", 1, 2))], &[], any(), "none"),
        (
            "incomplete, and all are wanted",
            vec![slice("a", one("x"), of("a", 1, 2)), slice("b", one("y"), json!({}))],
            &[],
            all(),
            "fatal: claim default/c0, request r: asks for all devices, but resource pool gpu.example.com/a is currently being updated",
        ),
        (
            "complete with what lies elsewhere",
            vec![slice("a", one("x"), of("p", 1, 2)), slice("b", one("y"), on("n2", of("p", 1, 2)))],
            &[],
            all(),
            "r=p/x",
        ),
        (
            "the newest generation",
            vec![slice("a", one("x"), of("p", 1, 1)), slice("b", one("y"), of("p", 2, 1))],
            &[],
            any(),
            "r=p/y",
        ),
        (
            "a newer generation elsewhere",
            vec![slice("a", one("x"), of("p", 1, 2)), slice("b", one("y"), on("n2", of("p", 2, 1)))],
            &[],
            any(),
            "none",
        ),
        (
            "a name that is there twice",
            vec![slice("a", one("x"), of("p", 1, 2)), slice("b", one("x"), of("p", 1, 2))],
            &[],
            any(),
            "node: invalid resource pools were encountered",
        ),
        (
            "another pool is good",
            vec![
                slice("a", one("x"), of("p", 1, 2)),
                slice("b", one("x"), of("p", 1, 2)),
                slice("q", one("x"), json!({})),
            ],
            &[],
            any(),
            "r=q/x",
        ),
        (
            "what takes time to be attached comes last",
            vec![
                slice("a", json!([device("x", json!({"bindingConditions": ["attached"]}))]), json!({})),
                slice("b", one("y"), json!({})),
            ],
            &[],
            any(),
            "r=b/y",
        ),
        (
            "a taint",
            vec![slice(
                "a",
                json!([
                    device("x", json!({"taints": [{"key": "broken", "effect": "NoExecute"}]})),
                    device("y", json!({"taints": [{"key": "old", "effect": "None"}]}))
                ]),
                json!({}),
            )],
            &[],
            any(),
            "r=a/y",
        ),
        (
            "a taint that is tolerated",
            vec![slice(
                "a",
                json!([device("x", json!({"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}))]),
                json!({}),
            )],
            &[],
            vec![claim(
                json!([request("r", json!({"tolerations": [{"key": "k", "value": "v"}]}))]),
                json!({}),
            )],
            "r=a/x",
        ),
    ];
    for (what, slices, used, claims, expected) in cases {
        let mut fixture = Fixture::new(&slices);
        for (pool, device) in used {
            fixture.take(pool, device, None);
        }
        assert_eq!(fixture.answer(&claims), expected, "{what}");
    }
}

/// Partitions of one card: halves and the whole.
fn card() -> Vec<Value> {
    let part = |name: &str, memory: &str| {
        device(
            name,
            json!({"consumesCounters": [{"counterSet": "card", "counters": {"memory": {"value": memory}}}]}),
        )
    };
    let of = json!({"spec": {"pool": {"name": "p", "resourceSliceCount": 2}}});
    let mut counters = slice("a", Value::Null, of.clone());
    counters["spec"]["sharedCounters"] = json!([{"name": "card", "counters": {"memory": {"value": "40Gi"}}}]);
    vec![
        counters,
        slice("b", json!([part("whole", "40Gi"), part("left", "20Gi"), part("right", "20Gi")]), of),
    ]
}

#[test]
fn partitions() {
    let n = |count: u64| vec![claim(json!([request("r", json!({"count": count}))]), json!({}))];
    let mut missing = card();
    missing[1]["spec"]["devices"][0]["consumesCounters"][0]["counterSet"] = "none".into();
    let mut elsewhere = card();
    elsewhere[0]["spec"]["pool"]["resourceSliceCount"] = 3.into();
    elsewhere[1]["spec"]["pool"]["resourceSliceCount"] = 3.into();
    let mut other = elsewhere[1].clone();
    merge(&mut other, &json!({"metadata": {"name": "c"}, "spec": {"nodeName": "n2"}}));
    other["spec"]["devices"].as_array_mut().unwrap().truncate(1);
    other["spec"]["devices"][0]["name"] = "far".into();
    other["spec"]["devices"][0]["consumesCounters"][0]["counters"]["memory"]["value"] = "30Gi".into();
    elsewhere.push(other);
    let cases: Vec<Case> = vec![
        ("one", card(), &[], n(1), "r=p/whole"),
        ("two", card(), &[], n(2), "r=p/left r=p/right"),
        ("three", card(), &[], n(3), "none"),
        ("one is taken", card(), &[("p", "left")], n(1), "r=p/right"),
        ("the whole is taken", card(), &[("p", "whole")], n(1), "none"),
        ("counters that are not there", missing, &[], n(1), "node: invalid resource pools were encountered"),
        ("taken elsewhere", elsewhere.clone(), &[("p", "far")], n(1), "none"),
        ("free elsewhere", elsewhere, &[], n(2), "r=p/left r=p/right"),
    ];
    for (what, slices, used, claims, expected) in cases {
        let mut fixture = Fixture::new(&slices);
        for (pool, device) in used {
            fixture.take(pool, device, None);
        }
        assert_eq!(fixture.answer(&claims), expected, "{what}");
    }
    let mut fixture = Fixture::new(&card());
    fixture.features.partitions = false;
    assert_eq!(fixture.answer(&n(1)), "none");
}

#[test]
fn shares() {
    let of = |memory: &str| json!({"capacity": {"requests": {"memory": memory}}});
    let shared = |name: &str| {
        device(name, json!({"allowMultipleAllocations": true, "capacity": {"memory": {"value": "10Gi"}}}))
    };
    let slices = vec![slice("a", json!([shared("x"), shared("y")]), json!({}))];
    let mut fixture = Fixture::new(&slices);
    fixture.take("a", "x", Some("4Gi"));
    let cases = [
        ("fits beside", claim(json!([request("r", of("6Gi"))]), json!({})), "r=a/x(6Gi)"),
        ("fits on the other", claim(json!([request("r", of("7Gi"))]), json!({})), "r=a/y(7Gi)"),
        ("all of it", claim(json!([request("r", json!({}))]), json!({})), "r=a/y(10Gi)"),
        (
            "one device for two requests",
            claim(json!([request("r", of("2Gi")), request("s", of("2Gi"))]), json!({})),
            "r=a/x(2Gi) s=a/x(2Gi)",
        ),
        (
            "two devices for one request",
            claim(
                json!([request("r", json!({"count": 2, "capacity": {"requests": {"memory": "1Gi"}}}))]),
                json!({}),
            ),
            "r=a/x(1Gi) r=a/y(1Gi)",
        ),
        (
            "they add up",
            claim(
                json!([request("r", of("5Gi")), request("s", of("5Gi")), request("t", of("5Gi"))]),
                json!({}),
            ),
            "r=a/x(5Gi) s=a/y(5Gi) t=a/y(5Gi)",
        ),
        ("too much", claim(json!([request("r", of("11Gi"))]), json!({})), "none"),
        (
            "no such capacity",
            claim(json!([request("r", json!({"capacity": {"requests": {"cores": "1"}}}))]), json!({})),
            "none",
        ),
    ];
    for (what, claim, expected) in cases {
        assert_eq!(fixture.answer(&[claim]), expected, "{what}");
    }
}

#[test]
fn allocations_say_all_that_drivers_need() {
    let zone = json!({"key": "zone", "operator": "In", "values": ["a"]});
    let slices = vec![
        slice(
            "a",
            json!([device(
                "x",
                json!({"bindingConditions": ["ready"], "bindingFailureConditions": ["failed"],
                       "taints": [{"key": "k", "effect": "NoSchedule"}]})
            )]),
            json!({"spec": {"nodeName": null,
                            "nodeSelector": {"nodeSelectorTerms": [{"matchExpressions": [zone]}]}}}),
        ),
        slice("b", json!([device("y", json!({}))]), json!({})),
    ];
    let mut fixture = Fixture::new(&slices);
    let toleration = json!([{"key": "k", "operator": "Exists"}]);
    let opaque = |value: &str| json!({"driver": DRIVER, "parameters": {"of": value}});
    let asked = claim(
        json!([
            list(
                "r",
                &[(
                    "e",
                    json!({"deviceClassName": "configured", "tolerations": toleration,
                                     "selectors": [{"cel": {"expression": "'none' in device.attributes || true"}}]})
                )]
            ),
            request("s", json!({"deviceClassName": "configured", "adminAccess": true}))
        ]),
        json!({"config": [
            {"opaque": opaque("all")},
            {"requests": ["r"], "opaque": opaque("r")},
            {"requests": ["r/other"], "opaque": opaque("other")}]}),
    );
    let claims = fixture.claims(&[asked]);
    fixture.take("b", "y", None);
    let made = fixture.allocate(&claims, 1000).unwrap().unwrap();
    let expected = json!({
        "devices": {
            "results": [
                {"request": "r/e", "driver": DRIVER, "pool": "a", "device": "x", "tolerations": toleration,
                 "bindingConditions": ["ready"], "bindingFailureConditions": ["failed"]},
                {"request": "s", "driver": DRIVER, "pool": "b", "device": "y", "adminAccess": true},
            ],
            "config": [
                {"source": "FromClass", "requests": ["r/e", "s"], "opaque": opaque("class")},
                {"source": "FromClaim", "opaque": opaque("all")},
                {"source": "FromClaim", "requests": ["r"], "opaque": opaque("r")},
            ],
        },
        "nodeSelector": {"nodeSelectorTerms": [{"matchFields": [
            {"key": "metadata.name", "operator": "In", "values": ["n1"]}]}]},
    });
    assert_eq!(made[0].to_json(String::new), expected);
    assert_eq!(made[0].holdings.len(), 1);

    let only = fixture.claims(&[claim(json!([request("r", json!({"tolerations": toleration}))]), json!({}))]);
    let made = fixture.allocate(&only, 1000).unwrap().unwrap();
    let selector = made[0].to_json(String::new)["nodeSelector"].clone();
    assert_eq!(selector, json!({"nodeSelectorTerms": [{"matchExpressions": [zone]}]}));
}

#[test]
fn the_search_ends() {
    let devices: Value =
        (0..30).map(|i| device(&format!("d{i:02}"), json!({"attributes": {"i": {"int": i}}}))).collect();
    let mut fixture = Fixture::new(&[slice("a", devices, json!({}))]);
    let most = request("r", json!({"count": 15}));
    // No device will ever do for the second request, which is seen after a while.
    let never = fixture.claims(&[claim(json!([most, request("s", wants("false"))]), json!({}))]);
    assert!(matches!(fixture.allocate(&never, 100_000), Ok(None)));
    // Any device would do for each, but not beside the others: only counting on would show it.
    let index = format!("{DRIVER}/i");
    let low = wants(&format!(r#"device.attributes["{DRIVER}"].i < 15"#));
    let hard = fixture.claims(&[claim(
        json!([
            most,
            request("s", {
                let mut low = low;
                low["count"] = 15.into();
                low
            }),
            request("t", wants(&format!(r#"device.attributes["{DRIVER}"].i == 3"#)))
        ]),
        json!({"constraints": [{"distinctAttribute": index}]}),
    )]);
    assert!(matches!(fixture.allocate(&hard, 100_000), Err(Failure::TooLong)));
}
