//! How verified claims become a user: claims by name, or expressions over all of them; and what must hold of the
//! claims and of the user.

use serde_json::{Value, json};
use yare_cel::Value as Cel;

use super::{Claims, OidcError, other, strings};
use crate::{
    config::{
        ConfigError,
        authentication::{ClaimMappings, Expressions, JwtAuthenticator},
    },
    expressions::Expression,
    token::credential_id,
    user::{AUTHENTICATED, CREDENTIAL_ID, User},
};

/// The mapping of one issuer.
#[derive(Debug)]
pub struct Mapping {
    claims: ClaimMappings,
    /// Claims that must be there, and the strings they must be.
    required: Vec<(String, String)>,
    expressions: Expressions,
}

const NO_STRING: &str = "json: cannot unmarshal into Go value of type string";
const NO_STRINGS: &str = "expression must return a string or a list of strings";

impl Mapping {
    /// Of a configuration that was checked.
    ///
    /// # Errors
    /// It was not.
    pub fn new(config: &JwtAuthenticator) -> Result<Self, ConfigError> {
        let rules = config.claim_validation_rules.iter().filter(|r| !r.claim.is_empty());
        Ok(Self {
            claims: config.claim_mappings.clone(),
            required: rules.map(|r| (r.claim.clone(), r.required_value.clone())).collect(),
            expressions: config.expressions()?,
        })
    }

    /// The claim that holds groups, which may be distributed; empty: none.
    pub fn groups_claim(&self) -> &str {
        &self.claims.groups.claim
    }

    /// The user that `claims` stand for.
    ///
    /// # Errors
    /// Why they stand for nobody, in upstream's words.
    pub fn user(&self, claims: &Claims) -> Result<User, OidcError> {
        let over = if self.reads_claims() { Value::Object(claims.clone()) } else { Value::Null };
        let mut user = User {
            name: self.name(claims, &over)?,
            groups: self.groups(claims, &over)?,
            uid: self.uid(claims, &over)?,
            ..User::default()
        };
        if let Some(jti) = claims.get("jti").and_then(Value::as_str).filter(|j| !j.is_empty()) {
            user.extra.insert(CREDENTIAL_ID.into(), vec![credential_id(jti)]);
        }
        for (key, expression) in &self.expressions.extra {
            let value = expression.eval(&over).map_err(other)?;
            let values = list(&value).ok_or_else(|| {
                other(format!(
                    "oidc: error evaluating extra claim expression: {}: {NO_STRINGS}",
                    expression.text()
                ))
            })?;
            if !values.is_empty() {
                user.extra.insert(key.clone(), values);
            }
        }
        self.check_required(claims)?;
        hold(&self.expressions.claim_rules, &over)
            .map_err(|e| other(format!("oidc: error evaluating claim validation expression: {e}")))?;
        if !self.expressions.user_rules.is_empty() {
            let over = json!({
                "username": user.name, "uid": user.uid, "groups": user.groups, "extra": user.extra,
            });
            hold(&self.expressions.user_rules, &over)
                .map_err(|e| other(format!("oidc: error evaluating user info validation rule: {e}")))?;
        }
        // Rules do not see what all have.
        if !user.in_group(AUTHENTICATED) {
            user.groups.push(AUTHENTICATED.into());
        }
        Ok(user)
    }

    fn reads_claims(&self) -> bool {
        let all = &self.expressions;
        all.username.is_some()
            || all.groups.is_some()
            || all.uid.is_some()
            || !all.extra.is_empty()
            || !all.claim_rules.is_empty()
    }

    fn name(&self, claims: &Claims, over: &Value) -> Result<String, OidcError> {
        if let Some(expression) = &self.expressions.username {
            let fail = |e: &str| other(format!("oidc: error evaluating username claim expression: {e}"));
            let value = expression.eval(over).map_err(|e| fail(&e))?;
            let name =
                value.as_str().ok_or_else(|| fail("username claim expression must return a string"))?;
            if name.is_empty() {
                return Err(other("oidc: empty username via CEL expression is not allowed"));
            }
            return Ok(name.to_owned());
        }
        let mapping = &self.claims.username;
        let claim = mapping.claim.as_str();
        let name =
            text(claims, claim).map_err(|e| other(format!("oidc: parse username claims {claim:?}: {e}")))?;
        if claim == "email" {
            match claims.get("email_verified") {
                None | Some(Value::Bool(true)) => {}
                Some(Value::Bool(false)) => return Err(other("oidc: email not verified")),
                Some(_) => {
                    return Err(other(
                        "oidc: parse 'email_verified' claim: json: cannot unmarshal into Go value of type bool",
                    ));
                }
            }
        }
        Ok(format!("{}{name}", mapping.prefix.as_deref().unwrap_or_default()))
    }

