//! Which node needs what: a graph fed with pods, volumes, attachments, slices and certificate requests as they
//! change (`k8s.io/kubernetes/plugin/pkg/auth/authorizer/node/graph.go`).

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, de::IgnoredAny};
use serde_json::Value;
use yare_schema::local_path::NODE_LABEL;

/// What a pod may refer to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Kind {
    Secret,
    ConfigMap,
    Claim,
    ServiceAccount,
    ResourceClaim,
}

type Reference = (Kind, String);

/// The graph. Keys are `namespace/name`, or `name` at cluster scope.
#[derive(Default)]
pub(super) struct Graph {
    pods: HashMap<String, Pod>,
    /// What pods refer to, to the nodes that need it and how many of their pods do.
    needed: HashMap<Reference, HashMap<String, u32>>,
    volumes: HashMap<String, Volume>,
    /// Secret to the volumes that are mounted with it.
    volumes_of_secret: HashMap<String, HashSet<String>>,
    /// Volume attachments, resource slices and pod certificate requests to their node.
    attachments: HashMap<String, String>,
    /// Volumes whose files are on a node, to that node.
    local_volumes: HashMap<String, String>,
    slices: HashMap<String, String>,
    requests: HashMap<String, String>,
}

struct Pod {
    seen: Seen,
    references: HashSet<Reference>,
}

struct Volume {
    claim: String,
    secrets: Vec<String>,
}

impl Graph {
    /// Takes in a change; `None`: the object is gone.
    pub(super) fn apply(&mut self, resource: &str, key: &str, object: Option<&[u8]>) {
        match resource {
            "pods" => self.apply_pod(key, object),
            "persistentvolumes" => self.apply_volume(key, object),
            "volumeattachments" => place(&mut self.attachments, key, object),
            "resourceslices" => place(&mut self.slices, key, object),
            "podcertificaterequests" => place(&mut self.requests, key, object),
            _ => {}
        }
    }

    /// Whether a pod of `node` refers to the object, or a volume of such a pod does.
    pub(super) fn needs(&self, node: &str, kind: Kind, key: &str) -> bool {
        let by_pod = |kind: Kind, key: &str| {
            self.needed.get(&(kind, key.to_owned())).is_some_and(|nodes| nodes.contains_key(node))
        };
        by_pod(kind, key)
            || (kind == Kind::Secret
                && self
                    .volumes_of_secret
                    .get(key)
                    .into_iter()
                    .flatten()
                    .filter_map(|volume| self.volumes.get(volume))
                    .any(|volume| by_pod(Kind::Claim, &volume.claim)))
    }

    /// Whether a pod of `node` claims the volume.
    pub(super) fn needs_volume(&self, node: &str, volume: &str) -> bool {
        self.volumes.get(volume).is_some_and(|v| self.needs(node, Kind::Claim, &v.claim))
    }

    /// Whether the volume's files are on `node`.
    pub(super) fn stores(&self, node: &str, volume: &str) -> bool {
        self.local_volumes.get(volume).is_some_and(|n| n == node)
    }

    /// Whether the pod is on `node`.
    pub(super) fn runs(&self, node: &str, pod: &str) -> bool {
        self.pods.get(pod).is_some_and(|p| p.seen.node == node)
    }

    /// Whether the volume attachment is to `node`.
    pub(super) fn attaches(&self, node: &str, attachment: &str) -> bool {
        self.attachments.get(attachment).is_some_and(|n| n == node)
    }

    /// Whether the resource slice is of `node`.
    pub(super) fn offers(&self, node: &str, slice: &str) -> bool {
        self.slices.get(slice).is_some_and(|n| n == node)
    }

    /// Whether the pod certificate request is of `node`.
    pub(super) fn requests(&self, node: &str, request: &str) -> bool {
        self.requests.get(request).is_some_and(|n| n == node)
    }

    fn apply_pod(&mut self, key: &str, object: Option<&[u8]>) {
        let seen = object.and_then(Seen::read);
        // Most changes of a pod are of its status and say nothing new of what it refers to.
        if let (Some(seen), Some(known)) = (&seen, self.pods.get(key))
            && known.seen == *seen
        {
            return;
        }
        if let Some(Pod { seen, references }) = self.pods.remove(key) {
            for reference in references {
                if let Some(nodes) = self.needed.get_mut(&reference) {
                    if let Some(count) = nodes.get_mut(&seen.node) {
                        *count -= 1;
                        if *count == 0 {
                            nodes.remove(&seen.node);
                        }
                    }
                    if nodes.is_empty() {
                        self.needed.remove(&reference);
                    }
                }
            }
        }
        let (Some(seen), Some(json)) = (seen, object) else { return };
        let namespace = key.split_once('/').map_or("", |(namespace, _)| namespace);
        let references = pod_references(namespace, json, &seen);
        for reference in &references {
            *self.needed.entry(reference.clone()).or_default().entry(seen.node.clone()).or_default() += 1;
        }
        self.pods.insert(key.to_owned(), Pod { seen, references });
    }

