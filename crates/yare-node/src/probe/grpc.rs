//! gRPC probes: `grpc.health.v1.Health/Check` over plain HTTP/2, `SERVING` is success.
//!
//! What the server says it is: <https://github.com/grpc/grpc/blob/master/doc/health-checking.md>.

use std::time::Duration;

use prost::Message;
use tokio::time::Instant;
use yare_grpc::{Client, Code, describe};

use super::{Attempt, http::USER_AGENT, tcp};
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
    // One deadline for the connection and the call.
    let deadline = Instant::now() + timeout;
    let (name, port) = (host.to_owned(), action.port);
    let client = Client::dialing(move || {
        let name = name.clone();
        async move { tcp::dial(&name, port).await }
    });
    let client = client.user_agent(USER_AGENT).answers_up_to(RESPONSE_MAX_BYTES);
    // Whoever does not speak HTTP/2 is as little there as who refuses, until the time is over.
    if tokio::time::timeout_at(deadline, client.connect()).await.is_err() {
        return Attempt::Failure(format!(
            "timeout: failed to connect service {address:?} within {}: context deadline exceeded",
            go_duration(timeout)
        ));
    }
    let late = || format!("timeout: health rpc did not complete within {}", go_duration(timeout));
    let request = HealthCheckRequest { service: action.service.clone().unwrap_or_default() };
    let left = deadline.saturating_duration_since(Instant::now());
    let answer = client.call::<_, HealthCheckResponse>(CHECK, request, left);
    Attempt::Failure(match tokio::time::timeout_at(deadline, answer).await {
        Ok(Ok(response)) => match usize::try_from(response.status).unwrap_or(usize::MAX) {
            SERVING => return Attempt::Success,
            status => {
                let number = response.status.to_string();
                let name = STATUSES.get(status).copied().unwrap_or(&number);
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    const SETTINGS: &[u8] = b"\0\0\0\x04\0\0\0\0\0";
    /// Longer than any answer takes.
    const LONG: Duration = Duration::from_secs(30);

    /// What a server does with a connection; then it closes it.
    #[derive(Clone, Copy, Debug)]
    enum Does {
        /// Says something as soon as somebody is there.
        Says(&'static [u8]),
        /// Closes with a reset.
        Resets,
        /// Settings first; something else when it is asked, for the first time and for later ones.
        Answers(&'static [u8], &'static [u8]),
        /// Keeps quiet, after it said something.
        Stalls(&'static [u8]),
    }

    /// Reads until a request came.
    async fn asked(stream: &mut TcpStream) -> std::io::Result<()> {
        stream.read_exact(&mut [0; 24]).await?;
        loop {
            let mut header = [0; 9];
            stream.read_exact(&mut header).await?;
            let length = u32::from_be_bytes([0, header[0], header[1], header[2]]);
            stream.read_exact(&mut vec![0; length as usize]).await?;
            if header[3] == 1 {
                return Ok(());
            }
        }
    }

    async fn converse(mut stream: TcpStream, does: Does, turn: usize) -> std::io::Result<()> {
        match does {
            Does::Says(words) => stream.write_all(words).await?,
            Does::Resets => stream.set_zero_linger()?,
            Does::Answers(first, later) => {
                stream.write_all(SETTINGS).await?;
                asked(&mut stream).await?;
                stream.write_all(if turn == 0 { first } else { later }).await?;
            }
            Does::Stalls(words) => {
                stream.write_all(words).await?;
                std::future::pending::<()>().await;
            }
        }
        // What came is read, so that closing is no reset.
        if !matches!(does, Does::Resets) {
            stream.shutdown().await?;
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
        Ok(())
    }

    /// What a probe says of a server, its address left out, and how often the server was asked.
    async fn said(does: Does, timeout: Duration) -> (String, usize) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let turns = Arc::new(AtomicUsize::new(0));
        let counted = turns.clone();
        let server = tokio::spawn(async move {
            let mut talks = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                talks.spawn(converse(stream, does, counted.fetch_add(1, Ordering::SeqCst)));
            }
        });
        let action = GrpcAction { port, service: None };
        let text = match probe("127.0.0.1", &action, timeout).await {
            Attempt::Failure(text) => text.replace(&port.to_string(), "PORT"),
            other => format!("{other:?}"),
        };
        server.abort();
        (text, turns.load(Ordering::SeqCst))
    }

    #[tokio::test]
    async fn who_does_not_speak_http_2_is_not_there() {
        for does in [
            Does::Says(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n"),
            Does::Says(b"220 mail.example.com ESMTP\r\n"),
            Does::Says(b"\0\0"),
            Does::Says(b""),
            Does::Resets,
            Does::Stalls(b""),
        ] {
            let (text, turns) = said(does, Duration::from_millis(1300)).await;
            let want = "timeout: failed to connect service \"127.0.0.1:PORT\" within 1.3s: context deadline exceeded";
            assert_eq!(text, want, "{does:?}");
            // Connections are tried again after a second.
            let again = if matches!(does, Does::Stalls(_)) { 1 } else { 2 };
            assert_eq!(turns, again, "{does:?}");
        }
    }

    #[tokio::test]
    async fn calls_that_come_to_nothing() {
        const REFUSED: &[u8] = b"\0\0\x04\x03\0\0\0\0\x01\0\0\0\x07";
        const LEAVING: &[u8] = b"\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\0";
        const INTERNAL: &[u8] = b"\0\0\x04\x03\0\0\0\0\x01\0\0\0\x02";
        let failed = |status: &str| format!("error: health rpc probe failed: rpc error: code = {status}");
        let reset = |code: &str, reason: &str| {
            failed(&format!("{code} desc = stream terminated by RST_STREAM with error code: {reason}"))
        };
        let broken = failed("Unavailable desc = connection error: desc = \"error reading from server: EOF\"");
        for (first, later, want, want_turns) in [
            (&b""[..], &b""[..], broken.clone(), 1),
            (INTERNAL, b"", reset("Internal", "INTERNAL_ERROR"), 1),
            // CANCEL.
            (b"\0\0\x04\x03\0\0\0\0\x01\0\0\0\x08", b"", reset("Canceled", "CANCEL"), 1),
            // A server that has not looked at the call is asked again.
            (REFUSED, INTERNAL, reset("Internal", "INTERNAL_ERROR"), 2),
            (LEAVING, INTERNAL, reset("Internal", "INTERNAL_ERROR"), 2),
            // An answer of plain HTTP/2: `:status 404` alone, the stream's end.
            (
                b"\0\0\x01\x01\x05\0\0\0\x01\x8d",
                b"",
                "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): \
                 unexpected HTTP status code received from server: 404 (Not Found); malformed header: missing \
                 HTTP content-type"
                    .to_owned(),
                1,
            ),
            // `:status 200`, a content type of gRPC, no message and no trailers.
            (
                b"\0\0\x13\x01\x04\0\0\0\x01\x88\x5f\x10application/grpc\0\0\0\0\x01\0\0\0\x01",
                b"",
                failed("Internal desc = server closed the stream without sending trailers"),
                1,
            ),
        ] {
            let (text, turns) = said(Does::Answers(first, later), LONG).await;
            assert_eq!((text, turns), (want, want_turns), "{first:?}");
        }
        let (text, _) = said(Does::Stalls(SETTINGS), Duration::from_millis(500)).await;
        assert_eq!(text, "timeout: health rpc did not complete within 500ms");
    }
}
