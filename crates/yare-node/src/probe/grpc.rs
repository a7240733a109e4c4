//! gRPC probes: `grpc.health.v1.Health/Check` over plain HTTP/2, `SERVING` is success.
//!
//! The one call needs three protobuf fields, written and read by hand here.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::{Attempt, tcp};
use crate::clock::go_duration;
use crate::view::GrpcAction;

const RESPONSE_MAX_BYTES: usize = 4 << 10;
/// `UNIMPLEMENTED`: the server has no health service.
const UNIMPLEMENTED: &str = "12";

/// Names of `HealthCheckResponse.ServingStatus`, by number.
const STATUSES: &[&str] = &["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];

pub(crate) async fn probe(host: &str, action: &GrpcAction, timeout: Duration) -> Attempt {
    let address = tcp::authority(host, action.port);
    match tokio::time::timeout(timeout, check(host, action, timeout)).await {
        Ok(Ok(1)) => Attempt::Success,
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
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(|e| format!("failed to connect service {address:?}: {e}"))?;
    let connection = tokio::spawn(connection);
    let request = http::Request::post(format!("http://{address}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "kube-probe/1.36")
        .body(Full::new(encode(action.service.as_deref().unwrap_or_default())))
        .map_err(|e| e.to_string())?;
    let outcome = async {
        let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
        let early = response.headers().get("grpc-status").and_then(|v| v.to_str().ok()).map(str::to_owned);
        let body = Limited::new(response.into_body(), RESPONSE_MAX_BYTES).collect().await.map_err(|e| e.to_string())?;
        let late = body.trailers().and_then(|t| t.get("grpc-status")).and_then(|v| v.to_str().ok()).map(str::to_owned);
        match early.or(late).as_deref() {
            None | Some("0") => Ok(decode(&body.to_bytes())),
            Some(UNIMPLEMENTED) => Err(format!("error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {address}")),
            Some(code) => Err(format!("error: health rpc probe failed: grpc status {code}")),
        }
    }
    .await;
    connection.abort();
    outcome
}

/// `HealthCheckRequest { string service = 1; }` with gRPC's five-byte prefix.
fn encode(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(0x0a);
        let mut len = service.len();
        while len >= 0x80 {
            message.put_u8(u8::try_from(len & 0x7f).unwrap_or(0) | 0x80);
            len >>= 7;
        }
        message.put_u8(u8::try_from(len).unwrap_or(0));
        message.put_slice(service.as_bytes());
    }
    let mut frame = BytesMut::with_capacity(message.len() + 5);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(0));
    frame.extend_from_slice(&message);
    frame.freeze()
}

/// `HealthCheckResponse { ServingStatus status = 1; }`: 0 when it is absent.
fn decode(frame: &[u8]) -> usize {
    match frame.get(5..) {
        Some([0x08, status, ..]) => usize::from(*status),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages() {
        assert_eq!(encode("").as_ref(), [0, 0, 0, 0, 0]);
        assert_eq!(encode("ab").as_ref(), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(decode(&[0, 0, 0, 0, 2, 0x08, 1]), 1);
        assert_eq!(decode(&[0, 0, 0, 0, 0]), 0);
    }
}
