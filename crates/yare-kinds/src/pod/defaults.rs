//! Defaults of pods and pod templates.

use serde_json::{Value, json};

use super::{image::is_latest, resources};
use crate::{
    check::quantity,
    view::{View, ViewMut},
};

/// Lists of containers in a pod's specification.
pub const CONTAINER_LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

/// Defaults of a `PodTemplateSpec`. One without a specification gets an empty one, which validation then finds wanting
/// as upstream does.
pub fn template(template: &mut Value) {
    template.default_absent("spec", json!({}));
    if let Some(spec) = template.at_mut("spec") {
        self::spec(spec);
    }
}

/// Defaults of a `Pod`: those of its specification, and those that templates do not get.
pub fn pod(pod: &mut Value) {
    if let Some(spec) = pod.at_mut("spec") {
        self::spec(spec);
        for list in ["initContainers", "containers"] {
            for container in spec.items_mut(list) {
                requests_from_limits(container);
            }
        }
        pod_level_resources(spec);
        spec.default_absent("enableServiceLinks", true);
        if spec.bool_at("hostNetwork") {
            for list in ["initContainers", "containers"] {
                for port in spec.items_mut(list).iter_mut().flat_map(|c| c.items_mut("ports")) {
                    let number = port.int_at("containerPort");
                    port.default_zero("hostPort", number);
                }
            }
        }
    }
    // Of a pod alone: templates keep what they say.
    if pod.int_at("spec.terminationGracePeriodSeconds") < 0 {
        pod.set("spec.terminationGracePeriodSeconds", 1);
    }
    // Both forms of the addresses are always there; the list is the newer one and holds the first again.
    let ip = pod.str_at("status.podIP").to_owned();
    let first = pod.items("status.podIPs").first().map(|i| i.str_at("ip").to_owned());
    match first {
        None if !ip.is_empty() => pod.set("status.podIPs", json!([{"ip": ip}])),
        Some(first) if ip.is_empty() => pod.set("status.podIP", first),
        Some(first) if first != ip => pod.set("status.podIPs", json!([{"ip": ip}])),
        _ => {}
    }
}

/// Defaults of a `PodSpec`.
pub fn spec(spec: &mut Value) {
    spec.default_zero("dnsPolicy", "ClusterFirst");
    spec.default_zero("restartPolicy", "Always");
    spec.default_absent("securityContext", json!({}));
    spec.default_absent("terminationGracePeriodSeconds", 30);
    spec.default_zero("schedulerName", "default-scheduler");
    service_account(spec);
    round_up_resources(spec, "overhead");
    round_up_resources(spec, "resources.limits");
    round_up_resources(spec, "resources.requests");
    for volume in spec.items_mut("volumes") {
        self::volume(volume);
    }
    for list in CONTAINER_LISTS {
        for container in spec.items_mut(list) {
            self::container(container);
        }
    }
}

/// `serviceAccount` is the old name of `serviceAccountName`; both are always there.
fn service_account(spec: &mut Value) {
    let name = match spec.str_at("serviceAccountName") {
        "" => spec.str_at("serviceAccount"),
        name => name,
    }
    .to_owned();
    if !name.is_empty() {
        spec.set("serviceAccountName", name.clone());
        spec.set("serviceAccount", name);
    }
}

