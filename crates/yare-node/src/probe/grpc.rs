//! gRPC probes: `grpc.health.v1.Health/Check` over plain HTTP/2, `SERVING` is success.
//!
//! What the server says it is: <https://github.com/grpc/grpc/blob/master/doc/health-checking.md>.

use std::time::Duration;

use prost::Message;
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

pub(crate) async fn probe(host: &str, action: &GrpcAction, timeout: Duration) -> Attempt {
    let address = tcp::authority(host, action.port);
    match tokio::time::timeout(timeout, check(host, action, timeout)).await {
        Ok(Ok(SERVING)) => Attempt::Success,
        Ok(Ok(status)) => {
            let name = STATUSES.get(status).copied().unwrap_or("UNKNOWN");
            Attempt::Failure(format!("service unhealthy (responded with {name:?})"))
        }
        Ok(Err(error)) => Attempt::Failure(error),
        Err(_) => Attempt::Failure(format!(
            "timeout: failed to connect service {address:?} within {}: context deadline exceeded",
            go_duration(timeout)
        )),
    }
}

async fn check(host: &str, action: &GrpcAction, timeout: Duration) -> Result<usize, String> {
    let address = tcp::authority(host, action.port);
    let stream = tcp::connect(host, action.port, timeout)
        .await
        .map_err(|e| format!("error: connection error: desc = \"transport: Error while dialing: {e}\""))?;
    let client =
        Client::over(stream).await.map_err(|e| format!("failed to connect service {address:?}: {e}"))?;
    let client = client.user_agent("kube-probe/1.36").answers_up_to(RESPONSE_MAX_BYTES);
    let request = HealthCheckRequest { service: action.service.clone().unwrap_or_default() };
    match client.call::<_, HealthCheckResponse>(CHECK, request, timeout).await {
        Ok(response) => Ok(usize::try_from(response.status).unwrap_or(0)),
        Err(status) if status.code() == Code::Unimplemented => Err(format!(
            "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {}",
            status.message()
        )),
        Err(status) if status.code() == Code::DeadlineExceeded => {
            Err(format!("timeout: health rpc did not complete within {}", go_duration(timeout)))
        }
        Err(status) => Err(format!("error: health rpc probe failed: {}", describe(&status))),
    }
}