    fn groups(&self, claims: &Claims, over: &Value) -> Result<Vec<String>, OidcError> {
        if let Some(expression) = &self.expressions.groups {
            let fail = |e: &str| other(format!("oidc: error evaluating group claim expression: {e}"));
            let value = expression.eval(over).map_err(|e| fail(&e))?;
            return list(&value).ok_or_else(|| fail(NO_STRINGS));
        }
        let mapping = &self.claims.groups;
        let Some(value) = claims.get(&mapping.claim).filter(|_| !mapping.claim.is_empty()) else {
            return Ok(Vec::new());
        };
        let well_formed = match value {
            Value::String(_) | Value::Null => true,
            Value::Array(items) => items.iter().all(Value::is_string),
            _ => false,
        };
        if !well_formed {
            return Err(other(format!("oidc: parse groups claim {:?}: {NO_STRING}", mapping.claim)));
        }
        let prefix = mapping.prefix.as_deref().unwrap_or_default();
        Ok(strings(Some(value)).into_iter().map(|g| format!("{prefix}{g}")).collect())
    }

    fn uid(&self, claims: &Claims, over: &Value) -> Result<String, OidcError> {
        if let Some(expression) = &self.expressions.uid {
            let fail = |e: &str| other(format!("oidc: error evaluating uid claim expression: {e}"));
            let value = expression.eval(over).map_err(|e| fail(&e))?;
            let uid = value.as_str().ok_or_else(|| fail("uid claim expression must return a string"))?;
            return Ok(uid.to_owned());
        }
        let claim = self.claims.uid.claim.as_str();
        if claim.is_empty() {
            return Ok(String::new());
        }
        let uid = text(claims, claim).map_err(|e| other(format!("oidc: parse uid claim {claim:?}: {e}")))?;
        Ok(uid.to_owned())
    }

    fn check_required(&self, claims: &Claims) -> Result<(), OidcError> {
        for (claim, wanted) in &self.required {
            if !claims.contains_key(claim) {
                return Err(other(format!("oidc: required claim {claim} not present in ID token")));
            }
            let value = text(claims, claim).map_err(|e| other(format!("oidc: parse claim {claim}: {e}")))?;
            if value != wanted {
                return Err(other(format!(
                    "oidc: required claim {claim} value does not match. Got = {value}, want = {wanted}"
                )));
            }
        }
        Ok(())
    }
}

fn text<'c>(claims: &'c Claims, name: &str) -> Result<&'c str, &'static str> {
    match claims.get(name) {
        None => Err("claim not present"),
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(NO_STRING),
    }
}

/// A string or a list of strings, empty ones left out; null is none. `None`: something else.
fn list(value: &Cel<'_>) -> Option<Vec<String>> {
    let one = |value: &Cel<'_>| Some(value.as_str()?.to_owned());
    let mut all = match value {
        Cel::Null => Vec::new(),
        Cel::String(_) => vec![one(value)?],
        Cel::List(items) => items.values().ok()?.iter().map(one).collect::<Option<_>>()?,
        _ => return None,
    };
    all.retain(|text| !text.is_empty());
    Some(all)
}