fn container(container: &mut Value) {
    let policy = pull_policy(container.str_at("image"));
    container.default_zero("imagePullPolicy", policy);
    container.default_zero("terminationMessagePath", "/dev/termination-log");
    container.default_zero("terminationMessagePolicy", "File");
    container.default_absent("resources", json!({}));
    round_up_resources(container, "resources.limits");
    round_up_resources(container, "resources.requests");
    for port in container.items_mut("ports") {
        port.default_zero("protocol", "TCP");
    }
    for env in container.items_mut("env") {
        if let Some(field) = env.at_mut("valueFrom.fieldRef") {
            field.default_zero("apiVersion", "v1");
        }
        if let Some(resource) = env.at_mut("valueFrom.resourceFieldRef") {
            resource.default_zero("divisor", "0");
        }
        if let Some(file) = env.at_mut("valueFrom.fileKeyRef") {
            file.default_absent("optional", false);
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.at_mut(name) {
            for (field, value) in [
                ("timeoutSeconds", 1),
                ("periodSeconds", 10),
                ("successThreshold", 1),
                ("failureThreshold", 3),
            ] {
                probe.default_zero(field, value);
            }
            http_get(probe);
            if let Some(grpc) = probe.at_mut("grpc") {
                grpc.default_absent("service", "");
            }
        }
    }
    for name in ["lifecycle.postStart", "lifecycle.preStop"] {
        if let Some(handler) = container.at_mut(name) {
            http_get(handler);
        }
    }
}

fn http_get(handler: &mut Value) {
    if let Some(get) = handler.at_mut("httpGet") {
        get.default_zero("path", "/");
        get.default_zero("scheme", "HTTP");
    }
}

/// `Always` for images whose tag is `latest`, named or not.
fn pull_policy(image: &str) -> &'static str {
    if is_latest(image) { "Always" } else { "IfNotPresent" }
}

fn volume(volume: &mut Value) {
    let has_source = volume.entries("").any(|(k, v)| k != "name" && !v.is_null());
    if !has_source {
        volume.set("emptyDir", json!({}));
    }
    if let Some(image) = volume.at_mut("image") {
        let policy = pull_policy(image.str_at("reference"));
        image.default_zero("pullPolicy", policy);
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = volume.at_mut(source) {
            source.default_absent("defaultMode", 0o644);
        }
    }
    downward_items(volume, "downwardAPI.items");
    for source in volume.items_mut("projected.sources") {
        downward_items(source, "downwardAPI.items");
        if let Some(token) = source.at_mut("serviceAccountToken") {
            token.default_absent("expirationSeconds", 3600);
        }
    }
    if let Some(spec) = volume.at_mut("ephemeral.volumeClaimTemplate.spec") {
        claim_spec(spec);
    }
    storage_source(volume);
}

fn downward_items(source: &mut Value, path: &str) {
    for item in source.items_mut(path) {
        if let Some(field) = item.at_mut("fieldRef") {
            field.default_zero("apiVersion", "v1");
        }
        if let Some(resource) = item.at_mut("resourceFieldRef") {
            resource.default_zero("divisor", "0");
        }
    }
}

/// Defaults of the kinds of storage that volumes of pods and PersistentVolumes share.
pub fn storage_source(source: &mut Value) {
    if let Some(host_path) = source.at_mut("hostPath") {
        host_path.default_absent("type", "");
    }
    if let Some(iscsi) = source.at_mut("iscsi") {
        iscsi.default_zero("iscsiInterface", "default");
    }
    if let Some(rbd) = source.at_mut("rbd") {
        rbd.default_zero("pool", "rbd");
        rbd.default_zero("user", "admin");
        rbd.default_zero("keyring", "/etc/ceph/keyring");
    }
    if let Some(disk) = source.at_mut("azureDisk") {
        disk.default_absent("cachingMode", "ReadWrite");
        disk.default_absent("fsType", "ext4");
        disk.default_absent("readOnly", false);
        disk.default_absent("kind", "Shared");
    }
    if let Some(scale_io) = source.at_mut("scaleIO") {
        scale_io.default_zero("storageMode", "ThinProvisioned");
        scale_io.default_zero("fsType", "xfs");
    }
}

/// Defaults of a `PersistentVolumeClaimSpec`.
pub fn claim_spec(spec: &mut Value) {
    spec.default_absent("volumeMode", "Filesystem");
    round_up_resources(spec, "resources.limits");
    round_up_resources(spec, "resources.requests");
}

