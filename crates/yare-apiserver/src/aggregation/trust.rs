//! `extension-apiserver-authentication` in `kube-system`: how a server behind this one recognizes it, and whom
//! it may believe. Made anew when somebody deletes it; what other API servers of the cluster put in stays.

use std::sync::Arc;

use serde_json::{Value, json};
use yare_kinds::view::{View, ViewMut};

use super::FrontProxy;
use crate::{
    bootstrap::{ensure, internal_call},
    core::{Call, Core},
    verbs::write,
};

const NAMESPACE: &str = "kube-system";
const NAME: &str = "extension-apiserver-authentication";

/// What a list in the data is kept under, and the values that this server adds to it.
fn lists(proxy: &FrontProxy) -> [(&'static str, Vec<String>); 5] {
    let one = |text: &str| vec![text.to_owned()];
    [
        ("requestheader-allowed-names", proxy.allowed_names.clone()),
        ("requestheader-extra-headers-prefix", one("X-Remote-Extra-")),
        ("requestheader-group-headers", one("X-Remote-Group")),
        ("requestheader-uid-headers", one("X-Remote-Uid")),
        ("requestheader-username-headers", one("X-Remote-User")),
    ]
}

fn bundles(proxy: &FrontProxy) -> [(&'static str, &str); 2] {
    [("client-ca-file", &proxy.client_authority), ("requestheader-client-ca-file", &proxy.authority)]
}

/// Adds what this server is to what stands there.
fn merge(data: &mut Value, proxy: &FrontProxy) {
    for (key, values) in lists(proxy) {
        let mut all: Vec<String> =
            serde_json::from_str(data[key].as_str().unwrap_or_default()).unwrap_or_default();
        for value in values {
            if !all.contains(&value) {
                all.push(value);
            }
        }
        data[key] = json!(all).to_string().into();
    }
    for (key, bundle) in bundles(proxy) {
        let mut all = data[key].as_str().unwrap_or_default().to_owned();
        if !all.contains(bundle.trim()) {
            if !all.is_empty() && !all.ends_with('\n') {
                all.push('\n');
            }
            all.push_str(bundle);
        }
        data[key] = all.into();
    }
}

/// A configuration map was deleted.
pub fn deleted(call: &Call, object: &Value) {
    if object.str_at("metadata.name") == NAME && object.str_at("metadata.namespace") == NAMESPACE {
        call.core.aggregation.trust.notify_one();
    }
}

/// Publishes the data, now and whenever it is deleted.
pub fn start(core: &Arc<Core>) {
    if core.config.front_proxy.is_none() {
        return;
    }
    let core = core.clone();
    tokio::spawn(async move {
        loop {
            publish(&core).await;
            tokio::select! {
                () = core.aggregation.trust.notified() => {}
                () = core.stop.cancelled() => return,
            }
        }
    });
}

async fn publish(core: &Arc<Core>) {
    let Some(proxy) = &core.config.front_proxy else { return };
    let mut data = json!({});
    merge(&mut data, proxy);
    let object = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": NAME, "namespace": NAMESPACE }, "data": data,
    });
    if let Err(error) = ensure(core, object).await {
        tracing::warn!(%error, "cannot publish how extension servers recognize this one");
        return;
    }
    let Some(served) = core.builtin.stored("configmaps") else { return };
    let call = internal_call(core, "update", "configmaps", NAMESPACE, NAME);
    let change = |object: &mut Value| {
        let mut data = object.at("data").clone();
        if !data.is_object() {
            data = json!({});
        }
        merge(&mut data, proxy);
        object.set("data", data);
        Ok(())
    };
    if let Err(error) = write::modify(&call, served, NAMESPACE, NAME, Some(""), false, change).await
        && error.reason != "NotFound"
    {
        tracing::warn!(%error, "cannot publish how extension servers recognize this one");
    }
}

#[cfg(test)]
mod tests {
    use yare_auth::pki::KeyPairPem;

    use super::*;
    use crate::outbound::shown::ClientPair;

    #[test]
    fn others_stay() {
        let proxy = FrontProxy {
            pair: Arc::new(ClientPair::own(KeyPairPem { certificate: String::new(), key: String::new() })),
            authority: "B\n".into(),
            client_authority: "A\n".into(),
            allowed_names: vec!["front-proxy-client".into()],
        };
        let mut data = json!({
            "client-ca-file": "Z",
            "requestheader-allowed-names": "[\"other\"]",
            "requestheader-group-headers": "nonsense",
        });
        merge(&mut data, &proxy);
        let once = data.clone();
        merge(&mut data, &proxy);
        assert_eq!(data, once);
        assert_eq!(data["client-ca-file"], "Z\nA\n");
        assert_eq!(data["requestheader-client-ca-file"], "B\n");
        assert_eq!(data["requestheader-allowed-names"], r#"["other","front-proxy-client"]"#);
        assert_eq!(data["requestheader-group-headers"], r#"["X-Remote-Group"]"#);
        assert_eq!(data["requestheader-username-headers"], r#"["X-Remote-User"]"#);
    }
}
