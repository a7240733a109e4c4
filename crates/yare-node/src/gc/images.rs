//! Images that nobody uses: removed when the disk fills up, when they are old, or when a node is short of disk.
//!
//! In: the runtime's images and containers, looked at every five minutes. Out: removals, least recently used first,
//! and events where that is not enough. Images in use, pinned ones and those that were just pulled stay.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use yare_client::EventKind;
use yare_runtime::{ContainerStatus, ImageStatus};
use yare_trace::{Kind, Span};

use crate::kubelet::Kubelet;
use crate::metrics::table;
use crate::resources::ImageGcSettings;

pub(crate) struct ImageGc {
    settings: ImageGcSettings,
    began: Instant,
    records: Mutex<Records>,
}

/// What is remembered of an image.
#[derive(Debug, Clone, PartialEq)]
struct Record {
    first_seen: Instant,
    /// When it was last seen in use.
    last_used: Option<Instant>,
    size_bytes: u64,
    pinned: bool,
    in_use: bool,
}

#[derive(Debug, Default)]
struct Records(HashMap<String, Record>);

impl Records {
    /// Takes in what there is now.
    fn take_in(&mut self, images: &[ImageStatus], used: &HashSet<String>, now: Instant) {
        self.0.retain(|id, _| images.iter().any(|i| i.id == *id));
        for image in images {
            let in_use = used.contains(&image.id);
            let record = self.0.entry(image.id.clone()).or_insert(Record {
                first_seen: now,
                last_used: None,
                size_bytes: 0,
                pinned: false,
                in_use,
            });
            record.size_bytes = image.size_bytes;
            record.pinned = image.pinned;
            record.in_use = in_use;
            if in_use {
                record.last_used = Some(now);
            }
        }
    }

    /// Those that may go, the first to go first: by last use, then by when they came.
    fn in_order(&self) -> Vec<(String, Record)> {
        let mut found: Vec<(String, Record)> = self
            .0
            .iter()
            .filter(|(_, r)| !r.in_use && !r.pinned)
            .map(|(id, r)| (id.clone(), r.clone()))
            .collect();
        found.sort_by(|(a, x), (b, y)| {
            (x.last_used, x.first_seen).cmp(&(y.last_used, y.first_seen)).then_with(|| a.cmp(b))
        });
        found
    }
}

/// Images that containers use, also as volumes.
fn used(images: &[ImageStatus], containers: &[ContainerStatus]) -> HashSet<String> {
    let mut names: HashMap<&str, &str> = HashMap::new();
    for image in images {
        for name in image.repo_tags.iter().chain(&image.repo_digests).chain([&image.id]) {
            names.insert(name, &image.id);
        }
    }
    containers
        .iter()
        .flat_map(|c| {
            [c.image_id.as_str(), c.image.as_str()]
                .into_iter()
                .chain(c.mounts.iter().filter_map(|m| m.image.as_deref()))
        })
        .filter_map(|name| names.get(name).map(|id| (*id).to_owned()))
        .collect()
}

impl ImageGc {
    pub(crate) fn new(settings: ImageGcSettings) -> Self {
        ImageGc { settings, began: Instant::now(), records: Mutex::default() }
    }

    /// Looks at what there is. Answers what may go, in order.
    async fn look(&self, kubelet: &Kubelet) -> Result<Vec<(String, Record)>, String> {
        let began = kubelet.seams.now();
        let images = kubelet.runtime.images().await.map_err(|e| e.to_string())?;
        let containers = kubelet.runtime.containers().await.map_err(|e| e.to_string())?;
        kubelet.images.prune(&images, began);
        let mut records = self.records.lock();
        records.take_in(&images, &used(&images, &containers), Instant::now());
        Ok(records.in_order())
    }

    /// Removes all unused images, but for those that were just pulled.
    pub(crate) async fn delete_unused(&self, kubelet: &Kubelet) -> Result<(), String> {
        let candidates = self.look(kubelet).await?;
        self.free(kubelet, candidates, u64::MAX).await.map(drop)
    }

