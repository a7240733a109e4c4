//! Exec probes: a command in the container; exit code 0 is success.

use std::time::Duration;

use super::Attempt;
use crate::clock::go_duration;
use crate::kubelet::Kubelet;
use crate::pod::expand::expand;
use crate::view::{Container, EnvVar, ExecAction};

/// Output that goes into an event.
const OUTPUT_MAX_BYTES: usize = 10 << 10;

pub(crate) async fn probe(
    kubelet: &Kubelet,
    id: &str,
    container: &Container,
    action: &ExecAction,
    timeout: Duration,
) -> Attempt {
    let command: Vec<String> = action.command.iter().map(|word| with_values(word, &container.env)).collect();
    let run = kubelet.runtime.exec_sync(id, command.clone(), Some(timeout));
    // The runtime enforces the timeout; a little later so do we.
    match tokio::time::timeout(timeout + Duration::from_secs(1), run).await {
        Ok(Ok(output)) => {
            let mut text = [output.stdout, output.stderr].concat();
            text.truncate(OUTPUT_MAX_BYTES);
            let text = String::from_utf8_lossy(&text).into_owned();
            if output.exit_code == 0 { Attempt::Success } else { Attempt::Failure(text) }
        }
        Ok(Err(error)) if error.code() == "DeadlineExceeded" => {
            Attempt::Failure(timed_out(&command, timeout))
        }
        Ok(Err(error)) => Attempt::Error("unknown", error.to_string()),
        Err(_) => Attempt::Failure(timed_out(&command, timeout)),
    }
}

/// A word with the container's variables, as far as their values stand in the pod: a probe sees nothing else.
fn with_values(word: &str, env: &[EnvVar]) -> String {
    // Of a name that is there twice the last counts.
    expand(word, |name| env.iter().rev().find(|e| e.name == name).map(|e| e.value.clone()))
}

fn timed_out(command: &[String], timeout: Duration) -> String {
    format!("command timed out: {:?} timed out after {}", command.join(" "), go_duration(timeout))
}
