//! Claims that another server holds (OpenID Connect Core 1.0, section 5.6.2): where they are, and what came from
//! there. Fetching is the caller's.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::Value;

use super::Claims;

/// Where a claim is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Source {
    /// The URL of a token that holds it.
    pub endpoint: String,
    /// What lets us in there; empty: nothing is needed.
    pub access_token: String,
}

impl Source {
    /// Where `claim` is, if not among `claims` themselves.
    ///
    /// # Errors
    /// The claims say it in a wrong way.
    pub fn of(claims: &Claims, claim: &str) -> Result<Option<Self>, String> {
        if claims.contains_key(claim) {
            return Ok(None);
        }
        let Some(names) = claims.get("_claim_names") else { return Ok(None) };
        let names = HashMap::<String, String>::deserialize(names)
            .map_err(|e| format!("oidc: error parsing distributed claim names: {e}"))?;
        let sources = claims.get("_claim_sources").ok_or("oidc: no claim sources")?;
        let mut sources = HashMap::<String, Self>::deserialize(sources)
            .map_err(|e| format!("oidc: could not parse claim sources: {e}"))?;
        let Some(name) = names.get(claim) else { return Ok(None) };
        let source = sources.remove(name).ok_or_else(|| {
            format!("id token _claim_names contained a source {name} missing in _claims_sources")
        })?;
        // Without an endpoint it may be an aggregated claim, of which nothing is known here.
        Ok(Some(source).filter(|source| !source.endpoint.is_empty()))
    }

    /// The value of `claim` in the claims of the token that came from there.
    ///
    /// # Errors
    /// It is not among them.
    pub fn pick(&self, mut found: Claims, claim: &str) -> Result<Value, String> {
        found.remove(claim).ok_or_else(|| {
            format!(
                "jwt returned by distributed claim endpoint {:?} did not contain claim: {claim}",
                self.endpoint
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn where_claims_are() {
        let of = |claims: Value| {
            let Value::Object(claims) = claims else { panic!("claims are an object") };
            Source::of(&claims, "groups")
        };
        let there = json!({"_claim_names": {"groups": "s"}, "_claim_sources": {"s": {"endpoint": "https://x", "access_token": "t"}}});
        let source = of(there.clone()).unwrap().unwrap();
        assert_eq!((source.endpoint.as_str(), source.access_token.as_str()), ("https://x", "t"));
        let mut own = there.clone();
        own["groups"] = json!(["a"]);
        for none in [
            own,
            json!({}),
            json!({"_claim_names": {"roles": "s"}, "_claim_sources": {}}),
            json!({"_claim_names": {"groups": "s"}, "_claim_sources": {"s": {"JWT": "a.b.c"}}}),
        ] {
            assert_eq!(of(none), Ok(None));
        }
        for (claims, error) in [
            (json!({"_claim_names": []}), "oidc: error parsing distributed claim names"),
            (json!({"_claim_names": {"groups": "s"}}), "oidc: no claim sources"),
            (
                json!({"_claim_names": {"groups": "s"}, "_claim_sources": 1}),
                "oidc: could not parse claim sources",
            ),
            (
                json!({"_claim_names": {"groups": "s"}, "_claim_sources": {}}),
                "id token _claim_names contained a source s missing in _claims_sources",
            ),
        ] {
            let found = of(claims).unwrap_err();
            assert!(found.starts_with(error), "{found}");
        }
        let found = json!({"groups": ["a"]}).as_object().cloned().unwrap();
        assert_eq!(source.pick(found, "groups"), Ok(json!(["a"])));
        assert_eq!(
            source.pick(Claims::new(), "groups"),
            Err("jwt returned by distributed claim endpoint \"https://x\" did not contain claim: groups"
                .into())
        );
    }
}
