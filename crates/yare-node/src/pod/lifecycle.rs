//! Lifecycle hooks `postStart` and `preStop`: exec, httpGet, tcpSocket, sleep.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use yare_schema::kubernetes_minor;

use crate::kubelet::Kubelet;
use crate::metrics::table;
use crate::probe::http;
use crate::view::{Container, Handler, Pod};

/// An HTTP hook waits this long for its answer.
const HTTP_TIMEOUT: Duration = Duration::from_secs(60);

/// What hooks call themselves.
const USER_AGENT: &str = concat!("kube-lifecycle/", kubernetes_minor!());

/// Counts a sleep that is ended by others, unless it says that it is over.
struct CutShort<'a>(Option<&'a Kubelet>);

impl Drop for CutShort<'_> {
    fn drop(&mut self) {
        if let Some(kubelet) = self.0 {
            kubelet.metrics.count(&table::SLEEPS_CUT_SHORT, &[]);
        }
    }
}

/// Runs a hook to its end; the error is for the status, not for an event.
pub(crate) async fn run(
    kubelet: &Arc<Kubelet>,
    pod: &Pod,
    container: &Container,
    id: &str,
    ip: Option<IpAddr>,
    handler: &Handler,
) -> Result<(), String> {
    let place =
        || format!("for Container {:?} in Pod \"{}\" failed - error", container.name, pod.full_name());
    if let Some(exec) = &handler.exec {
        let words = exec.command.join(" ");
        return match kubelet.runtime.exec_sync(id, exec.command.clone(), None).await {
            Ok(output) if output.exit_code == 0 => Ok(()),
            Ok(output) => Err(format!(
                "Exec lifecycle hook ([{words}]) {}: command '{words}' exited with {}: {}, message: {:?}",
                place(),
                output.exit_code,
                String::from_utf8_lossy(&output.stderr),
                String::from_utf8_lossy(&[output.stdout, output.stderr.clone()].concat()),
            )),
            Err(error) => Err(format!("Exec lifecycle hook ([{words}]) {}: {error}, message: \"\"", place())),
        };
    }
    if let Some(get) = &handler.http_get {
        let failed = |error: String| format!("HTTP lifecycle hook ({}) {}: {error}", get.path, place());
        let request = http::Request::for_action(get, container, ip, USER_AGENT).map_err(failed)?;
        return match http::get(&request, Instant::now() + HTTP_TIMEOUT).await {
            Ok(_) => Ok(()),
            Err(error) if request.tls && error.plain_http => {
                let plain = http::Request { tls: false, ..request };
                let deadline = Instant::now() + HTTP_TIMEOUT;
                let outcome = http::get(&plain, deadline).await.map(drop).map_err(|e| failed(e.message));
                if outcome.is_ok() {
                    kubelet.metrics.count(&table::HOOK_FALLBACKS, &[]);
                }
                outcome
            }
            Err(error) => Err(failed(error.message)),
        };
    }
    if let Some(sleep) = &handler.sleep {
        let mut cut = CutShort(Some(kubelet));
        tokio::time::sleep(Duration::from_secs(sleep.seconds)).await;
        cut.0 = None;
        return Ok(());
    }
    if let Some(tcp) = &handler.tcp_socket {
        let port = container.resolve_port(&tcp.port)?;
        let host = if tcp.host.is_empty() {
            ip.map(|i| i.to_string()).unwrap_or_default()
        } else {
            tcp.host.clone()
        };
        return crate::probe::tcp::connect(&host, port, HTTP_TIMEOUT).await.map(drop);
    }
    Err("Cannot run handler: invalid handler: no action is set".to_owned())
}
