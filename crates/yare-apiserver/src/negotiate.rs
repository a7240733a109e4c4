//! Which encoding and which shape a client wants back (`Accept`), and what it sent (`Content-Type`).

use http::{HeaderMap, header};

use yare_schema::features::Gates;

use crate::{
    encodings::{self, Format, TABLE},
    path::Query,
    status::{ApiError, ApiResult},
};

pub use crate::encodings::Encoding;

/// `application/json`
pub const JSON: &str = "application/json";

/// What is made of objects before they are encoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shape {
    /// The objects themselves.
    Full,
    /// A table of their printer columns, in this version of meta.k8s.io.
    Table(&'static str),
    /// Their metadata alone, in this version of meta.k8s.io.
    Partial(&'static str),
    /// The metadata of a list's objects. [`crate::render::Renderer`] has [`Shape::Partial`] for it.
    PartialList(&'static str),
}

/// What the client wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Accepted {
    /// Bytes on the wire.
    pub encoding: Encoding,
    /// What is encoded.
    pub shape: Shape,
    /// Indented JSON.
    pub pretty: bool,
}

impl Accepted {
    /// JSON of the object itself.
    pub const PLAIN: Self = Self { encoding: Encoding::Json, shape: Shape::Full, pretty: false };
}

/// One media range with its parameters.
pub struct Clause<'a> {
    kind: &'a str,
    subkind: &'a str,
    params: Vec<(&'a str, &'a str)>,
    quality: f64,
}

impl<'a> Clause<'a> {
    fn parse(clause: &'a str) -> Option<Self> {
        let trim = |text: &'a str| text.trim_matches(' ');
        let (media, rest) = clause.split_once(';').unwrap_or((clause, ""));
        let (kind, subkind) = match media.split_once('/') {
            Some((_, "")) | None if trim(media.trim_end_matches('/')) == "*" => ("*", "*"),
            Some((_, "")) | None => return None,
            Some((_, subkind)) if subkind.trim_end_matches('/').contains('/') => return None,
            Some((kind, subkind)) => (trim(kind), trim(subkind.trim_end_matches('/'))),
        };
        let mut out = Clause { kind, subkind, params: Vec::new(), quality: 1.0 };
        for param in rest.split(';') {
            let Some((key, value)) = param.split_once('=').filter(|(_, v)| !v.is_empty()) else { continue };
            let value = value.strip_suffix('=').unwrap_or(value);
            if value.contains('=') {
                continue;
            }
            match trim(key) {
                "q" => out.quality = value.parse().unwrap_or(0.0),
                key => out.params.push((key, trim(value))),
            }
        }
        Some(out)
    }

    /// A parameter's value; where it stands twice, the last.
    pub fn param(&self, name: &str) -> Option<&'a str> {
        self.params.iter().rev().find(|(k, _)| *k == name).map(|(_, v)| *v)
    }

    /// Whether the range covers the media type.
    pub fn covers(&self, media: &str) -> bool {
        let (kind, subkind) = media.split_once('/').unwrap_or((media, ""));
        (self.kind == kind && (self.subkind == subkind || self.subkind == "*"))
            || (self.kind == "*" && self.subkind == "*")
    }

    /// Whether upstream would have it before the other: better liked, or less of a wildcard.
    fn precedes(&self, other: &Self) -> bool {
        self.quality > other.quality
            || (self.kind != "*" && other.kind == "*")
            || (self.subkind != "*" && other.subkind == "*")
    }
}

/// The clauses of the first `Accept` header, best first.
pub fn clauses(headers: &HeaderMap) -> Vec<Clause<'_>> {
    let text = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let mut out: Vec<Clause<'_>> =
        text.split(',').filter_map(|c| Clause::parse(c.trim_matches(' '))).collect();
    // What precedes what is no order (a clause can precede another that precedes it), so the outcome depends on how
    // it is sorted: upstream inserts.
    for at in 1..out.len().min(MAX_CLAUSES) {
        let mut at = at;
        while at > 0 && out[at].precedes(&out[at - 1]) {
            out.swap(at, at - 1);
            at -= 1;
        }
    }
    out.truncate(MAX_CLAUSES);
    out
}

