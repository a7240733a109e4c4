//! Attaches volumes of CSI drivers to the nodes of the pods that use them, and detaches them afterwards.
//!
//! The driver's own attacher does the work; here it is asked for by a VolumeAttachment. A volume is wanted on
//! a node while a pod there uses it. It is attached where it is wanted, unless another node has it and only one
//! may; it is detached where nobody wants it any more, once the node says that it has let go (`volumesInUse`),
//! or when there is no use in waiting for its word: its node is out of service, or silent for too long.
//! A node reads in `volumesAttached` what it may use; what is about to be detached is taken off there first.
//!
//! [`wanted`] says who wants what, [`plan`] decides, this file acts.

mod node;
mod plan;
mod wanted;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt::Write as _,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use jiff::Timestamp;
use parking_lot::Mutex;
use ring::digest::{SHA256, digest};
use serde::Deserialize;
use serde_json::json;
use yare_client::{
    CSI_DRIVERS, Cached, Change, Informer, NODES, ObjectKey, PERSISTENT_VOLUME_CLAIMS, PERSISTENT_VOLUMES,
    PODS, VOLUME_ATTACHMENTS,
};

use self::{
    plan::{Attached, Blocked, Plan, Step},
    wanted::Wanted,
};
use crate::{
    api::Deletion,
    context::{Context, Error},
    harness::{Next, Reconcile},
    views::{Meta, since},
    volume_protection::claims_of_pod,
    volume_views::{Claim, Csi, Volume},
};

/// Namespace of keys that are nodes; those without are volumes.
const NODE_KEYS: &str = "nodes";
/// How long an attacher may take before somebody is told.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(120);

struct AttachDetach {
    context: Context,
    pods: Informer,
    claims: Informer,
    volumes: Informer,
    nodes: Informer,
    drivers: Informer,
    attachments: Informer,
    memory: Mutex<Memory>,
}

/// What is remembered between rounds. All of it may be lost: it only keeps from saying things twice, and from
/// forcing a detachment too early.
#[derive(Default)]
struct Memory {
    /// Since when a volume is to be detached from a node.
    leaving: HashMap<(String, String), Timestamp>,
    /// Attachments (by uid) that are taken off the node's list, to be deleted.
    detaching: HashSet<String>,
    /// Attachments that are waited for, and since when.
    attaching: HashMap<String, Timestamp>,
    /// What was said last of a volume, about a node or to a pod.
    said: HashMap<(String, String), String>,
}

