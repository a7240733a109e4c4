//! A container's environment: `envFrom`, `env` in all its forms, and the variables of services.

use std::collections::BTreeMap;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{ContainerHook, ContainerStart, StartFailure};
use crate::objects::Missing;
use crate::pod::{expand, fields};
use crate::view::{ConfigMap, EnvVarSource, FileKeyRef, KeyRef, OptionalRef, Secret, Service};
use crate::volumes::env_file;

pub(crate) struct Environment;

#[async_trait]
impl ContainerHook for Environment {
    fn name(&self) -> &'static str {
        "environment"
    }

    async fn apply(&self, start: &mut ContainerStart<'_>) -> Result<(), StartFailure> {
        let services = service_variables(start).await?;
        let mut order: Vec<String> = Vec::new();
        let mut values: BTreeMap<String, String> = BTreeMap::new();
        let mut set = |values: &mut BTreeMap<String, String>, name: String, value: String| {
            if values.insert(name.clone(), value).is_none() {
                order.push(name);
            }
        };
        for source in &start.container.env_from {
            for (name, value) in
                all_keys(start, source.config_map_ref.as_ref(), source.secret_ref.as_ref()).await?
            {
                set(&mut values, format!("{}{name}", source.prefix), value);
            }
        }
        for variable in &start.container.env {
            let value = match &variable.value_from {
                _ if !variable.value.is_empty() => expand::expand(&variable.value, |name| {
                    values.get(name).or_else(|| services.get(name)).cloned()
                }),
                Some(source) => match resolve(start, source).await? {
                    Some(value) => value,
                    None => continue,
                },
                None => String::new(),
            };
            set(&mut values, variable.name.clone(), value);
        }
        for (name, value) in services {
            if !values.contains_key(&name) {
                set(&mut values, name, value);
            }
        }
        start.config.env = order
            .into_iter()
            .map(|name| {
                let value = values.get(&name).cloned().unwrap_or_default();
                (name, value)
            })
            .collect();
        start.env = values;
        Ok(())
    }
}

async fn config_map(start: &ContainerStart<'_>, name: &str) -> Result<ConfigMap, Missing> {
    let m = &start.pod.metadata;
    start.kubelet.objects.get(&yare_client::CONFIG_MAPS, &m.namespace, name, &m.uid, start.mailbox).await
}

async fn secret(start: &ContainerStart<'_>, name: &str) -> Result<Secret, Missing> {
    let m = &start.pod.metadata;
    start.kubelet.objects.get(&yare_client::SECRETS, &m.namespace, name, &m.uid, start.mailbox).await
}

/// `Ok(None)` when the object is absent and may be.
fn unless_optional<T>(found: Result<T, Missing>, optional: Option<bool>) -> Result<Option<T>, StartFailure> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(Missing::NotFound(_)) if optional == Some(true) => Ok(None),
        Err(missing) => Err(StartFailure::config(missing.to_string())),
    }
}

fn text(base64: &str) -> Result<String, StartFailure> {
    let bytes = STANDARD
        .decode(base64)
        .map_err(|e| StartFailure::config(format!("secret data is not base64: {e}")))?;
    String::from_utf8(bytes)
        .map_err(|_| StartFailure::config("secret data for an environment variable is not UTF-8"))
}

async fn all_keys(
    start: &ContainerStart<'_>,
    map: Option<&OptionalRef>,
    hidden: Option<&OptionalRef>,
) -> Result<Vec<(String, String)>, StartFailure> {
    if let Some(reference) = map {
        let found = unless_optional(config_map(start, &reference.name).await, reference.optional)?;
        return Ok(found.map(|m| m.data.into_iter().collect()).unwrap_or_default());
    }
    if let Some(reference) = hidden {
        let found = unless_optional(secret(start, &reference.name).await, reference.optional)?;
        let data = found.map(|s| s.data).unwrap_or_default();
        return data.into_iter().map(|(name, value)| Ok((name, text(&value)?))).collect();
    }
    Ok(Vec::new())
}

/// The value of a variable's source; `None` when it is absent and may be.
async fn resolve(start: &ContainerStart<'_>, source: &EnvVarSource) -> Result<Option<String>, StartFailure> {
    if let Some(reference) = &source.field_ref {
        return fields::field(start.pod, start.facts, &reference.field_path)
            .map(Some)
            .map_err(StartFailure::config);
    }
    if let Some(reference) = &source.resource_field_ref {
        return fields::resource(start.pod, start.facts, reference, &start.container.name)
            .map(Some)
            .map_err(StartFailure::config);
    }
    if let Some(reference) = &source.config_map_key_ref {
        let found = unless_optional(config_map(start, &reference.name).await, reference.optional)?;
        return key(found.map(|m| m.data), reference, "ConfigMap", start);
    }
    if let Some(reference) = &source.secret_key_ref {
        let found = unless_optional(secret(start, &reference.name).await, reference.optional)?;
        return match key(found.map(|s| s.data), reference, "Secret", start)? {
            Some(value) => text(&value).map(Some),
            None => Ok(None),
        };
    }
    if let Some(reference) = &source.file_key_ref {
        return file_key(start, reference);
    }
    Ok(Some(String::new()))
}

