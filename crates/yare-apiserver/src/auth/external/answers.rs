//! What of a signer's answers is taken: the header of a token, the keys that verify.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;
use yare_auth::{jws, token::Key};

use super::wire::{FetchKeysResponse, Timestamp};

const MAX_KEY_ID_BYTES: usize = 1024;
/// What may sign service-account tokens.
const ALGORITHMS: [&str; 4] = ["RS256", "ES256", "ES384", "ES512"];
/// The years 1 to 9999, which a timestamp may lie in, in Unix seconds.
const TIMES_S: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

/// Nothing else may stand in it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    #[serde(default)]
    alg: String,
    #[serde(default)]
    kid: String,
    #[serde(default)]
    typ: String,
}

/// The key that a token's header names.
pub(super) fn header(text: &str) -> Result<String, String> {
    let json = URL_SAFE_NO_PAD.decode(text).map_err(|error| format!("while unwrapping header: {error}"))?;
    let header: Header =
        serde_json::from_slice(&json).map_err(|error| format!("while parsing header JSON: {error}"))?;
    if header.typ != "JWT" {
        return Err("bad type".into());
    }
    if header.kid.is_empty() {
        return Err("key id missing".into());
    }
    if header.kid.len() > MAX_KEY_ID_BYTES {
        return Err("key id longer than 1 kb".into());
    }
    if !ALGORITHMS.contains(&header.alg.as_str()) {
        return Err(format!("bad signing algorithm {:?}", header.alg));
    }
    Ok(header.kid)
}

/// What a signer says of its keys.
#[derive(Debug, PartialEq)]
pub(super) struct Fetched {
    pub keys: Vec<Key>,
    /// When they were true, Unix seconds.
    pub data_timestamp_s: f64,
    /// When it wants to be asked again, in seconds; more than none.
    pub refresh_s: u64,
}

/// The keys, if all of them can be used.
pub(super) fn keys(answer: FetchKeysResponse) -> Result<Fetched, String> {
    let hint = answer.refresh_hint_seconds;
    let refresh_s = u64::try_from(hint).ok().filter(|hint| *hint > 0);
    let refresh_s = refresh_s.ok_or_else(|| format!("found invalid refresh hint ({hint}s)"))?;
    if answer.keys.is_empty() {
        return Err("found no keys".into());
    }
    let data_timestamp_s =
        timestamp(answer.data_timestamp).map_err(|why| format!("invalid data timestamp: {why}"))?;
    let mut keys = Vec::with_capacity(answer.keys.len());
    for key in answer.keys {
        if key.key_id.is_empty() || key.key_id.len() > MAX_KEY_ID_BYTES {
            return Err(format!("found invalid public key id {:?}", key.key_id));
        }
        if key.key.is_empty() {
            return Err("found empty public key".into());
        }
        let public = jws::public_key_of_info(&key.key)
            .map_err(|error| format!("while parsing external public keys: {error}"))?;
        keys.push(Key { id: key.key_id, key: public, unpublished: key.exclude_from_oidc_discovery });
    }
    Ok(Fetched { keys, data_timestamp_s, refresh_s })
}

