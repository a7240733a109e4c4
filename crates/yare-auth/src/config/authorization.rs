//! `AuthorizationConfiguration`: the chain of authorizers
//! (<https://kubernetes.io/docs/reference/access-authn-authz/authorization/#using-configuration-file-for-authorization>).

use std::{collections::HashSet, time::Duration};

use serde::{Deserialize, Deserializer};
use yare_schema::{content, field::FieldError, field::Path, gotime};

use super::{ConfigError, Errors, read};
use crate::{
    conditions::Conditions,
    expressions::{About, Returns},
};

/// The most conditions of one webhook.
const MAX_CONDITIONS: usize = 64;
/// The modes of upstream, in alphabetical order.
pub const MODES: [&str; 6] = [ABAC, "AlwaysAllow", "AlwaysDeny", "Node", "RBAC", "Webhook"];
/// The mode whose policies are in a file.
pub const ABAC: &str = "ABAC";
/// The one mode that may stand in the chain more than once.
pub const WEBHOOK: &str = "Webhook";

/// A chain of authorizers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthorizationConfiguration {
    /// They are asked in this order, until one allows or denies.
    #[serde(default)]
    pub authorizers: Vec<Authorizer>,
}

/// One authorizer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Authorizer {
    /// One of [`MODES`].
    pub r#type: String,
    /// Its name in metrics.
    pub name: String,
    /// Where a webhook is and how it is asked.
    pub webhook: Option<Webhook>,
}

/// A webhook that is asked with SubjectAccessReviews.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Webhook {
    /// How long an allowance is remembered; by default five minutes.
    #[serde(rename = "authorizedTTL", deserialize_with = "duration")]
    pub authorized_ttl: Option<Duration>,
    /// Whether it is remembered at all.
    pub cache_authorized_requests: Option<bool>,
    /// How long a refusal is remembered; by default 30 seconds.
    #[serde(rename = "unauthorizedTTL", deserialize_with = "duration")]
    pub unauthorized_ttl: Option<Duration>,
    /// Whether it is remembered at all.
    pub cache_unauthorized_requests: Option<bool>,
    /// How long an answer may take: at most 30 seconds.
    #[serde(deserialize_with = "duration")]
    pub timeout: Option<Duration>,
    /// `v1` or `v1beta1`
    pub subject_access_review_version: String,
    /// `v1`, where there are conditions.
    pub match_condition_subject_access_review_version: String,
    /// What follows where the webhook cannot be asked: `NoOpinion` or `Deny`.
    pub failure_policy: String,
    /// How it is reached.
    pub connection_info: ConnectionInfo,
    /// It is asked where all of these hold.
    pub match_conditions: Vec<MatchCondition>,
}

/// How a webhook is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct ConnectionInfo {
    /// `KubeConfigFile` or `InClusterConfig`
    pub r#type: String,
    /// Path of a kubeconfig.
    pub kube_config_file: Option<String>,
}

/// A condition in CEL over `request`, a SubjectAccessReviewSpec.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MatchCondition {
    /// The expression.
    pub expression: String,
}

impl Default for Webhook {
    fn default() -> Self {
        Self {
            authorized_ttl: Some(Duration::from_secs(300)),
            cache_authorized_requests: None,
            unauthorized_ttl: Some(Duration::from_secs(30)),
            cache_unauthorized_requests: None,
            timeout: None,
            subject_access_review_version: String::new(),
            match_condition_subject_access_review_version: String::new(),
            failure_policy: String::new(),
            connection_info: ConnectionInfo::default(),
            match_conditions: Vec::new(),
        }
    }
}

impl Webhook {
    /// How long an allowance is remembered.
    pub fn keep_allowed(&self) -> Duration {
        self.authorized_ttl.filter(|_| self.cache_authorized_requests != Some(false)).unwrap_or_default()
    }

    /// How long a refusal is remembered.
    pub fn keep_refused(&self) -> Duration {
        self.unauthorized_ttl.filter(|_| self.cache_unauthorized_requests != Some(false)).unwrap_or_default()
    }
}

