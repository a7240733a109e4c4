//! Limits of ephemeral storage: of `emptyDir` volumes, of pods, of containers.
//!
//! There is no project quota to rely on, so pods that have such a limit are walked, each at most once a period, and
//! the longer its walk takes the less often. Pods without one cost nothing.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;
use yare_schema::quantity::Quantity;

use super::thresholds::Layout;
use super::usage::{PodUsage, Usage};
use crate::pod::totals;
use crate::quantity;
use crate::view::Pod;

const STORAGE: &str = "ephemeral-storage";
/// A walk may take this share of the time.
const WALK_SHARE: u32 = 20;

/// When each pod is to be walked next, by uid.
#[derive(Debug, Default)]
pub(crate) struct Walks {
    next: HashMap<String, Instant>,
}

impl Walks {
    /// Of these pods those whose time has come. Others are forgotten.
    pub(crate) fn due<'a>(&mut self, pods: impl Iterator<Item = &'a Pod>, now: Instant) -> Vec<String> {
        let limited: Vec<&str> = pods.filter(|p| has_limit(p)).map(|p| p.metadata.uid.as_str()).collect();
        self.next.retain(|uid, _| limited.contains(&uid.as_str()));
        limited
            .into_iter()
            .filter(|uid| self.next.get(*uid).is_none_or(|at| *at <= now))
            .map(str::to_owned)
            .collect()
    }

    /// These pods were walked, which took so long.
    pub(crate) fn done(&mut self, uids: &[String], took: Duration, period: Duration, now: Instant) {
        for uid in uids {
            self.next.insert(uid.clone(), now + period.max(took * WALK_SHARE));
        }
    }
}

/// A limit that is kept by walking.
fn size_limit(text: Option<&String>) -> Option<Quantity> {
    text.and_then(|t| Quantity::parse(t).ok()).filter(|q| q.signum() > 0)
}

fn has_limit(pod: &Pod) -> bool {
    let volumes = pod.spec.volumes.iter().filter_map(|v| v.empty_dir.as_ref());
    volumes.into_iter().any(|e| size_limit(e.size_limit.as_ref()).is_some())
        || pod.all_containers().any(|c| c.resources.limits.contains_key(STORAGE))
}

/// What limit the pod is over, in the words of its status.
pub(crate) fn exceeded(pod: &Pod, usage: &PodUsage, layout: Layout) -> Option<String> {
    empty_dir(pod, usage).or_else(|| whole(pod, usage)).or_else(|| container(pod, usage, layout))
}

fn empty_dir(pod: &Pod, usage: &PodUsage) -> Option<String> {
    pod.spec.volumes.iter().find_map(|volume| {
        let limit = size_limit(volume.empty_dir.as_ref()?.size_limit.as_ref())?;
        let used = usage.volumes.get(&volume.name)?;
        (bytes(*used) > limit)
            .then(|| format!("Usage of EmptyDir volume {:?} exceeds the limit \"{limit}\". ", volume.name))
    })
}

fn whole(pod: &Pod, usage: &PodUsage) -> Option<String> {
    let mut first = None;
    for container in pod.all_containers() {
        first = first.or_else(|| Quantity::parse(container.resources.limits.get(STORAGE)?).ok());
    }
    let format = first?.format();
    let overhead = pod.spec.overhead.get(STORAGE).map_or(0, |t| quantity::value(t));
    let total = totals::peak(pod, |r| &r.limits).get(STORAGE).copied().unwrap_or(0);
    let limit = i64::try_from(total / 1_000_000_000).unwrap_or(i64::MAX).saturating_add(overhead);
    let limit = Quantity::new(limit, format);
    (bytes(usage.ephemeral) > limit)
        .then(|| format!("Pod ephemeral local storage usage exceeds the total limit of containers {limit}. "))
}

