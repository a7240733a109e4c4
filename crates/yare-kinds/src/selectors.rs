//! Field selectors: what `--field-selector` can ask of a kind, beside `metadata.name` and
//! `metadata.namespace`.

use serde_json::Value;

use crate::{table::Selectable, view::View};

/// Declares a table of selectors that read a string at the path of the same name, or by the function given.
macro_rules! selectors {
    ($($(#[$doc:meta])* $name:ident = [$($field:literal $(=> $read:expr)?),* $(,)?];)*) => {$(
        $(#[$doc])*
        pub const $name: &[Selectable] = &[$(Selectable { name: $field, read: selectors!(@ $field $(=> $read)?) }),*];
    )*};
    (@ $field:literal) => { |o| o.str_at($field).to_owned() };
    (@ $field:literal => $read:expr) => { $read };
}

selectors! {
    /// Pods.
    POD = [
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork" => |o| o.bool_at("spec.hostNetwork").to_string(),
        "status.phase",
        "status.podIP" => |o| pod_ip(o).to_owned(),
        // Upstream takes this one, and finds no value for it in any pod.
        "status.podIPs" => |_| String::new(),
        "status.nominatedNodeName",
    ];
    /// Nodes.
    NODE = ["spec.unschedulable" => |o| o.bool_at("spec.unschedulable").to_string()];
    /// Namespaces.
    NAMESPACE = ["status.phase"];
    /// Events, by their fields in the core group and in `events.k8s.io`: the same objects answer for both.
    EVENT = [
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "reportingComponent",
        "source" => |o| [o.str_at("source.component"), o.str_at("reportingComponent")]
            .into_iter().find(|s| !s.is_empty()).unwrap_or_default().to_owned(),
        "type",
        "regarding.kind" => |o| o.str_at("involvedObject.kind").to_owned(),
        "regarding.namespace" => |o| o.str_at("involvedObject.namespace").to_owned(),
        "regarding.name" => |o| o.str_at("involvedObject.name").to_owned(),
        "regarding.uid" => |o| o.str_at("involvedObject.uid").to_owned(),
        "regarding.apiVersion" => |o| o.str_at("involvedObject.apiVersion").to_owned(),
        "regarding.resourceVersion" => |o| o.str_at("involvedObject.resourceVersion").to_owned(),
        "regarding.fieldPath" => |o| o.str_at("involvedObject.fieldPath").to_owned(),
        "reportingController" => |o| o.str_at("reportingComponent").to_owned(),
    ];
    /// Secrets.
    SECRET = ["type"];
    /// Services.
    SERVICE = ["spec.clusterIP", "spec.type"];
    /// ReplicationControllers.
    REPLICATION_CONTROLLER = ["status.replicas" => |o| o.int_at("status.replicas").to_string()];
    /// Jobs.
    JOB = ["status.successful" => |o| o.int_at("status.succeeded").to_string()];
    /// CertificateSigningRequests and ClusterTrustBundles.
    SIGNER = ["spec.signerName"];
    /// PodCertificateRequests.
    POD_CERTIFICATE_REQUEST = ["spec.signerName", "spec.podName", "spec.nodeName"];
    /// ResourceSlices.
    RESOURCE_SLICE = ["spec.nodeName", "spec.driver"];
}

fn pod_ip(pod: &Value) -> &str {
    pod.items("status.podIPs").first().map_or_else(|| pod.str_at("status.podIP"), |ip| ip.str_at("ip"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn read() {
        let pod = json!({"spec": {"nodeName": "n", "hostNetwork": true}, "status": {"podIPs": [{"ip": "1.2.3.4"}]}});
        let got: Vec<String> = POD.iter().map(|s| format!("{}={}", s.name, (s.read)(&pod))).collect();
        assert_eq!(got[0], "spec.nodeName=n");
        assert!(
            got.contains(&"spec.hostNetwork=true".to_owned())
                && got.contains(&"status.podIP=1.2.3.4".to_owned())
        );
        let job = json!({"status": {"succeeded": 2}});
        assert_eq!((JOB[0].read)(&job), "2");
    }
}