/// A duration as Go writes it; zero counts as absent, and a negative one is an error.
fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    use serde::de::Error as _;
    let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
    let nanos = gotime::parse_duration(&text).map_err(D::Error::custom)?;
    let nanos = u64::try_from(nanos).map_err(|_| D::Error::custom(format!("{text:?} must be > 0s")))?;
    Ok((nanos > 0).then(|| Duration::from_nanos(nanos)))
}

impl AuthorizationConfiguration {
    /// Reads and checks a file's text. `required`: the types, other than webhooks, that must be there (on a
    /// reload: those that were there at start).
    pub fn parse(text: &[u8], required: &[String]) -> Result<Self, ConfigError> {
        let configuration: Self = read(text, "AuthorizationConfiguration", &["v1", "v1beta1", "v1alpha1"])?;
        let mut configuration = configuration.checked()?;
        let mut wrong = Vec::new();
        for authorizer in configuration.authorizers.iter().filter(|a| a.r#type != WEBHOOK) {
            let expected = authorizer.r#type.to_lowercase();
            if authorizer.name != expected {
                wrong.push(format!(
                    "expected name {expected} for authorizer {} instead of {}",
                    authorizer.r#type, authorizer.name
                ));
            }
        }
        let has = |wanted: &String| configuration.authorizers.iter().any(|a| a.r#type == *wanted);
        let missing: Vec<&str> = required.iter().filter(|r| !has(r)).map(String::as_str).collect();
        if !missing.is_empty() {
            wrong.push(format!("missing required types: [{}]", missing.join(" ")));
        }
        if !wrong.is_empty() {
            return Err(ConfigError::Form(crate::gotext::aggregate(&wrong)));
        }
        for webhook in configuration.authorizers.iter_mut().filter_map(|a| a.webhook.as_mut()) {
            // What is written as 0 has its default.
            let defaults = Webhook::default();
            webhook.authorized_ttl = webhook.authorized_ttl.or(defaults.authorized_ttl);
            webhook.unauthorized_ttl = webhook.unauthorized_ttl.or(defaults.unauthorized_ttl);
        }
        Ok(configuration)
    }

    /// The chain that `--authorization-mode` asks for.
    pub fn of_modes(modes: &[String], webhook: Option<Webhook>) -> Result<Self, ConfigError> {
        let authorizers = modes
            .iter()
            .map(|mode| Authorizer {
                r#type: mode.clone(),
                // Upstream's name for the webhook of flags.
                name: if mode == WEBHOOK { "default".into() } else { mode.to_lowercase() },
                webhook: webhook.clone().filter(|_| mode == WEBHOOK),
            })
            .collect();
        Self { authorizers }.checked()
    }

    fn checked(self) -> Result<Self, ConfigError> {
        let mut errs = Errors::default();
        let list = Path::new("authorizers");
        if self.authorizers.is_empty() {
            errs.required(&list, "at least one authorization mode must be defined");
        }
        let (mut types, mut names) = (HashSet::new(), HashSet::new());
        for (i, authorizer) in self.authorizers.iter().enumerate() {
            let path = list.index(i);
            let (kind, name) = (authorizer.r#type.as_str(), authorizer.name.as_str());
            if kind.is_empty() {
                errs.required(&path.child("type"), "");
                continue;
            }
            if !MODES.contains(&kind) {
                errs.0.push(FieldError::not_supported(&path.child("type"), kind, &MODES));
                continue;
            }
            if !types.insert(kind) && kind != WEBHOOK {
                errs.duplicate(&path.child("type"), kind);
                continue;
            }
            let wrong = content::dns1123_subdomain(name);
            if name.is_empty() {
                errs.required(&path.child("name"), "");
            } else if names.contains(name) {
                errs.duplicate(&path.child("name"), name);
            } else if !wrong.is_empty() {
                let detail = format!("authorizer name is invalid: {}", wrong.join(", "));
                errs.invalid(&path.child("name"), name, detail);
            }
            names.insert(name);
            match &authorizer.webhook {
                Some(webhook) if kind == WEBHOOK => webhook.check(&mut errs, &path),
                None if kind == WEBHOOK => {
                    errs.required(&path.child("webhook"), "required when type=Webhook");
                }
                Some(_) => {
                    let detail = "may only be specified when type=Webhook";
                    errs.invalid(&path.child("webhook"), "non-null", detail);
                }
                None => {}
            }
        }
        errs.finish(self)
    }
}

impl Webhook {
    fn check(&self, errs: &mut Errors, path: &Path<'_>) {
        match self.timeout {
            None => errs.required(&path.child("timeout"), ""),
            Some(timeout) if timeout > Duration::from_secs(30) => {
                let shown = gotime::format_duration(i64::try_from(timeout.as_nanos()).unwrap_or(i64::MAX));
                errs.invalid(&path.child("timeout"), shown, "must be > 0s and <= 30s");
            }
            Some(_) => {}
        }
        let versions = &["v1", "v1beta1"];
        check_one_of(
            errs,
            &path.child("subjectAccessReviewVersion"),
            &self.subject_access_review_version,
            versions,
        );
        let path_of_version = path.child("matchConditionSubjectAccessReviewVersion");
        match self.match_condition_subject_access_review_version.as_str() {
            "" if self.match_conditions.is_empty() => {}
            "" => errs.required(&path_of_version, "required if match conditions are specified"),
            "v1" => {}
            other => errs.0.push(FieldError::not_supported(&path_of_version, other, &["v1"])),
        }
        check_one_of(errs, &path.child("failurePolicy"), &self.failure_policy, &["NoOpinion", "Deny"]);
        self.check_connection(errs, path);
        self.check_conditions(errs, path);
    }

    /// Compiles the conditions.
    ///
    /// # Errors
    /// Those of a configuration that was not checked.
    pub fn conditions(&self) -> Result<Conditions, ConfigError> {
        let mut errs = Errors::default();
        let conditions = self.check_conditions(&mut errs, &Path::new("webhook"));
        errs.finish(conditions)
    }

    fn check_conditions(&self, errs: &mut Errors, path: &Path<'_>) -> Conditions {
        let list = path.child("matchConditions");
        if self.match_conditions.len() > MAX_CONDITIONS {
            errs.0.push(FieldError::too_many(&list, self.match_conditions.len(), MAX_CONDITIONS));
            return Conditions::default();
        }
        let mut out = Vec::new();
        let mut seen = HashSet::new();
        for (i, condition) in self.match_conditions.iter().enumerate() {
            let item = list.index(i);
            let path = item.child("expression");
            if condition.expression.trim().is_empty() {
                errs.required(&path, "");
            } else if !seen.insert(&condition.expression) {
                errs.duplicate(&path, condition.expression.as_str());
            } else {
                let compiled = errs.compile(&path, &condition.expression, About::Request, Returns::NamedBool);
                out.extend(compiled.map(|(expression, _)| expression));
            }
        }
        Conditions::new(out)
    }

    fn check_connection(&self, errs: &mut Errors, path: &Path<'_>) {
        let info = path.child("connectionInfo");
        let file = info.child("kubeConfigFile");
        let name = self.connection_info.kube_config_file.as_deref();
        match (self.connection_info.r#type.as_str(), name) {
            ("", _) => errs.required(&info.child("type"), ""),
            ("InClusterConfig", Some(name)) => {
                errs.invalid(&file, name, "can only be set when type=KubeConfigFile");
            }
            ("InClusterConfig", None) => {}
            ("KubeConfigFile", None | Some("")) => errs.required(&file, ""),
            ("KubeConfigFile", Some(name)) if !name.starts_with('/') => {
                errs.invalid(&file, name, "must be an absolute path");
            }
            ("KubeConfigFile", Some(name)) => match std::fs::metadata(name) {
                Ok(found) if found.is_file() => {}
                Ok(_) => errs.invalid(&file, name, "must be a regular file"),
                Err(error) => {
                    let why = match error.kind() {
                        std::io::ErrorKind::NotFound => "no such file or directory".to_owned(),
                        std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
                        _ => error.to_string(),
                    };
                    errs.invalid(&file, name, format!("error loading file: stat {name}: {why}"));
                }
            },
            (other, _) => {
                let known = &["InClusterConfig", "KubeConfigFile"];
                errs.0.push(FieldError::not_supported(&info.child("type"), other, known));
            }
        }
    }
}

fn check_one_of(errs: &mut Errors, path: &Path<'_>, value: &str, allowed: &[&str]) {
    if value.is_empty() {
        errs.required(path, "");
    } else if !allowed.contains(&value) {
        errs.0.push(FieldError::not_listed(path, value, allowed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\n";
    const HOOK: &str = "
- type: Webhook
  name: hook
  webhook:
    timeout: 3s
    subjectAccessReviewVersion: v1
    failurePolicy: Deny
    unauthorizedTTL: 0s
    cacheAuthorizedRequests: false
    connectionInfo: {type: KubeConfigFile, kubeConfigFile: /etc/passwd}
";

    fn parse(authorizers: &str) -> Result<AuthorizationConfiguration, String> {
        let text = format!("{HEAD}authorizers:{authorizers}");
        AuthorizationConfiguration::parse(text.as_bytes(), &[]).map_err(|e| e.to_string())
    }

    #[test]
    fn a_chain_has_defaults() {
        let chain = parse(&format!("\n- {{type: Node, name: node}}{HOOK}")).unwrap();
        let webhook = chain.authorizers[1].webhook.as_ref().unwrap();
        assert_eq!(webhook.keep_allowed(), Duration::ZERO);
        assert_eq!(webhook.keep_refused(), Duration::from_secs(30));
        assert_eq!(webhook.timeout, Some(Duration::from_secs(3)));
        let modes = ["RBAC".to_owned(), "Node".to_owned()];
        let chain = AuthorizationConfiguration::of_modes(&modes, None).unwrap();
        assert_eq!(chain.authorizers[0].name, "rbac");
    }

    #[test]
    fn what_is_wrong_is_said_in_upstreams_words() {
        for (text, error) in [
            (" []", "authorizers: Required value: at least one authorization mode must be defined"),
            (
                "\n- {type: Nod, name: a}",
                r#"authorizers[0].type: Unsupported value: "Nod": supported values: "ABAC", "AlwaysAllow", "AlwaysDeny", "Node", "RBAC", "Webhook""#,
            ),
            (
                "\n- {type: Node, name: node}\n- {type: Node, name: x}",
                r#"authorizers[1].type: Duplicate value: "Node""#,
            ),
            ("\n- {type: Node, name: x}", "expected name node for authorizer Node instead of x"),
            (
                "\n- {type: Webhook, name: w}",
                "authorizers[0].webhook: Required value: required when type=Webhook",
            ),
            (
                "\n- {type: Node, name: node, webhook: {}}",
                r#"authorizers[0].webhook: Invalid value: "non-null": may only be specified when type=Webhook"#,
            ),
            (
                "\n- {type: Node, name: node, other: 1}",
                "strict decoding error: unknown field `other`, expected one of `type`, `name`, `webhook`",
            ),
            (
                "\n- {type: Webhook, name: w, webhook: {timeout: 31s, failurePolicy: X, subjectAccessReviewVersion: v2, connectionInfo: {type: KubeConfigFile, kubeConfigFile: a}}}",
                r#"[authorizers[0].timeout: Invalid value: "31s": must be > 0s and <= 30s, authorizers[0].subjectAccessReviewVersion: Unsupported value: "v2": supported values: "v1", "v1beta1", authorizers[0].failurePolicy: Unsupported value: "X": supported values: "NoOpinion", "Deny", authorizers[0].connectionInfo.kubeConfigFile: Invalid value: "a": must be an absolute path]"#,
            ),
        ] {
            assert_eq!(parse(text).unwrap_err(), error, "{text}");
        }
        let text = format!("{HEAD}authorizers:\n- {{type: RBAC, name: rbac}}");
        let required = ["Node".to_owned(), "RBAC".to_owned()];
        let error = AuthorizationConfiguration::parse(text.as_bytes(), &required).unwrap_err();
        assert_eq!(error.to_string(), "missing required types: [Node]");
        for (text, part) in
            [("a: [", ""), ("[]", "expected a"), ("apiVersion: v1\nkind: Pod", "no kind \"Pod\"")]
        {
            let error = AuthorizationConfiguration::parse(text.as_bytes(), &[]).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