    /// One round: old images, then as many as bring disk usage down to the low mark.
    async fn collect(&self, kubelet: &Kubelet) -> Result<(), String> {
        let candidates = self.look(kubelet).await?;
        let candidates = self.free_old(kubelet, candidates).await?;
        let fs = kubelet.runtime.image_fs().await.map_err(|e| e.to_string())?;
        if fs.capacity_bytes == 0 {
            let text = "invalid capacity 0 on image filesystem".to_owned();
            kubelet.node_event(EventKind::Warning, "InvalidDiskCapacity", text.clone());
            return Err(text);
        }
        let Some((percent, wanted)) = excess(&self.settings, fs.capacity_bytes, fs.available_bytes) else {
            return Ok(());
        };
        tracing::info!(
            percent,
            wanted,
            "the images' file system is over the high mark; removing unused images"
        );
        let freed = self.free(kubelet, candidates, wanted).await?;
        if freed < wanted {
            let text = format!(
                "Insufficient free disk space on the node's image filesystem ({percent}% of {} used). Failed to free \
                 sufficient space by deleting unused images (freed {freed} bytes). Investigate disk usage, as it could \
                 be used by active images, logs, volumes, or other data.",
                size(fs.capacity_bytes)
            );
            kubelet.node_event(EventKind::Warning, "FreeDiskSpaceFailed", text.clone());
            return Err(text);
        }
        Ok(())
    }

    async fn free_old(
        &self,
        kubelet: &Kubelet,
        candidates: Vec<(String, Record)>,
    ) -> Result<Vec<(String, Record)>, String> {
        let (now, age) = (Instant::now(), self.settings.maximum_age);
        // What was used before this agent started is not known until it has run for as long.
        if age.is_zero() || now.duration_since(self.began) <= age {
            return Ok(candidates);
        }
        let (old, rest): (Vec<_>, Vec<_>) = candidates
            .into_iter()
            .partition(|(_, r)| r.last_used.is_none_or(|at| now.duration_since(at) > age));
        let mut errors = Vec::new();
        for (id, _) in old {
            errors.extend(self.remove(kubelet, &id, "age").await.err());
        }
        if errors.is_empty() {
            return Ok(rest);
        }
        Err(format!(
            "wanted to free images older than {}, encountered errors in image deletion: {}",
            crate::clock::go_duration(age),
            list(&errors)
        ))
    }

    /// Removes candidates until so many bytes are free. Answers how many are.
    async fn free(
        &self,
        kubelet: &Kubelet,
        candidates: Vec<(String, Record)>,
        wanted: u64,
    ) -> Result<u64, String> {
        let now = Instant::now();
        let (mut freed, mut errors) = (0u64, Vec::new());
        for (id, record) in candidates {
            // It was just pulled, perhaps for a container that is about to start.
            if now.duration_since(record.first_seen) < self.settings.minimum_age {
                continue;
            }
            match self.remove(kubelet, &id, "space").await {
                Ok(()) => freed = freed.saturating_add(record.size_bytes),
                Err(error) => errors.push(error),
            }
            if freed >= wanted {
                break;
            }
        }
        if errors.is_empty() {
            return Ok(freed);
        }
        Err(format!(
            "wanted to free {wanted} bytes, but freed {freed} bytes space with errors in image deletion: {}",
            list(&errors)
        ))
    }

    async fn remove(&self, kubelet: &Kubelet, id: &str, reason: &'static str) -> Result<(), String> {
        kubelet.runtime.remove_image(id).await.map_err(|e| e.to_string())?;
        tracing::info!(image = id, reason, "removed an unused image");
        self.records.lock().0.remove(id);
        kubelet.metrics.count(&table::IMAGES_COLLECTED, &[reason]);
        Ok(())
    }
}

fn list(errors: &[String]) -> String {
    match errors {
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    }
}

