//! One exec or attach: a client's streams joined to a container's.
//!
//! In: the runtime's session and a client's streams, whatever carries them. Out: the exit status on the client's
//! error stream, as a `Status` object.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use yare_runtime::{BoxRead, ExecSession};
use yare_spdy::StreamWriter;

use super::websocket::ChannelWriter;

/// Output is read in blocks of this size.
const BLOCK_BYTES: usize = 32 << 10;
/// After the process has ended, its output is read on for this long: a child may hold the pipe open.
const DRAIN: Duration = Duration::from_secs(5);

/// A way to the client.
#[derive(Clone)]
pub(crate) enum Outlet {
    WebSocket(ChannelWriter),
    Spdy(StreamWriter),
}

impl Outlet {
    pub(crate) async fn write(&self, bytes: Bytes) -> bool {
        match self {
            Outlet::WebSocket(writer) => writer.write(bytes).await,
            Outlet::Spdy(writer) => writer.write(bytes).await,
        }
    }

    /// Ends the stream. Over WebSocket the end of the connection ends them all.
    pub(crate) async fn close(&self) {
        if let Outlet::Spdy(writer) = self {
            writer.close().await;
        }
    }
}

/// The client's end.
pub(crate) struct Peer {
    pub(crate) stdin: Option<mpsc::Receiver<Bytes>>,
    pub(crate) stdout: Option<Outlet>,
    pub(crate) stderr: Option<Outlet>,
    pub(crate) error: Option<Outlet>,
    /// Terminal sizes as JSON, possibly cut anywhere.
    pub(crate) resize: Option<mpsc::Receiver<Bytes>>,
    /// The first protocol version sends errors as text.
    pub(crate) plain_errors: bool,
    /// Cancelled when the client is gone.
    pub(crate) gone: CancellationToken,
}

/// Joins both ends until the process ends or the client leaves.
pub(crate) async fn run(session: ExecSession, mut peer: Peer) {
    let ExecSession { stdin, stdout, stderr, resize, exit } = session;
    let stop = CancellationToken::new();
    let _stop_on_return = stop.clone().drop_guard();
    if let (Some(mut to), Some(mut from)) = (stdin, peer.stdin.take()) {
        let stop = stop.clone();
        tokio::spawn(async move {
            let copy = async {
                while let Some(bytes) = from.recv().await {
                    if to.write_all(&bytes).await.is_err() || to.flush().await.is_err() {
                        return;
                    }
                }
                // The client closed its side: end of file for the process.
                let _ = to.shutdown().await;
            };
            tokio::select! { () = copy => {}, () = stop.cancelled() => {} }
        });
    }
    if let Some(mut from) = peer.resize.take() {
        let stop = stop.clone();
        tokio::spawn(async move {
            let copy = async {
                let mut buffer = BytesMut::new();
                while let Some(bytes) = from.recv().await {
                    buffer.extend_from_slice(&bytes);
                    for size in sizes(&mut buffer) {
                        if resize.send(size).await.is_err() {
                            return;
                        }
                    }
                }
            };
            tokio::select! { () = copy => {}, () = stop.cancelled() => {} }
        });
    }
    let outputs = futures::future::join(pump(stdout, peer.stdout.clone()), pump(stderr, peer.stderr.clone()));
    tokio::pin!(outputs);
    let mut exit = exit;
    let mut drained = false;
    let code = loop {
        tokio::select! {
            code = &mut exit => break code,
            _ = &mut outputs, if !drained => drained = true,
            () = peer.gone.cancelled() => return,
        }
    };
    if !drained {
        let _ = tokio::time::timeout(DRAIN, outputs).await;
    }
    let code = match code {
        Ok(code) => code,
        Err(error) => return fail(&peer, &error.to_string()).await,
    };
    if let Some(error) = &peer.error {
        report(error, &status_of(code), code, peer.plain_errors).await;
    }
    for outlet in [&peer.stdout, &peer.stderr, &peer.error].into_iter().flatten() {
        outlet.close().await;
    }
}

/// Tells a client that nothing could be started.
pub(crate) async fn fail(peer: &Peer, message: &str) {
    if let Some(error) = &peer.error {
        let status = json!({
            "metadata": {}, "status": "Failure", "message": format!("Internal error occurred: {message}"),
            "reason": "InternalError", "code": 500,
            "details": { "causes": [{ "message": message }] },
        });
        let bytes = if peer.plain_errors { message.to_owned() } else { status.to_string() };
        error.write(bytes.into()).await;
    }
    for outlet in [&peer.stdout, &peer.stderr, &peer.error].into_iter().flatten() {
        outlet.close().await;
    }
}

async fn report(error: &Outlet, status: &serde_json::Value, code: i32, plain: bool) {
    let text = match (plain, code) {
        (false, _) => status.to_string(),
        (true, 0) => return,
        (true, code) => format!("command terminated with non-zero exit code: exit status {code}"),
    };
    error.write(text.into()).await;
}

fn status_of(code: i32) -> serde_json::Value {
    if code == 0 {
        return json!({ "metadata": {}, "status": "Success" });
    }
    json!({
        "metadata": {},
        "status": "Failure",
        "message": format!("command terminated with non-zero exit code: exit status {code}"),
        "reason": "NonZeroExitCode",
        "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
    })
}

async fn pump(from: Option<BoxRead>, to: Option<Outlet>) {
    let Some(mut from) = from else { return };
    let mut buffer = BytesMut::with_capacity(BLOCK_BYTES);
    loop {
        buffer.reserve(BLOCK_BYTES);
        match from.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let bytes = buffer.split().freeze();
        // Without a taker the output is still read: a full pipe would stop the process.
        if let Some(to) = &to
            && !to.write(bytes).await
        {
            return;
        }
    }
}

/// Takes the complete sizes, `{"Width":80,"Height":24}`, off the front of a buffer.
fn sizes(buffer: &mut BytesMut) -> Vec<(u16, u16)> {
    #[derive(serde::Deserialize)]
    struct Size {
        #[serde(rename = "Width", alias = "width")]
        width: u16,
        #[serde(rename = "Height", alias = "height")]
        height: u16,
    }
    let mut out = Vec::new();
    let mut stream = serde_json::Deserializer::from_slice(buffer).into_iter::<Size>();
    let mut used = 0;
    for size in stream.by_ref() {
        let Ok(size) = size else { break };
        out.push((size.width, size.height));
    }
    used += stream.byte_offset();
    let _ = buffer.split_to(used.min(buffer.len()));
    // What never becomes a size must not pile up.
    if buffer.len() > 4096 {
        buffer.clear();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_come_in_pieces() {
        let mut buffer = BytesMut::from(&br#"{"Width":80,"Height":24}{"Width":1"#[..]);
        assert_eq!(sizes(&mut buffer), [(80, 24)]);
        buffer.extend_from_slice(br#"00,"Height":50}"#);
        assert_eq!(sizes(&mut buffer), [(100, 50)]);
    }
}
