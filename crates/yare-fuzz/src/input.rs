//! How bytes choose among kinds, come apart into documents, and what size of result they may have.

use serde_json::Value;
use yare_schema::{
    builtin::{Kind, builtin},
    fixtures,
    model::TypeRef,
};

/// The most heap that one byte of input may cost, by the sizes of [`heap_bytes`]. A CBOR map of one short entry has
/// four bytes and fills a tree node for eleven.
const HEAP_PER_BYTE: usize = 256;
/// Heap that any input may cost.
const HEAP_BYTES: usize = 64 << 10;

/// The kinds that seeds are made of: between them every shape that types have.
const RICH: [(&str, &str, &str); 14] = [
    ("", "v1", "Pod"),
    ("", "v1", "Secret"),
    ("", "v1", "ConfigMapList"),
    ("", "v1", "Event"),
    ("", "v1", "List"),
    ("", "v1", "WatchEvent"),
    ("", "v1", "Status"),
    ("apps", "v1", "Deployment"),
    ("apiextensions.k8s.io", "v1", "CustomResourceDefinition"),
    ("admissionregistration.k8s.io", "v1", "ValidatingAdmissionPolicy"),
    ("autoscaling", "v2", "HorizontalPodAutoscaler"),
    ("coordination.k8s.io", "v1", "Lease"),
    ("meta.k8s.io", "v1", "Table"),
    ("resource.k8s.io", "v1", "ResourceSlice"),
];

/// The kind that the first two bytes choose, and the rest of them.
pub fn kind(bytes: &[u8]) -> Option<(&'static Kind, TypeRef<'static>, &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<2>()?;
    let kinds = builtin().kinds();
    let kind = kinds.get(usize::from(u16::from_be_bytes(*head)) % kinds.len())?;
    Some((kind, builtin().at(kind.ty), rest))
}

/// Input that chooses the kind and goes on with `document`.
pub fn of_kind(group: &str, version: &str, kind: &str, document: &[u8]) -> Vec<u8> {
    let at = builtin().kinds().iter().position(|k| (k.group, k.version, k.kind) == (group, version, kind));
    // The names are constants of this crate, and there are fewer kinds than the number counts.
    let at = at.and_then(|at| u16::try_from(at).ok()).expect("seeds name kinds of the tables");
    [&at.to_be_bytes()[..], document].concat()
}

/// Two inputs for each rich kind: an object with all fields, and one with some.
pub fn of_rich_kinds(document: impl Fn(TypeRef<'static>, &Value) -> Vec<u8>) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    for (group, version, name) in RICH {
        let Some(ty) = builtin().lookup(group, version, name) else { continue };
        for value in [fixtures::full(ty), fixtures::sparse(ty, 7)] {
            // Kinds that every group version has stand under `*`.
            let kind =
                builtin().kind(group, version, name).map_or((group, version), |k| (k.group, k.version));
            out.push(of_kind(kind.0, kind.1, name, &document(ty, &value)));
        }
    }
    out
}

/// The parts that zero bytes separate, `N` of them; those that are missing are empty, the last has the rest.
pub fn parts<const N: usize>(bytes: &[u8]) -> [&[u8]; N] {
    let mut parts = bytes.splitn(N, |b| *b == 0);
    [(); N].map(|()| parts.next().unwrap_or_default())
}

/// Joins parts so that [`parts`] takes them apart again.
pub fn joined(parts: &[&str]) -> Vec<u8> {
    parts.join("\0").into_bytes()
}

/// About how much heap a value holds.
pub fn heap_bytes(value: &Value) -> usize {
    /// A node of the tree that is behind an object: eleven keys and values.
    const NODE: usize = 11 * (size_of::<String>() + size_of::<Value>()) + 16;
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        Value::String(text) => text.capacity(),
        Value::Array(items) => {
            items.capacity() * size_of::<Value>() + items.iter().map(heap_bytes).sum::<usize>()
        }
        Value::Object(map) => {
            let nodes = if map.is_empty() { 0 } else { 1 + map.len() / 6 };
            nodes * NODE + map.iter().map(|(key, value)| key.capacity() + heap_bytes(value)).sum::<usize>()
        }
    }
}

/// How deep a value nests; a scalar not at all.
pub fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// A value that was read of so many bytes must not be larger or deeper than they may cost.
pub fn check_size(value: &Value, input_bytes: usize) {
    let heap = heap_bytes(value);
    let most = HEAP_BYTES + HEAP_PER_BYTE * input_bytes;
    assert!(heap <= most, "{input_bytes} bytes became {heap} bytes on the heap");
    let depth = depth(value);
    // Each level may be a list's and its item's, or a union's and its schema's.
    assert!(depth <= yare_schema::decode::MAX_DEPTH + 1, "nested {depth} deep");
}

/// Bytes as text, for messages.
pub fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
