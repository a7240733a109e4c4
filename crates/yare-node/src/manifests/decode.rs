//! A manifest's bytes to pods: defaults, name, uid, annotations, validation, and no references to API objects.

use bytes::Bytes;
use serde_json::{Value, json};
use yare_auth::cache;
use yare_client::Cached;
use yare_kinds::strategy::Context;
use yare_kinds::table;
use yare_schema::builtin::builtin;
use yare_schema::decode::{Mode, Syntax, decode_as};
use yare_schema::features::Gates;

use super::Source;

/// What a pod of a manifest is made into.
pub(super) struct Maker<'a> {
    pub(super) source: Source,
    /// The file, or the URL.
    pub(super) place: &'a str,
    pub(super) node: &'a str,
    pub(super) gates: &'a Gates,
    /// RFC 3339.
    pub(super) now: &'a str,
}

impl Maker<'_> {
    /// One pod; of a URL also a list of them.
    pub(super) fn pods(&self, bytes: &[u8]) -> Result<Vec<Cached>, String> {
        match self.decode(bytes, "Pod") {
            Ok(pod) => Ok(vec![self.make(pod)?]),
            Err(single) if self.source == Source::Url => {
                let list = self.decode(bytes, "PodList").map_err(|multiple| {
                    format!("couldn't parse as single ({single}) or multiple pods ({multiple})")
                })?;
                let items = list.get("items").and_then(Value::as_array).cloned().unwrap_or_default();
                items.into_iter().map(|pod| self.make(pod)).collect()
            }
            Err(single) => Err(format!("couldn't parse as pod({single}), please check config file")),
        }
    }

    fn decode(&self, bytes: &[u8], kind: &str) -> Result<Value, String> {
        let ty = builtin().lookup("", "v1", kind).ok_or("the schema has no such kind")?;
        let syntax = if bytes.trim_ascii_start().starts_with(b"{") { Syntax::Json } else { Syntax::Yaml };
        let value = decode_as(ty, bytes, syntax, Mode::Ignore).map_err(|e| e.to_string())?.value;
        let word = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        match (word("apiVersion").as_str(), word("kind").as_str()) {
            ("v1", found) if found == kind => Ok(value),
            (_, "") => Err("Object 'Kind' is missing".to_owned()),
            ("", _) => Err("Object 'apiVersion' is missing".to_owned()),
            (version, found) => Err(format!("invalid pod: {version}, Kind={found}")),
        }
    }

    fn make(&self, mut pod: Value) -> Result<Cached, String> {
        let text = |pod: &Value, path: &str| {
            pod.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let name = text(&pod, "/metadata/name");
        if name.is_empty() {
            return Err("invalid pod: name is needed for the pod".to_owned());
        }
        let row = table::find("", "pods").ok_or("the table of kinds has no pods")?;
        row.strategy.default(&mut pod);
        let mut uid = text(&pod, "/metadata/uid");
        if uid.is_empty() {
            uid = self.digest(&pod);
        }
        pod["apiVersion"] = json!("v1");
        pod["kind"] = json!("Pod");
        let metadata = &mut pod["metadata"];
        metadata["uid"] = json!(uid);
        metadata["name"] = json!(format!("{name}-{}", self.node.to_lowercase()));
        if metadata.get("namespace").and_then(Value::as_str).is_none_or(str::is_empty) {
            metadata["namespace"] = json!("default");
        }
        metadata["annotations"]["kubernetes.io/config.hash"] = json!(uid);
        metadata["annotations"]["kubernetes.io/config.source"] = json!(self.source.name());
        metadata["annotations"]["kubernetes.io/config.seen"] = json!(self.now);
        pod["spec"]["nodeName"] = json!(self.node);
        if self.source == Source::File {
            tolerate_everything(&mut pod["spec"]["tolerations"]);
        }
        pod["status"] = json!({ "phase": "Pending" });
        let namespace = text(&pod, "/metadata/namespace");
        let context = Context { now: self.now, namespace: &namespace, user: "", gates: self.gates };
        let errors = row.validate_create(&pod, &context);
        if !errors.is_empty() {
            let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
            return Err(format!("invalid pod: [{}]", errors.join(", ")));
        }
        if let Some(resource) = references(&pod) {
            return Err(format!("static pods may not reference {resource}"));
        }
        Cached::new(Bytes::from(pod.to_string())).map_err(|e| e.to_string())
    }

    /// The uid of what is written, where it is written, on which node.
    fn digest(&self, pod: &Value) -> String {
        let place = match self.source {
            Source::File => format!("host:{}file:{}", self.node, self.place),
            Source::Url => format!("url:{}", self.place),
        };
        let key = cache::key(&[pod.to_string().as_bytes(), place.as_bytes()]);
        key[..16].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Taints come from trouble with the node, and a static pod must not leave because of it.
fn tolerate_everything(tolerations: &mut Value) {
    let all = json!({ "operator": "Exists", "effect": "NoExecute" });
    match tolerations.as_array_mut() {
        Some(list) if list.contains(&all) => {}
        Some(list) => list.push(all),
        None => *tolerations = json!([all]),
    }
}

/// What of the API a pod names, in upstream's words; nothing of it may be in a manifest.
fn references(pod: &Value) -> Option<&'static str> {
    let spec = &pod["spec"];
    let is_set = |value: &Value, path: &str| match value.pointer(path) {
        None | Some(Value::Null) => false,
        Some(Value::String(text)) => !text.is_empty(),
        Some(Value::Array(items)) => !items.is_empty(),
        Some(_) => true,
    };
    let items = |value: &'_ Value, name: &str| value[name].as_array().cloned().unwrap_or_default();
    let containers: Vec<Value> = ["initContainers", "containers", "ephemeralContainers"]
        .into_iter()
        .flat_map(|list| items(spec, list))
        .collect();
    let volumes = items(spec, "volumes");
    let sources: Vec<Value> = volumes.iter().flat_map(|v| items(&v["projected"], "sources")).collect();
    let in_env = |from: &str, reference: &str| {
        containers.iter().any(|c| {
            items(c, "envFrom").iter().any(|e| is_set(e, from))
                || items(c, "env").iter().any(|e| is_set(e, reference))
        })
    };
    if is_set(spec, "/serviceAccountName") {
        return Some("serviceaccounts");
    }
    let secret_places = [
        "/secret",
        "/azureFile/secretName",
        "/cephfs/secretRef",
        "/cinder/secretRef",
        "/flexVolume/secretRef",
        "/rbd/secretRef",
        "/scaleIO/secretRef",
        "/iscsi/secretRef",
        "/storageos/secretRef",
        "/csi/nodePublishSecretRef",
    ];
    if is_set(spec, "/imagePullSecrets")
        || in_env("/secretRef", "/valueFrom/secretKeyRef")
        || volumes.iter().any(|v| secret_places.iter().any(|place| is_set(v, place)))
        || sources.iter().any(|s| is_set(s, "/secret"))
    {
        return Some("secrets");
    }
    if in_env("/configMapRef", "/valueFrom/configMapKeyRef")
        || volumes.iter().any(|v| is_set(v, "/configMap"))
        || sources.iter().any(|s| is_set(s, "/configMap"))
    {
        return Some("configmaps");
    }
    if is_set(spec, "/resourceClaims") {
        return Some("resourceclaims");
    }
    const VOLUMES: &[(&str, &str)] = &[
        ("/csi", "csidrivers (via CSI volumes)"),
        ("/glusterfs", "endpoints (via glusterFS volumes)"),
        ("/persistentVolumeClaim", "persistentvolumeclaims"),
        ("/ephemeral", "persistentvolumeclaims (via ephemeral volumes)"),
        ("/azureFile", "secrets (via azureFile volumes)"),
    ];
    const SOURCES: &[(&str, &str)] = &[
        ("/serviceAccountToken", "serviceaccounts (via projected volumes)"),
        ("/clusterTrustBundle", "clustertrustbundles"),
        ("/podCertificate", "podcertificates"),
    ];
    let first = |all: &[Value], table: &'static [(&str, &'static str)]| {
        all.iter().find_map(|v| table.iter().find(|(path, _)| is_set(v, path))).map(|(_, name)| *name)
    };
    first(&volumes, VOLUMES).or_else(|| first(&sources, SOURCES))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make(source: Source, text: &str) -> Result<Vec<Cached>, String> {
        let gates = Gates::default();
        let now = "2026-01-01T00:00:00Z";
        Maker { source, place: "/m/a.yaml", node: "node-1", gates: &gates, now }.pods(text.as_bytes())
    }

    fn pod(spec: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: web}}\nspec:\n  containers: [{{name: a, image: b}}]\n  {spec}"
        )
    }

    #[test]
    fn a_manifest_becomes_a_pod_of_this_node() {
        let made = make(Source::File, &pod("")).unwrap();
        let value: Value = serde_json::from_slice(made[0].bytes()).unwrap();
        let uid = made[0].uid();
        assert_eq!((uid.len(), made[0].name(), made[0].namespace()), (32, "web-node-1", "default"));
        assert_eq!(value["metadata"]["annotations"]["kubernetes.io/config.hash"], uid);
        assert_eq!(value["metadata"]["annotations"]["kubernetes.io/config.source"], "file");
        assert_eq!(value["spec"]["nodeName"], "node-1");
        assert_eq!(value["spec"]["restartPolicy"], "Always");
        assert_eq!(value["spec"]["tolerations"], json!([{"operator": "Exists", "effect": "NoExecute"}]));
        // What is written decides, not how.
        assert_eq!(make(Source::File, &format!("# x\n{}", pod(""))).unwrap()[0].uid(), uid);
        assert_ne!(make(Source::File, &pod("priority: 1")).unwrap()[0].uid(), uid);
        assert_ne!(make(Source::Url, &pod("")).unwrap()[0].uid(), uid);
    }

    #[test]
    fn a_url_may_hold_a_list() {
        let list = r#"{"apiVersion": "v1", "kind": "PodList", "items": [
            {"metadata": {"name": "a", "namespace": "x"}, "spec": {"containers": [{"name": "a", "image": "b"}]}},
            {"metadata": {"name": "b"}, "spec": {"containers": [{"name": "a", "image": "b"}]}}]}"#;
        let made = make(Source::Url, list).unwrap();
        let names: Vec<String> = made.iter().map(|p| format!("{}/{}", p.namespace(), p.name())).collect();
        assert_eq!(names, ["x/a-node-1", "default/b-node-1"]);
        assert!(make(Source::File, list).unwrap_err().contains("please check config file"));
    }

    #[test]
    fn what_cannot_be_run_is_refused_in_upstreams_words() {
        for (text, part) in [
            ("x: [".to_owned(), "please check config file"),
            ("apiVersion: v1\nkind: Service".to_owned(), "Kind=Service"),
            ("apiVersion: v1\nkind: Pod\nspec: {}".to_owned(), "invalid pod: name is needed for the pod"),
            (pod("restartPolicy: Sometimes"), "invalid pod: [spec.restartPolicy: "),
            (pod("serviceAccountName: x"), "static pods may not reference serviceaccounts"),
            (pod("imagePullSecrets: [{name: x}]"), "may not reference secrets"),
            (pod("volumes: [{name: v, secret: {secretName: x}}]"), "may not reference secrets"),
            (pod("volumes: [{name: v, configMap: {name: x}}]"), "may not reference configmaps"),
            (
                pod("volumes: [{name: v, persistentVolumeClaim: {claimName: x}}]"),
                "may not reference persistentvolumeclaims",
            ),
            (
                pod("initContainers: [{name: i, image: b, envFrom: [{configMapRef: {name: x}}]}]"),
                "may not reference configmaps",
            ),
        ] {
            let error = make(Source::File, &text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
        let fine = pod("volumes: [{name: v, emptyDir: {}}, {name: h, hostPath: {path: /x}}]");
        assert!(make(Source::File, &fine).is_ok());
    }
}
