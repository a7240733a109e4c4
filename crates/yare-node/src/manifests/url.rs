//! Manifests behind `staticPodURL`, asked for every `httpCheckFrequency`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Uri, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use yare_auth::tls::{Speaks, Trust, outside_client};

use super::decode::Maker;
use super::{BYTES_MAX, Source, Teller};
use crate::kubelet::Kubelet;

/// An answer must be there within this time.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Failures in a row that are told of.
const TOLD_MAX: u32 = 3;

pub(super) async fn follow(kubelet: Arc<Kubelet>, mut teller: Teller) {
    let settings = kubelet.config.settings();
    let url = &settings.static_pod_url;
    let period = settings.http_check_frequency.get().max(Duration::from_millis(100));
    let mut failures = 0;
    let mut last = Bytes::new();
    loop {
        let got = tokio::time::timeout(TIMEOUT, get(&kubelet)).await;
        let outcome = match got.unwrap_or_else(|_| Err("timed out".to_owned())) {
            Ok(bytes) if bytes.is_empty() => {
                teller.tell(Vec::new()).await;
                Err(format!("zero-length data received from {url}"))
            }
            Ok(bytes) if bytes == last => Ok(()),
            Ok(bytes) => {
                let now = kubelet.seams.now_text();
                let maker = Maker {
                    source: Source::Url,
                    place: url,
                    node: &kubelet.node_name,
                    gates: kubelet.config.gates(),
                    now: &now,
                };
                let made = maker.pods(&bytes);
                last = bytes;
                match made {
                    Ok(pods) => {
                        teller.tell(pods).await;
                        Ok(())
                    }
                    Err(error) => Err(format!("{url}: {error}")),
                }
            }
            Err(error) => Err(error),
        };
        match outcome {
            Ok(()) => failures = 0,
            Err(error) => {
                failures += 1;
                if failures <= TOLD_MAX {
                    tracing::warn!(error, "Failed to read pods from URL");
                }
            }
        }
        tokio::time::sleep(period).await;
    }
}

async fn get(kubelet: &Kubelet) -> Result<Bytes, String> {
    let settings = kubelet.config.settings();
    let uri: Uri = settings.static_pod_url.parse().map_err(|e| format!("staticPodURL: {e}"))?;
    let host = uri.host().ok_or("staticPodURL has no host")?;
    let tls = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
    let mut request = http::Request::get(uri.path_and_query().map_or("/", |p| p.as_str()))
        .header(header::HOST, uri.authority().map_or(host, |a| a.as_str()))
        .body(Empty::<Bytes>::new())
        .map_err(|e| e.to_string())?;
    for (name, values) in &settings.static_pod_url_header {
        for value in values {
            let name: HeaderName =
                name.parse().map_err(|_| format!("staticPodURLHeader: {name:?} is no header"))?;
            // Values may be secrets: they are not told.
            let value: HeaderValue =
                value.parse().map_err(|_| format!("staticPodURLHeader: the value of {name} is none"))?;
            request.headers_mut().append(name, value);
        }
    }
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((bare, port)).await.map_err(|e| format!("{host}:{port}: {e}"))?;
    if !tls {
        return ask(stream, request).await;
    }
    let config = outside_client(Trust::System, None, Speaks::Http1).map_err(|e| e.to_string())?;
    let name = ServerName::try_from(bare.to_owned()).map_err(|e| e.to_string())?;
    let stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await;
    ask(stream.map_err(|e| format!("{host}:{port}: {e}"))?, request).await
}

async fn ask<S>(stream: S, request: http::Request<Empty<Bytes>>) -> Result<Bytes, String>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    let talk = async move {
        let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
        if response.status() != http::StatusCode::OK {
            return Err(response.status().to_string());
        }
        let body = Limited::new(response.into_body(), BYTES_MAX).collect().await;
        body.map(|b| b.to_bytes()).map_err(|e| e.to_string())
    };
    tokio::pin!(talk, connection);
    tokio::select! {
        answer = &mut talk => answer,
        ended = &mut connection => match ended {
            // The answer may have come with the connection's end.
            Ok(()) => talk.await,
            Err(error) => Err(error.to_string()),
        },
    }
}
