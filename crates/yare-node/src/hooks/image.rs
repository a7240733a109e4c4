//! The image: present, or pulled, or the reason why not.
//!
//! Pull policies, back-off (10 s … 5 min per pod and image) and the events around a pull, worded as upstream's.

use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;
use yare_client::EventKind;
use yare_runtime::ImageStatus;

use super::{ContainerHook, ContainerStart, StartFailure, credentials};
use crate::clock::go_duration;
use crate::metrics::{size_bucket, table};

pub(crate) struct Image;

#[async_trait]
impl ContainerHook for Image {
    fn name(&self) -> &'static str {
        "image"
    }

    async fn apply(&self, start: &mut ContainerStart<'_>) -> Result<(), StartFailure> {
        let image = ensure(start).await?;
        start.config.image.clone_from(&image.id);
        start.config.user_specified_image.clone_from(&start.container.image);
        start.config.stop_signal =
            start.container.lifecycle.as_ref().and_then(|l| l.stop_signal.clone()).unwrap_or_default();
        start.image = Some(image);
        Ok(())
    }
}

/// `busybox` means `busybox:latest`.
pub(crate) fn with_default_tag(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    if last.contains(':') || last.contains('@') { image.to_owned() } else { format!("{image}:latest") }
}

fn failure(reason: &str, message: String) -> StartFailure {
    StartFailure { reason: reason.to_owned(), message, event: format!("Error: {reason}"), retry_at: None }
}

async fn ensure(start: &mut ContainerStart<'_>) -> Result<ImageStatus, StartFailure> {
    let requested = start.container.image.clone();
    let image = with_default_tag(&requested);
    let (kubelet, pod, name) = (start.kubelet.clone(), start.pod.clone(), start.container.name.clone());
    let event =
        |kind, reason: &str, message: String| kubelet.pod_event(&pod, Some(&name), kind, reason, message);
    if image.is_empty()
        || image.chars().any(char::is_whitespace)
        || image.chars().any(char::is_uppercase) && !valid(&image)
    {
        let message = format!(
            "Failed to apply default image tag {requested:?}: couldn't parse image name {requested:?}: invalid reference format"
        );
        event(EventKind::Warning, "InspectFailed", message.clone());
        return Err(failure("InvalidImageName", message));
    }
    let policy = start.container.pull_policy().to_owned();
    if policy != "Always" {
        let present = kubelet.runtime.image(&image).await.map_err(|e| {
            let message = format!("Failed to inspect image {image:?}: {e}");
            event(EventKind::Warning, "InspectFailed", message.clone());
            failure("ImageInspectError", message)
        })?;
        if let Some(present) = present {
            let text = format!(
                "Container image {requested:?} already present on machine and can be accessed by the pod"
            );
            event(EventKind::Normal, "Pulled", text);
            return Ok(present);
        }
        if policy == "Never" {
            let message = format!("Container image {requested:?} is not present with pull policy of Never");
            event(EventKind::Warning, "ErrImageNeverPull", message.clone());
            return Err(failure("ErrImageNeverPull", message));
        }
    }
    pull(start, &requested, &image).await
}

/// Upper case is fine in a tag or a registry's port, not in a repository's path.
fn valid(image: &str) -> bool {
    let name = image.split('@').next().unwrap_or(image);
    let path = match name.rfind(':') {
        Some(colon) if !name[colon..].contains('/') => &name[..colon],
        _ => name,
    };
    let repository = path.split_once('/').map_or(path, |(_, rest)| rest);
    !repository.chars().any(char::is_uppercase)
}

async fn pull(
    start: &mut ContainerStart<'_>,
    requested: &str,
    image: &str,
) -> Result<ImageStatus, StartFailure> {
    let (kubelet, pod, name) = (start.kubelet.clone(), start.pod.clone(), start.container.name.clone());
    let event =
        |kind, reason: &str, message: String| kubelet.pod_event(&pod, Some(&name), kind, reason, message);
    let now = kubelet.seams.now();
    if let Some(until) = start.pulls.backoffs.held_since_update(image, now) {
        let mut message = format!("Back-off pulling image {requested:?}");
        event(EventKind::Normal, "BackOff", message.clone());
        if let Some(before) = start.pulls.errors.get(image) {
            message = format!("{message}: {before}");
        }
        return Err(StartFailure { retry_at: Some(until), ..failure("ImagePullBackOff", message) });
    }
    start.pulls.errors.remove(image);
    event(EventKind::Normal, "Pulling", format!("Pulling image {requested:?}"));
    let began = Instant::now();
    let pulled = pull_with_credentials(start, image).await;
    let took = Duration::from_millis(u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX));
    match pulled {
        Some(Ok(status)) => {
            start.pulls.spent += took;
            let size = size_bucket(status.size_bytes);
            kubelet.metrics.took(&table::IMAGE_PULL_DURATION, &[size], took);
            let took = go_duration(took);
            let text = format!(
                "Successfully pulled image {requested:?} in {took} ({took} including waiting). Image size: {} bytes.",
                status.size_bytes
            );
            event(EventKind::Normal, "Pulled", text);
            start.pulls.backoffs.forget(image);
            Ok(status)
        }
        Some(Err(error)) => {
            event(EventKind::Warning, "Failed", format!("Failed to pull image {requested:?}: {error}"));
            let now = kubelet.seams.now();
            start.pulls.backoffs.next(image, now);
            start.pulls.errors.insert(image.to_owned(), format!("ErrImagePull: {error}"));
            let retry_at = start.pulls.backoffs.held_since_update(image, now);
            Err(StartFailure { retry_at, ..failure("ErrImagePull", error) })
        }
        // The pod is to stop; the pull goes on by itself and serves the next one.
        None => Err(failure("ErrImagePull", "the pod is stopping".to_owned())),
    }
}

/// Tries each login that fits, then none. `None`: the pod is to stop meanwhile.
async fn pull_with_credentials(
    start: &ContainerStart<'_>,
    image: &str,
) -> Option<Result<ImageStatus, String>> {
    let logins: Vec<_> =
        credentials::matching(start.credentials, image).into_iter().cloned().map(Some).collect();
    let logins = if logins.is_empty() { vec![None] } else { logins };
    let runtime = start.kubelet.runtime.clone();
    let reference = image.to_owned();
    // In a task of its own: dropping a pull half way would throw away what is on disk already.
    let task = tokio::spawn(async move {
        let mut last = String::new();
        for login in logins {
            match runtime.pull_image(&reference, login, None).await {
                Ok(id) => {
                    return match runtime.image(&id).await {
                        Ok(Some(status)) => Ok(status),
                        Ok(None) => Err(format!("image {reference:?} vanished after it was pulled")),
                        Err(error) => Err(error.to_string()),
                    };
                }
                Err(error) => last = error.to_string(),
            }
        }
        Err(last)
    });
    tokio::select! {
        done = task => Some(done.unwrap_or_else(|e| Err(format!("the pull was aborted: {e}")))),
        () = start.mailbox.stopping() => None,
    }
}
