//! Names, labels and annotations by which a container is found again after a restart of the agent.

use async_trait::async_trait;

use super::{ContainerHook, ContainerStart, StartFailure};
use crate::pod::actions::{HASH_ANNOTATION, definition_hash};
use crate::pod::dirs::PodDirs;

/// Seconds a container has to stop when its pod is not known any more.
pub(crate) const GRACE_PERIOD_ANNOTATION: &str = "io.kubernetes.pod.terminationGracePeriod";
/// Where a container's termination message is read from, and when its log stands in.
pub(crate) const MESSAGE_POLICY_ANNOTATION: &str = "io.kubernetes.container.terminationMessagePolicy";

pub(crate) struct Labels;

#[async_trait]
impl ContainerHook for Labels {
    fn name(&self) -> &'static str {
        "labels"
    }

    async fn apply(&self, start: &mut ContainerStart<'_>) -> Result<(), StartFailure> {
        let (pod, container) = (start.pod, start.container);
        let config = &mut start.config;
        config.name.clone_from(&container.name);
        config.attempt = start.attempt;
        config.log_path = PodDirs::log_path(&container.name, start.attempt);
        for (key, value) in [
            ("io.kubernetes.pod.name", pod.metadata.name.clone()),
            ("io.kubernetes.pod.namespace", pod.metadata.namespace.clone()),
            ("io.kubernetes.pod.uid", pod.metadata.uid.clone()),
            ("io.kubernetes.container.name", container.name.clone()),
        ] {
            config.labels.insert(key.to_owned(), value);
        }
        for (key, value) in [
            ("io.kubernetes.container.restartCount", start.attempt.to_string()),
            (HASH_ANNOTATION, definition_hash(container)),
            (
                "io.kubernetes.container.terminationMessagePath",
                container.termination_message_path().to_owned(),
            ),
            (MESSAGE_POLICY_ANNOTATION, container.termination_message_policy.clone()),
            (GRACE_PERIOD_ANNOTATION, pod.spec.termination_grace_period_seconds.unwrap_or(30).to_string()),
        ] {
            config.annotations.insert(key.to_owned(), value);
        }
        let logs = start.dirs.container_logs(&container.name);
        std::fs::create_dir_all(&logs)
            .map_err(|e| StartFailure::config(format!("make log directory {}: {e}", logs.display())))
    }
}
