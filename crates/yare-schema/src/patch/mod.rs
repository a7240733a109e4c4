//! The three ways in which `PATCH` changes an object: a JSON patch (RFC 6902), a JSON merge patch (RFC 7386)
//! and Kubernetes' strategic merge patch. In: the object and the patch as JSON. Out: the patched object.
//! Server-side apply, the fourth, is in [`crate::managed`].

pub mod json;
pub mod merge;
pub mod strategic;

/// How deep a patched object may nest: as deep as the JSON parser reads it back.
pub const MAX_DEPTH: usize = 127;
