//! What a decoder reads from: tokens of a data model that JSON and CBOR share.

use std::borrow::Cow;

use serde_json::Value;

use super::read::Outcome;

/// Tokens on demand. The caller looks at what is at hand ([`Source::peek`]) and takes it.
pub(crate) trait Source<'a> {
    /// How errors begin: `json` or `cbor`.
    const NAME: &'static str;

    /// What is at hand, as the byte that it begins with in JSON; numbers of CBOR are `0`, `-` and, where they are
    /// floating, `1`.
    fn peek(&mut self) -> Option<u8>;

    /// What is at hand, as errors name it. `first` is what [`Source::peek`] said.
    fn found(&self, first: Option<u8>) -> &'static str;

    /// Enters the object at hand; [`Source::next_key`] follows.
    fn begin_object(&mut self) -> Outcome<()>;

    /// The next key of the object; `None` at its end.
    fn next_key(&mut self, first: bool) -> Outcome<Option<Cow<'a, str>>>;

    /// Enters the array at hand; [`Source::next_item`] follows.
    fn begin_array(&mut self) -> Outcome<()>;

    /// Whether the array has a further item, at which the source then stands.
    fn next_item(&mut self, first: bool) -> Outcome<bool>;

    /// The string at hand.
    fn string(&mut self) -> Outcome<Cow<'a, str>>;

    /// Base64 of the bytes at hand, not checked yet; `None` where a string cannot be bytes here.
    fn base64(&mut self) -> Outcome<Option<Cow<'a, str>>>;

    /// The number at hand, in decimal.
    fn number(&mut self) -> Outcome<Cow<'a, str>>;

    /// Takes `true`, `false` or `null`.
    fn word(&mut self, word: &str) -> Outcome<()>;

    /// Steps over the value at hand.
    fn skip(&mut self) -> Outcome<()>;

    /// The value at hand, of whatever type. `duplicate` hears of keys that stand twice, by path.
    fn any(&mut self, path: &mut String, duplicate: &mut dyn FnMut(&str)) -> Outcome<Value>;

    /// Which member of its object the key taken last belongs to; only CBOR's errors ask.
    fn index(&self) -> usize {
        0
    }

    /// Fails unless all was read.
    fn end(&mut self) -> Outcome<()>;
}
