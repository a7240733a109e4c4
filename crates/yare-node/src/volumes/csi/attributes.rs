//! What goes along when a driver is asked to publish a volume: secrets, and what its CSIDriver object wants to
//! know of the pod.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::Plan;
use crate::kubelet::Kubelet;
use crate::view::{CsiDriver, Secret, SecretReference};
use crate::volumes::source::reason;
use crate::volumes::{Work, ownership, token};

/// The data of a secret; nothing where none is named. The error says which one.
pub(super) async fn secrets(
    kubelet: &Arc<Kubelet>,
    reference: Option<&SecretReference>,
) -> Result<BTreeMap<String, String>, String> {
    let Some(SecretReference { name, namespace }) = reference else { return Ok(BTreeMap::new()) };
    let path = format!("/api/v1/namespaces/{namespace}/secrets/{name}");
    let secret: Secret = kubelet.api.get(&path).await.map_err(|e| {
        format!(
            "{namespace}/{name} failed: kubernetes.io/csi: failed to find the secret {name} in the namespace {namespace} with error: {}",
            reason(&e)
        )
    })?;
    let decode = |value: String| STANDARD.decode(value).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    Ok(secret.data.into_iter().filter_map(|(key, value)| Some((key, decode(value)?))).collect())
}

/// Adds to the volume's context and to its secrets what the driver wants to know of the pod.
pub(super) async fn complete(
    work: &mut Work<'_>,
    plan: &Plan,
    object: Option<&CsiDriver>,
    context: &mut BTreeMap<String, String>,
    secrets: &mut BTreeMap<String, String>,
) -> Result<(), String> {
    let Some(object) = object else { return Ok(()) };
    let pod = work.context.pod;
    if object.spec.pod_info_on_mount == Some(true) {
        let m = &pod.metadata;
        for (key, value) in [
            ("pod.name", m.name.as_str()),
            ("pod.namespace", m.namespace.as_str()),
            ("pod.uid", m.uid.as_str()),
            ("serviceAccount.name", pod.spec.service_account_name.as_str()),
            ("ephemeral", if plan.ephemeral { "true" } else { "false" }),
        ] {
            context.insert(format!("csi.storage.k8s.io/{key}"), value.to_owned());
        }
    }
    if object.spec.token_requests.is_empty() {
        return Ok(());
    }
    let mut tokens = serde_json::Map::new();
    for request in &object.spec.token_requests {
        let wish = token::Wish {
            volume: &work.source.volume.name,
            // Not a path of a projection, which has none with a slash at its beginning.
            place: &format!("/csi/{}", request.audience),
            audience: &request.audience,
            seconds: request.expiration_seconds,
        };
        let token = token::get(work.context, &wish, &mut work.kept.tokens).await?;
        let status = json!({ "token": token.text, "expirationTimestamp": token.expires });
        tokens.insert(request.audience.clone(), status);
    }
    let into = if object.spec.service_account_token_in_secrets == Some(true) { secrets } else { context };
    let text = serde_json::Value::Object(tokens).to_string();
    into.insert("csi.storage.k8s.io/serviceAccount.tokens".to_owned(), text);
    Ok(())
}

/// Whether the driver serves volumes of this life: those that pods bring only if it says so.
pub(super) fn check_lifecycle(plan: &Plan, object: Option<&CsiDriver>) -> Result<(), String> {
    let (mode, driver) = (plan.mode(), &plan.driver);
    match object {
        None if !plan.ephemeral => Ok(()),
        None => Err(format!("volume mode {mode:?} not supported by driver {driver} (no CSIDriver object)")),
        Some(object) if object.spec.volume_lifecycle_modes.iter().any(|m| m == mode) => Ok(()),
        Some(object) => Err(format!(
            "volume mode {mode:?} not supported by driver {driver} (only supports {:?})",
            object.spec.volume_lifecycle_modes
        )),
    }
}

/// Whether the node has to give the volume's files to the pod's `fsGroup`.
pub(super) fn changes_group(work: &Work<'_>, plan: &Plan, object: Option<&CsiDriver>) -> bool {
    if ownership::fs_group(work.context.pod).is_none() || plan.read_only {
        return false;
    }
    let policy = object.and_then(|o| o.spec.fs_group_policy.as_deref());
    match policy.unwrap_or("ReadWriteOnceWithFSType") {
        "None" => false,
        "File" => true,
        _ if plan.fs_type.is_empty() => false,
        _ => {
            plan.ephemeral
                || work.source.bound.as_ref().is_some_and(|b| {
                    b.volume.spec.access_modes.iter().any(|m| m == "ReadWriteOnce" || m == "ReadWriteOncePod")
                })
        }
    }
}
