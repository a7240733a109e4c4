//! How many volumes a driver can serve may change; drivers that say so (`nodeAllocatableUpdatePeriodSeconds` of
//! their CSIDriver) are asked again and again, and the CSINode is kept up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::kubelet::Kubelet;
use crate::view::CsiDriver;

/// Runs for as long as the node. Without drivers, nothing is watched.
pub(crate) async fn run(kubelet: Arc<Kubelet>) {
    while kubelet.csi.drivers.names().is_empty() {
        kubelet.csi.changed.notified().await;
    }
    let objects = kubelet.objects.all(yare_client::CSI_DRIVERS);
    let mut changes = objects.subscribe();
    let mut due: BTreeMap<String, (Duration, Instant)> = BTreeMap::new();
    loop {
        let periods: BTreeMap<String, Duration> = kubelet
            .csi
            .drivers
            .names()
            .into_iter()
            .filter_map(|name| {
                let object = objects.get(&yare_client::ObjectKey::cluster(&name))?;
                let seconds = object.view::<CsiDriver>().ok()?.spec.node_allocatable_update_period_seconds?;
                let seconds = u64::try_from(seconds).ok().filter(|s| *s > 0)?;
                Some((name, Duration::from_secs(seconds)))
            })
            .collect();
        due.retain(|name, (period, _)| periods.get(name) == Some(period));
        for (name, period) in periods {
            due.entry(name).or_insert_with(|| (period, Instant::now() + period));
        }
        let next = due.values().map(|(_, at)| *at).min();
        tokio::select! {
            () = kubelet.csi.changed.notified() => continue,
            change = changes.recv() => match change {
                Some(_) => continue,
                None => return,
            },
            () = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            } => {}
        }
        let now = Instant::now();
        for (name, (period, at)) in &mut due {
            if *at > now {
                continue;
            }
            *at = now + *period;
            if let Err(error) = ask(&kubelet, name).await {
                tracing::warn!(error, driver = name, "asking a CSI driver for its limits");
            }
        }
    }
}

/// Asks a driver what it can do on this node by now, and writes it down.
pub(crate) async fn ask(kubelet: &Kubelet, name: &str) -> Result<(), String> {
    let driver = kubelet.csi.drivers.get(name)?;
    let info = driver.node_get_info().await.map_err(|e| e.to_string())?;
    kubelet.csi.node.update(kubelet, name, &info).await
}
