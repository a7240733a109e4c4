//! The API's prose, from the blob that `build.rs` makes; unpacked only while a document is written.

use std::{collections::HashMap, io::Read as _};

static BLOB: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/docs.z"));

/// What stands for fields that every kind has.
const API_VERSION: &str = "APIVersion defines the versioned schema of this representation of an object, such as \
    apps/v1; v1 alone in the core group. The server converts it and rejects what it does not know.";
const KIND: &str = "Kind is the resource this object represents, in CamelCase. The server knows it from the endpoint; it \
    cannot be changed.";

/// Documentation of types and fields by definition name.
pub struct Docs {
    text: String,
    /// Where a definition's lines are in `text`.
    index: HashMap<String, (u32, u32)>,
}

impl Docs {
    /// Unpacks the documentation: about 2 MB, for as long as this lives.
    pub fn load() -> Self {
        let mut text = String::new();
        // The blob is part of the program; without it there is no prose, and all else works.
        if flate2::read::DeflateDecoder::new(BLOB).read_to_string(&mut text).is_err() {
            text.clear();
        }
        let mut index: HashMap<String, (u32, u32)> = HashMap::new();
        let mut current: Option<(&str, usize)> = None;
        let mut at = 0;
        for line in text.split_inclusive('\n') {
            if let Some(name) = line.strip_prefix('=') {
                if let Some((name, from)) = current {
                    index.insert(name.to_owned(), (from as u32, at as u32));
                }
                current = Some((name.trim_end(), at + line.len()));
            }
            at += line.len();
        }
        if let Some((name, from)) = current {
            index.insert(name.to_owned(), (from as u32, at as u32));
        }
        Self { text, index }
    }

    fn lines(&self, definition: &str) -> impl Iterator<Item = &str> {
        let (from, to) = self.index.get(definition).copied().unwrap_or((0, 0));
        self.text[from as usize..to as usize].lines()
    }

    /// What the type is.
    pub fn of(&self, definition: &str) -> Option<String> {
        self.lines(definition).next().filter(|l| !l.is_empty()).map(unescape)
    }

    /// What the field of the type is.
    pub fn field(&self, definition: &str, field: &str) -> Option<String> {
        let found = self.lines(definition).skip(1).find_map(|line| {
            line.strip_prefix('.')?.strip_prefix(field)?.strip_prefix(' ').filter(|d| !d.is_empty())
        });
        match (found, field) {
            (Some(doc), _) => Some(unescape(doc)),
            (None, "apiVersion") => Some(API_VERSION.to_owned()),
            (None, "kind") => Some(KIND.to_owned()),
            (None, _) => None,
        }
    }
}

fn unescape(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some('n') => out.push('\n'),
                Some(c) => out.push(c),
                None => {}
            },
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_documented() {
        let docs = Docs::load();
        assert!(docs.of("io.k8s.api.core.v1.Pod").unwrap().contains("containers"));
        let doc = docs.field("io.k8s.api.core.v1.ContainerPort", "hostIP").unwrap();
        assert!(doc.contains("host IP"), "{doc}");
        assert!(docs.field("io.k8s.api.core.v1.SeccompProfile", "type").is_some());
        assert!(docs.field("io.k8s.api.core.v1.Pod", "kind").is_some());
        assert!(docs.field("io.k8s.api.core.v1.Pod", "nonsense").is_none());
        assert!(docs.of("nonsense").is_none());
    }
}
