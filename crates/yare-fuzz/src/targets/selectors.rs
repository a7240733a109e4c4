//! Selectors, as query parameters and as objects.

use yare_schema::{
    decode::{self, Mode},
    selector::{FieldSelector, LabelSelector, ShardSelector},
};

pub const WORDS: &[&str] = &[
    " in ",
    " notin ",
    "(",
    ")",
    ",",
    "=",
    "==",
    "!=",
    "!",
    ">",
    "<",
    "\\,",
    "\\",
    "metadata.name",
    "example.com/a",
    " ",
    "a",
    "\"matchLabels\":",
    "\"matchExpressions\":",
    "\"Exists\"",
    "shardRange(",
    "'0x0000000000000000'",
    " || ",
];

pub fn label(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let labels = [("a", "b"), ("example.com/x", ""), ("tier", "web")];
    if let Ok(selector) = LabelSelector::parse(&text) {
        let printed = selector.to_string();
        let again = LabelSelector::parse(&printed).unwrap_or_else(|e| panic!("{printed:?} is refused: {e}"));
        assert_eq!(again, selector, "{printed:?}");
        let get = |key: &str| labels.iter().find(|(k, _)| *k == key).map(|(_, v)| *v);
        assert_eq!(selector.matches(&labels), selector.matches_with(get));
    }
    let Ok(object) = decode::decode_untyped(bytes, Mode::Ignore) else { return };
    if let Ok(selector) = LabelSelector::from_object(&object.value) {
        let printed = selector.to_string();
        if !selector.is_nothing() {
            let again =
                LabelSelector::parse(&printed).unwrap_or_else(|e| panic!("{printed:?} is refused: {e}"));
            assert_eq!(again.matches(&labels), selector.matches(&labels), "{printed:?}");
        }
    }
}

pub fn field(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(selector) = FieldSelector::parse(&text) {
        let printed = selector.to_string();
        let again = FieldSelector::parse(&printed).unwrap_or_else(|e| panic!("{printed:?} is refused: {e}"));
        let fields = [("metadata.name", "a"), ("status.phase", "Running")];
        assert_eq!(again.matches(&fields), selector.matches(&fields), "{printed:?}");
        assert_eq!(again.requirements().len(), selector.requirements().len(), "{printed:?}");
        assert_eq!(
            again.to_string(),
            FieldSelector::parse(&again.to_string()).map(|s| s.to_string()).unwrap_or_default()
        );
    }
    if let Ok(selector) = ShardSelector::parse(&text) {
        let printed = selector.to_string();
        assert_eq!(ShardSelector::parse(&printed).as_ref(), Ok(&selector), "{printed:?}");
        selector.matches(&text);
    }
}

pub fn label_seeds() -> Vec<Vec<u8>> {
    [
        "a=b,tier in (web, db),!example.com/x,c notin (d,),n>1,m<2",
        "a==b,a!=c,,x",
        r#"{"matchLabels":{"a":"b"},"matchExpressions":[{"key":"tier","operator":"In","values":["web","x"]},{"key":"q","operator":"DoesNotExist"}]}"#,
        "a in ()",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into()
}

pub fn field_seeds() -> Vec<Vec<u8>> {
    [
        "metadata.name=a,status.phase!=Failed,x==y\\,z\\=\\\\",
        ",a=,b!=",
        "shardRange(object.metadata.uid, '0x0000000000000000', '0x8000000000000000') || (shardRange(object.metadata.uid, '0x8000000000000000', '0x10000000000000000'))",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into()
}
