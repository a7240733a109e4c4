//! Strategies of the kinds of `internal.apiserver.k8s.io` and `storagemigration.k8s.io`.

use serde_json::Value;
use yare_schema::field::{FieldError, Path};

use super::{Context, Strategy};
use crate::{
    check::{Check, Errors},
    conditions, meta, names,
    shown::MIGRATION,
    view::View,
};

/// `StorageVersion`
pub const STORAGE_VERSION: &dyn Strategy = &StorageVersion;

/// `StorageVersionMigration`
pub const STORAGE_VERSION_MIGRATION: &dyn Strategy = &StorageVersionMigration;

struct StorageVersion;

impl Strategy for StorageVersion {
    fn validate(&self, version: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        check_versions(version.at("status"))
    }

    fn validate_update(&self, _new: &Value, _old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        Vec::new()
    }

    fn validate_status_update(&self, new: &Value, _old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        check_versions(new.at("status"))
    }

    fn has_status(&self) -> bool {
        true
    }

    fn status_leaves_metadata(&self) -> bool {
        true
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    /// `GROUP.RESOURCE`
    fn validate_name(&self, name: &str) -> Vec<String> {
        let Some((group, resource)) = name.rsplit_once('.') else {
            return vec!["name must be in the form of <group>.<resource>".into()];
        };
        let group = names::dns1123_subdomain(group).into_iter().map(|m| format!("the group segment {m}"));
        let resource =
            names::dns1035_label(resource).into_iter().map(|m| format!("the resource segment {m}"));
        group.chain(resource).collect()
    }
}

fn check_versions(status: &Value) -> Errors {
    let mut errs = Errors::new();
    let path = Path::new("status");
    let list = path.child("storageVersions");
    let servers = status.items("storageVersions");
    for (i, server) in servers.iter().enumerate() {
        let at = list.index(i);
        let id = server.str_at("apiServerID");
        if servers[..i].iter().any(|s| s.str_at("apiServerID") == id) {
            errs.duplicate(&at.child("apiServerID"), id);
        }
        check_server(&mut errs, &at, server);
    }
    check_common(
        &mut errs,
        &path.child("commonEncodingVersion"),
        servers,
        status.str_opt("commonEncodingVersion"),
    );
    let conditions = status.items("conditions");
    for (i, condition) in conditions.iter().enumerate() {
        // Upstream's paths leave the name of the list out.
        let at = path.index(i);
        let kind = condition.str_at("type");
        if let Some(first) = conditions[..i].iter().rposition(|c| c.str_at("type") == kind) {
            let detail =
                format!("the type of the condition is not unique, it also appears in conditions[{first}]");
            errs.invalid(&at.child("type"), kind, detail);
        }
        for field in ["type", "status"] {
            let value = condition.str_at(field);
            errs.each(&at.child(field), value, names::qualified_name(value));
        }
        for field in ["reason", "message"] {
            errs.non_empty(&at.child(field), condition.str_at(field));
        }
    }
    errs
}

fn check_server(errs: &mut Errors, path: &Path<'_>, server: &Value) {
    let id = server.str_at("apiServerID");
    errs.each(&path.child("apiServerID"), id, names::dns1123_subdomain(id));
    let encoding = server.str_at("encodingVersion");
    let mut check = |path: &Path<'_>, version: &str| {
        let messages = api_version(version);
        if !messages.is_empty() {
            errs.invalid(path, version, messages.join(","));
        }
    };
    check(&path.child("encodingVersion"), encoding);
    let decodable = server.strings("decodableVersions");
    let list = path.child("decodableVersions");
    for (i, version) in decodable.iter().enumerate() {
        check(&list.index(i), version);
    }
    if !decodable.contains(&encoding) {
        let detail = format!("decodableVersions must include encodingVersion {encoding}");
        errs.invalid(&list, server.at("decodableVersions").clone(), detail);
    }
    let list = path.child("servedVersions");
    for (i, version) in server.strings("servedVersions").into_iter().enumerate() {
        let at = list.index(i);
        let messages = api_version(version);
        if !messages.is_empty() {
            errs.invalid(&at, version, messages.join(","));
        }
        if !decodable.contains(&version) {
            let detail = format!(
                "individual served version : {version} must be included in decodableVersions : [{}]",
                decodable.join(" ")
            );
            errs.invalid(&at, version, detail);
        }
    }
}