/// Disk usage in percent and the bytes to free, where usage is at the high mark or over it.
fn excess(settings: &ImageGcSettings, capacity: u64, available: u64) -> Option<(i32, u64)> {
    let (capacity, available) = (i128::from(capacity), i128::from(available.min(capacity)));
    let percent = 100 - available * 100 / capacity;
    if percent < i128::from(settings.high_percent) {
        return None;
    }
    let wanted = capacity * i128::from(100 - settings.low_percent) / 100 - available;
    Some((i32::try_from(percent).unwrap_or(100), u64::try_from(wanted).unwrap_or(0)))
}

/// Bytes for people to read.
fn size(bytes: u64) -> String {
    #[allow(clippy::cast_precision_loss, reason = "two digits are shown")]
    let amount = bytes as f64;
    for (unit, name) in [(1u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")] {
        if bytes >= unit {
            #[allow(clippy::cast_precision_loss, reason = "a power of two is exact")]
            let unit = unit as f64;
            return format!("{:.1} {name}", amount / unit);
        }
    }
    format!("{bytes} B")
}

/// Looks for as long as the node runs.
pub(crate) async fn run(kubelet: Arc<Kubelet>) {
    let settings = kubelet.resources.settings.image_gc.clone();
    if settings.high_percent == 100 && settings.maximum_age.is_zero() {
        return;
    }
    let mut failed_before = false;
    loop {
        tokio::time::sleep(settings.period.max(Duration::from_millis(10))).await;
        let span = kubelet.tracer.as_ref().map(|t| t.own("Images/GarbageCollect", Kind::Internal));
        let collect = kubelet.image_gc.collect(&kubelet);
        match yare_trace::scoped(span.as_ref().map(Span::active), collect).await {
            Ok(()) => failed_before = false,
            Err(error) => {
                tracing::warn!(error, "collecting unused images");
                // Once may be a hiccup.
                if std::mem::replace(&mut failed_before, true) {
                    kubelet.node_event(EventKind::Warning, "ImageGCFailed", error);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(id: &str, size: u64, pinned: bool) -> ImageStatus {
        ImageStatus {
            id: id.into(),
            repo_tags: vec![format!("{id}:1")],
            size_bytes: size,
            pinned,
            ..ImageStatus::default()
        }
    }

    #[tokio::test]
    async fn the_least_recently_used_goes_first() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let used = |ids: &[&str]| ids.iter().map(|i| (*i).to_owned()).collect::<HashSet<_>>();
        let mut records = Records::default();
        let all = ["a", "b", "c", "d", "p"].map(|id| image(id, 1, id == "p"));
        records.take_in(&all[1..], &used(&["b", "c"]), at(0));
        records.take_in(&all, &used(&["c"]), at(10));
        records.take_in(&all, &used(&["d"]), at(20));
        records.take_in(&all, &used(&["d"]), at(30));
        let order: Vec<String> = records.in_order().into_iter().map(|(id, _)| id).collect();
        // Never used: a. Last used at 0: b, at 10: c. In use: d. Pinned: p.
        assert_eq!(order, ["a", "b", "c"]);
        records.take_in(&all[..1], &used(&[]), at(40));
        assert_eq!(records.0.len(), 1);
    }

    #[test]
    fn usage_is_found_by_any_name_and_in_volumes() {
        let images = ["a", "b", "c", "d"].map(|id| image(id, 1, false));
        let mut container =
            crate::pod::testing::container_status("x", 0, yare_runtime::ContainerState::Exited, 0);
        container.image_id = "a".into();
        container.image = "b:1".into();
        container.mounts = vec![yare_runtime::Mount { image: Some("c:1".into()), ..Default::default() }];
        let mut found: Vec<String> = used(&images, &[container]).into_iter().collect();
        found.sort();
        assert_eq!(found, ["a", "b", "c"]);
    }

    #[test]
    fn marks() {
        let settings = ImageGcSettings::default();
        for (available, want) in [
            (1000, None),
            (160, None),
            (150, Some((85, 50))),
            (0, Some((100, 200))),
            // More than there is: a file system that does not know itself.
            (5000, None),
        ] {
            assert_eq!(excess(&settings, 1000, available), want, "{available}");
        }
        assert_eq!(size(1536 << 20), "1.5 GiB");
        assert_eq!(size(12), "12 B");
    }
}
