//! `AuthenticationConfiguration`: issuers of JSON Web Tokens and who may come in without credentials
//! (<https://kubernetes.io/docs/reference/access-authn-authz/authentication/#using-authentication-configuration>).

mod issuer;

use std::collections::HashSet;

use serde::Deserialize;
use yare_schema::{content, field::FieldError, field::Path};

use super::{ConfigError, Errors, read};
use crate::expressions::{About, Expression, Returns};

pub use issuer::Issuer;

/// The most issuers.
const MAX_ISSUERS: usize = 64;

/// Who may come in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuthenticationConfiguration {
    /// Issuers of tokens.
    pub jwt: Vec<JwtAuthenticator>,
    /// Callers without credentials; absent: as flags say.
    pub anonymous: Option<Anonymous>,
}

/// Who may come in without credentials.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Anonymous {
    /// Whether anybody may.
    pub enabled: bool,
    /// The paths for which; none: all.
    pub conditions: Vec<AnonymousCondition>,
}

/// A path that callers without credentials may ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AnonymousCondition {
    /// The path, exactly.
    pub path: String,
}

/// An issuer of tokens and what its claims mean.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct JwtAuthenticator {
    /// Who issues.
    pub issuer: Issuer,
    /// What must hold of the claims.
    pub claim_validation_rules: Vec<ClaimValidationRule>,
    /// How claims become a user.
    pub claim_mappings: ClaimMappings,
    /// What must hold of the user.
    pub user_validation_rules: Vec<UserValidationRule>,
}

/// What must hold of the claims: a claim with a value, or an expression.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct ClaimValidationRule {
    /// A claim…
    pub claim: String,
    /// … and the string it must be.
    pub required_value: String,
    /// An expression over `claims`.
    pub expression: String,
    /// What is said where the expression is false.
    pub message: String,
}

/// How claims become a user.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClaimMappings {
    /// The name.
    pub username: PrefixedClaim,
    /// The groups.
    pub groups: PrefixedClaim,
    /// The UID.
    pub uid: Claim,
    /// Extra attributes.
    pub extra: Vec<ExtraMapping>,
}

/// A claim, prefixed, or an expression over `claims`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PrefixedClaim {
    /// The claim.
    pub claim: String,
    /// What is put before its value.
    pub prefix: Option<String>,
    /// The expression.
    pub expression: String,
}

/// A claim or an expression over `claims`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Claim {
    /// The claim.
    pub claim: String,
    /// The expression.
    pub expression: String,
}

/// An extra attribute.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct ExtraMapping {
    /// Its key: a path below a domain, in lower case.
    pub key: String,
    /// Its values: an expression over `claims`.
    pub value_expression: String,
}

/// What must hold of the user.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UserValidationRule {
    /// An expression over `user`.
    pub expression: String,
    /// What is said where it is false.
    pub message: String,
}

impl AuthenticationConfiguration {
    /// Reads and checks a file's text. `disallowed`: issuers that are our own.
    pub fn parse(text: &[u8], disallowed: &[String]) -> Result<Self, ConfigError> {
        let configuration: Self = read(text, "AuthenticationConfiguration", &["v1", "v1beta1", "v1alpha1"])?;
        configuration.checked(disallowed)
    }

    /// The configuration, if it is in order.
    pub fn checked(self, disallowed: &[String]) -> Result<Self, ConfigError> {
        let mut errs = Errors::default();
        let list = Path::new("jwt");
        if self.jwt.len() > MAX_ISSUERS {
            errs.0.push(FieldError::too_many(&list, self.jwt.len(), MAX_ISSUERS));
            return errs.finish(self);
        }
        let (mut issuers, mut discovery) = (HashSet::new(), HashSet::new());
        for (i, authenticator) in self.jwt.iter().enumerate() {
            let path = list.index(i);
            authenticator.check(&mut errs, &path, disallowed);
            let issuer = path.child("issuer");
            if !issuers.insert(&authenticator.issuer.url) {
                errs.duplicate(&issuer.child("url"), authenticator.issuer.url.as_str());
            }
            if let Some(url) = authenticator.issuer.discovery_url.as_ref().filter(|u| !u.is_empty())
                && !discovery.insert(url)
            {
                errs.duplicate(&issuer.child("discoveryURL"), url.as_str());
            }
        }
        if self.anonymous.as_ref().is_some_and(|a| !a.enabled && !a.conditions.is_empty()) {
            let anonymous = Path::new("anonymous");
            let conditions = self.anonymous.iter().flat_map(|a| &a.conditions);
            let shown: Vec<&str> = conditions.map(|c| c.path.as_str()).collect();
            let detail = "enabled should be set to true when conditions are defined";
            errs.invalid(&anonymous.child("conditions"), shown, detail);
        }
        errs.finish(self)
    }
}

