//! Which encoding and which shape a client wants back (`Accept`), and what it sent (`Content-Type`).

use http::{HeaderMap, header};

use crate::{
    path::Query,
    status::{ApiError, ApiResult},
};

/// `application/json`
pub const JSON: &str = "application/json";
/// `application/yaml`
pub const YAML: &str = "application/yaml";
/// `application/vnd.kubernetes.protobuf`
pub const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// Bytes on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Encoding {
    /// JSON, which is also how objects rest.
    Json,
    /// YAML made from it.
    Yaml,
    /// `k8s\0` and a protobuf envelope.
    Protobuf,
}

impl Encoding {
    /// Its media type.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Json => JSON,
            Self::Yaml => YAML,
            Self::Protobuf => PROTOBUF,
        }
    }
}

/// What is made of objects before they are encoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shape {
    /// The objects themselves.
    Full,
    /// A table of their printer columns, in this version of meta.k8s.io.
    Table(&'static str),
    /// Their metadata alone, in this version of meta.k8s.io.
    Partial(&'static str),
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
    /// `application/json`
    pub media: &'a str,
    params: Vec<(&'a str, &'a str)>,
    quality: f32,
}

impl<'a> Clause<'a> {
    /// A parameter's value.
    pub fn param(&self, name: &str) -> Option<&'a str> {
        self.params.iter().find(|(k, _)| k.eq_ignore_ascii_case(name)).map(|(_, v)| *v)
    }

    /// Whether the range covers the media type.
    pub fn covers(&self, media: &str) -> bool {
        self.media == "*/*"
            || self.media.eq_ignore_ascii_case(media)
            || self.media.strip_suffix("/*").is_some_and(|t| media.split('/').next() == Some(t))
    }
}

/// The clauses of the `Accept` headers, best first.
pub fn clauses(headers: &HeaderMap) -> Vec<Clause<'_>> {
    let mut out: Vec<Clause<'_>> = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(str::trim)
        .filter(|c| !c.is_empty())
        .map(|clause| {
            let mut parts = clause.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default();
            let params: Vec<(&str, &str)> = parts
                .filter_map(|p| p.split_once('='))
                .map(|(k, v)| (k.trim(), v.trim().trim_matches('"')))
                .collect();
            let quality = params
                .iter()
                .find(|(k, _)| *k == "q")
                .and_then(|(_, v)| v.parse::<f32>().ok())
                .unwrap_or(1.0);
            Clause { media, params, quality }
        })
        .collect();
    out.sort_by(|a, b| b.quality.total_cmp(&a.quality));
    out
}

const OFFERED: [Encoding; 3] = [Encoding::Json, Encoding::Yaml, Encoding::Protobuf];

/// Picks what the client likes best of what can be had. `protobuf`: whether the type has a protobuf form.
/// `list`: for collections, whose metadata form has a name of its own. `transforms`: whether tables and
/// metadata forms make sense here.
pub fn accept(
    headers: &HeaderMap,
    query: &Query,
    protobuf: bool,
    list: bool,
    transforms: bool,
) -> ApiResult<Accepted> {
    let pretty = match query.get("pretty") {
        Some(v) if !v.is_empty() => matches!(v, "1" | "t" | "T" | "true" | "TRUE" | "True"),
        _ => headers
            .get(header::USER_AGENT)
            .and_then(|v| v.to_str().ok())
            .is_some_and(|ua| ["curl", "Wget", "Mozilla/5.0"].iter().any(|p| ua.starts_with(p))),
    };
    let clauses = clauses(headers);
    if clauses.is_empty() {
        return Ok(Accepted { encoding: Encoding::Json, shape: Shape::Full, pretty });
    }
    for clause in &clauses {
        let Some(shape) = shape(clause, list, transforms) else { continue };
        for encoding in OFFERED {
            // Metadata forms are built-in types whatever the object is; tables have no protobuf form.
            let possible = encoding != Encoding::Protobuf
                || match shape {
                    Shape::Full => protobuf,
                    Shape::Partial(_) => true,
                    Shape::Table(_) => false,
                };
            if possible && clause.covers(encoding.media_type()) {
                let pretty = pretty || clause.param("pretty") == Some("1");
                return Ok(Accepted { encoding, shape, pretty });
            }
        }
    }
    // All encodings of the server are named, also where the type has no protobuf form: its metadata has.
    Err(ApiError::not_acceptable(&[JSON, YAML, PROTOBUF]))
}

fn shape(clause: &Clause<'_>, list: bool, transforms: bool) -> Option<Shape> {
    let Some(kind) = clause.param("as") else { return Some(Shape::Full) };
    if !transforms || clause.param("g") != Some("meta.k8s.io") {
        return None;
    }
    let version = match clause.param("v")? {
        "v1" => "v1",
        "v1beta1" => "v1beta1",
        _ => return None,
    };
    match kind {
        "Table" => Some(Shape::Table(version)),
        "PartialObjectMetadata" if !list => Some(Shape::Partial(version)),
        "PartialObjectMetadataList" if list => Some(Shape::Partial(version)),
        _ => None,
    }
}

/// What a body is encoded in; absent means JSON.
pub fn content_type(headers: &HeaderMap) -> ApiResult<Encoding> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(Encoding::Json) };
    let media = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
    match media.to_ascii_lowercase().as_str() {
        "" | "*/*" | JSON => Ok(Encoding::Json),
        YAML | "application/x-yaml" | "text/yaml" => Ok(Encoding::Yaml),
        PROTOBUF => Ok(Encoding::Protobuf),
        _ => Err(ApiError::unsupported_media_type(&[JSON, YAML, PROTOBUF])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted(value: &str, list: bool) -> Option<(Encoding, Shape)> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, value.parse().unwrap());
        accept(&headers, &Query::default(), true, list, true).ok().map(|a| (a.encoding, a.shape))
    }

    #[test]
    fn accepts() {
        for (value, list, want) in [
            ("application/json", false, Some((Encoding::Json, Shape::Full))),
            ("*/*", false, Some((Encoding::Json, Shape::Full))),
            ("application/yaml", true, Some((Encoding::Yaml, Shape::Full))),
            (
                "application/vnd.kubernetes.protobuf,application/json",
                false,
                Some((Encoding::Protobuf, Shape::Full)),
            ),
            (
                "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
                true,
                Some((Encoding::Json, Shape::Table("v1"))),
            ),
            (
                "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
                true,
                Some((Encoding::Protobuf, Shape::Partial("v1"))),
            ),
            ("application/json;q=0.1,application/yaml", true, Some((Encoding::Yaml, Shape::Full))),
            ("text/html", false, None),
            ("application/json;as=Table;v=v7;g=meta.k8s.io", true, None),
        ] {
            assert_eq!(accepted(value, list), want, "{value}");
        }
    }
}