/// Clauses beyond this many are not looked at.
const MAX_CLAUSES: usize = 64;

/// What is asked of a path: it decides which metadata form there is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asked {
    /// One object, or events about them.
    One,
    /// A collection.
    List,
}

/// What there is to choose from.
#[derive(Clone, Copy)]
pub struct Offer<'a> {
    /// The gates, which let encodings be used; without them, what is behind none.
    pub gates: Option<&'a Gates>,
    /// The answer is a custom resource, which has no form in some.
    pub custom: bool,
    /// Tables and metadata forms can be had of it.
    pub transforms: bool,
}

/// Picks what the client likes best of what can be had.
pub fn accept(headers: &HeaderMap, query: &Query, offer: Offer<'_>) -> ApiResult<Accepted> {
    let pretty = match query.get("pretty") {
        Some(v) if !v.is_empty() => matches!(v, "1" | "t" | "T" | "true" | "TRUE" | "True"),
        _ => headers
            .get(header::USER_AGENT)
            .and_then(|v| v.to_str().ok())
            .is_some_and(|ua| ["curl", "Wget", "Mozilla/5.0"].iter().any(|p| ua.starts_with(p))),
    };
    let plain = Accepted { encoding: Encoding::Json, shape: Shape::Full, pretty };
    match headers.get(header::ACCEPT) {
        None => return Ok(plain),
        Some(value) if value.is_empty() || value == JSON => return Ok(plain),
        Some(_) => {}
    }
    for clause in &clauses(headers) {
        for format in TABLE.iter().filter(|f| clause.covers(f.media_type) && f.is_on(offer.gates)) {
            if let Some(shape) = shape(clause, format, offer) {
                let pretty = pretty || clause.param("pretty") == Some("1");
                return Ok(Accepted { encoding: format.encoding, shape, pretty });
            }
        }
    }
    // All encodings of the server are named, also where the type has no form in one: its metadata has.
    Err(ApiError::not_acceptable(&encodings::media_types(offer.gates)))
}

/// Whether upstream's router of what is built in has an answer for the client. `special`: what the path produces beside
/// the encodings of objects.
pub fn route(headers: &HeaderMap, special: &[&'static str], streams: bool, gates: &Gates) -> ApiResult<()> {
    // Most requests.
    if headers.get(header::ACCEPT).is_none_or(|v| v.is_empty() || v == JSON) {
        return Ok(());
    }
    let mut available = special.to_vec();
    available.extend(encodings::media_types(Some(gates)));
    if streams {
        available.extend(encodings::stream_types(Some(gates)));
    }
    accept_one_of(headers, &available)
}

/// The same for a path that produces just these. The router knows media types to the letter, and the wildcard of all.
pub fn accept_one_of(headers: &HeaderMap, available: &[&'static str]) -> ApiResult<()> {
    let is_taken = |wanted: &str| {
        let media = wanted.split_once(';').map_or(wanted, |(media, _)| media).trim_matches(' ');
        media == "*/*" || available.contains(&media)
    };
    match headers.get(header::ACCEPT).filter(|v| !v.is_empty()) {
        Some(value) if !value.to_str().is_ok_and(|text| text.split(',').any(is_taken)) => {
            Err(ApiError::unrouted_accept(available))
        }
        _ => Ok(()),
    }
}

/// What the clause makes of an answer in this encoding; none where it cannot be had.
fn shape(clause: &Clause<'_>, format: &Format, offer: Offer<'_>) -> Option<Shape> {
    let streams = |s: &str| s.is_empty() || (s == "watch" && format.stream.is_some());
    if !clause.param("stream").is_none_or(streams) {
        return None;
    }
    if !clause.param("sv").is_none_or(|sv| sv.is_empty() || (offer.transforms && sv == "v1")) {
        return None;
    }
    let named = ["as", "g", "v"].map(|name| clause.param(name));
    if named == [None; 3] {
        return (format.custom || !offer.custom).then_some(Shape::Full);
    }
    let [kind, group, version] = named.map(Option::unwrap_or_default);
    if !offer.transforms || group != "meta.k8s.io" {
        return None;
    }
    let version = match version {
        "v1" => "v1",
        "v1beta1" => "v1beta1",
        _ => return None,
    };
    match kind {
        "Table" => format.tables.then_some(Shape::Table(version)),
        "PartialObjectMetadata" => Some(Shape::Partial(version)),
        "PartialObjectMetadataList" => Some(Shape::PartialList(version)),
        _ => None,
    }
}

/// What a body is encoded in; absent means JSON.
pub fn content_type(headers: &HeaderMap, gates: &Gates) -> ApiResult<&'static Format> {
    let json = Encoding::Json.format();
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(json) };
    if value.is_empty() || value == JSON {
        return Ok(json);
    }
    let found = value.to_str().ok().and_then(media_type).and_then(|media| {
        TABLE.iter().find(|f| f.media_type.eq_ignore_ascii_case(media) && f.is_on(Some(gates)))
    });
    found.ok_or_else(|| ApiError::unsupported_media_type(&encodings::media_types(Some(gates))))
}

