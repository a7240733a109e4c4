//! The row of a pod: its readiness, the one word that says best how it is, and its restarts.

use serde_json::Value;

use super::{AGE, Column, NAME, Printer, cells, format, name, text};
use crate::{conditions::is_true, view::View};

/// `Pod`
pub const POD: Printer = Printer {
    columns: &[
        NAME,
        text("Ready", "The aggregate readiness state of this pod for accepting traffic."),
        text("Status", "The aggregate status of the containers in this pod."),
        text(
            "Restarts",
            "The number of times the containers in this pod have been restarted and when the last container in this pod has restarted.",
        ),
        AGE,
        wide("IP", "Address of the pod."),
        wide("Node", "Node the pod is bound to."),
        wide("Nominated Node", "Node on which the pod waits for the end of pods it preempts."),
        wide("Readiness Gates", "How many of the readiness gates are open."),
    ],
    row,
};

const fn wide(name: &'static str, description: &'static str) -> Column {
    text(name, description).wide()
}

/// Restarts and the time of the last.
#[derive(Default, Clone, Copy)]
struct Restarts {
    count: i64,
    last_s: Option<i64>,
}

impl Restarts {
    fn add(&mut self, status: &Value) {
        self.count += status.int_at("restartCount");
        self.last_s = self.last_s.max(format::unix_s(status.str_at("lastState.terminated.finishedAt")));
    }
}

fn row(pod: &Value, now_s: i64) -> Vec<Value> {
    let sidecar = |name: &str| {
        pod.items("spec.initContainers")
            .iter()
            .any(|c| c.str_at("name") == name && c.str_at("restartPolicy") == "Always")
    };
    let sidecars =
        pod.items("spec.initContainers").iter().filter(|c| c.str_at("restartPolicy") == "Always").count();
    let total = pod.items("spec.containers").len() + sidecars;
    let conditions = pod.items("status.conditions");

    let phase = pod.str_at("status.phase");
    let mut reason = format::or(pod, "status.reason", phase).to_owned();
    if conditions
        .iter()
        .any(|c| c.str_at("type") == "PodScheduled" && c.str_at("reason") == "SchedulingGated")
    {
        reason = "SchedulingGated".to_owned();
    }

    let mut ready = 0;
    let mut restarts = Restarts::default();
    let mut sidecar_restarts = Restarts::default();
    let mut initializing = false;
    for (i, status) in pod.items("status.initContainerStatuses").iter().enumerate() {
        let is_sidecar = sidecar(status.str_at("name"));
        restarts.add(status);
        if is_sidecar {
            sidecar_restarts.add(status);
        }
        if status.has("state.terminated") && status.int_at("state.terminated.exitCode") == 0 {
            continue;
        }
        if is_sidecar && status.bool_at("started") {
            ready += usize::from(status.bool_at("ready"));
            continue;
        }
        let waiting = status.str_at("state.waiting.reason");
        reason = if status.has("state.terminated") {
            format!("Init:{}", termination(status.at("state.terminated")))
        } else if !waiting.is_empty() && waiting != "PodInitializing" {
            format!("Init:{waiting}")
        } else {
            format!("Init:{i}/{}", pod.items("spec.initContainers").len())
        };
        initializing = true;
        break;
    }

    if !initializing || is_true(conditions, "Initialized") {
        restarts = sidecar_restarts;
        let mut running = false;
        let mut error = String::new();
        for status in pod.items("status.containerStatuses").iter().rev() {
            restarts.add(status);
            let waiting = status.str_at("state.waiting.reason");
            if !waiting.is_empty() {
                waiting.clone_into(&mut reason);
            } else if status.has("state.terminated") {
                reason = termination(status.at("state.terminated"));
                if status.int_at("state.terminated.exitCode") != 0 {
                    error.clone_from(&reason);
                }
            } else if status.bool_at("ready") && status.has("state.running") {
                running = true;
                ready += 1;
            }
        }
        if reason == "Completed" {
            if running && is_true(conditions, "Ready") {
                reason = "Running".to_owned();
            } else if !error.is_empty() {
                reason = error;
            } else if running {
                reason = "NotReady".to_owned();
            }
        }
    }

    if pod.has("metadata.deletionTimestamp") {
        if pod.str_at("status.reason") == "NodeLost" {
            reason = "Unknown".to_owned();
        } else if !matches!(phase, "Succeeded" | "Failed") {
            reason = "Terminating".to_owned();
        }
    }

    let restarts = match restarts {
        Restarts { count, last_s: Some(last_s) } if count != 0 => {
            format!("{count} ({} ago)", format::human_duration(now_s - last_s))
        }
        Restarts { count, .. } => count.to_string(),
    };
    let ip = pod.items("status.podIPs").first().map_or("", |ip| ip.str_at("ip"));
    cells![
        name(pod),
        format!("{ready}/{total}"),
        reason,
        restarts,
        format::age(pod, now_s),
        if ip.is_empty() { "<none>" } else { ip },
        format::or(pod, "spec.nodeName", "<none>"),
        format::or(pod, "status.nominatedNodeName", "<none>"),
        readiness_gates(pod),
    ]
}

