//! `ConfigMap`, `Secret` and `ServiceAccount`.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};
use yare_schema::field::{FieldError, Path};

use super::tls;
use crate::{
    check::{Check, Errors, annotation, go_json},
    meta, names,
    strategy::{Context, Strategy},
    view::{View, ViewMut, same},
};

/// The values of a ConfigMap or Secret together, in bytes.
const MAX_SIZE_BYTES: usize = 1024 * 1024;

/// Bytes behind a Base64 string, without decoding it.
fn decoded_len(value: &Value) -> usize {
    let text = value.as_str().unwrap_or_default();
    text.len() / 4 * 3 - text.bytes().rev().take_while(|b| *b == b'=').count().min(text.len() / 4 * 3)
}

fn decode(value: &Value) -> Vec<u8> {
    STANDARD.decode(value.as_str().unwrap_or_default()).unwrap_or_default()
}

/// Errors of changes to an object that is marked immutable.
fn check_immutable(errs: &mut Errors, new: &Value, old: &Value, fields: &[&'static str]) {
    const DETAIL: &str = "field is immutable when `immutable` is set";
    if !old.bool_at("immutable") {
        return;
    }
    if !new.bool_at("immutable") {
        errs.forbidden(&Path::new("immutable"), DETAIL);
    }
    for field in fields {
        if !same(new.at(field), old.at(field)) {
            errs.forbidden(&Path::new(field), DETAIL);
        }
    }
}

pub struct ConfigMap;

impl Strategy for ConfigMap {
    fn validate(&self, object: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        let (data, binary) = (Path::new("data"), Path::new("binaryData"));
        let mut size = 0;
        for (key, value) in object.entries("data") {
            errs.each(&data.key(key), key, names::config_map_key(key));
            if object.at("binaryData").get(key).is_some() {
                errs.invalid(&data.key(key), key, "duplicate of key present in binaryData");
            }
            size += value.as_str().map_or(0, str::len);
        }
        for (key, value) in object.entries("binaryData") {
            errs.each(&binary.key(key), key, names::config_map_key(key));
            size += decoded_len(value);
        }
        if size > MAX_SIZE_BYTES {
            errs.push(FieldError::too_long(&Path::WHOLE, MAX_SIZE_BYTES));
        }
        errs
    }

    fn validate_update(&self, new: &Value, old: &Value, ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        check_immutable(&mut errs, new, old, &["data", "binaryData"]);
        errs.extend(self.validate(new, ctx));
        errs
    }
}

pub struct Secret;

/// What secrets of some types cannot do without.
const REQUIRED_KEYS: &[(&str, &[&str])] = &[
    ("kubernetes.io/dockercfg", &[".dockercfg"]),
    ("kubernetes.io/dockerconfigjson", &[".dockerconfigjson"]),
    ("kubernetes.io/ssh-auth", &["ssh-privatekey"]),
    ("kubernetes.io/tls", &["tls.crt", "tls.key"]),
];

impl Strategy for Secret {
    /// Besides the type, `stringData` moves into `data`: it is for writing only.
    fn default(&self, object: &mut Value) {
        object.default_zero("type", "Opaque");
        if let Some(Value::Object(plain)) = object.remove("stringData") {
            let mut data: Map<String, Value> = object.at("data").as_object().cloned().unwrap_or_default();
            for (key, value) in plain {
                let encoded = STANDARD.encode(value.as_str().unwrap_or_default());
                data.insert(key, Value::from(encoded));
            }
            if !data.is_empty() {
                object.set("data", data);
            }
        }
    }

    fn prepare_for_update(&self, new: &mut Value, old: &Value, _ctx: &Context<'_>) {
        meta::prepare_for_update(new, old, false, false);
        new.default_zero("type", old.at("type").clone());
    }

    fn validate(&self, object: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        let path = Path::new("data");
        let data = object.at("data");
        let mut size = 0;
        for (key, value) in data.entries("") {
            errs.each(&path.key(key), key, names::config_map_key(key));
            size += decoded_len(value);
        }
        if size > MAX_SIZE_BYTES {
            errs.push(FieldError::too_long(&path, MAX_SIZE_BYTES));
        }
        let kind = object.str_at("type");
        let required = REQUIRED_KEYS.iter().find(|(t, _)| *t == kind).map_or(&[][..], |(_, keys)| keys);
        for key in required {
            let value = data.get(key);
            if value.is_none() || (kind == "kubernetes.io/ssh-auth" && value == Some(&json!(""))) {
                errs.required(&path.key(key), "");
            } else if kind.starts_with("kubernetes.io/dockerc")
                && let Some(value) = value
                && let Err(why) = go_json(&decode(value), Value::is_object, "map[string]interface {}")
            {
                errs.invalid(&path.key(key), "<secret contents redacted>", why);
            }
        }
        match kind {
            "kubernetes.io/service-account-token" => {
                const KEY: &str = "kubernetes.io/service-account.name";
                if annotation(object, KEY).is_none_or(str::is_empty) {
                    let path = Path::new("metadata");
                    errs.required(&path.child("annotations").key(KEY), "");
                }
            }
            "kubernetes.io/basic-auth"
                if data.get("username").is_none() && data.get("password").is_none() =>
            {
                errs.required(&path.key("username"), "");
                errs.required(&path.key("password"), "");
            }
            _ => {}
        }
        errs
    }

    fn validate_update(&self, new: &Value, old: &Value, ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        errs.immutable(&Path::new("type"), new.at("type"), old.at("type"));
        check_immutable(&mut errs, new, old, &["data"]);
        errs.extend(self.validate(new, ctx));
        errs
    }

    fn warnings(&self, new: &Value, _old: Option<&Value>) -> Vec<String> {
        if new.str_at("type") != "kubernetes.io/tls" {
            return Vec::new();
        }
        let data = |key: &str| new.at("data").get(key).map(decode).unwrap_or_default();
        tls::mismatch(&data("tls.crt"), &data("tls.key")).into_iter().collect()
    }
}

pub struct ServiceAccount;

impl ServiceAccount {
    /// Secrets are named, nothing else of a reference is kept.
    fn keep_names(object: &mut Value) {
        for secret in object.items_mut("secrets") {
            *secret = json!({"name": secret.str_at("name")});
        }
    }
}

impl Strategy for ServiceAccount {
    fn prepare_for_create(&self, object: &mut Value, _ctx: &Context<'_>) {
        Self::keep_names(object);
    }

    fn prepare_for_update(&self, new: &mut Value, old: &Value, _ctx: &Context<'_>) {
        meta::prepare_for_update(new, old, false, false);
        Self::keep_names(new);
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        const KEY: &str = "kubernetes.io/enforce-mountable-secrets";
        let had = old.is_some_and(|o| annotation(o, KEY).is_some());
        if had || annotation(new, KEY).is_none() {
            return Vec::new();
        }
        vec![format!(
            "metadata.annotations[{KEY}]: deprecated in v1.32+; prefer separate namespaces to isolate access to mounted secrets"
        )]
    }
}
