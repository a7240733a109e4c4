//! Images for pods: present and allowed, or pulled, or the reason why not.
//!
//! In: an image by the name a pod has for it, its pull policy, and the pod's logins. Out: the image on the node.
//! Here are the policies, the back-off (10 s … 5 min per pod and image) and the events around a pull, worded as
//! upstream's; [`puller`] limits pulls, [`keyring`] finds logins, [`verification`] knows who may use what is there,
//! [`providers`] are programs that know more logins.

pub(crate) mod keyring;
pub mod providers;
pub(crate) mod puller;
pub(crate) mod verification;
pub(crate) mod volumes;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::time::Instant;
use yare_client::EventKind;
use yare_runtime::ImageStatus;

use crate::clock::{go_duration, rfc3339};
use crate::config::Configuration;
use crate::kubelet::Kubelet;
use crate::metrics::{size_bucket, table};
use crate::pod::backoff::Backoffs;
use crate::pod::mailbox::Mailbox;
use crate::view::Pod;
use keyring::Login;
use providers::Providers;
use puller::{Puller, Turn};
use verification::{Known, Verification};

/// The gate without which images are everybody's.
const GATE: &str = "KubeletEnsureSecretPulledImages";

/// What one node knows of images and their pulls.
pub(crate) struct Images {
    puller: Puller,
    /// None: whoever is on the node may use what is there.
    verification: Option<Verification>,
    providers: Providers,
    pods: Mutex<HashMap<String, Pulls>>,
}

/// Image pulls of one pod: when to try those again that failed, and what was said.
#[derive(Default)]
struct Pulls {
    backoffs: Backoffs,
    errors: HashMap<String, String>,
    /// Time that went into those that succeeded.
    spent: Duration,
}

/// An image that a pod wants.
pub(crate) struct Wish<'a> {
    pub(crate) kubelet: &'a Arc<Kubelet>,
    pub(crate) mailbox: &'a Arc<Mailbox>,
    pub(crate) pod: &'a Arc<Pod>,
    /// The container whose image it is; none: a volume's.
    pub(crate) container: Option<&'a str>,
    /// As the pod says it.
    pub(crate) image: &'a str,
    /// `Always`, `IfNotPresent`, `Never`
    pub(crate) policy: &'a str,
    /// Logins of the pod's secrets.
    pub(crate) logins: &'a [Login],
}

/// Why there is no image.
#[derive(Debug, Clone)]
pub(crate) struct Lacking {
    /// `ErrImagePull` and its like.
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    /// When to try again, if that is known.
    pub(crate) retry_at: Option<Timestamp>,
}

fn lacking(reason: &'static str, message: String) -> Lacking {
    Lacking { reason, message, retry_at: None }
}

/// `busybox` means `busybox:latest`.
pub(crate) fn with_default_tag(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    if last.contains(':') || last.contains('@') { image.to_owned() } else { format!("{image}:latest") }
}

/// Upper case is fine in a tag or a registry's port, not in a repository's path.
fn is_valid(image: &str) -> bool {
    let path = keyring::without_tag(image);
    let repository = path.split_once('/').map_or(path, |(_, rest)| rest);
    !image.is_empty()
        && !image.chars().any(char::is_whitespace)
        && !repository.chars().any(char::is_uppercase)
}

impl Images {
    pub(crate) fn new(config: &Configuration, data_dir: &Path, providers: Providers) -> Self {
        let settings = config.settings();
        Images {
            puller: Puller::new(settings),
            verification: config.gates().is_on(GATE).then(|| Verification::new(settings, data_dir)),
            providers,
            pods: Mutex::default(),
        }
    }

    /// Takes up what the agent was doing when it ended last.
    pub(crate) fn restore(&self, images: &[ImageStatus], now: Timestamp) {
        if let Some(verification) = &self.verification {
            verification.restore(images, &rfc3339(now));
        }
    }

    /// Forgets images that are not there any more; what was pulled since `before` stays.
    pub(crate) fn prune(&self, images: &[ImageStatus], before: Timestamp) {
        if let Some(verification) = &self.verification {
            verification.prune(images, &rfc3339(before));
        }
    }

    /// Forgets a pod that is gone.
    pub(crate) fn forget(&self, uid: &str) {
        self.pods.lock().remove(uid);
    }

    /// Time that a pod's pulls took.
    pub(crate) fn spent(&self, uid: &str) -> Duration {
        self.pods.lock().get(uid).map_or(Duration::ZERO, |pulls| pulls.spent)
    }

    /// How many pulls and images are remembered, if they are.
    pub(crate) fn on_record(&self) -> Option<(usize, usize)> {
        self.verification.as_ref().map(Verification::count)
    }

    fn of_pod<T>(&self, pod: &Pod, change: impl FnOnce(&mut Pulls) -> T) -> T {
        change(self.pods.lock().entry(pod.metadata.uid.clone()).or_default())
    }