/// Amounts finer than a thousandth are rounded up to one.
pub fn round_up_resources(object: &mut Value, path: &str) {
    let Some(list) = object.at_mut(path).and_then(Value::as_object_mut) else { return };
    for amount in list.values_mut() {
        let (rounded, exact) = quantity(amount).round_up(-3);
        if !exact {
            *amount = Value::from(rounded);
        }
    }
}

fn requests_from_limits(container: &mut Value) {
    let Some(limits) = container.at("resources.limits").as_object().cloned() else { return };
    for (name, amount) in limits {
        let requests = container.at("resources.requests");
        if requests.get(&name).is_none() {
            let mut requests = requests.as_object().cloned().unwrap_or_default();
            requests.insert(name, amount);
            container.set("resources.requests", requests);
        }
    }
}

/// Pod-level requests and limits follow from those of the containers where the pod sets only some (KEP-2837).
fn pod_level_resources(spec: &mut Value) {
    if !spec.has("resources") {
        return;
    }
    let mut limits = spec.at("resources.limits").as_object().cloned().unwrap_or_default();
    let mut requests = spec.at("resources.requests").as_object().cloned().unwrap_or_default();
    if limits.is_empty() && requests.is_empty() {
        return;
    }
    for (name, amount) in resources::of_containers(spec, "limits") {
        if name.starts_with("hugepages-") && !requests.contains_key(&name) {
            limits.entry(name).or_insert_with(|| Value::from(amount));
        }
    }
    if !limits.is_empty() {
        for (name, amount) in resources::of_containers(spec, "requests") {
            if matches!(name.as_str(), "cpu" | "memory") {
                requests.entry(name).or_insert_with(|| Value::from(amount));
            }
        }
        for (name, amount) in &limits {
            if resources::is_pod_level(name) {
                requests.entry(name.clone()).or_insert_with(|| amount.clone());
            }
        }
    }
    if !limits.is_empty() {
        spec.set("resources.limits", limits);
    }
    if !requests.is_empty() {
        spec.set("resources.requests", requests);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_what_upstream_sets() {
        let mut pod = json!({"spec": {
            "serviceAccountName": "sa",
            "hostNetwork": true,
            "containers": [{"name": "a", "image": "nginx", "ports": [{"containerPort": 80}],
                "livenessProbe": {"httpGet": {"port": 80}},
                "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "0.1m"}}}],
            "volumes": [{"name": "v"}, {"name": "s", "secret": {"secretName": "x"}}]}});
        self::pod(&mut pod);
        assert_eq!(
            pod,
            json!({"spec": {
            "serviceAccountName": "sa", "serviceAccount": "sa", "hostNetwork": true,
            "dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "securityContext": {}, "schedulerName": "default-scheduler",
            "terminationGracePeriodSeconds": 30, "enableServiceLinks": true,
            "containers": [{"name": "a", "image": "nginx", "imagePullPolicy": "Always",
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                "ports": [{"containerPort": 80, "hostPort": 80, "protocol": "TCP"}],
                "livenessProbe": {"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1,
                    "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3},
                "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1m", "memory": "1Gi"}}}],
            "volumes": [{"name": "v", "emptyDir": {}}, {"name": "s", "secret": {"secretName": "x", "defaultMode": 420}}]}})
        );
    }

    #[test]
    fn a_pod_stops_within_a_second_at_least() {
        for (given, want) in [(-1, 1), (0, 0), (1, 1), (30, 30)] {
            let mut pod = json!({"spec": {"containers": [], "terminationGracePeriodSeconds": given}});
            self::pod(&mut pod);
            assert_eq!(pod["spec"]["terminationGracePeriodSeconds"], want);
            let mut of_template = json!({"containers": [], "terminationGracePeriodSeconds": given});
            spec(&mut of_template);
            assert_eq!(of_template["terminationGracePeriodSeconds"], given);
        }
    }
}