/// The media type of a `Content-Type`, where its parameters are well-formed (RFC 2045).
fn media_type(text: &str) -> Option<&str> {
    let is_token = |text: &str| {
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic() && !br#"()<>@,;:\"/[]?="#.contains(&b))
    };
    let (media, mut rest) = match text.find(';') {
        Some(at) => text.split_at(at),
        None => (text, ""),
    };
    let mut seen: Vec<String> = Vec::new();
    loop {
        rest = rest.trim_start();
        let Some(param) = rest.strip_prefix(';').map(str::trim_start) else { break };
        if param.is_empty() {
            return Some(media.trim());
        }
        let (key, value) = param.split_once('=')?;
        let key = key.trim_end().to_ascii_lowercase();
        if !is_token(&key) || seen.contains(&key) {
            return None;
        }
        seen.push(key);
        let value = value.trim_start();
        rest = match value.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?.1,
            None => {
                let end = value.find(|c: char| c == ';' || c.is_whitespace()).unwrap_or(value.len());
                let (value, rest) = value.split_at(end);
                if !is_token(value) {
                    return None;
                }
                rest
            }
        };
    }
    rest.is_empty().then(|| media.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted(value: &str, custom: bool, gates: &Gates) -> Option<(Encoding, Shape)> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, value.parse().unwrap());
        let offer = Offer { gates: Some(gates), custom, transforms: true };
        accept(&headers, &Query::default(), offer).ok().map(|a| (a.encoding, a.shape))
    }

    #[test]
    fn accepts() {
        use Encoding::{Cbor, Json, Protobuf, Yaml};
        use Shape::{Full, Partial, PartialList, Table};
        let (off, on) = (Gates::default(), Gates::parse("CBORServingAndStorage=true").unwrap());
        for (value, built_in, custom) in [
            ("", Some((Json, Full)), Some((Json, Full))),
            ("*", Some((Json, Full)), Some((Json, Full))),
            ("*/*", Some((Json, Full)), Some((Json, Full))),
            ("application/*", Some((Json, Full)), Some((Json, Full))),
            ("*/json", None, None),
            ("text/*", None, None),
            ("application", None, None),
            (",;", None, None),
            ("Application/json", None, None),
            ("application/json;charset=utf-8", Some((Json, Full)), Some((Json, Full))),
            (" application/json ; q=0.5 , application/yaml", Some((Yaml, Full)), Some((Yaml, Full))),
            ("application/json;q=0", Some((Json, Full)), Some((Json, Full))),
            ("application/json;q=x,application/yaml;q=0.1", Some((Yaml, Full)), Some((Yaml, Full))),
            ("*/*,application/yaml", Some((Yaml, Full)), Some((Yaml, Full))),
            ("application/*;q=0.9,application/yaml;q=0.1", Some((Yaml, Full)), Some((Yaml, Full))),
            ("application/vnd.kubernetes.protobuf", Some((Protobuf, Full)), None),
            ("application/vnd.kubernetes.protobuf,*/*", Some((Protobuf, Full)), Some((Json, Full))),
            ("application/cbor,application/json", Some((Json, Full)), Some((Json, Full))),
            ("application/yaml;stream=watch,application/json", Some((Json, Full)), Some((Json, Full))),
            ("application/json;stream=other,application/yaml", Some((Yaml, Full)), Some((Yaml, Full))),
            ("application/json;sv=v2,application/yaml;sv=v1", Some((Yaml, Full)), Some((Yaml, Full))),
            (
                "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
                Some((Json, Table("v1"))),
                Some((Json, Table("v1"))),
            ),
            (
                "application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io,application/yaml;as=Table;v=v1beta1;g=meta.k8s.io",
                Some((Yaml, Table("v1beta1"))),
                Some((Yaml, Table("v1beta1"))),
            ),
            (
                "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
                Some((Protobuf, PartialList("v1"))),
                Some((Protobuf, PartialList("v1"))),
            ),
            (
                "*/*;as=PartialObjectMetadata;g=meta.k8s.io;v=v1beta1",
                Some((Json, Partial("v1beta1"))),
                Some((Json, Partial("v1beta1"))),
            ),
            ("application/json;as=Table;v=v7;g=meta.k8s.io", None, None),
            ("application/json;as=Table;v=v1", None, None),
            ("application/json;as=Other;v=v1;g=meta.k8s.io", None, None),
            ("application/json;g=meta.k8s.io", None, None),
        ] {
            assert_eq!(accepted(value, false, &off), built_in, "{value}");
            assert_eq!(accepted(value, true, &off), custom, "{value}");
        }
        assert_eq!(accepted("application/cbor", true, &on), Some((Cbor, Full)));
        let metadata = "application/cbor;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
        assert_eq!(accepted(metadata, true, &on), Some((Cbor, Partial("v1"))));
        assert_eq!(accepted("application/cbor;as=Table;v=v1;g=meta.k8s.io", true, &on), None);
        assert_eq!(accepted("application/cbor-seq", true, &on), None);
    }

    #[test]
    fn content_types() {
        let gates = Gates::parse("CBORServingAndStorage=true").unwrap();
        for (value, want) in [
            ("", Some(Encoding::Json)),
            ("application/json", Some(Encoding::Json)),
            ("application/json; charset=utf-8", Some(Encoding::Json)),
            ("application/json;charset=\"utf-8\" ; a=b;", Some(Encoding::Json)),
            ("APPLICATION/YAML", Some(Encoding::Yaml)),
            ("application/vnd.kubernetes.protobuf", Some(Encoding::Protobuf)),
            ("application/cbor", Some(Encoding::Cbor)),
            ("application/json;charset", None),
            ("application/json;a=b;A=c", None),
            ("application/json;a=b c", None),
            ("application/json;=b", None),
            ("application/x-yaml", None),
            ("text/yaml", None),
            ("*/*", None),
            ("application/*", None),
            ("application/cbor-seq", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, value.parse().unwrap());
            assert_eq!(content_type(&headers, &gates).ok().map(|f| f.encoding), want, "{value}");
        }
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, "application/cbor".parse().unwrap());
        assert!(content_type(&headers, &Gates::default()).is_err());
        assert!(content_type(&HeaderMap::new(), &gates).is_ok());
    }
}