    /// Whether the pod may use an image that is there, and the logins that were looked up to know it.
    async fn may_use(&self, wish: &Wish<'_>, image: &str, id: &str) -> (bool, Option<Vec<Login>>) {
        let Some(verification) = &self.verification else { return (true, None) };
        let (known, why) = verification.known(wish.image, id);
        let (may_use, why, logins) = match known {
            Known::Open => (true, why, None),
            Known::Closed => (false, why, None),
            Known::Shared => {
                let logins = wish.logins(image).await;
                let now = rfc3339(wish.kubelet.seams.now());
                let may_use = verification.admits(wish.image, id, &logins, &now);
                let why = if may_use { verification::RECORD_FOUND } else { verification::MUST_AUTHENTICATE };
                (may_use, why, Some(logins))
            }
        };
        wish.kubelet.metrics.count(&table::IMAGE_CHECKS, &[why]);
        (may_use, logins)
    }
}

impl Wish<'_> {
    fn event(&self, kind: EventKind, reason: &str, message: String) {
        self.kubelet.pod_event(self.pod, self.container, kind, reason, message);
    }

    /// All logins that fit: the pod's, the node's, those of providers.
    async fn logins(&self, image: &str) -> Vec<Login> {
        let mut found = keyring::fitting(self.logins, image);
        found.extend(keyring::fitting(&keyring::of_node(&self.kubelet.data_dir), image));
        let provided = self.kubelet.images.providers.logins(self.kubelet, self.pod, image).await;
        found.extend(keyring::fitting(&provided, image));
        found
    }
}

/// What is counted of a wish: whether the image was there, and whether it had to be pulled, if that came to be known.
#[derive(Default)]
struct Course {
    present: Option<bool>,
    pull: Option<bool>,
}

/// The image, pulled if that is needed.
pub(crate) async fn ensure(wish: &Wish<'_>) -> Result<ImageStatus, Lacking> {
    let mut course = Course::default();
    let outcome = find_or_pull(wish, &mut course).await;
    let word = |known: Option<bool>| match known {
        None => "unknown",
        Some(true) => "true",
        Some(false) => "false",
    };
    let policy = wish.policy.to_lowercase();
    let labels = [word(course.present), &policy, word(course.pull)];
    wish.kubelet.metrics.count(&table::IMAGE_REQUESTS, &labels);
    outcome
}

async fn find_or_pull(wish: &Wish<'_>, course: &mut Course) -> Result<ImageStatus, Lacking> {
    let (kubelet, requested) = (wish.kubelet, wish.image);
    let image = with_default_tag(requested);
    if !is_valid(&image) {
        let message = format!(
            "Failed to apply default image tag {requested:?}: couldn't parse image name {requested:?}: invalid reference format"
        );
        wish.event(EventKind::Warning, "InspectFailed", message.clone());
        return Err(lacking("InvalidImageName", message));
    }
    let mut logins = None;
    let present = kubelet.runtime.image(&image).await;
    // A built-in image has no registry to be asked.
    let is_own = matches!(&present, Ok(Some(found)) if found.built_in);
    if wish.policy != "Always" || is_own {
        let present = present.map_err(|e| {
            let message = format!("Failed to inspect image {image:?}: {e}");
            wish.event(EventKind::Warning, "InspectFailed", message.clone());
            lacking("ImageInspectError", message)
        })?;
        course.present = Some(present.is_some());
        if let Some(present) = present {
            let (may_use, found) = match is_own {
                true => (true, None),
                false => kubelet.images.may_use(wish, &image, &present.id).await,
            };
            course.pull = Some(!may_use);
            if may_use {
                let text = match kubelet.images.verification {
                    Some(_) => format!(
                        "Container image {requested:?} already present on machine and can be accessed by the pod"
                    ),
                    None => format!("Container image {requested:?} already present on machine"),
                };
                wish.event(EventKind::Normal, "Pulled", text);
                return Ok(present);
            }
            logins = found;
        }
        // Whoever may not use it is not told that it is there.
        if wish.policy == "Never" {
            let message = format!("Container image {requested:?} is not present with pull policy of Never");
            wish.event(EventKind::Warning, "ErrImageNeverPull", message.clone());
            return Err(lacking("ErrImageNeverPull", message));
        }
    }
    course.pull = Some(true);
    let logins = match logins {
        Some(logins) => logins,
        None => wish.logins(&image).await,
    };
    pull(wish, &image, logins).await
}