fn key(
    data: Option<BTreeMap<String, String>>,
    reference: &KeyRef,
    kind: &str,
    start: &ContainerStart<'_>,
) -> Result<Option<String>, StartFailure> {
    let Some(data) = data else { return Ok(None) };
    match data.get(&reference.key) {
        Some(value) => Ok(Some(value.clone())),
        None if reference.optional == Some(true) => Ok(None),
        None => Err(StartFailure::config(format!(
            "couldn't find key {} in {kind} {}/{}",
            reference.key, start.pod.metadata.namespace, reference.name
        ))),
    }
}

fn file_key(start: &ContainerStart<'_>, reference: &FileKeyRef) -> Result<Option<String>, StartFailure> {
    let volume = start.volumes.get(&reference.volume_name).ok_or_else(|| {
        StartFailure::config(format!(
            "cannot find the volume {:?} referenced by FileKeyRef",
            reference.volume_name
        ))
    })?;
    let found = env_file::read(&volume.path, &reference.path, &reference.key)
        .map_err(|_| StartFailure::config("couldn't parse env file"))?;
    match found {
        Some(value) => Ok(Some(value)),
        None if reference.optional == Some(true) => Ok(None),
        None => Err(StartFailure::config(format!(
            "environment variable key {:?} not found in file {:?}",
            reference.key, reference.path
        ))),
    }
}

/// Variables of the services a container sees: those of its namespace, and always the API server's.
async fn service_variables(start: &ContainerStart<'_>) -> Result<BTreeMap<String, String>, StartFailure> {
    let services = &start.kubelet.services;
    let wait = std::time::Duration::from_secs(10);
    // A static pod runs without the API server, so with no services it knows of.
    if start.pod.is_static() && !services.has_synced() {
        return Ok(BTreeMap::new());
    }
    if tokio::time::timeout(wait, services.synced()).await.is_err() {
        return Err(StartFailure::config(
            "services have not yet been read at least once, cannot construct envvars",
        ));
    }
    let namespace = &start.pod.metadata.namespace;
    let mut chosen: BTreeMap<String, Service> = BTreeMap::new();
    let mut take = |service: Service| {
        if !matches!(service.spec.cluster_ip.as_str(), "" | "None") {
            chosen.insert(service.metadata.name.clone(), service);
        }
    };
    if let Some(master) =
        services.get(&yare_client::ObjectKey::new("default", "kubernetes")).and_then(|c| c.view().ok())
    {
        take(master);
    }
    if start.pod.spec.enable_service_links != Some(false) {
        for service in services.in_namespace(namespace).iter().filter_map(|c| c.view::<Service>().ok()) {
            take(service);
        }
    }
    Ok(chosen.values().flat_map(variables).collect())
}

fn variables(service: &Service) -> Vec<(String, String)> {
    let name = |text: &str| text.replace('-', "_").to_uppercase();
    let ip = &service.spec.cluster_ip;
    let prefix = name(&service.metadata.name);
    let mut out = vec![(format!("{prefix}_SERVICE_HOST"), ip.clone())];
    if let Some(first) = service.spec.ports.first() {
        out.push((format!("{prefix}_SERVICE_PORT"), first.port.to_string()));
    }
    for port in service.spec.ports.iter().filter(|p| !p.name.is_empty()) {
        out.push((format!("{prefix}_SERVICE_PORT_{}", name(&port.name)), port.port.to_string()));
    }
    for (index, port) in service.spec.ports.iter().enumerate() {
        let protocol = if port.protocol.is_empty() { "TCP" } else { &port.protocol };
        let host =
            if ip.contains(':') { format!("[{ip}]:{}", port.port) } else { format!("{ip}:{}", port.port) };
        let url = format!("{}://{host}", protocol.to_lowercase());
        if index == 0 {
            out.push((format!("{prefix}_PORT"), url.clone()));
        }
        let port_prefix = format!("{prefix}_PORT_{}_{}", port.port, protocol.to_uppercase());
        out.push((format!("{port_prefix}_PROTO"), protocol.to_lowercase()));
        out.push((format!("{port_prefix}_PORT"), port.port.to_string()));
        out.push((format!("{port_prefix}_ADDR"), ip.clone()));
        out.push((port_prefix, url));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_variables_read_like_docker_links() {
        let service: Service = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "my-db"},
            "spec": {"clusterIP": "10.43.0.7", "ports": [{"name": "p-q", "port": 5432, "protocol": "TCP"}]}}))
        .unwrap();
        let got: BTreeMap<String, String> = variables(&service).into_iter().collect();
        for (name, value) in [
            ("MY_DB_SERVICE_HOST", "10.43.0.7"),
            ("MY_DB_SERVICE_PORT", "5432"),
            ("MY_DB_SERVICE_PORT_P_Q", "5432"),
            ("MY_DB_PORT", "tcp://10.43.0.7:5432"),
            ("MY_DB_PORT_5432_TCP", "tcp://10.43.0.7:5432"),
            ("MY_DB_PORT_5432_TCP_PROTO", "tcp"),
            ("MY_DB_PORT_5432_TCP_PORT", "5432"),
            ("MY_DB_PORT_5432_TCP_ADDR", "10.43.0.7"),
        ] {
            assert_eq!(got.get(name).map(String::as_str), Some(value), "{name}");
        }
    }
}
