//! A pod's phase, from its containers' statuses.

use super::restart_all;
use super::snapshot::restarts_after;
use crate::view::{Container, Pod, PodStatus, Terminated};

fn starts_again(container: &Container, pod: &Pod, ended: &Terminated) -> bool {
    restarts_after(container, pod, ended.exit_code) || restart_all::was_removed(ended)
}

/// The phase, from the container statuses.
pub(super) fn compute(pod: &Pod, status: &PodStatus, terminal: bool) -> &'static str {
    let mut pending_init = 0;
    let mut pending_sidecars = 0;
    let mut failed_for_good = false;
    let (mut unknown, mut running, mut waiting, mut stopped, mut stopped_for_good, mut succeeded) =
        (0, 0, 0, 0, 0, 0);
    for container in &pod.spec.init_containers {
        let Some(s) = status.container(&container.name) else { continue };
        if container.is_sidecar() {
            if s.state.running.is_some() {
                running += 1;
                if s.started != Some(true) {
                    pending_sidecars += 1;
                }
            } else if s.state.waiting.is_some() && s.last_state.terminated.is_none() {
                pending_sidecars += 1;
                waiting += 1;
            }
            continue;
        }
        let ended = match (&s.state.terminated, &s.state.waiting) {
            (Some(ended), _) => Some(ended),
            (None, Some(_)) => s.last_state.terminated.as_ref(),
            _ => None,
        };
        match ended {
            None => pending_init += 1,
            Some(ended) if ended.exit_code != 0 => {
                failed_for_good |= !starts_again(container, pod, ended);
            }
            Some(_) => {}
        }
    }
    for container in &pod.spec.containers {
        let Some(s) = status.container(&container.name) else { continue };
        let ended = match (&s.state.terminated, &s.state.waiting) {
            (Some(ended), _) => Some(ended),
            (None, Some(_)) => s.last_state.terminated.as_ref(),
            _ => None,
        };
        if s.state.running.is_some() {
            running += 1;
        } else if let Some(ended) = ended {
            stopped += 1;
            stopped_for_good += i32::from(!starts_again(container, pod, ended));
            succeeded += i32::from(ended.exit_code == 0 && s.state.terminated.is_some());
        } else if s.state.waiting.is_some() {
            waiting += 1;
        } else {
            unknown += 1;
        }
    }
    let main_started = pod.spec.containers.iter().filter_map(|c| status.container(&c.name)).any(|s| {
        s.state.running.is_some() || s.state.terminated.is_some() || s.last_state.terminated.is_some()
    });
    if failed_for_good {
        return "Failed";
    }
    if pending_init > 0 || (pending_sidecars > 0 && !main_started) || waiting > 0 {
        return "Pending";
    }
    if running > 0 && unknown == 0 {
        return "Running";
    }
    if running == 0 && stopped > 0 && unknown == 0 {
        let restarting = !terminal && stopped != stopped_for_good;
        return match (restarting, stopped == succeeded) {
            (true, _) => "Running",
            (false, true) => "Succeeded",
            (false, false) => "Failed",
        };
    }
    "Pending"
}
