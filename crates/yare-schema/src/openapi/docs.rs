//! The API's prose, from the blob that `build.rs` makes; unpacked only while a document is written.

use std::{cell::OnceCell, collections::HashMap, io::Read as _};

static BLOB: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/docs.z"));

/// Where it is said what the fields are that every kind has, and those of every list.
const OF_KINDS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
const OF_LISTS: &str = "io.k8s.List";

/// Documentation of types and fields by definition name. Unpacked when first asked: about 2 MB, for as long as this
/// lives.
#[derive(Default)]
pub struct Docs(OnceCell<Unpacked>);

struct Unpacked {
    text: String,
    /// Where a definition's lines are in `text`.
    index: HashMap<String, (u32, u32)>,
}

impl Unpacked {
    fn new() -> Self {
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
}

impl Docs {
    fn lines(&self, definition: &str) -> impl Iterator<Item = &str> {
        let Unpacked { text, index } = self.0.get_or_init(Unpacked::new);
        let (from, to) = index.get(definition).copied().unwrap_or((0, 0));
        text[from as usize..to as usize].lines()
    }

    /// What the type is.
    pub fn of(&self, definition: &str) -> Option<String> {
        self.lines(definition).next().filter(|l| !l.is_empty()).map(unescape)
    }

    /// What the field of the type is.
    pub fn field(&self, definition: &str, field: &str) -> Option<String> {
        let said = |definition: &str| {
            self.lines(definition).skip(1).find_map(|line| {
                line.strip_prefix('.')?.strip_prefix(field)?.strip_prefix(' ').filter(|d| !d.is_empty())
            })
        };
        let found = said(definition).or_else(|| match field {
            "apiVersion" | "kind" => said(OF_KINDS),
            "metadata" if definition.ends_with("List") => said(OF_LISTS),
            _ => None,
        });
        found.map(unescape)
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
        let docs = Docs::default();
        assert!(docs.of("io.k8s.api.core.v1.Pod").unwrap().contains("containers"));
        let doc = docs.field("io.k8s.api.core.v1.ContainerPort", "hostIP").unwrap();
        assert!(doc.contains("host IP"), "{doc}");
        assert!(docs.field("io.k8s.api.core.v1.SeccompProfile", "type").is_some());
        assert!(docs.field("io.k8s.api.core.v1.Pod", "kind").unwrap().starts_with("Kind is"));
        assert!(docs.field("io.k8s.api.core.v1.PodList", "metadata").unwrap().starts_with("Standard list"));
        assert!(docs.field("io.k8s.api.core.v1.Pod", "nonsense").is_none());
        let event = "io.k8s.apimachinery.pkg.apis.meta.v1.WatchEvent";
        assert!(docs.field(event, "object").unwrap().starts_with("Object is:"));
        assert!(!docs.of(event).unwrap().contains("Object is:"));
    }

    /// The prose is of the release that the tables are of: what they have is described, unless upstream says nothing.
    #[test]
    fn prose_is_of_the_release_of_the_tables() {
        let docs = Docs::default();
        let kinds = crate::builtin::builtin().kinds().iter();
        let objects = kinds.filter(|k| k.group == "scheduling.k8s.io" && k.item.is_none() && !k.is_removed());
        let names: Vec<_> =
            objects.map(|k| crate::builtin::builtin().at(k.ty).ty().name.to_string()).collect();
        assert!(names.len() > 1, "{names:?}");
        for name in names {
            assert!(docs.of(&name).is_some(), "{name}");
        }
        assert!(docs.of("nonsense").is_none());
    }
}
