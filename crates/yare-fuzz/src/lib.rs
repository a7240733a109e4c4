//! What must hold for any bytes that a client may send: the bodies of the fuzz targets.
//!
//! A [`Target`] is a function from bytes to nothing that panics when a property is broken, and a few documents to
//! begin with. [`TARGETS`] lists them. Two things run them: `fuzz/`, where coverage leads (`cargo fuzz run NAME`), and
//! this crate's tests, which run each a fixed number of times on documents that [`mutate`] damages, the same in every
//! run.
//!
//! Common to all: no panic, an end, results whose size the input's size bounds ([`input::check_size`]), and
//! nesting that every other walk over a value survives.

pub mod input;
pub mod mutate;
mod targets;

use targets::{cel, connections, definitions, encodings, kinds, managed, patches, regexp, selectors, words};

/// One way in for bytes from outside.
pub struct Target {
    /// The name, which is also that of the binary in `fuzz/`.
    pub name: &'static str,
    /// What is held to hold.
    pub holds: &'static str,
    /// Reads the bytes; panics on a broken property.
    pub run: fn(&[u8]),
    /// Documents to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Words that mean something in the input.
    pub words: &'static [&'static str],
    /// How often a bounded run tries.
    pub rounds: u32,
}

/// Every target.
#[rustfmt::skip]
pub const TARGETS: &[Target] = &[
    Target { name: "json", run: encodings::json, seeds: encodings::json_seeds, words: encodings::JSON_WORDS, rounds: 3_000,
        holds: "modes agree; decoding what was encoded changes nothing; typed, untyped and definitions' types" },
    Target { name: "yaml", run: encodings::yaml, seeds: encodings::yaml_seeds, words: encodings::YAML_WORDS, rounds: 1_500,
        holds: "becomes JSON of bounded size, and that JSON read as YAML is itself" },
    Target { name: "protobuf", run: encodings::protobuf, seeds: encodings::protobuf_seeds, words: &[], rounds: 3_000,
        holds: "what was read is the same in JSON, and the same again in protobuf" },
    Target { name: "cbor", run: encodings::cbor, seeds: encodings::cbor_seeds, words: &[], rounds: 3_000,
        holds: "only what is well-formed is read; encoding and decoding changes nothing" },
    Target { name: "json_patch", run: patches::json, seeds: patches::json_seeds, words: patches::JSON_WORDS, rounds: 5_000,
        holds: "applies wholly or not at all; bounded growth and depth" },
    Target { name: "merge_patch", run: patches::merge, seeds: patches::merge_seeds, words: encodings::JSON_WORDS, rounds: 5_000,
        holds: "applying thrice is applying twice" },
    Target { name: "strategic_patch", run: patches::strategic, seeds: patches::strategic_seeds, words: patches::STRATEGIC_WORDS, rounds: 4_000,
        holds: "an empty patch changes nothing; bounded growth and depth" },
    Target { name: "apply", run: managed::apply, seeds: managed::apply_seeds, words: managed::WORDS, rounds: 2_000,
        holds: "applying the same again changes nothing; owners are well-formed" },
    Target { name: "field_sets", run: managed::sets, seeds: managed::set_seeds, words: managed::WORDS, rounds: 5_000,
        holds: "the algebra of sets; reading what was written changes nothing" },
    Target { name: "label_selector", run: selectors::label, seeds: selectors::label_seeds, words: selectors::WORDS, rounds: 10_000,
        holds: "reading what was printed changes nothing" },
    Target { name: "field_selector", run: selectors::field, seeds: selectors::field_seeds, words: selectors::WORDS, rounds: 10_000,
        holds: "reading what was printed changes nothing" },
    Target { name: "quantity", run: words::quantity, seeds: words::quantity_seeds, words: words::QUANTITY_WORDS, rounds: 20_000,
        holds: "canonical form is canonical; order and arithmetic agree" },
    Target { name: "words", run: words::words, seeds: words::word_seeds, words: words::WORDS, rounds: 10_000,
        holds: "times, durations, schedules and paths: reading what was printed changes nothing" },
    Target { name: "regexp", run: regexp::regexp, seeds: regexp::seeds, words: regexp::WORDS, rounds: 6_000,
        holds: "Go's syntax becomes the engine's; a text that is quoted is found in itself" },
    Target { name: "cel", run: cel::cel, seeds: cel::seeds, words: cel::WORDS, rounds: 4_000,
        holds: "costs end every evaluation, and stay below their estimate" },
    Target { name: "definition", run: definitions::definition, seeds: definitions::seeds, words: definitions::WORDS, rounds: 1_500,
        holds: "what is accepted compiles, publishes, prunes, defaults and validates; pruning and defaulting twice is once" },
    Target { name: "kinds", run: kinds::kinds, seeds: kinds::seeds, words: encodings::JSON_WORDS, rounds: 1_500,
        holds: "every strategy survives every object that decodes; defaults are set once" },
    Target { name: "authority", run: connections::authority, seeds: connections::seeds, words: &[], rounds: 20_000,
        holds: "the same however the bytes come; bounded growth; what is plain stays" },
];

/// The target of this name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|t| t.name == name)
}

/// Runs a target; what a binary in `fuzz/` does. A name that no row has is an error in that folder.
pub fn run(name: &str, bytes: &[u8]) {
    let target = target(name).unwrap_or_else(|| panic!("no target is called {name}"));
    (target.run)(bytes);
}