    fn apply_volume(&mut self, key: &str, object: Option<&[u8]>) {
        if let Some(old) = self.volumes.remove(key) {
            for secret in old.secrets {
                if let Some(volumes) = self.volumes_of_secret.get_mut(&secret) {
                    volumes.remove(key);
                    if volumes.is_empty() {
                        self.volumes_of_secret.remove(&secret);
                    }
                }
            }
        }
        match object.and_then(node_of_volume) {
            Some(node) => self.local_volumes.insert(key.to_owned(), node),
            None => self.local_volumes.remove(key),
        };
        let Some(volume) = object.and_then(read_volume) else { return };
        for secret in &volume.secrets {
            self.volumes_of_secret.entry(secret.clone()).or_default().insert(key.to_owned());
        }
        self.volumes.insert(key.to_owned(), volume);
    }
}

/// Objects with a `spec.nodeName` and nothing else of interest.
fn place(nodes: &mut HashMap<String, String>, key: &str, object: Option<&[u8]>) {
    #[derive(Deserialize)]
    struct Object {
        #[serde(default)]
        spec: Spec,
    }
    #[derive(Deserialize, Default)]
    #[serde(rename_all = "camelCase", default)]
    struct Spec {
        node_name: Option<String>,
    }
    let node = object
        .and_then(|json| serde_json::from_slice::<Object>(json).ok())
        .and_then(|o| o.spec.node_name)
        .filter(|n| !n.is_empty());
    match node {
        Some(node) => {
            nodes.insert(key.to_owned(), node);
        }
        None => {
            nodes.remove(key);
        }
    }
}

/// The parts of a pod that change what it refers to. Everything else of its specification is immutable.
#[derive(PartialEq, Eq, Default)]
struct Seen {
    node: String,
    uid: String,
    /// Ephemeral containers, of which there can only become more.
    ephemeral: usize,
    claims: Vec<(String, Option<String>)>,
    extended_claim: Option<String>,
}

impl Seen {
    /// `None` where the pod is on no node.
    fn read(json: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Pod {
            #[serde(default)]
            metadata: Metadata,
            spec: Spec,
            #[serde(default)]
            status: Status,
        }
        #[derive(Deserialize, Default)]
        #[serde(default)]
        struct Metadata {
            uid: String,
        }
        #[derive(Deserialize, Default)]
        #[serde(rename_all = "camelCase", default)]
        struct Spec {
            node_name: String,
            ephemeral_containers: Option<Vec<IgnoredAny>>,
        }
        #[derive(Deserialize, Default)]
        #[serde(rename_all = "camelCase", default)]
        struct Status {
            resource_claim_statuses: Option<Vec<Claim>>,
            extended_resource_claim_status: Option<Claim>,
        }
        #[derive(Deserialize, Default)]
        #[serde(rename_all = "camelCase", default)]
        struct Claim {
            name: String,
            resource_claim_name: Option<String>,
        }
        let pod: Pod = serde_json::from_slice(json).ok()?;
        (!pod.spec.node_name.is_empty()).then(|| Self {
            node: pod.spec.node_name,
            uid: pod.metadata.uid,
            ephemeral: pod.spec.ephemeral_containers.map_or(0, |e| e.len()),
            claims: pod
                .status
                .resource_claim_statuses
                .unwrap_or_default()
                .into_iter()
                .map(|c| (c.name, c.resource_claim_name))
                .collect(),
            extended_claim: pod.status.extended_resource_claim_status.and_then(|c| c.resource_claim_name),
        })
    }
}

/// Fields of a volume that name a secret, below the volume's source.
const VOLUME_SECRETS: [&str; 10] = [
    "/azureFile/secretName",
    "/cephfs/secretRef/name",
    "/cinder/secretRef/name",
    "/csi/nodePublishSecretRef/name",
    "/flexVolume/secretRef/name",
    "/iscsi/secretRef/name",
    "/rbd/secretRef/name",
    "/scaleIO/secretRef/name",
    "/secret/secretName",
    "/storageos/secretRef/name",
];

/// All that a pod's specification refers to.
/// Names of the Secrets that a pod refers to.
pub(super) fn secrets(json: &[u8]) -> Vec<String> {
    let references = pod_references("", json, &Seen::default());
    references
        .into_iter()
        .filter(|(kind, _)| *kind == Kind::Secret)
        .map(|(_, key)| key.trim_start_matches('/').to_owned())
        .collect()
}