async fn pull(wish: &Wish<'_>, image: &str, logins: Vec<Login>) -> Result<ImageStatus, Lacking> {
    let (kubelet, requested) = (wish.kubelet, wish.image);
    let images = &kubelet.images;
    let now = kubelet.seams.now();
    let held = images.of_pod(wish.pod, |pulls| {
        let until = pulls.backoffs.held_since_update(image, now)?;
        Some((until, pulls.errors.get(image).cloned()))
    });
    if let Some((until, before)) = held {
        let mut message = format!("Back-off pulling image {requested:?}");
        wish.event(EventKind::Normal, "BackOff", message.clone());
        if let Some(before) = before {
            message = format!("{message}: {before}");
        }
        return Err(Lacking { retry_at: Some(until), ..lacking("ImagePullBackOff", message) });
    }
    images.of_pod(wish.pod, |pulls| pulls.errors.remove(image));
    wish.event(EventKind::Normal, "Pulling", format!("Pulling image {requested:?}"));
    let began = Instant::now();
    let stopping = async || {
        wish.mailbox.stopping().await;
        Err(lacking("ErrImagePull", "the pod is stopping".to_owned()))
    };
    // Whoever goes gives up its place.
    let turn = tokio::select! {
        turn = images.puller.turn() => turn,
        gone = stopping() => return gone,
    };
    // In a task of its own: dropping a pull half way would throw away what is on disk already.
    let work = pull_recorded(kubelet.clone(), turn, requested.to_owned(), image.to_owned(), logins);
    let task = tokio::spawn(yare_trace::scoped(yare_trace::current(), work));
    let pulled = tokio::select! {
        done = task => done,
        // The pull goes on by itself and serves the next one.
        gone = stopping() => return gone,
    };
    let whole_ms =
        |time: Duration| Duration::from_millis(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    match pulled.unwrap_or_else(|e| (Err(format!("the pull was aborted: {e}")), Duration::ZERO)) {
        (Ok(status), took) => {
            let (took, waited) = (whole_ms(took), whole_ms(began.elapsed()));
            images.of_pod(wish.pod, |pulls| pulls.spent += waited);
            let size = size_bucket(status.size_bytes);
            kubelet.metrics.took(&table::IMAGE_PULL_DURATION, &[size], waited);
            let text = format!(
                "Successfully pulled image {requested:?} in {} ({} including waiting). Image size: {} bytes.",
                go_duration(took),
                go_duration(waited),
                status.size_bytes
            );
            wish.event(EventKind::Normal, "Pulled", text);
            Ok(status)
        }
        (Err(error), _) => {
            wish.event(EventKind::Warning, "Failed", format!("Failed to pull image {requested:?}: {error}"));
            let now = kubelet.seams.now();
            let failure = failed(requested, error);
            let retry_at = images.of_pod(wish.pod, |pulls| {
                pulls.backoffs.next(image, now);
                pulls.errors.insert(image.to_owned(), format!("{}: {}", failure.reason, failure.message));
                pulls.backoffs.held_since_update(image, now)
            });
            Err(Lacking { retry_at, ..failure })
        }
    }
}

/// Reasons that a runtime may give at the beginning of its error, and what they mean.
const REASONS: &[(&str, &str)] = &[
    ("RegistryUnavailable", "the registry is unavailable"),
    ("SignatureValidationFailed", "the signature validation failed"),
];

/// What a pull that failed comes to.
fn failed(image: &str, error: String) -> Lacking {
    for (reason, words) in REASONS {
        if let Some(rest) = error.strip_prefix(reason) {
            return lacking(reason, format!("image pull failed for {image} because {words}{rest}"));
        }
    }
    lacking("ErrImagePull", error)
}

/// Pulls, with what is to be remembered of it before and after.
async fn pull_recorded(
    kubelet: Arc<Kubelet>,
    turn: Turn,
    requested: String,
    image: String,
    logins: Vec<Login>,
) -> (Result<ImageStatus, String>, Duration) {
    let images = &kubelet.images;
    if let Some(verification) = &images.verification
        && let Err(error) = verification.begin(&requested)
    {
        let message = format!(
            "Failed to record image pull intent for container image {requested:?}: failed to record image pull intent: {error}"
        );
        return (Err(message), Duration::ZERO);
    }
    let pulled = images.puller.pull(turn, &kubelet.runtime, &image, logins).await;
    if let Some(verification) = &images.verification {
        let opened = pulled.outcome.as_ref().ok().map(|(status, login)| (status.id.as_str(), login.as_ref()));
        verification.end(&requested, opened, &rfc3339(kubelet.seams.now()));
    }
    (pulled.outcome.map(|(status, _)| status), pulled.took)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runtimes_may_give_a_reason() {
        for (error, reason, message) in [
            ("no such host", "ErrImagePull", "no such host"),
            (
                "RegistryUnavailable: try later",
                "RegistryUnavailable",
                "image pull failed for a:1 because the registry is unavailable: try later",
            ),
            (
                "SignatureValidationFailed",
                "SignatureValidationFailed",
                "image pull failed for a:1 because the signature validation failed",
            ),
        ] {
            let lacking = failed("a:1", error.to_owned());
            assert_eq!((lacking.reason, lacking.message.as_str()), (reason, message));
        }
    }

    #[test]
    fn names_of_images() {
        for (image, full, valid) in [
            ("busybox", "busybox:latest", true),
            ("busybox:1", "busybox:1", true),
            ("r.io:5000/a", "r.io:5000/a:latest", true),
            ("a@sha256:0", "a@sha256:0", true),
            ("a:TAG", "a:TAG", true),
            ("R.io/a", "R.io/a:latest", true),
            ("Busybox", "Busybox:latest", false),
            ("r.io/A", "r.io/A:latest", false),
            ("a b", "a b:latest", false),
        ] {
            assert_eq!((with_default_tag(image).as_str(), is_valid(&with_default_tag(image))), (full, valid));
        }
    }
}
