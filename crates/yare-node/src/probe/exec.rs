//! Exec probes: a command in the container; exit code 0 is success.

use std::time::Duration;

use super::Attempt;
use crate::clock::go_duration;
use crate::kubelet::Kubelet;
use crate::view::ExecAction;

/// Output that goes into an event.
const OUTPUT_MAX_BYTES: usize = 10 << 10;

pub(crate) async fn probe(kubelet: &Kubelet, id: &str, action: &ExecAction, timeout: Duration) -> Attempt {
    let run = kubelet.runtime.exec_sync(id, action.command.clone(), Some(timeout));
    // The runtime enforces the timeout; a little later so do we.
    match tokio::time::timeout(timeout + Duration::from_secs(1), run).await {
        Ok(Ok(output)) => {
            let mut text = [output.stdout, output.stderr].concat();
            text.truncate(OUTPUT_MAX_BYTES);
            let text = String::from_utf8_lossy(&text).into_owned();
            if output.exit_code == 0 { Attempt::Success } else { Attempt::Failure(text) }
        }
        Ok(Err(error)) if error.code() == "DeadlineExceeded" => Attempt::Failure(timed_out(action, timeout)),
        Ok(Err(error)) => Attempt::Error(error.to_string()),
        Err(_) => Attempt::Failure(timed_out(action, timeout)),
    }
}

fn timed_out(action: &ExecAction, timeout: Duration) -> String {
    format!("command timed out: {:?} timed out after {}", action.command.join(" "), go_duration(timeout))
}
