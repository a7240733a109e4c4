//! Regular expressions as Go's `regexp` has them, which Kubernetes' API takes wherever a pattern comes from outside:
//! schemas of definitions, expressions, flags. A pattern goes in, what matches by it or Go's words for what is wrong
//! with it come out.
//!
//! The engine is the `regex` crate's, which takes time linear in the text as Go's does. Its syntax is another one:
//! [`syntax`] reads Go's into it.

mod syntax;

pub use regex::Regex;
use regex::RegexBuilder;

/// Bytes that one compiled expression may take: room for 63 letters of any script, or for thousands of Latin ones.
const COMPILED_BYTES: usize = 10 << 20;
/// Bytes that matching by one may keep.
const CACHE_BYTES: usize = 1 << 20;

/// An expression that is ready to be matched.
///
/// # Errors
/// What Go says of a pattern that is none: `error parsing regexp: missing closing ): `(``.
pub fn compile(pattern: &str) -> Result<Regex, String> {
    RegexBuilder::new(&syntax::translate(pattern)?)
        .size_limit(COMPILED_BYTES)
        .dfa_size_limit(CACHE_BYTES)
        .build()
        .map_err(|error| match error {
            regex::Error::CompiledTooBig(_) => "expression too large",
            // What the engine does not take of what the syntax lets through: it goes less deep than Go.
            _ => "expression nests too deeply",
        })
        .map_err(|what| format!("error parsing regexp: {what}: `{pattern}`"))
}