/// Whether all rules hold. As upstream has it, all are evaluated before one is judged.
fn hold(rules: &[(Expression, String)], over: &Value) -> Result<(), String> {
    let values: Vec<Cel<'_>> = rules.iter().map(|(rule, _)| rule.eval(over)).collect::<Result<_, _>>()?;
    for ((rule, message), value) in rules.iter().zip(values) {
        match value.as_bool() {
            Some(true) => {}
            Some(false) => return Err(format!("validation expression '{}' failed: {message}", rule.text())),
            None => return Err("validation expression must return a boolean".into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::authentication::{AuthenticationConfiguration, ClaimValidationRule, PrefixedClaim};

    fn read(mapping: &Mapping, claims: Value) -> Result<User, String> {
        let Value::Object(claims) = claims else { panic!("claims are an object") };
        mapping.user(&claims).map_err(|e| e.to_string())
    }

    #[test]
    fn claims_become_a_user() {
        let mut config = JwtAuthenticator::default();
        config.issuer.url = "https://a".into();
        config.issuer.audiences = vec!["x".into()];
        let claimed = |claim: &str, prefix: &str| PrefixedClaim {
            claim: claim.into(),
            prefix: Some(prefix.into()),
            ..PrefixedClaim::default()
        };
        config.claim_mappings.username = claimed("email", "oidc:");
        config.claim_mappings.groups = claimed("roles", "g:");
        config.claim_mappings.uid.claim = "oid".into();
        let rule =
            ClaimValidationRule { claim: "hd".into(), required_value: "x".into(), ..Default::default() };
        config.claim_validation_rules = vec![rule];
        let mapping = Mapping::new(&config).unwrap();
        let good = json!({"email": "j@x", "email_verified": true, "roles": ["a", "b"], "oid": "7", "hd": "x", "jti": "9"});
        let jane = read(&mapping, good.clone()).unwrap();
        assert_eq!((jane.name.as_str(), jane.uid.as_str()), ("oidc:j@x", "7"));
        assert_eq!(jane.groups, ["g:a", "g:b", AUTHENTICATED]);
        assert_eq!(jane.extra[CREDENTIAL_ID], ["JTI=9"]);
        for (field, value, error) in [
            (
                "email",
                json!(null),
                "oidc: parse username claims \"email\": json: cannot unmarshal into Go value of type string",
            ),
            ("email_verified", json!(false), "oidc: email not verified"),
            (
                "roles",
                json!({"a": 1}),
                "oidc: parse groups claim \"roles\": json: cannot unmarshal into Go value of type string",
            ),
            ("hd", json!("y"), "oidc: required claim hd value does not match. Got = y, want = x"),
            (
                "oid",
                json!(7),
                "oidc: parse uid claim \"oid\": json: cannot unmarshal into Go value of type string",
            ),
        ] {
            let mut claims = good.clone();
            claims[field] = value;
            assert_eq!(read(&mapping, claims), Err(error.into()));
        }
        let mut claims = good;
        claims["roles"] = json!("one");
        assert_eq!(read(&mapping, claims.clone()).unwrap().groups, ["g:one", AUTHENTICATED]);
        claims.as_object_mut().unwrap().remove("hd");
        assert_eq!(read(&mapping, claims), Err("oidc: required claim hd not present in ID token".into()));
    }

    fn mapping(rest: &str) -> Mapping {
        let text = format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwt:\n- issuer: {{url: 'https://a', audiences: [x]}}\n{rest}"
        );
        let config = AuthenticationConfiguration::parse(text.as_bytes(), &[]).unwrap();
        Mapping::new(&config.jwt[0]).unwrap()
    }

    /// A service account's token, every claim read by an expression.
    #[test]
    fn expressions_read_claims_of_any_shape() {
        let mapping = mapping(
            r#"
  claimValidationRules:
  - expression: 'claims.sub == ("system:serviceaccount:" + claims.kubernetes__dot__io.namespace + ":" + claims.kubernetes__dot__io.serviceaccount.name)'
  - expression: 'has(claims.kubernetes__dot__io.pod.uid)'
  - expression: 'claims["kubernetes.io"]["node"]["uid"] != ""'
  - expression: 'claims[?"kubernetes.io"]["node"]["ip"].orValue(true)'
  - expression: 'sets.equivalent(claims.aud, ["a", "b"]) && claims.links[0].to__dash__go == 1.0'
  claimMappings:
    username: {expression: '"system:serviceaccount:" + claims.kubernetes__dot__io.namespace + ":" + claims.kubernetes__dot__io.serviceaccount.name'}
    uid: {expression: claims.kubernetes__dot__io.serviceaccount.uid}
    groups: {expression: '["system:serviceaccounts", "system:serviceaccounts:" + claims.kubernetes__dot__io.namespace, ""]'}
    extra:
    - {key: test.example.org/pod, valueExpression: claims.kubernetes__dot__io.pod.name}
    - {key: test.example.org/warnafter, valueExpression: 'string(int(claims.kubernetes__dot__io.warnafter))'}
    - {key: test.example.org/raw, valueExpression: 'string(claims.kubernetes__dot__io.warnafter)'}
    - {key: test.example.org/roles, valueExpression: '(claims.roles.split(",") + [claims.other]).map(r, "r:" + r)'}
    - {key: test.example.org/none, valueExpression: 'claims.?missing.orValue("")'}
    - {key: test.example.org/null, valueExpression: 'claims.nothing'}
  userValidationRules:
  - {expression: 'user.username.startsWith("system:serviceaccount:") && user.uid == "u1"'}
  - {expression: 'user.groups.size() == 2 && user.groups.all(g, g != "system:authenticated")'}
  - {expression: 'user.extra["test.example.org/pod"] == ["p"] && user.extra.test__dot__example__dot__org__slash__pod[0] == "p"'}
  - {expression: 'has(user.extra.test__dot__example__dot__org__slash__pod) && user.extra[?"test.example.org/none"].orValue([]) == []'}
"#,
        );
        let claims = json!({
            "sub": "system:serviceaccount:ns:sa", "aud": ["b", "a"], "roles": "x,y", "other": "z",
            "nothing": null, "links": [{"to-go": 1}],
            "kubernetes.io": {
                "namespace": "ns", "serviceaccount": {"name": "sa", "uid": "u1"},
                "pod": {"name": "p", "uid": "u2"}, "node": {"name": "n", "uid": "u3"}, "warnafter": 1_700_081_020,
            },
        });
        let user = read(&mapping, claims).unwrap();
        assert_eq!((user.name.as_str(), user.uid.as_str()), ("system:serviceaccount:ns:sa", "u1"));
        assert_eq!(user.groups, ["system:serviceaccounts", "system:serviceaccounts:ns", AUTHENTICATED]);
        let extra = |key: &str| user.extra.get(&format!("test.example.org/{key}")).map(|v| v.join(","));
        assert_eq!(extra("warnafter").unwrap(), "1700081020");
        // Numbers are doubles, as Go reads JSON.
        assert_eq!(extra("raw").unwrap(), "1.70008102e+09");
        assert_eq!(extra("roles").unwrap(), "r:x,r:y,r:z");
        assert_eq!((extra("none"), extra("null")), (None, None));
    }

    #[test]
    fn what_fails_is_said_in_upstreams_words() {
        let mapping = mapping(
            r#"
  claimValidationRules:
  - {expression: 'claims.hd == "example.com"', message: the hd claim must be example.com}
  claimMappings:
    username: {expression: claims.name}
    uid: {expression: claims.uid}
    groups: {expression: claims.groups}
    extra: [{key: example.org/a, valueExpression: claims.a}]
  userValidationRules:
  - {expression: "!user.username.startsWith('system:')", message: reserved prefix}
"#,
        );
        let good = json!({"hd": "example.com", "name": "jane", "uid": "1", "groups": "g", "a": ["x"]});
        assert_eq!(read(&mapping, good.clone()).unwrap().groups, ["g", AUTHENTICATED]);
        for (field, value, error) in [
            (
                "name",
                None,
                "oidc: error evaluating username claim expression: expression 'claims.name' resulted in error: no such key: name",
            ),
            (
                "name",
                Some(json!(1)),
                "oidc: error evaluating username claim expression: username claim expression must return a string",
            ),
            ("name", Some(json!("")), "oidc: empty username via CEL expression is not allowed"),
            (
                "name",
                Some(json!("system:x")),
                "oidc: error evaluating user info validation rule: validation expression '!user.username.startsWith('system:')' failed: reserved prefix",
            ),
            (
                "uid",
                Some(json!([])),
                "oidc: error evaluating uid claim expression: uid claim expression must return a string",
            ),
            (
                "groups",
                Some(json!(["a", 1])),
                "oidc: error evaluating group claim expression: expression must return a string or a list of strings",
            ),
            (
                "groups",
                None,
                "oidc: error evaluating group claim expression: expression 'claims.groups' resulted in error: no such key: groups",
            ),
            (
                "a",
                Some(json!({})),
                "oidc: error evaluating extra claim expression: claims.a: expression must return a string or a list of strings",
            ),
            ("a", None, "expression 'claims.a' resulted in error: no such key: a"),
            (
                "hd",
                None,
                "oidc: error evaluating claim validation expression: expression 'claims.hd == \"example.com\"' resulted in error: no such key: hd",
            ),
            (
                "hd",
                Some(json!("x")),
                "oidc: error evaluating claim validation expression: validation expression 'claims.hd == \"example.com\"' failed: the hd claim must be example.com",
            ),
        ] {
            let mut claims = good.clone();
            match value {
                Some(value) => claims[field] = value,
                None => {
                    claims.as_object_mut().unwrap().remove(field);
                }
            }
            assert_eq!(read(&mapping, claims), Err(error.into()), "{field}");
        }
    }
}
