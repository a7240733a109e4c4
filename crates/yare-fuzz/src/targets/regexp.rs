//! Regular expressions in Go's syntax, and what they match.

use crate::input::{joined, parts};

pub const WORDS: &[&str] = &[
    "(",
    ")",
    "|",
    "[",
    "]",
    "[^",
    "]a]",
    "-",
    "&&",
    "~~",
    "--",
    "[:alpha:]",
    "[:^digit:]",
    "{2}",
    "{2,}",
    "{2,3}",
    "{,2}",
    "{1000}",
    "*",
    "+",
    "?",
    "+?",
    "^",
    "$",
    ".",
    r"\d",
    r"\D",
    r"\w",
    r"\S",
    r"\b",
    r"\B",
    r"\A",
    r"\z",
    r"\Q",
    r"\E",
    r"\x{41}",
    r"\x41",
    r"\101",
    r"\pL",
    r"\p{Greek}",
    r"\P{^L}",
    "(?i)",
    "(?:",
    "(?P<n>",
    "(?<n>",
    "(?s-m:",
    "#",
    " ",
];

pub fn regexp(bytes: &[u8]) {
    let [pattern, text] = parts(bytes).map(String::from_utf8_lossy);
    match yare_regexp::compile(&pattern) {
        Ok(regex) => {
            regex.is_match(&text);
        }
        // What the reader of the syntax lets through is the engine's syntax, except for its depth.
        Err(why) if why.starts_with("error parsing regexp: expression nests too deeply: ") => {
            assert!(pattern.matches('(').count() > 60, "{why}");
        }
        Err(why) => assert!(why.starts_with("error parsing regexp: "), "{why}"),
    }
    // A text that is quoted is found in itself and alone.
    if !text.contains("\\E") && !text.ends_with('\\') {
        match yare_regexp::compile(&format!(r"\A\Q{text}\E\z")) {
            Ok(regex) => {
                assert!(regex.is_match(&text), "{text:?}");
                assert!(!regex.is_match(&format!("{text}.")), "{text:?}");
            }
            Err(why) => panic!("{why}"),
        }
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    [
        [r"^(?P<a>[a-z0-9]([-a-z0-9]*[a-z0-9])?)(\.[^]x[:^alpha:]\d]{1,3}?)*$", "a.b-c"],
        [r"(?i)\bfoo\B|\Qa.b\E+?|\x{1F600}\101[\x41-\x43]", "a foo b"],
        [r"^\p{Greek}\PL{2,}(?:[\w.-]+|[a&&b~~c--])$", "αβ"],
    ]
    .map(|parts| joined(&parts))
    .into()
}