/// The version that all servers write in is on record, and nothing else.
fn check_common(errs: &mut Errors, path: &Path<'_>, servers: &[Value], recorded: Option<&str>) {
    let first = servers.first().map(|s| s.str_at("encodingVersion"));
    let common = first.filter(|first| servers.iter().all(|s| s.str_at("encodingVersion") == *first));
    match (common, recorded) {
        (None, Some(recorded)) => errs.invalid(
            path,
            recorded,
            "should be nil if servers do not agree on the same encoding version, or if there is no server reporting the supported versions yet",
        ),
        (Some(common), None) => {
            errs.invalid(path, Value::Null, format!("the common encoding version is {common}"));
        }
        (Some(common), Some(recorded)) if common != recorded => {
            errs.invalid(path, recorded, format!("the actual common encoding version is {common}"));
        }
        _ => {}
    }
}

/// What is wrong with `GROUP/VERSION`.
fn api_version(text: &str) -> Vec<String> {
    let prefixed = |part: &str, messages: Vec<String>| -> Vec<String> {
        messages.into_iter().map(|m| format!("{part} part: {m}")).collect()
    };
    let required = |part: &str, value: &str, rule: fn(&str) -> Vec<String>| {
        let messages = if value.is_empty() { vec!["must be non-empty".to_owned()] } else { rule(value) };
        prefixed(part, messages)
    };
    match text.split('/').collect::<Vec<_>>()[..] {
        [version] => required("version", version, names::dns1035_label),
        [group, version] => {
            let mut out = required("group", group, names::dns1123_subdomain);
            out.extend(required("version", version, names::dns1035_label));
            out
        }
        _ => {
            let form = names::regex_message(
                "a DNS-1035 label, which must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character",
                "[a-z]([-a-z0-9]*[a-z0-9])?",
                &["my-name", "abc-123"],
            );
            vec![format!(
                "an apiVersion is {form} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyVersion')"
            )]
        }
    }
}

struct StorageVersionMigration;

