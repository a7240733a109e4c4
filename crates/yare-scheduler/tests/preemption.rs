//! Who has to go for a more important pod, as data.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use serde_json::{Value, json};
use support::{cached, cluster, merge, node, pod};
use yare_client::ObjectKey;
use yare_scheduler::{
    cluster::Cluster,
    cycle,
    pod::PodInfo,
    preemption::{Budget, preempt},
};

fn on(name: &str, node: &str, priority: i32, cpu: &str, extra: Value) -> Value {
    let mut out = pod(
        name,
        json!({"spec": {"nodeName": node, "priority": priority, "containers": [
            {"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu}}}]}}),
    );
    merge(&mut out, &extra);
    out
}

fn started(minute: u32) -> Value {
    json!({"status": {"startTime": format!("2026-01-01T00:{minute:02}:00Z")}})
}

fn budget(app: &str, allowed: i64, disrupted: Value) -> Value {
    json!({"metadata": {"name": "b", "namespace": "default", "uid": "b"},
        "spec": {"selector": {"matchLabels": {"app": app}}},
        "status": {"disruptionsAllowed": allowed, "disruptedPods": disrupted}})
}

/// `node: victims (violations)`, or the whole message of the event.
fn try_to_preempt(cluster: &mut Cluster, new: &Value, budgets: &[Value]) -> String {
    let new = PodInfo::new(cached(new)).unwrap();
    let before = placed(cluster);
    let Err(why) = cycle::schedule(&new, cluster, &mut 0, 7) else { return "fits".into() };
    let budgets: Vec<Budget> = budgets.iter().filter_map(|b| Budget::new(&cached(b)).unwrap()).collect();
    let out = match preempt(&new, cluster, &budgets, &why, 0) {
        Ok(choice) => {
            let names: Vec<&str> = choice.victims.iter().map(|p| p.object.name()).collect();
            format!("{}: {} ({})", choice.node, names.join(","), choice.violations)
        }
        Err(refusal) => format!("{} {}", why.message(), refusal.message()),
    };
    assert_eq!(placed(cluster), before, "a trial leaves everything as it was");
    out
}

fn placed(cluster: &Cluster) -> Vec<(String, i64, usize, Vec<ObjectKey>)> {
    let nodes = cluster.nodes().iter();
    nodes
        .map(|n| {
            let mut pods: Vec<ObjectKey> = n.pods.keys().cloned().collect();
            pods.sort();
            (n.name().to_owned(), n.requested.cpu_milli, n.ports.len(), pods)
        })
        .collect()
}

/// What it shows, nodes, pods, the new pod, budgets, what comes out.
type Case = (&'static str, Vec<Value>, Vec<Value>, Value, Vec<Value>, &'static str);

#[test]
fn victims() {
    let none = || json!({});
    let n = |name: &str| node(name, json!({}));
    let new = |priority: i32, cpu: &str| on("new", "", priority, cpu, json!({}));
    let app = |name: &str| json!({"metadata": {"labels": {"app": name}}});
    let port = json!({"spec": {"containers": [{"name": "c", "ports": [{"hostPort": 80}]}]}});
    let mut with_port = new(5, "1");
    merge(&mut with_port, &port);
    let mut never = new(5, "2");
    merge(&mut never, &json!({"spec": {"preemptionPolicy": "Never"}}));
    let anti = json!({"spec": {"affinity": {"podAntiAffinity":
        {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"labelSelector": {"matchLabels": {"app": "x"}}, "topologyKey": "kubernetes.io/hostname"}]}}}});
    let mut lonely = new(5, "1");
    merge(&mut lonely, &anti);
    let cases: Vec<Case> = vec![
        (
            "only as many as needed, the least important",
            vec![n("a")],
            vec![
                on("low", "a", 1, "1", none()),
                on("mid", "a", 2, "1", none()),
                on("big", "a", 3, "2", none()),
            ],
            new(9, "1"),
            vec![],
            "a: low (0)",
        ),
        (
            "of equals the youngest",
            vec![n("a")],
            vec![on("old", "a", 1, "2", started(1)), on("young", "a", 1, "2", started(2))],
            new(9, "2"),
            vec![],
            "a: young (0)",
        ),
        (
            "not its equals",
            vec![n("a")],
            vec![on("p", "a", 5, "4", none())],
            new(5, "1"),
            vec![],
            "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.",
        ),
        (
            "where it cannot help",
            vec![n("a"), node("b", json!({"spec": {"unschedulable": true}}))],
            vec![on("p", "a", 9, "4", none()), on("q", "b", 1, "4", none())],
            new(5, "1"),
            vec![],
            "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) were unschedulable. preemption: 0/2 nodes are available: 1 No preemption victims found for incoming pod, 1 Preemption is not helpful for scheduling.",
        ),
        (
            "larger than the node",
            vec![n("a")],
            vec![on("p", "a", 1, "1", none())],
            new(5, "5"),
            vec![],
            "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.",
        ),
        (
            "does not fit even then",
            vec![n("a")],
            vec![on("p", "a", 1, "1", none()), on("q", "a", 9, "3", none())],
            new(5, "2"),
            vec![],
            "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 Insufficient cpu.",
        ),
        (
            "may not",
            vec![n("a")],
            vec![on("p", "a", 1, "4", none())],
            never,
            vec![],
            "0/1 nodes are available: 1 Insufficient cpu. preemption: not eligible due to preemptionPolicy=Never.",
        ),
        (
            "a port",
            vec![n("a")],
            vec![on("p", "a", 1, "0", port), on("q", "a", 1, "0", none())],
            with_port,
            vec![],
            "a: p (0)",
        ),
        (
            "anti-affinity",
            vec![n("a")],
            vec![on("p", "a", 1, "1", app("x")), on("q", "a", 1, "1", none())],
            lonely,
            vec![],
            "a: p (0)",
        ),
        (
            "a budget protects",
            vec![n("a")],
            vec![on("guarded", "a", 1, "2", app("g")), on("free", "a", 2, "2", none())],
            new(9, "2"),
            vec![budget("g", 0, json!({}))],
            "a: free (0)",
        ),
        (
            "a budget that is spent twice",
            vec![n("a")],
            vec![on("g1", "a", 1, "2", app("g")), on("g2", "a", 1, "2", app("g"))],
            new(9, "4"),
            vec![budget("g", 1, json!({}))],
            "a: g1,g2 (1)",
        ),
        (
            "already let go",
            vec![n("a")],
            vec![on("guarded", "a", 1, "4", app("g"))],
            new(9, "4"),
            vec![budget("g", 0, json!({"guarded": "2026-01-01T00:00:00Z"}))],
            "a: guarded (0)",
        ),
        (
            "fewest violations first",
            vec![n("a"), n("b")],
            vec![on("guarded", "a", 1, "4", app("g")), on("free", "b", 5, "4", none())],
            new(9, "4"),
            vec![budget("g", 0, json!({}))],
            "b: free (0)",
        ),
        (
            "then the lowest of the highest",
            vec![n("a"), n("b")],
            vec![on("a1", "a", 3, "4", none()), on("b1", "b", 2, "2", none()), on("b2", "b", 2, "2", none())],
            new(9, "4"),
            vec![],
            "b: b1,b2 (0)",
        ),
        (
            "then the lowest sum",
            vec![n("a"), n("b")],
            vec![
                on("a1", "a", 2, "2", none()),
                on("a2", "a", 2, "2", none()),
                on("b1", "b", 2, "2", none()),
                on("b2", "b", 1, "2", none()),
            ],
            new(9, "4"),
            vec![],
            "b: b1,b2 (0)",
        ),
        (
            "then the latest start",
            vec![n("a"), n("b")],
            vec![on("a1", "a", 2, "4", started(1)), on("b1", "b", 2, "4", started(2))],
            new(9, "4"),
            vec![],
            "b: b1 (0)",
        ),
    ];
    for (what, nodes, pods, new, budgets, expected) in cases {
        assert_eq!(try_to_preempt(&mut cluster(&nodes, &pods), &new, &budgets), expected, "{what}");
    }
}

#[test]
fn the_room_is_for_whom_it_was_made() {
    let mut cluster = cluster(&[node("a", json!({}))], &[on("p", "a", 5, "1", json!({}))]);
    let nominated = PodInfo::new(cached(&on("first", "", 9, "3", json!({})))).unwrap();
    cluster.nominate(&nominated, "a");
    let fits = |cluster: &mut Cluster, priority: i32| {
        let pod = PodInfo::new(cached(&on("other", "", priority, "1", json!({})))).unwrap();
        let others = cluster.add_nominated(&pod);
        let result = cycle::schedule(&pod, cluster, &mut 0, 7).is_ok();
        cluster.remove_nominated(others);
        result
    };
    assert!(!fits(&mut cluster, 8), "less important");
    assert!(!fits(&mut cluster, 9), "as important");
    assert!(fits(&mut cluster, 10), "more important");
    assert_eq!(cycle::schedule(&nominated, &cluster, &mut 0, 7).unwrap(), "a");
    let displaced: Vec<_> = cluster.nominated_below("a", 10).iter().map(|p| p.key().clone()).collect();
    assert_eq!(displaced, [nominated.key().clone()]);
    cluster.forget_nomination(nominated.key());
    assert!(fits(&mut cluster, 8));
}

#[test]
fn while_victims_end_no_others_are_looked_for() {
    let ending = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
    let nodes = [node("a", json!({})), node("b", json!({}))];
    let pods = [on("p", "a", 1, "4", ending), on("q", "b", 1, "4", json!({}))];
    let mut cluster = cluster(&nodes, &pods);
    let new = on("new", "", 9, "4", json!({}));
    cluster.nominate(&PodInfo::new(cached(&new)).unwrap(), "a");
    let full = "0/2 nodes are available: 2 Insufficient cpu.";
    let expected = format!("{full} preemption: not eligible due to a terminating pod on the nominated node.");
    assert_eq!(try_to_preempt(&mut cluster, &new, &[]), expected);
    // The nominated node is cordoned meanwhile: another must do.
    cluster.set_node(cached(&node("a", json!({"spec": {"unschedulable": true}})))).unwrap();
    assert_eq!(try_to_preempt(&mut cluster, &new, &[]), "b: q (0)");
}

#[test]
fn fields_of_nodes_select() {
    let fields = |operator: &str, name: &str| {
        json!({"spec": {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            {"nodeSelectorTerms": [{"matchFields": [
                {"key": "metadata.name", "operator": operator, "values": [name]}]}]}}}}})
    };
    let cluster = cluster(&[node("a", json!({})), node("b", json!({}))], &[]);
    let cases = [
        (fields("In", "b"), "b"),
        (fields("NotIn", "b"), "a"),
        (fields("In", "c"), "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector."),
    ];
    for (extra, expected) in cases {
        let pod = PodInfo::new(cached(&pod("new", extra))).unwrap();
        let place = cycle::schedule(&pod, &cluster, &mut 0, 7).unwrap_or_else(|why| why.message());
        assert_eq!(place, expected);
    }
}