fn container(pod: &Pod, usage: &PodUsage, layout: Layout) -> Option<String> {
    usage.containers.iter().find_map(|used| {
        let container = pod.spec.containers.iter().find(|c| c.name == used.name)?;
        let limit = size_limit(container.resources.limits.get(STORAGE))?;
        let mut total = used.logs;
        if layout == Layout::Single {
            total += used.rootfs;
        }
        (bytes(total) > limit).then(|| {
            format!("Container {} exceeded its local ephemeral storage limit \"{limit}\". ", container.name)
        })
    })
}

fn bytes(usage: Usage) -> Quantity {
    Quantity::new(i64::try_from(usage.bytes).unwrap_or(i64::MAX), yare_schema::quantity::Format::BinarySi)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;
    use crate::eviction::usage::ContainerUsage;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"uid": "u"}, "spec": spec})).unwrap()
    }

    fn used(volume: u64, root: u64, logs: u64) -> PodUsage {
        let of = |bytes| Usage { bytes, inodes: 1 };
        PodUsage {
            containers: vec![ContainerUsage {
                name: "c".into(),
                memory_bytes: None,
                rootfs: of(root),
                logs: of(logs),
            }],
            volumes: BTreeMap::from([("data".into(), of(volume))]),
            ephemeral: of(volume + root + logs),
            ..PodUsage::default()
        }
    }

    #[test]
    fn limits_are_kept() {
        let volume = |limit: &str| json!({"containers": [{"name": "c"}], "volumes": [{"name": "data", "emptyDir": {"sizeLimit": limit}}]});
        let storage = |limit: &str| {
            json!({"volumes": [{"name": "data", "emptyDir": {}}], "containers": [
            {"name": "c", "resources": {"limits": {"ephemeral-storage": limit}}},
            {"name": "d", "resources": {"limits": {"ephemeral-storage": "1Ki"}}}]})
        };
        let cases: &[(serde_json::Value, PodUsage, Layout, Option<&str>)] = &[
            (volume("10Mi"), used(10 << 20, 0, 0), Layout::Single, None),
            (
                volume("10Mi"),
                used((10 << 20) + 1, 0, 0),
                Layout::Single,
                Some("Usage of EmptyDir volume \"data\" exceeds the limit \"10Mi\". "),
            ),
            (volume("0"), used(1, 0, 0), Layout::Single, None),
            (
                storage("9Ki"),
                used(8 << 10, 1 << 10, 2 << 10),
                Layout::Single,
                Some("Pod ephemeral local storage usage exceeds the total limit of containers 10Ki. "),
            ),
            (
                storage("9Ki"),
                used(0, 9 << 10, 1),
                Layout::Single,
                Some("Container c exceeded its local ephemeral storage limit \"9Ki\". "),
            ),
            // Writable layers on a file system of their own do not count against the container.
            (storage("9Ki"), used(0, 9 << 10, 1), Layout::ImageFs, None),
        ];
        for (spec, usage, layout, want) in cases {
            assert_eq!(exceeded(&pod(spec.clone()), usage, *layout).as_deref(), *want, "{spec}");
        }
    }

    #[tokio::test]
    async fn walks_are_rare() {
        let limited = pod(json!({"volumes": [{"name": "data", "emptyDir": {"sizeLimit": "1Mi"}}]}));
        let free = Pod {
            metadata: crate::view::Metadata { uid: "f".into(), ..Default::default() },
            ..Pod::default()
        };
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut walks = Walks::default();
        let pods = || [&limited, &free].into_iter();
        assert_eq!(walks.due(pods(), at(0)), ["u"]);
        walks.done(&["u".into()], Duration::from_secs(1), Duration::from_secs(60), at(0));
        assert_eq!(walks.due(pods(), at(59)), Vec::<String>::new());
        assert_eq!(walks.due(pods(), at(60)), ["u"]);
        walks.done(&["u".into()], Duration::from_secs(10), Duration::from_secs(60), at(60));
        assert_eq!(walks.due(pods(), at(259)), Vec::<String>::new());
        assert_eq!(walks.due(pods(), at(260)), ["u"]);
        assert_eq!(walks.due([&free].into_iter(), at(261)), Vec::<String>::new());
        assert!(walks.next.is_empty());
    }
}