impl Strategy for StorageVersionMigration {
    fn validate(&self, migration: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        let path = Path::new("spec.resource");
        let (resource, group) =
            (migration.str_at("spec.resource.resource"), migration.str_at("spec.resource.group"));
        let mut joined = |path: &Path<'_>, value: &str, messages: Vec<String>| {
            if !messages.is_empty() {
                errs.invalid(path, value, messages.join(","));
            }
        };
        if !resource.is_empty() {
            joined(&path.child("resource"), resource, names::dns1035_label(resource));
        }
        if !group.is_empty() {
            joined(&path.child("group"), group, names::dns1123_subdomain(group));
        }
        if resource.is_empty() {
            errs.insert(0, FieldError::required(&path.child("resource"), "resource is required to be set"));
        }
        errs
    }

    fn validate_update(&self, new: &Value, old: &Value, ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = self.validate(new, ctx);
        errs.immutable_shown(&Path::new("spec"), new.at("spec"), old.at("spec"), MIGRATION);
        errs
    }

    fn validate_status_update(&self, new: &Value, old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let path = Path::new("status");
        let mut errs = Errors::new();
        let (revision, before) = (new.str_at("status.resourceVersion"), old.str_at("status.resourceVersion"));
        let p = path.child("resourceVersion");
        if !revision.is_empty()
            && let Err(why) = check_revision(revision)
        {
            errs.invalid(&p, revision, why);
        }
        let conditions = path.child("conditions");
        errs.extend(meta::validate_conditions(new.items("status.conditions"), &conditions));
        if !before.is_empty() && before != revision {
            errs.invalid(&p, revision, meta::IMMUTABLE);
        }
        let is = |of: &Value, kind: &str| conditions::is_true(of.items("status.conditions"), kind);
        let mut wrong = |detail: &str| errs.invalid(&conditions, new.at("status.conditions").clone(), detail);
        if is(new, "Succeeded") && is(new, "Failed") {
            wrong("Both success and failed conditions cannot be true at the same time");
        }
        if is(old, "Succeeded") && !is(new, "Succeeded") {
            wrong("Success condition cannot be set to false once it is true");
        }
        if is(old, "Failed") && !is(new, "Failed") {
            wrong("Failed condition cannot be set to false once it is true");
        }
        errs
    }

    fn has_status(&self) -> bool {
        true
    }

    fn status_leaves_metadata(&self) -> bool {
        true
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

/// A revision is a positive number without leading zeros.
fn check_revision(text: &str) -> Result<(), String> {
    if text.starts_with('0') || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("resource version is not well formed: {text}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::strategy::testing::{check_create, check_update, status_errors, strategy};

    #[test]
    fn storage_versions() {
        let group = "internal.apiserver.k8s.io";
        let server = |id: &str, version: &str| json!({"apiServerID": id, "encodingVersion": version, "decodableVersions": ["apps/v1"], "servedVersions": ["apps/v1"]});
        for (status, expect) in [
            (
                json!({"storageVersions": [server("a", "apps/v1")], "commonEncodingVersion": "apps/v1"}),
                vec![],
            ),
            (
                json!({"storageVersions": [server("a", "apps/v1"), server("a", "apps/v2")]}),
                vec![
                    "status.storageVersions[1].apiServerID: Duplicate value: \"a\"",
                    "status.storageVersions[1].decodableVersions: Invalid value: [\"apps/v1\"]: decodableVersions must include encodingVersion apps/v2",
                ],
            ),
            (
                json!({"commonEncodingVersion": "v1"}),
                vec![
                    "status.commonEncodingVersion: Invalid value: \"v1\": should be nil if servers do not agree on the same encoding version, or if there is no server reporting the supported versions yet",
                ],
            ),
        ] {
            assert_eq!(status_errors(group, "StorageVersion", json!({}), json!({"status": status})), expect);
        }
        let names = strategy(group, "StorageVersion");
        assert!(names.validate_name("apps.deployments").is_empty());
        assert_eq!(names.validate_name("pods"), ["name must be in the form of <group>.<resource>"]);
    }

    #[test]
    fn migrations() {
        let (group, kind) = ("storagemigration.k8s.io", "StorageVersionMigration");
        let base = json!({"metadata": {"name": "m"}, "spec": {"resource": {"group": "apps", "resource": "deployments"}}});
        check_create(
            group,
            kind,
            &base,
            &[
                (json!({}), &[]),
                (
                    json!({"spec": {"resource": {"resource": null}}}),
                    &["spec.resource.resource: Required value: resource is required to be set"],
                ),
            ],
        );
        check_update(
            group,
            kind,
            &base,
            &[(
                json!({"spec": {"resource": {"group": null}}}),
                &[
                    "spec: Invalid value: {\"Resource\":{\"group\":\"\",\"resource\":\"deployments\"}}: field is immutable",
                ],
            )],
        );
        let condition = |kind: &str| json!({"type": kind, "status": "True", "reason": "r", "message": "m", "lastTransitionTime": "2026-01-02T03:04:05Z"});
        let old = json!({"status": {"resourceVersion": "5", "conditions": [condition("Succeeded")]}});
        let new = json!({"status": {"resourceVersion": "6", "conditions": []}});
        assert_eq!(
            status_errors(group, kind, old, new),
            [
                "status.resourceVersion: Invalid value: \"6\": field is immutable",
                "status.conditions: Invalid value: []: Success condition cannot be set to false once it is true",
            ]
        );
    }
}