fn timestamp(given: Option<Timestamp>) -> Result<f64, String> {
    let Timestamp { seconds, nanos } = given.ok_or("proto: invalid nil Timestamp")?;
    if !TIMES_S.contains(&seconds) {
        let side = if seconds < 0 { "before 0001-01-01" } else { "after 9999-12-31" };
        return Err(format!("proto: timestamp ({seconds}s) {side}"));
    }
    if !(0..1_000_000_000).contains(&nanos) {
        return Err(format!("proto: timestamp ({seconds}s) has out-of-range nanos"));
    }
    Ok(seconds as f64 + f64::from(nanos) / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::external::wire;

    #[test]
    fn headers() {
        let long = "k".repeat(1025);
        let of = |alg: &str, kid: &str| format!(r#"{{"alg":"{alg}","kid":"{kid}","typ":"JWT"}}"#);
        for (json, expected) in [
            (of("ES256", "a"), Ok("a")),
            (of("RS256", &long[1..]), Ok(&long[1..])),
            (of("ES384", "a"), Ok("a")),
            (of("ES512", "a"), Ok("a")),
            (of("ES256", &long), Err("key id longer than 1 kb")),
            (of("ES256", ""), Err("key id missing")),
            (of("none", "a"), Err(r#"bad signing algorithm "none""#)),
            (of("HS256", "a"), Err(r#"bad signing algorithm "HS256""#)),
            (of("PS256", "a"), Err(r#"bad signing algorithm "PS256""#)),
            (r#"{"kid":"a","typ":"JWT"}"#.into(), Err(r#"bad signing algorithm """#)),
            (r#"{"alg":"ES256","kid":"a"}"#.into(), Err("bad type")),
            (r#"{"alg":"ES256","kid":"a","typ":"jwt"}"#.into(), Err("bad type")),
            (
                r#"{"alg":"ES256","kid":"a","typ":"JWT","jku":"https://x"}"#.into(),
                Err("while parsing header JSON: "),
            ),
            ("[".into(), Err("while parsing header JSON: ")),
        ] {
            let found = header(&URL_SAFE_NO_PAD.encode(&json));
            match expected {
                Ok(kid) => assert_eq!(found.as_deref(), Ok(kid), "{json}"),
                Err(start) => assert!(found.clone().unwrap_err().starts_with(start), "{json}: {found:?}"),
            }
        }
        for text in ["*", "e30=", "e30\n"] {
            assert!(header(text).unwrap_err().starts_with("while unwrapping header: "), "{text}");
        }
    }

    #[test]
    fn keys_that_cannot_be_used() {
        let der = rcgen::KeyPair::generate().unwrap();
        let der = rcgen::PublicKeyData::subject_public_key_info(&der);
        let key = |id: &str, der: &[u8]| wire::Key {
            key_id: id.into(),
            key: der.to_vec(),
            exclude_from_oidc_discovery: true,
        };
        let good = || FetchKeysResponse {
            keys: vec![key("a", &der)],
            data_timestamp: Some(Timestamp { seconds: 7, nanos: 500_000_000 }),
            refresh_hint_seconds: 10,
        };
        let fetched = keys(good()).unwrap();
        assert_eq!((fetched.data_timestamp_s, fetched.refresh_s), (7.5, 10));
        assert_eq!((fetched.keys[0].id.as_str(), fetched.keys[0].unpublished), ("a", true));
        let at = |seconds, nanos| FetchKeysResponse {
            data_timestamp: Some(Timestamp { seconds, nanos }),
            ..good()
        };
        let with = |keys| FetchKeysResponse { keys, ..good() };
        for (answer, start) in [
            (FetchKeysResponse { refresh_hint_seconds: 0, ..good() }, "found invalid refresh hint (0s)"),
            (FetchKeysResponse { refresh_hint_seconds: -5, ..good() }, "found invalid refresh hint (-5s)"),
            (with(Vec::new()), "found no keys"),
            (
                FetchKeysResponse { data_timestamp: None, ..good() },
                "invalid data timestamp: proto: invalid nil Timestamp",
            ),
            (
                at(i64::MIN, 0),
                "invalid data timestamp: proto: timestamp (-9223372036854775808s) before 0001-01-01",
            ),
            (
                at(i64::MAX, 0),
                "invalid data timestamp: proto: timestamp (9223372036854775807s) after 9999-12-31",
            ),
            (at(1, -1), "invalid data timestamp: proto: timestamp (1s) has out-of-range nanos"),
            (with(vec![key("", &der)]), r#"found invalid public key id """#),
            (with(vec![key(&"a".repeat(1025), &der)]), "found invalid public key id"),
            (with(vec![key("a", &[])]), "found empty public key"),
            (with(vec![key("a", &der), key("b", &der[1..])]), "while parsing external public keys: "),
        ] {
            let error = keys(answer).unwrap_err();
            assert!(error.starts_with(start), "{start}: {error}");
        }
    }
}