/// The expressions of an authenticator, ready to run.
#[derive(Debug, Default)]
pub struct Expressions {
    /// The name.
    pub username: Option<Expression>,
    /// The groups.
    pub groups: Option<Expression>,
    /// The UID.
    pub uid: Option<Expression>,
    /// Extra attributes, by their key.
    pub extra: Vec<(String, Expression)>,
    /// What must hold of the claims, and what is said where it does not.
    pub claim_rules: Vec<(Expression, String)>,
    /// What must hold of the user, in the same way.
    pub user_rules: Vec<(Expression, String)>,
}

/// Which claims about an e-mail address expressions read.
#[derive(Default)]
struct Email {
    address: bool,
    verified: bool,
}

const EMAIL_IS_UNVERIFIED: &str = "claims.email_verified must be used in claimMappings.username.expression or claimMappings.extra[*].valueExpression or claimValidationRules[*].expression when claims.email is used in claimMappings.username.expression";

impl JwtAuthenticator {
    /// Compiles its expressions.
    ///
    /// # Errors
    /// Those of [`AuthenticationConfiguration::checked`], but for what concerns several authenticators.
    pub fn expressions(&self) -> Result<Expressions, ConfigError> {
        let mut errs = Errors::default();
        let expressions = self.check(&mut errs, &Path::new("jwt"), &[]);
        errs.finish(expressions)
    }

    fn check(&self, errs: &mut Errors, path: &Path<'_>, disallowed: &[String]) -> Expressions {
        let (mut out, mut email) = (Expressions::default(), Email::default());
        self.issuer.check(errs, &path.child("issuer"), disallowed);
        self.check_claim_rules(errs, &path.child("claimValidationRules"), &mut out, &mut email);
        self.claim_mappings.check(errs, &path.child("claimMappings"), &mut out, &mut email);
        let list = path.child("userValidationRules");
        let mut seen = HashSet::new();
        for (i, rule) in self.user_validation_rules.iter().enumerate() {
            let item = list.index(i);
            let (path, text) = (item.child("expression"), rule.expression.as_str());
            if text.is_empty() {
                errs.required(&path, "");
            } else if !seen.insert(text) {
                errs.duplicate(&path, text);
            } else if let Some((expression, _)) = errs.compile(&path, text, About::User, Returns::Bool) {
                out.user_rules.push((expression, rule.message.clone()));
            }
        }
        out
    }

    fn check_claim_rules(
        &self,
        errs: &mut Errors,
        list: &Path<'_>,
        out: &mut Expressions,
        email: &mut Email,
    ) {
        let (mut claims, mut expressions) = (HashSet::new(), HashSet::new());
        for (i, rule) in self.claim_validation_rules.iter().enumerate() {
            let path = list.index(i);
            match (rule.claim.as_str(), rule.expression.as_str()) {
                ("", "") => errs.required(&path, "claim or expression is required"),
                (claim, "") => {
                    if !rule.message.is_empty() {
                        let detail = "may not be specified when claim is set";
                        errs.invalid(&path.child("message"), rule.message.as_str(), detail);
                    }
                    if !claims.insert(claim) {
                        errs.duplicate(&path.child("claim"), claim);
                    }
                }
                ("", text) => {
                    if !rule.required_value.is_empty() {
                        let detail = "may not be specified when expression is set";
                        errs.invalid(&path.child("requiredValue"), rule.required_value.as_str(), detail);
                    }
                    let path = path.child("expression");
                    if !expressions.insert(text) {
                        errs.duplicate(&path, text);
                    } else if let Some((expression, ast)) =
                        errs.compile(&path, text, About::Claims, Returns::Bool)
                    {
                        email.verified |= ast.selects("claims", "email_verified");
                        out.claim_rules.push((expression, rule.message.clone()));
                    }
                }
                (claim, _) => errs.invalid(&path, claim, "claim and expression can't both be set"),
            }
        }
    }
}

