//! Finding one member in JSON bytes without decoding the rest. Input is JSON at rest, which the server wrote
//! itself; on anything malformed the answer is `None`.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

/// Where the value of `key` stands in the object that `json` is.
pub fn member(json: &[u8], key: &str) -> Option<Range<usize>> {
    let mut at = skip_space(json, 0);
    if json.get(at) != Some(&b'{') {
        return None;
    }
    at = skip_space(json, at + 1);
    while json.get(at) == Some(&b'"') {
        let name_end = string_end(json, at)?;
        let name = &json[at + 1..name_end - 1];
        at = skip_space(json, name_end);
        if json.get(at) != Some(&b':') {
            return None;
        }
        let start = skip_space(json, at + 1);
        let end = value_end(json, start)?;
        if name == key.as_bytes() {
            return Some(start..end);
        }
        at = skip_space(json, end);
        if json.get(at) != Some(&b',') {
            return None;
        }
        at = skip_space(json, at + 1);
    }
    None
}

/// The same object with another `metadata.resourceVersion`.
pub fn with_revision(json: &Bytes, revision: u64) -> Bytes {
    let Some(metadata) = member(json, "metadata") else { return json.clone() };
    let Some(version) = member(&json[metadata.clone()], "resourceVersion") else { return json.clone() };
    let mut out = BytesMut::with_capacity(json.len() + 20);
    out.extend_from_slice(&json[..metadata.start + version.start]);
    out.extend_from_slice(format!("\"{revision}\"").as_bytes());
    out.extend_from_slice(&json[metadata.start + version.end..]);
    out.freeze()
}

fn skip_space(json: &[u8], mut at: usize) -> usize {
    while matches!(json.get(at), Some(b' ' | b'\n' | b'\r' | b'\t')) {
        at += 1;
    }
    at
}

/// Just behind the closing quote of the string that opens at `at`.
fn string_end(json: &[u8], at: usize) -> Option<usize> {
    let mut i = at + 1;
    loop {
        match json.get(i)? {
            b'"' => return Some(i + 1),
            b'\\' => i += 2,
            _ => i += 1,
        }
    }
}

fn value_end(json: &[u8], at: usize) -> Option<usize> {
    match json.get(at)? {
        b'"' => string_end(json, at),
        b'{' | b'[' => {
            let mut depth = 0usize;
            let mut i = at;
            loop {
                match json.get(i)? {
                    b'"' => {
                        i = string_end(json, i)?;
                        continue;
                    }
                    b'{' | b'[' => depth += 1,
                    b'}' | b']' => {
                        depth -= 1;
                        if depth == 0 {
                            return Some(i + 1);
                        }
                    }
                    _ => {}
                }
                i += 1;
            }
        }
        _ => {
            let mut i = at;
            while !matches!(json.get(i), None | Some(b',' | b'}' | b']' | b' ' | b'\n' | b'\r' | b'\t')) {
                i += 1;
            }
            Some(i)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_and_replaces() {
        let json = Bytes::from_static(
            br#"{"kind":"Pod","a":{"metadata":1,"x":"}\""},"metadata":{"name":"a","resourceVersion":"7"},"z":[1]}"#,
        );
        let metadata = member(&json, "metadata").unwrap();
        assert_eq!(&json[metadata], br#"{"name":"a","resourceVersion":"7"}"#);
        assert_eq!(member(&json, "z").map(|r| json[r].to_vec()), Some(b"[1]".to_vec()));
        assert_eq!(member(&json, "none"), None);
        let changed = with_revision(&json, 4711);
        assert!(std::str::from_utf8(&changed).unwrap().contains(r#""resourceVersion":"4711"},"z""#));
        for broken in ["", "{", "{\"a", "{\"a\":", "{\"a\":{", "[1]"] {
            assert_eq!(member(broken.as_bytes(), "b"), None);
        }
    }
}