fn termination(terminated: &Value) -> String {
    match (terminated.str_at("reason"), terminated.int_at("signal")) {
        ("", 0) => format!("ExitCode:{}", terminated.int_at("exitCode")),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

fn readiness_gates(pod: &Value) -> String {
    let gates = pod.items("spec.readinessGates");
    if gates.is_empty() {
        return "<none>".to_owned();
    }
    let conditions = pod.items("status.conditions");
    let open = gates.iter().filter(|g| is_true(conditions, g.str_at("conditionType"))).count();
    format!("{open}/{}", gates.len())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// `name ready status restarts`, with the clock at 1970-01-01T01:00:00Z.
    fn check(pod: Value, expected: &str) {
        let cells: Vec<String> =
            row(&pod, 3600).iter().take(4).map(|c| c.as_str().unwrap_or("?").to_owned()).collect();
        assert_eq!(cells.join(" | "), expected, "{pod}");
    }

    #[test]
    fn status() {
        let pod = |status: Value| {
            json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}, {"name": "b"}],
            "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}]}, "status": status})
        };
        check(pod(json!({"phase": "Pending"})), "p | 0/3 | Pending | 0");
        check(
            pod(
                json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]}),
            ),
            "p | 0/3 | SchedulingGated | 0",
        );
        check(
            pod(json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "restartCount": 2,
                "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": {"finishedAt": "1970-01-01T00:55:00Z"}}}]})),
            "p | 0/3 | Init:CrashLoopBackOff | 2 (5m ago)",
        );
        check(
            pod(
                json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"terminated": {"exitCode": 3}}}]}),
            ),
            "p | 0/3 | Init:ExitCode:3 | 0",
        );
        let ready_inits = json!([
            {"name": "i", "restartCount": 4, "state": {"terminated": {"exitCode": 0}}},
            {"name": "s", "restartCount": 1, "started": true, "ready": true, "state": {"running": {}}}]);
        check(
            pod(json!({"phase": "Running", "initContainerStatuses": ready_inits, "containerStatuses": [
                {"name": "a", "ready": true, "state": {"running": {}}},
                {"name": "b", "ready": false, "restartCount": 2, "state": {"waiting": {"reason": "ImagePullBackOff"}}}]})),
            "p | 2/3 | ImagePullBackOff | 3",
        );
        check(
            pod(json!({"phase": "Running", "initContainerStatuses": ready_inits, "containerStatuses": [
                {"name": "a", "ready": true, "state": {"running": {}}},
                {"name": "b", "state": {"terminated": {"reason": "Completed", "exitCode": 0}}}]})),
            "p | 2/3 | NotReady | 1",
        );
        check(pod(json!({"phase": "Failed", "reason": "Evicted"})), "p | 0/3 | Evicted | 0");
        let mut deleting = pod(json!({"phase": "Running"}));
        deleting["metadata"]["deletionTimestamp"] = json!("x");
        check(deleting, "p | 0/3 | Terminating | 0");
    }
}
