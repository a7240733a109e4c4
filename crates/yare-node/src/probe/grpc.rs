//! gRPC probes: `grpc.health.v1.Health/Check` over plain HTTP/2, `SERVING` is success.
//!
//! What the server says it is: <https://github.com/grpc/grpc/blob/master/doc/health-checking.md>.

use std::time::Duration;

use prost::Message;
use tokio::time::Instant;
use yare_grpc::{Client, Code, describe};

use super::{Attempt, tcp};
use crate::clock::go_duration;
use crate::view::GrpcAction;

const CHECK: &str = "/grpc.health.v1.Health/Check";
const RESPONSE_MAX_BYTES: usize = 4 << 10;

/// Names of `HealthCheckResponse.ServingStatus`, by number.
const STATUSES: &[&str] = &["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];
const SERVING: usize = 1;

#[derive(Clone, PartialEq, Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// Between attempts to connect: gRPC's own back-off (it is jittered by a fifth there; nobody crowds one pod here).
const RETRY: Duration = Duration::from_secs(1);
const RETRY_FACTOR: f64 = 1.6;

pub(crate) async fn probe(host: &str, action: &GrpcAction, timeout: Duration) -> Attempt {
    let address = tcp::authority(host, action.port);
    // One deadline for the connection and the call.
    let deadline = Instant::now() + timeout;
    let Ok(client) = tokio::time::timeout_at(deadline, connect(host, action.port)).await else {
        return Attempt::Failure(format!(
            "timeout: failed to connect service {address:?} within {}: context deadline exceeded",
            go_duration(timeout)
        ));
    };
    let late = || format!("timeout: health rpc did not complete within {}", go_duration(timeout));
    let client = client.user_agent("kube-probe/1.36").answers_up_to(RESPONSE_MAX_BYTES);
    let request = HealthCheckRequest { service: action.service.clone().unwrap_or_default() };
    let left = deadline.saturating_duration_since(Instant::now());
    let answer = client.call::<_, HealthCheckResponse>(CHECK, request, left);
    Attempt::Failure(match tokio::time::timeout_at(deadline, answer).await {
        Ok(Ok(response)) => match usize::try_from(response.status).unwrap_or(0) {
            SERVING => return Attempt::Success,
            status => {
                let name = STATUSES.get(status).copied().unwrap_or("UNKNOWN");
                format!("service unhealthy (responded with {name:?})")
            }
        },
        Ok(Err(status)) => match status.code() {
            Code::Unimplemented => format!(
                "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {}",
                status.message()
            ),
            Code::DeadlineExceeded => late(),
            _ => format!("error: health rpc probe failed: {}", describe(&status)),
        },
        Err(_) => late(),
    })
}

/// Connects, and again until it works: a refusal is none before the time is over.
async fn connect(host: &str, port: u16) -> Client {
    let mut wait = RETRY;
    loop {
        if let Ok(stream) = tcp::dial(host, port).await
            && let Ok(client) = Client::over(stream).await
        {
            return client;
        }
        tokio::time::sleep(wait).await;
        wait = wait.mul_f64(RETRY_FACTOR);
    }
}
