//! Manifests in a directory, or one in a file: told by inotify, and looked at every `fileCheckFrequency` for
//! file systems that do not tell.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::inotify::AddWatchFlags;
use yare_client::Cached;

use super::decode::Maker;
use super::{BYTES_MAX, Source, Teller};
use crate::kubelet::Kubelet;
use crate::logs::watch::Watch;

/// Between a first change and a look: whoever writes several files has time to.
const SETTLE: Duration = Duration::from_millis(20);

pub(super) async fn follow(kubelet: Arc<Kubelet>, mut teller: Teller) {
    let settings = kubelet.config.settings();
    let path = PathBuf::from(&settings.static_pod_path);
    let period = settings.file_check_frequency.get().max(Duration::from_millis(100));
    let watch = match Watch::new() {
        Ok(watch) => Some(watch),
        Err(error) => {
            tracing::warn!(%error, "static pods are looked at from time to time only");
            None
        }
    };
    let flags = AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_ATTRIB
        | AddWatchFlags::IN_MOVE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_DELETE_SELF
        | AddWatchFlags::IN_MOVE_SELF;
    loop {
        // Watched before it is read, so that nothing falls between; a path that was replaced is watched anew.
        let is_watched = watch.as_ref().is_some_and(|watch| watch.add(&path, flags).is_ok());
        let (of, at) = (kubelet.clone(), path.clone());
        match tokio::task::spawn_blocking(move || read(&of, &at)).await {
            Ok(Ok(pods)) => teller.tell(pods).await,
            Ok(Err(error)) => tracing::warn!(error, path = %path.display(), "reading static pods"),
            Err(error) => tracing::warn!(%error, path = %path.display(), "reading static pods"),
        }
        let told = async {
            match &watch {
                Some(watch) if is_watched => watch.next().await.map(drop).is_ok(),
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            // A watch that fails would spin.
            fine = told => tokio::time::sleep(if fine { SETTLE } else { period }).await,
            () = tokio::time::sleep(period) => {}
        }
    }
}

/// All pods there. A file that holds none that can be run is told of and left out.
fn read(kubelet: &Kubelet, path: &Path) -> Result<Vec<Cached>, String> {
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error.to_string()),
    };
    if metadata.is_file() {
        return pod(kubelet, path).map(|pod| vec![pod]);
    }
    if !metadata.is_dir() {
        return Err("path is not a directory or file".to_owned());
    }
    let mut files: Vec<PathBuf> = std::fs::read_dir(path)
        .map_err(|e| e.to_string())?
        .flatten()
        .map(|entry| entry.path())
        .filter(|p| !p.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b".")))
        .collect();
    files.sort();
    let mut pods = Vec::new();
    for file in files {
        if !std::fs::metadata(&file).is_ok_and(|m| m.is_file()) {
            tracing::debug!(path = %file.display(), "not a file, so not a manifest");
            continue;
        }
        match pod(kubelet, &file) {
            Ok(pod) => pods.push(pod),
            Err(error) => tracing::warn!(error, path = %file.display(), "a manifest that cannot be run"),
        }
    }
    Ok(pods)
}

fn pod(kubelet: &Kubelet, path: &Path) -> Result<Cached, String> {
    let file = std::fs::File::open(path).map_err(|e| e.to_string())?;
    let mut bytes = Vec::new();
    file.take(BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    if bytes.len() > BYTES_MAX {
        return Err(format!("longer than {BYTES_MAX} bytes"));
    }
    let place = path.display().to_string();
    let now = kubelet.seams.now_text();
    let maker = Maker {
        source: Source::File,
        place: &place,
        node: &kubelet.node_name,
        gates: kubelet.config.gates(),
        now: &now,
    };
    maker.pods(&bytes)?.into_iter().next().ok_or_else(|| "no pod".to_owned())
}