fn pod_references(namespace: &str, json: &[u8], seen: &Seen) -> HashSet<Reference> {
    let mut out = HashSet::new();
    let Ok(pod) = serde_json::from_slice::<Value>(json) else { return out };
    // A mirror pod is the node's own report: it must not widen what the node may read.
    if pod.pointer("/metadata/annotations/kubernetes.io~1config.mirror").is_some() {
        return out;
    }
    let spec = &pod["spec"];
    let mut add = |kind: Kind, name: Option<&str>| {
        if let Some(name) = name.filter(|n| !n.is_empty()) {
            out.insert((kind, format!("{namespace}/{name}")));
        }
    };
    let text =
        |value: &'_ Value, pointer: &str| value.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    add(Kind::ServiceAccount, spec["serviceAccountName"].as_str());
    for secret in items(spec, "imagePullSecrets") {
        add(Kind::Secret, secret["name"].as_str());
    }
    for volume in items(spec, "volumes") {
        for pointer in VOLUME_SECRETS {
            add(Kind::Secret, text(volume, pointer).as_deref());
        }
        add(Kind::ConfigMap, text(volume, "/configMap/name").as_deref());
        add(Kind::Claim, text(volume, "/persistentVolumeClaim/claimName").as_deref());
        if volume.get("ephemeral").is_some() {
            let (pod, volume) = (text(&pod, "/metadata/name"), volume["name"].as_str());
            let claim = pod.zip(volume).map(|(pod, volume)| format!("{pod}-{volume}"));
            add(Kind::Claim, claim.as_deref());
        }
        for source in volume.get("projected").into_iter().flat_map(|p| items(p, "sources")) {
            add(Kind::ConfigMap, text(source, "/configMap/name").as_deref());
            add(Kind::Secret, text(source, "/secret/name").as_deref());
        }
    }
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for container in items(spec, list) {
            for env in items(container, "env") {
                add(Kind::ConfigMap, text(env, "/valueFrom/configMapKeyRef/name").as_deref());
                add(Kind::Secret, text(env, "/valueFrom/secretKeyRef/name").as_deref());
            }
            for source in items(container, "envFrom") {
                add(Kind::ConfigMap, text(source, "/configMapRef/name").as_deref());
                add(Kind::Secret, text(source, "/secretRef/name").as_deref());
            }
        }
    }
    for claim in items(spec, "resourceClaims") {
        let from_template =
            || seen.claims.iter().find(|(n, _)| claim["name"] == n.as_str()).and_then(|(_, c)| c.as_deref());
        add(Kind::ResourceClaim, claim["resourceClaimName"].as_str().or_else(from_template));
    }
    add(Kind::ResourceClaim, seen.extended_claim.as_deref());
    out
}

fn items<'a>(value: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    value.get(field).and_then(Value::as_array).into_iter().flatten()
}

/// Secrets of a volume that the node agent needs, below `spec`: the reference, and whether it is one with a
/// namespace of its own.
const PERSISTENT_SECRETS: [&str; 10] = [
    "/cephfs/secretRef",
    "/cinder/secretRef",
    "/csi/nodeExpandSecretRef",
    "/csi/nodePublishSecretRef",
    "/csi/nodeStageSecretRef",
    "/flexVolume/secretRef",
    "/iscsi/secretRef",
    "/rbd/secretRef",
    "/scaleIO/secretRef",
    "/storageos/secretRef",
];

/// The node that has a volume's files.
fn node_of_volume(json: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Object {
        #[serde(default)]
        metadata: Metadata,
    }
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Metadata {
        labels: Option<HashMap<String, String>>,
    }
    let object: Object = serde_json::from_slice(json).ok()?;
    object.metadata.labels?.remove(NODE_LABEL).filter(|node| !node.is_empty())
}

fn read_volume(json: &[u8]) -> Option<Volume> {
    let volume: Value = serde_json::from_slice(json).ok()?;
    let spec = volume.get("spec")?;
    let text = |value: &Value, field: &str| {
        value.get(field).and_then(Value::as_str).filter(|t| !t.is_empty()).map(str::to_owned)
    };
    let claim = spec.get("claimRef")?;
    let namespace = text(claim, "namespace")?;
    let mut secrets = Vec::new();
    for pointer in PERSISTENT_SECRETS {
        if let Some(reference) = spec.pointer(pointer)
            && let Some(name) = text(reference, "name")
        {
            let own = text(reference, "namespace");
            secrets.push(format!("{}/{name}", own.as_deref().unwrap_or(&namespace)));
        }
    }
    if let Some(azure) = spec.get("azureFile")
        && let Some(name) = text(azure, "secretName")
    {
        let own = text(azure, "secretNamespace");
        secrets.push(format!("{}/{name}", own.as_deref().unwrap_or(&namespace)));
    }
    Some(Volume { claim: format!("{namespace}/{}", text(claim, "name")?), secrets })
}
