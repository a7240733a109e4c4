//! What the runtime holds for one pod, at one moment: sandboxes and containers, newest first.

use yare_runtime::{ContainerState, ContainerStatus, SandboxState, SandboxStatus};

use super::restart_all;
use crate::view::{Container, Pod, PodSpec, RestartRule};

/// Sandboxes and containers of one pod.
#[derive(Debug, Clone, Default)]
pub(crate) struct Snapshot {
    pub(crate) sandboxes: Vec<SandboxStatus>,
    pub(crate) containers: Vec<ContainerStatus>,
}

impl Snapshot {
    pub(crate) fn new(mut sandboxes: Vec<SandboxStatus>, mut containers: Vec<ContainerStatus>) -> Self {
        // The newest first, by their numbers: of a clock that was set back, later ones look older.
        sandboxes.sort_by_key(|s| std::cmp::Reverse((s.attempt, s.created_at_ns)));
        containers.sort_by_key(|c| std::cmp::Reverse((c.attempt, c.created_at_ns)));
        Snapshot { sandboxes, containers }
    }

    /// The newest instance of a container.
    pub(crate) fn latest(&self, name: &str) -> Option<&ContainerStatus> {
        self.containers.iter().find(|c| c.name == name)
    }

    /// The sandbox that containers can be started in.
    pub(crate) fn ready_sandbox(&self) -> Option<&SandboxStatus> {
        self.sandboxes.first().filter(|s| s.state == SandboxState::Ready)
    }

    /// The sandbox in use, unless a new one is needed; then its attempt number.
    pub(crate) fn usable_sandbox(&self, pod: &Pod) -> Result<&SandboxStatus, u32> {
        let Some(newest) = self.sandboxes.first() else { return Err(0) };
        let addressed = pod.spec.host_network || !newest.ips.is_empty();
        if newest.state == SandboxState::Ready && addressed {
            Ok(newest)
        } else {
            Err(self.sandboxes.iter().map(|s| s.attempt).max().unwrap_or(0) + 1)
        }
    }

    /// Containers whose process runs, or may run.
    pub(crate) fn running(&self) -> impl Iterator<Item = &ContainerStatus> {
        self.containers
            .iter()
            .filter(|c| matches!(c.state, ContainerState::Running | ContainerState::Unknown))
    }

    /// Whether any main container was ever created, which means that initialization is over.
    pub(crate) fn any_main_created(&self, spec: &PodSpec) -> bool {
        spec.containers.iter().any(|c| self.latest(&c.name).is_some())
    }
}

/// Whether a container that ended with `exit_code` starts again, by its own policy or the pod's.
pub(crate) fn restarts_after(container: &Container, pod: &Pod, exit_code: i32) -> bool {
    if let Some(policy) = &container.restart_policy {
        let rule = matching_rule(container, exit_code);
        let by_rule =
            rule.is_some_and(|rule| matches!(rule.action.as_str(), "Restart" | restart_all::ACTION));
        return by_rule || by_policy(policy, exit_code);
    }
    by_policy(pod.restart_policy(), exit_code)
}

/// The first of a container's rules that speaks of an exit code.
pub(super) fn matching_rule(container: &Container, exit_code: i32) -> Option<&RestartRule> {
    container.restart_policy_rules.iter().find(|rule| {
        rule.exit_codes.as_ref().is_some_and(|codes| match codes.operator.as_str() {
            "In" => codes.values.contains(&exit_code),
            "NotIn" => !codes.values.contains(&exit_code),
            _ => false,
        })
    })
}

fn by_policy(policy: &str, exit_code: i32) -> bool {
    match policy {
        "Never" => false,
        "OnFailure" => exit_code != 0,
        _ => true,
    }
}

/// Whether a container that still runs is started again after it is killed (failed probe).
pub(crate) fn restarts_when_killed(container: &Container, pod: &Pod) -> bool {
    container.restart_policy.as_deref().unwrap_or(pod.restart_policy()) != "Never"
}

/// Whether a container has to be started, seeing its newest instance.
pub(crate) fn should_start(container: &Container, pod: &Pod, snapshot: &Snapshot) -> bool {
    if pod.is_deleting() {
        return false;
    }
    match snapshot.latest(&container.name) {
        None => true,
        Some(status) => match status.state {
            ContainerState::Running => false,
            ContainerState::Created | ContainerState::Unknown => true,
            ContainerState::Exited => restarts_after(container, pod, status.exit_code),
        },
    }
}