impl ClaimMappings {
    fn check(&self, errs: &mut Errors, path: &Path<'_>, out: &mut Expressions, email: &mut Email) {
        if let Some((expression, ast)) = self.username.check(errs, &path.child("username"), true) {
            email.address |= ast.selects("claims", "email");
            email.verified |= ast.selects("claims", "email_verified");
            out.username = Some(expression);
        }
        out.groups = self.groups.check(errs, &path.child("groups"), false).map(|(expression, _)| expression);
        let uid = path.child("uid");
        match (self.uid.claim.as_str(), self.uid.expression.as_str()) {
            (_, "") => {}
            ("", text) => {
                let compiled = errs.compile(&uid.child("expression"), text, About::Claims, Returns::Anything);
                out.uid = compiled.map(|(expression, _)| expression);
            }
            _ => errs.invalid(&uid, "", "claim and expression can't both be set"),
        }
        self.check_extra(errs, &path.child("extra"), out, email);
        if email.address && !email.verified {
            let username = path.child("username");
            errs.invalid(
                &username.child("expression"),
                self.username.expression.as_str(),
                EMAIL_IS_UNVERIFIED,
            );
        }
    }

    fn check_extra(&self, errs: &mut Errors, list: &Path<'_>, out: &mut Expressions, email: &mut Email) {
        let mut seen = HashSet::new();
        for (i, extra) in self.extra.iter().enumerate() {
            let item = list.index(i);
            let path = item.child("key");
            let key = extra.key.as_str();
            check_domain_path(errs, &path, key);
            if key != key.to_lowercase() {
                errs.invalid(&path, key, "must be lowercase");
            }
            let domain = key.split_once('/').map_or("", |(domain, _)| domain);
            let reserved =
                |own: &str| domain == own || domain.strip_suffix(own).is_some_and(|d| d.ends_with('.'));
            if reserved("k8s.io") || reserved("kubernetes.io") {
                let detail = "k8s.io, kubernetes.io and their subdomains are reserved for Kubernetes use";
                errs.invalid(&path, key, detail);
            }
            if !seen.insert(key) {
                errs.duplicate(&path, key);
                continue;
            }
            let (path, text) = (item.child("valueExpression"), extra.value_expression.as_str());
            if text.is_empty() {
                errs.required(&path, "");
            } else if let Some((expression, ast)) =
                errs.compile(&path, text, About::Claims, Returns::Anything)
            {
                email.verified |= ast.selects("claims", "email_verified");
                out.extra.push((extra.key.clone(), expression));
            }
        }
    }
}

impl PrefixedClaim {
    fn check(
        &self,
        errs: &mut Errors,
        path: &Path<'_>,
        required: bool,
    ) -> Option<(Expression, yare_cel::Ast)> {
        match (self.claim.as_str(), self.expression.as_str()) {
            ("", "") if required => errs.required(path, "claim or expression is required"),
            ("", "") => {}
            ("", text) => {
                if let Some(prefix) = &self.prefix {
                    let detail = "may not be specified when expression is set";
                    errs.invalid(&path.child("prefix"), prefix.as_str(), detail);
                }
                return errs.compile(&path.child("expression"), text, About::Claims, Returns::Anything);
            }
            (_, "") if self.prefix.is_none() => errs.required(
                &path.child("prefix"),
                "prefix is required when claim is set. It can be set to an empty string to disable prefixing",
            ),
            (_, "") => {}
            _ => errs.invalid(path, "", "claim and expression can't both be set"),
        }
        None
    }
}