/// A VolumeAttachment.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Attachment {
    metadata: Meta,
    spec: AttachmentSpec,
    status: AttachmentStatus,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct AttachmentSpec {
    node_name: String,
    source: AttachmentSource,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct AttachmentSource {
    persistent_volume_name: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct AttachmentStatus {
    attached: bool,
    attach_error: Option<Failure>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Failure {
    message: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Driver {
    spec: DriverSpec,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct DriverSpec {
    attach_required: Option<bool>,
}

/// The controller.
pub fn new(context: &Context) -> Arc<dyn Reconcile> {
    Arc::new(AttachDetach {
        pods: context.informer(PODS),
        claims: context.informer(PERSISTENT_VOLUME_CLAIMS),
        volumes: context.informer(PERSISTENT_VOLUMES),
        nodes: context.informer(NODES),
        drivers: context.informer(CSI_DRIVERS),
        attachments: context.informer(VOLUME_ATTACHMENTS),
        context: context.clone(),
        memory: Mutex::default(),
    })
}

/// A pod that was placed, ended or went concerns its volumes.
pub fn changed_pod(context: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    let Some(pod) = change.object() else { return };
    let claims = context.informer(PERSISTENT_VOLUME_CLAIMS);
    if claims.is_empty() || pod.node_name().is_none() {
        return;
    }
    let before = change.old.as_ref().is_some_and(|o| o.node_name().is_some() && !wanted::has_ended(o));
    let after = change.new.as_ref().is_some_and(|n| !wanted::has_ended(n));
    if before == after {
        return;
    }
    for name in claims_of_pod(pod) {
        if let Some(claim) = claims.get(&ObjectKey::new(pod.namespace(), &name)) {
            changed(&claim, add);
        }
    }
}

fn changed(claim: &Cached, add: &mut dyn FnMut(ObjectKey)) {
    if let Ok(view) = claim.view::<Claim>()
        && !view.spec.volume_name.is_empty()
    {
        add(ObjectKey::cluster(&view.spec.volume_name));
    }
}

/// A claim that was bound is what its pods' volumes are.
pub fn changed_claim(_: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    if let Some(claim) = change.object() {
        changed(claim, add);
    }
}

/// What became of an attachment concerns its volume, and its node.
pub fn changed_attachment(_: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    let Some(attachment) = change.object() else { return };
    let view: Attachment = attachment.view().unwrap_or_default();
    if let Some(volume) = view.spec.source.persistent_volume_name {
        add(ObjectKey::cluster(&volume));
    }
    add(ObjectKey::new(NODE_KEYS, &view.spec.node_name));
}

/// What a node says of itself may be what a detachment waits for.
pub fn changed_node(context: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    let Some(node) = change.object() else { return };
    let came = change.old.is_none();
    let attachments = context.informer(VOLUME_ATTACHMENTS);
    if attachments.is_empty() && !came {
        return;
    }
    let facts = |node: &Option<Cached>| node.as_ref().map(|n| node::Facts::of(n).unwrap_or_default());
    if !came && facts(&change.old) == facts(&change.new) {
        return;
    }
    add(ObjectKey::new(NODE_KEYS, node.name()));
    for attachment in attachments.list() {
        if attachment.node_name() == Some(node.name()) {
            let view: Attachment = attachment.view().unwrap_or_default();
            if let Some(volume) = view.spec.source.persistent_volume_name {
                add(ObjectKey::cluster(&volume));
            }
        }
    }
    // Pods were placed there before it was known.
    if came && change.new.is_some() {
        for pod in context.informer(PODS).list() {
            if pod.node_name() == Some(node.name()) {
                let claims = context.informer(PERSISTENT_VOLUME_CLAIMS);
                for name in claims_of_pod(&pod) {
                    if let Some(claim) = claims.get(&ObjectKey::new(pod.namespace(), &name)) {
                        changed(&claim, add);
                    }
                }
            }
        }
    }
}

/// A driver may have said that its volumes need no attaching after all.
pub fn changed_driver(context: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    let Some(driver) = change.object() else { return };
    for volume in context.informer(PERSISTENT_VOLUMES).list() {
        let csi = volume.view::<Volume>().ok().and_then(|v| v.spec.csi);
        if csi.is_some_and(|c| c.driver == driver.name()) {
            add(volume.key().clone());
        }
    }
}

/// As a node's status names a volume.
fn unique_name(csi: &Csi) -> String {
    format!("kubernetes.io/csi/{}^{}", csi.driver, csi.volume_handle)
}

/// As drivers' sidecars and nodes find it.
fn attachment_name(csi: &Csi, node: &str) -> String {
    let text = format!("{}{}{node}", csi.volume_handle, csi.driver);
    let mut name = "csi-".to_owned();
    for byte in digest(&SHA256, text.as_bytes()).as_ref() {
        // Writing to a string does not fail.
        let _ = write!(name, "{byte:02x}");
    }
    name
}

/// Whether an attachment has the name that we give. Of a volume that is gone, any such name will do.
fn is_ours(name: &str, csi: Option<&Csi>, node: &str) -> bool {
    match csi {
        Some(csi) => name == attachment_name(csi, node),
        None => name
            .strip_prefix("csi-")
            .is_some_and(|sum| sum.len() == 64 && sum.bytes().all(|b| b.is_ascii_hexdigit())),
    }
}

#[async_trait]
impl Reconcile for AttachDetach {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        if *key.namespace == *NODE_KEYS {
            self.report(&key.name).await?;
            return Ok(Next::Done);
        }
        self.sync(&key.name).await
    }
}

impl AttachDetach {
    async fn sync(&self, name: &str) -> Result<Next, Error> {
        let volume = self.volumes.get(&ObjectKey::cluster(name));
        let view: Volume = volume.as_ref().map(|v| v.view()).transpose()?.unwrap_or_default();
        let attached = self.attached(name, view.spec.csi.as_ref())?;
        let wanted = match &view.spec.csi {
            Some(csi) if self.needs_attaching(csi)? => self.wanted(name, &view)?,
            _ => Wanted::default(),
        };
        if attached.is_empty() && wanted.is_empty() {
            self.forget(name, &attached, &[]);
            return Ok(Next::Done);
        }
        let now = self.context.now();
        let facts: BTreeMap<String, Option<node::Facts>> = attached
            .iter()
            .map(|a| &a.node)
            .chain(wanted.keys())
            .map(|node| Ok((node.clone(), self.facts(node)?)))
            .collect::<Result<_, Error>>()?;
        let unique = view.spec.csi.as_ref().map(unique_name).unwrap_or_default();
        let leaving: BTreeMap<String, Timestamp> = {
            let mut memory = self.memory.lock();
            let going = attached.iter().filter(|a| !wanted.contains_key(&a.node));
            let going: Vec<String> = going.map(|a| a.node.clone()).collect();
            memory.leaving.retain(|(volume, node), _| volume != name || going.contains(node));
            let since = |node: String| {
                let at = *memory.leaving.entry((name.to_owned(), node.clone())).or_insert(now);
                (node, at)
            };
            going.into_iter().map(since).collect()
        };
        let plan = Plan {
            unique_name: &unique,
            attached: &attached,
            wanted: &wanted,
            facts: &facts,
            leaving: &leaving,
            shared: plan::may_be_shared(&view),
            now,
        };
        let (steps, wait) = plan.steps();
        let mut next = wait;
        let mut said = Vec::new();
        for step in steps {
            match step {
                Step::Detach(attachment) => self.detach(attachment).await?,
                Step::Attach(node) => self.attach(name, &view, node, now).await?,
                Step::Blocked(node, blocked) => {
                    said.extend(self.say_blocked(name, node, &wanted, &blocked));
                }
            }
        }
        let waits = self.follow(name, &view, &attached, &wanted, now);
        next = [next, waits].into_iter().flatten().min();
        said.extend(attached.iter().map(|a| a.node.clone()));
        self.forget(name, &attached, &said);
        Ok(next.map_or(Next::Done, Next::After))
    }

    /// Where the volume is attached, or is to be, by us: what others ask for is theirs to give up.
    fn attached(&self, volume: &str, csi: Option<&Csi>) -> Result<Vec<Attached>, Error> {
        let mut out = Vec::new();
        for object in self.attachments.list() {
            let view: Attachment = object.view()?;
            if view.spec.source.persistent_volume_name.as_deref() == Some(volume)
                && is_ours(object.name(), csi, &view.spec.node_name)
            {
                out.push(Attached {
                    node: view.spec.node_name,
                    going: view.metadata.deletion_timestamp.is_some(),
                    attached: view.status.attached,
                    error: view.status.attach_error.map(|e| e.message),
                    object,
                });
            }
        }
        Ok(out)
    }

    /// A driver that says nothing of it needs it.
    fn needs_attaching(&self, csi: &Csi) -> Result<bool, Error> {
        let Some(driver) = self.drivers.get(&ObjectKey::cluster(&csi.driver)) else { return Ok(true) };
        Ok(driver.view::<Driver>()?.spec.attach_required != Some(false))
    }

    async fn attach(&self, name: &str, view: &Volume, node: &str, now: Timestamp) -> Result<(), Error> {
        let Some(csi) = &view.spec.csi else { return Ok(()) };
        let attachment = attachment_name(csi, node);
        self.memory.lock().attaching.entry(attachment.clone()).or_insert(now);
        let body = json!({
            "kind": "VolumeAttachment",
            "apiVersion": "storage.k8s.io/v1",
            "metadata": {"name": attachment},
            "spec": {"attacher": csi.driver, "nodeName": node, "source": {"persistentVolumeName": name}},
        });
        match self.context.api.create(&VOLUME_ATTACHMENTS, "", &body).await {
            Err(error) if !error.is_already_exists() => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Takes the volume off the node's list, so that nobody there begins to use it, then gives the attachment up.
    async fn detach(&self, attached: &Attached) -> Result<(), Error> {
        let uid = attached.object.uid();
        self.memory.lock().detaching.insert(uid.to_owned());
        let outcome = async {
            self.report(&attached.node).await?;
            let (key, how) = (attached.object.key(), Deletion::of(&attached.object));
            self.context.api.delete(&VOLUME_ATTACHMENTS, key, how).await?;
            Ok(())
        };
        let outcome: Result<(), Error> = outcome.await;
        if outcome.is_err() {
            self.memory.lock().detaching.remove(uid);
        }
        outcome
    }

    /// What there is to say about attachments under way, and when to look again.
    fn follow(
        &self,
        name: &str,
        view: &Volume,
        attached: &[Attached],
        wanted: &Wanted,
        now: Timestamp,
    ) -> Option<Duration> {
        let mut next: Option<Duration> = None;
        for attachment in attached {
            let Some(pods) = wanted.get(&attachment.node) else { continue };
            let key = attachment.object.name();
            let place = (name.to_owned(), attachment.node.clone());
            if attachment.attached {
                let mut memory = self.memory.lock();
                let waited = memory.attaching.remove(key).is_some();
                memory.said.remove(&place);
                drop(memory);
                if waited {
                    let message = format!("AttachVolume.Attach succeeded for volume \"{name}\" ");
                    for pod in pods {
                        self.context.normal(&PODS, pod, "SuccessfulAttachVolume", message.clone());
                    }
                }
                continue;
            }
            let begun = *self.memory.lock().attaching.entry(key.to_owned()).or_insert(now);
            let waited = since(now, begun);
            let why = match &attachment.error {
                Some(error) => error.clone(),
                None if waited >= ATTACH_TIMEOUT => {
                    let (driver, handle) =
                        view.spec.csi.as_ref().map_or(("unknown", ""), |c| (&*c.driver, &*c.volume_handle));
                    self.memory.lock().attaching.insert(key.to_owned(), now);
                    self.memory.lock().said.remove(&place);
                    next = Some(ATTACH_TIMEOUT);
                    format!(
                        "timed out waiting for external-attacher of {driver} CSI driver to attach volume {handle}"
                    )
                }
                None => {
                    let left = ATTACH_TIMEOUT.saturating_sub(waited);
                    next = Some(next.map_or(left, |n: Duration| n.min(left)));
                    continue;
                }
            };
            let message = format!("AttachVolume.Attach failed for volume \"{name}\" : {why}");
            self.say(place, pods, &message);
        }
        next
    }

    /// Which pods were told.
    fn say_blocked(&self, name: &str, node: &str, wanted: &Wanted, blocked: &Blocked<'_>) -> Vec<String> {
        let mut places = Vec::new();
        let pods = wanted.get(node).map(Vec::as_slice).unwrap_or_default();
        for pod in pods {
            let why = blocked.words(pod.namespace());
            let message = format!("Multi-Attach error for volume \"{name}\" {why}");
            let place = format!("{node}/{}", pod.key());
            self.say((name.to_owned(), place.clone()), std::slice::from_ref(pod), &message);
            places.push(place);
        }
        places
    }

    /// Warns each pod, unless that was the last word anyway.
    fn say(&self, place: (String, String), pods: &[Cached], message: &str) {
        if self.memory.lock().said.insert(place, message.to_owned()).is_some_and(|before| before == message) {
            return;
        }
        for pod in pods {
            self.context.warning(&PODS, pod, "FailedAttachVolume", message);
        }
    }

    /// Lets go of what concerned attachments that are gone, and of what need not be said any more.
    fn forget(&self, name: &str, attached: &[Attached], said: &[String]) {
        let now = self.context.now();
        let known = |name: &str| self.attachments.get(&ObjectKey::cluster(name));
        let mut memory = self.memory.lock();
        memory.said.retain(|(volume, place), _| volume != name || said.contains(place));
        if attached.is_empty() {
            memory.leaving.retain(|(volume, _), _| volume != name);
        }
        // One that was asked for a moment ago may not have been seen yet.
        memory.attaching.retain(|name, at| known(name).is_some() || since(now, *at) < ATTACH_TIMEOUT);
        if !memory.detaching.is_empty() {
            let there: HashSet<String> = self.attachments.list().iter().map(|a| a.uid().to_owned()).collect();
            memory.detaching.retain(|uid| there.contains(uid));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_drivers_and_nodes_know() {
        let csi = Csi { driver: "csi.example.com".into(), volume_handle: "h1".into() };
        assert_eq!(unique_name(&csi), "kubernetes.io/csi/csi.example.com^h1");
        // sha256sum of "h1csi.example.comn1"
        assert_eq!(
            attachment_name(&csi, "n1"),
            "csi-8157d03abc5a2bde671ba3121addefb9168531d96b38761bc92ae350c651387b"
        );
        let name = attachment_name(&csi, "n1");
        assert!(is_ours(&name, Some(&csi), "n1") && is_ours(&name, None, "n1"));
        assert!(!is_ours(&name, Some(&csi), "n2") && !is_ours("somebody-elses", None, "n1"));
    }
}
