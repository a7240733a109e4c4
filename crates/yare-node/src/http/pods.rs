//! `/pods` and `/runningpods`: what the kubelet has been told to run, and what runs.

use bytes::Bytes;
use http::{Response, StatusCode};

use super::{Body, respond};
use crate::kubelet::Kubelet;
use crate::manifests::mirror;

/// A `PodList` made of the cached bytes.
pub(super) fn list(kubelet: &Kubelet, running_only: bool) -> Response<Body> {
    let published = kubelet.published.lock();
    let runs = |uid: &str| published.get(uid).is_some_and(|p| p.0.lock().sandbox.is_some());
    let mut out = Vec::from(&br#"{"kind":"PodList","apiVersion":"v1","metadata":{},"items":["#[..]);
    let mut first = true;
    // A static pod is shown as it runs, not as its mirror.
    let own = kubelet.pods.list().into_iter().filter(|pod| mirror::digest(pod).is_none());
    for pod in kubelet.statics.list().into_iter().chain(own) {
        if running_only && !runs(pod.uid()) {
            continue;
        }
        if !std::mem::replace(&mut first, false) {
            out.push(b',');
        }
        out.extend_from_slice(pod.bytes());
    }
    out.extend_from_slice(b"]}");
    respond(StatusCode::OK, "application/json", Bytes::from(out))
}