/// `example.org/key`
fn check_domain_path(errs: &mut Errors, path: &Path<'_>, key: &str) {
    match key.split_once('/') {
        _ if key.is_empty() => errs.required(path, ""),
        Some((domain, rest)) if !domain.is_empty() && !rest.is_empty() => {
            for wrong in content::dns1123_subdomain(domain) {
                errs.invalid(path, domain, wrong);
            }
            let allowed = |b: u8| b.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&b);
            if !rest.bytes().all(allowed) {
                let detail = "Invalid path (regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')";
                errs.invalid(path, rest, detail);
            }
        }
        _ => errs.invalid(path, key, "must be a domain-prefixed path (such as \"acme.io/foo\")"),
    }
}

/// Whether `key` may be a key of a user's extras in constrained impersonation; the error says why not.
pub fn check_extra_key(key: &str) -> Result<(), String> {
    let mut errs = Errors::default();
    let extra = Path::new("extra");
    check_domain_path(&mut errs, &extra.child("key"), key);
    errs.finish(()).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\n";

    fn parse(rest: &str) -> Result<AuthenticationConfiguration, String> {
        let own = ["https://own".to_owned()];
        AuthenticationConfiguration::parse(format!("{HEAD}{rest}").as_bytes(), &own)
            .map_err(|e| e.to_string())
    }

    #[test]
    fn a_whole_one() {
        let configuration = parse(
            "
jwt:
- issuer:
    url: https://issuer.example.com
    discoveryURL: https://other.example.com/.well-known/openid-configuration
    audiences: [a, b]
    audienceMatchPolicy: MatchAny
  claimValidationRules:
  - {claim: hd, requiredValue: example.com}
  claimMappings:
    username: {claim: sub, prefix: 'oidc:'}
    groups: {claim: groups, prefix: ''}
    uid: {claim: uid}
anonymous:
  enabled: true
  conditions: [{path: /livez}]
",
        )
        .unwrap();
        assert_eq!(configuration.jwt[0].claim_mappings.username.prefix.as_deref(), Some("oidc:"));
        assert_eq!(configuration.anonymous.unwrap().conditions[0].path, "/livez");
        assert_eq!(parse("").unwrap(), AuthenticationConfiguration::default());
    }

    #[test]
    fn what_is_wrong_is_said_in_upstreams_words() {
        let issuer = "issuer: {url: https://a, audiences: [x]}";
        let mapped = "claimMappings: {username: {claim: sub, prefix: ''}}";
        for (text, error) in [
            (
                "jwt:\n- {}".to_owned(),
                "[jwt[0].issuer.url: Required value, jwt[0].issuer.audiences: Required value: at least one jwt[0].issuer.audiences is required, jwt[0].claimMappings.username: Required value: claim or expression is required]",
            ),
            (
                format!("jwt:\n- {{issuer: {{url: 'http://u@a?b#c', audiences: [x]}}, {mapped}}}"),
                "[jwt[0].issuer.url: Invalid value: \"http://u@a?b#c\": URL scheme must be https, jwt[0].issuer.url: Invalid value: \"http://u@a?b#c\": URL must not contain a username or password, jwt[0].issuer.url: Invalid value: \"http://u@a?b#c\": URL must not contain a query, jwt[0].issuer.url: Invalid value: \"http://u@a?b#c\": URL must not contain a fragment]",
            ),
            (
                format!("jwt:\n- {{issuer: {{url: 'https://own', audiences: [x]}}, {mapped}}}"),
                "jwt[0].issuer.url: Invalid value: \"https://own\": URL must not overlap with disallowed issuers: [https://own]",
            ),
            (
                format!("jwt:\n- {{{issuer}, {mapped}}}\n- {{{issuer}, {mapped}}}"),
                "jwt[1].issuer.url: Duplicate value: \"https://a\"",
            ),
            (
                format!("jwt:\n- {{{issuer}, claimMappings: {{username: {{claim: sub}}}}}}"),
                "jwt[0].claimMappings.username.prefix: Required value: prefix is required when claim is set. It can be set to an empty string to disable prefixing",
            ),
            (
                format!(
                    "jwt:\n- {{{issuer}, {mapped}, claimValidationRules: [{{}}, {{claim: a, message: b}}, {{claim: a}}]}}"
                ),
                "[jwt[0].claimValidationRules[0]: Required value: claim or expression is required, jwt[0].claimValidationRules[1].message: Invalid value: \"b\": may not be specified when claim is set, jwt[0].claimValidationRules[2].claim: Duplicate value: \"a\"]",
            ),
            (
                format!("jwt:\n- {{{issuer}, claimMappings: {{username: {{expression: claims.email}}}}}}"),
                "jwt[0].claimMappings.username.expression: Invalid value: \"claims.email\": claims.email_verified must be used in claimMappings.username.expression or claimMappings.extra[*].valueExpression or claimValidationRules[*].expression when claims.email is used in claimMappings.username.expression",
            ),
            (
                format!(
                    "jwt:\n- {{{issuer}, {mapped}, claimValidationRules: [{{expression: claims.a}}], userValidationRules: [{{expression: ''}}, {{expression: user.x == ''}}]}}"
                ),
                "[jwt[0].claimValidationRules[0].expression: Invalid value: \"claims.a\": must evaluate to bool, jwt[0].userValidationRules[0].expression: Required value, jwt[0].userValidationRules[1].expression: Invalid value: \"user.x == ''\": compilation failed: ERROR: <input>:1:5: undefined field 'x'\n | user.x == ''\n | ....^]",
            ),
            (
                "anonymous: {enabled: false, conditions: [{path: /}]}".to_owned(),
                "anonymous.conditions: Invalid value: [\"/\"]: enabled should be set to true when conditions are defined",
            ),
            (
                format!(
                    "jwt:\n- {{issuer: {{url: https://a, audiences: [x], certificateAuthority: x}}, {mapped}}}"
                ),
                "jwt[0].issuer.certificateAuthority: Invalid value: \"<omitted>\": data does not contain any valid RSA or ECDSA certificates",
            ),
        ] {
            assert_eq!(parse(&text).unwrap_err(), error, "{text}");
        }
        assert!(parse("jwt: [{issuer: {uri: a}}]").unwrap_err().contains("unknown field `uri`"));
    }

    #[test]
    fn an_address_must_be_verified_somewhere() {
        let with = |username: &str, rest: &str| {
            parse(&format!(
                "jwt:\n- issuer: {{url: 'https://a', audiences: [x]}}\n  claimMappings:\n    username: {{expression: '{username}'}}\n{rest}"
            ))
            .map(|_| ())
            .map_err(|e| e.contains("claims.email_verified must be used"))
        };
        let rule = |text: &str| format!("  claimValidationRules: [{{expression: '{text}'}}]");
        for (username, rest, accepted) in [
            ("claims.email", String::new(), false),
            ("claims.?email.orValue(claims.sub)", String::new(), false),
            ("has(claims.email) ? \"a\" : \"b\"", String::new(), false),
            ("claims.email_verified ? claims.email : \"\"", String::new(), true),
            ("claims[\"email\"]", String::new(), true),
            ("claims.emails.map(e, e)[0]", String::new(), true),
            ("claims.email", rule("claims.?email_verified.orValue(true) == true"), true),
            ("claims.email", rule("[1].all(x, claims.email_verified == true)"), true),
            ("claims.email", rule("claims.verified == true"), false),
            (
                "claims.email",
                "    extra: [{key: example.org/v, valueExpression: string(claims.email_verified)}]".into(),
                true,
            ),
        ] {
            let found = with(username, &rest);
            assert_eq!(found.is_ok(), accepted, "{username} {rest} {found:?}");
        }
    }

    #[test]
    fn extra_keys() {
        assert_eq!(check_extra_key("example.org/a"), Ok(()));
        for (key, error) in [
            ("", "extra.key: Required value"),
            (
                "a",
                "extra.key: Invalid value: \"a\": must be a domain-prefixed path (such as \"acme.io/foo\")",
            ),
        ] {
            assert_eq!(check_extra_key(key), Err(error.into()));
        }
    }
}
