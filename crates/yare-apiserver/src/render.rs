//! From objects at rest to what a client asked for: other versions, other encodings, tables, metadata alone.
//!
//! In: the bytes the store holds. Out: the same bytes where that is what the client wants, which is the
//! common case, and otherwise bytes made from them.

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, StatusCode, header};
use serde_json::{Map, Value, json};
use yare_kinds::{printers::Printer, view::View};

use crate::{
    body::{self, Reply},
    codec,
    core::{Call, Clock},
    encodings::{Form, Items, Listing, Named, indented},
    negotiate::{Accepted, Asked, JSON, Offer, Shape},
    registry::{Served, Stored, TypeHandle},
    span,
    status::{ApiError, ApiResult, quote},
    tables, trace,
};

/// How much of an object a table row carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IncludeObject {
    /// Nothing.
    None,
    /// Its metadata.
    Metadata,
    /// All of it.
    Object,
}

impl IncludeObject {
    fn wanted(call: &Call, shape: Shape) -> ApiResult<Self> {
        match (shape, call.query.get("includeObject")) {
            (Shape::Table(_), Some("None")) => Ok(Self::None),
            (Shape::Table(_), Some("Object")) => Ok(Self::Object),
            (Shape::Table(_), Some(other)) if !matches!(other, "Metadata" | "") => {
                Err(ApiError::bad_request(format!(
                    "Unable to convert to Table as requested: includeObject: Invalid value: {}: must be 'Metadata', 'Object', 'None', or empty",
                    quote(other)
                )))
            }
            _ => Ok(Self::Metadata),
        }
    }
}

/// Renders objects of one resource for one request.
#[derive(Clone)]
pub struct Renderer {
    /// The resource in the version asked for.
    pub served: std::sync::Arc<Served>,
    /// What the client wants.
    pub accepted: Accepted,
    /// What table rows carry.
    pub include: IncludeObject,
    /// For ages, each time anew: a watch lasts.
    pub clock: std::sync::Arc<dyn Clock>,
}

impl Renderer {
    /// What this request wants of this resource.
    pub fn new(call: &Call, served: &std::sync::Arc<Served>, asked: Asked) -> ApiResult<Self> {
        let custom = served.stored.custom.is_some();
        let offer = Offer { gates: Some(&call.core.config.gates), custom, transforms: true };
        let mut accepted = crate::negotiate::accept(&call.headers, &call.query, offer)?;
        accepted.shape = match (accepted.shape, asked) {
            (Shape::PartialList(version), Asked::List) => Shape::Partial(version),
            (Shape::Partial(_), Asked::List) => {
                return Err(ApiError::new(
                    406,
                    "NotAcceptable",
                    format!(
                        "you requested PartialObjectMetadata, but the requested object is a list ({})",
                        go_type(&served.stored, &served.list_kind)
                    ),
                ));
            }
            (Shape::PartialList(_), Asked::One) => {
                return Err(no_list(&go_type(&served.stored, &served.kind)));
            }
            (shape, _) => shape,
        };
        let include = IncludeObject::wanted(call, accepted.shape)?;
        Ok(Self { served: served.clone(), accepted, include, clock: call.core.config.clock.clone() })
    }

    /// The object as JSON value of the served version.
    pub fn value(&self, raw: &[u8]) -> ApiResult<Value> {
        let mut value: Value = serde_json::from_slice(raw).map_err(ApiError::internal)?;
        if self.is_stale(raw) && self.served.conversion().is_none() {
            self.served.stored.freshen(&mut value)?;
        }
        self.served.from_rest(&mut value)?;
        Ok(value)
    }

    /// Where a webhook converts: has these objects converted together, before they are rendered one by one.
    pub fn prepare<'a>(&self, objects: impl Iterator<Item = &'a Bytes>) -> ApiResult<()> {
        let Some(conversion) = self.served.conversion() else { return Ok(()) };
        if matches!(self.accepted.shape, Shape::Partial(_)) {
            return Ok(());
        }
        let values = objects.filter_map(|raw| serde_json::from_slice(raw).ok());
        conversion.warm(values, &self.served.api_version)
    }

    /// Whether a custom resource was written before its definition became what it is, or while it did.
    fn is_stale(&self, raw: &[u8]) -> bool {
        let stored = &self.served.stored;
        stored.custom.as_ref().is_some_and(|custom| {
            crate::verbs::write::revision_of(raw).is_some_and(|revision| revision < custom.since)
                || span::member(raw, "apiVersion").is_some_and(|at| {
                    raw[at].trim_ascii() != format!("\"{}\"", stored.api_version).as_bytes()
                })
        })
    }

    /// The object as JSON bytes of the served version.
    pub fn json(&self, raw: &Bytes) -> ApiResult<Bytes> {
        if self.served.is_storage() && !self.is_stale(raw) {
            return Ok(raw.clone());
        }
        Ok(codec::to_json(&self.served.ty, &self.value(raw)?).into())
    }

    /// The object in the form in which it is at hand.
    fn form(&self, raw: &Bytes) -> ApiResult<Form<'static>> {
        if self.served.is_storage() && !self.is_stale(raw) {
            return Ok(Form::Json(raw.clone()));
        }
        self.value(raw).map(Form::Value)
    }

    /// One object in the shape and encoding asked for, alone (not in a list).
    pub fn object(&self, raw: &Bytes) -> ApiResult<Bytes> {
        match self.accepted.shape {
            Shape::Full => {
                let of = Named {
                    ty: Some(&self.served.ty),
                    api_version: &self.served.api_version,
                    kind: &self.served.kind,
                };
                self.encode(&of, self.form(raw)?)
            }
            Shape::Partial(version) | Shape::PartialList(version) => {
                self.partial(version, Form::Json(partial(raw, version)))
            }
            Shape::Table(version) => self.table(version, raw, true),
        }
    }

    /// A document in the encoding asked for.
    fn encode(&self, of: &Named<'_>, form: Form<'_>) -> ApiResult<Bytes> {
        (self.accepted.encoding.format().document)(of, form, self.accepted.pretty)
    }

    fn partial(&self, version: &str, form: Form<'_>) -> ApiResult<Bytes> {
        let api_version = format!("meta.k8s.io/{version}");
        let ty = TypeHandle::Static(codec::partial_type(version)?);
        self.encode(&Named { ty: Some(&ty), api_version: &api_version, kind: "PartialObjectMetadata" }, form)
    }

    /// A table of one row, as in a watch or a get. `columns`: with their definitions.
    pub fn table(&self, version: &str, raw: &Bytes, columns: bool) -> ApiResult<Bytes> {
        let revision = span::member(raw, "metadata")
            .and_then(|at| span::member(&raw[at.clone()], "resourceVersion").map(|v| &raw[at][v]))
            .unwrap_or(b"\"\"");
        let metadata = format!("{{\"resourceVersion\":{}}}", String::from_utf8_lossy(revision));
        let mut out = BytesMut::from(tables::head(&self.served, version, &metadata, columns).as_bytes());
        out.extend_from_slice(&self.row(raw)?);
        out.extend_from_slice(b"]}");
        self.encode(&Named { ty: None, api_version: "", kind: "Table" }, Form::Json(out.freeze()))
    }

    /// A bookmark in the shape and encoding asked for. `columns`: a table says what its columns are.
    pub fn bookmark(&self, revision: u64, initial_end: bool, columns: bool) -> ApiResult<Bytes> {
        let mut metadata = json!({ "resourceVersion": revision.to_string() });
        if initial_end {
            metadata["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
        }
        let value = json!({
            "kind": &*self.served.kind, "apiVersion": &*self.served.api_version, "metadata": metadata,
        });
        match self.accepted.shape {
            Shape::Full => {
                let of = Named {
                    ty: Some(&self.served.ty),
                    api_version: &self.served.api_version,
                    kind: &self.served.kind,
                };
                self.encode(&of, Form::Made(&value))
            }
            Shape::Partial(version) | Shape::PartialList(version) => {
                self.partial(version, Form::Json(partial(&value.to_string().into(), version)))
            }
            Shape::Table(version) => {
                let mut table = self.clone();
                // Where rows carry nothing, this one does still: the annotation must be seen.
                if initial_end && self.include == IncludeObject::None {
                    table.include = IncludeObject::Metadata;
                }
                table.table(version, &value.to_string().into(), columns)
            }
        }
    }

    /// A failure as an event's object.
    pub fn status(&self, error: &ApiError) -> ApiResult<Bytes> {
        let ty = codec::builtin_type("", "v1", "Status").map(TypeHandle::Static);
        self.encode(
            &Named { ty: ty.as_ref(), api_version: "v1", kind: "Status" },
            Form::Made(&error.to_json()),
        )
    }

    /// `apiVersion` and `kind` of a list.
    pub fn list_identity(&self) -> (std::borrow::Cow<'_, str>, std::borrow::Cow<'_, str>) {
        match self.accepted.shape {
            Shape::Full => ((&*self.served.api_version).into(), (&*self.served.list_kind).into()),
            Shape::Partial(version) | Shape::PartialList(version) => {
                (format!("meta.k8s.io/{version}").into(), "PartialObjectMetadataList".into())
            }
            Shape::Table(version) => (format!("meta.k8s.io/{version}").into(), "Table".into()),
        }
    }

    /// A list of these objects.
    pub fn list(self, mut metadata: Map<String, Value>, items: Items, shared: bool) -> ApiResult<Reply> {
        // A list without a Go type says where it goes on also where it does not.
        if self.served.stored.custom.is_some() && self.accepted.shape == Shape::Full {
            metadata.entry("continue").or_insert_with(|| "".into());
        }
        let metadata = Value::Object(metadata);
        let format = self.accepted.encoding.format();
        let body = (format.list)(Listing { renderer: self, metadata, items, shared })?;
        let mut response = http::Response::new(body);
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(format.media_type));
        Ok(response)
    }

    /// One object as an item of a list in JSON: the object, its metadata, or a table row.
    pub fn item(&self, raw: &Bytes) -> ApiResult<Bytes> {
        match self.accepted.shape {
            Shape::Full => self.json(raw),
            Shape::Partial(version) | Shape::PartialList(version) => Ok(partial(raw, version)),
            Shape::Table(_) => self.row(raw),
        }
    }

    /// How the items of a list in JSON begin that need not say what they are, as the list does: those of built-in
    /// kinds. Custom resources say it each, as upstream's do; so does other than whole objects.
    pub fn item_identity(&self) -> String {
        if self.served.stored.custom.is_some() || !matches!(self.accepted.shape, Shape::Full) {
            return String::new();
        }
        let (kind, api_version) = (&self.served.kind, &self.served.api_version);
        format!("{{\"kind\":\"{kind}\",\"apiVersion\":\"{api_version}\",")
    }

    /// One table row.
    fn row(&self, raw: &Bytes) -> ApiResult<Bytes> {
        let object: Value = if self.served.stored.custom.is_some() {
            self.value(raw)?
        } else {
            serde_json::from_slice(raw).map_err(ApiError::internal)?
        };
        let cells = tables::cells(&self.served, &object, self.clock.now().as_second());
        let mut out = BytesMut::with_capacity(512);
        out.extend_from_slice(b"{\"cells\":");
        out.extend_from_slice(Value::Array(cells).to_string().as_bytes());
        if let Some(conditions) = tables::conditions(&self.served, &object) {
            out.extend_from_slice(b",\"conditions\":");
            out.extend_from_slice(conditions.to_string().as_bytes());
        }
        match self.include {
            IncludeObject::None => out.extend_from_slice(b",\"object\":null"),
            IncludeObject::Metadata => {
                out.extend_from_slice(b",\"object\":");
                let version = if let Shape::Table(version) = self.accepted.shape { version } else { "v1" };
                out.extend_from_slice(&partial(raw, version));
            }
            IncludeObject::Object => {
                out.extend_from_slice(b",\"object\":");
                out.extend_from_slice(&self.json(raw)?);
            }
        }
        out.extend_from_slice(b"}");
        Ok(out.freeze())
    }

    /// The start of a list in JSON, up to and including the opening bracket of its items; `]}` ends it.
    pub fn list_head(&self, metadata: &Value) -> String {
        match self.accepted.shape {
            Shape::Full => format!(
                "{{\"kind\":{},\"apiVersion\":{},\"metadata\":{metadata},\"items\":[",
                Value::from(&*self.served.list_kind),
                Value::from(&*self.served.api_version),
            ),
            Shape::Partial(version) | Shape::PartialList(version) => format!(
                "{{\"kind\":\"PartialObjectMetadataList\",\"apiVersion\":\"meta.k8s.io/{version}\",\"metadata\":{metadata},\"items\":["
            ),
            Shape::Table(version) => tables::head(&self.served, version, &metadata.to_string(), true),
        }
    }

    /// The media type of the answer.
    pub fn media_type(&self) -> &'static str {
        self.accepted.encoding.format().media_type
    }

    /// A response with one object at rest.
    pub fn reply(&self, code: StatusCode, raw: &Bytes) -> ApiResult<Reply> {
        Ok(body::reply(code, self.media_type(), self.object(raw)?))
    }
}

/// What is to be had of documents of built-in types.
pub fn offer(call: &Call) -> Offer<'_> {
    Offer { gates: Some(&call.core.config.gates), custom: false, transforms: false }
}

/// A document of a built-in type (given by group, version and kind) in whatever encoding the client takes.
pub fn document(call: &Call, code: StatusCode, value: &Value) -> ApiResult<Reply> {
    document_of(call, code, value, offer(call))
}

/// [`document`] in one of the encodings that are offered.
pub fn document_of(call: &Call, code: StatusCode, value: &Value, offer: Offer<'_>) -> ApiResult<Reply> {
    let accepted = crate::negotiate::accept(&call.headers, &call.query, offer)?;
    encoded(code, value, accepted)
}

/// A view of an object (its scale), which has the shapes that objects have. `printer`: its columns.
pub fn view(call: &Call, code: StatusCode, value: &Value, printer: &Printer) -> ApiResult<Reply> {
    let offer = Offer { transforms: true, ..offer(call) };
    let accepted = crate::negotiate::accept(&call.headers, &call.query, offer)?;
    let partial = |version| partial(&value.to_string().into(), version);
    let (api_version, kind, json) = match accepted.shape {
        Shape::Full => return encoded(code, value, accepted),
        Shape::PartialList(_) => {
            let (api_version, kind) = (value.str_at("apiVersion"), value.str_at("kind"));
            let group = api_version.split_once('/').map_or("core", |(group, _)| group);
            return Err(no_list(&format!("*{group}.{kind}")));
        }
        Shape::Partial(version) => (version, "PartialObjectMetadata", partial(version)),
        Shape::Table(version) => {
            let object = match IncludeObject::wanted(call, accepted.shape)? {
                IncludeObject::None => "null".into(),
                IncludeObject::Metadata => partial(version),
                IncludeObject::Object => value.to_string().into(),
            };
            let now_s = call.core.now().as_second();
            let object = String::from_utf8_lossy(&object);
            (version, "Table", tables::single(printer, version, value, &object, now_s).into())
        }
    };
    let ty = TypeHandle::Static(codec::partial_type(api_version)?);
    let of = Named {
        ty: (kind != "Table").then_some(&ty),
        api_version: &format!("meta.k8s.io/{api_version}"),
        kind,
    };
    let format = accepted.encoding.format();
    let bytes = (format.document)(&of, Form::Json(json), accepted.pretty)?;
    Ok(body::reply(code, format.media_type, bytes))
}

fn no_list(go_type: &str) -> ApiError {
    let message = format!(
        "you requested PartialObjectMetadataList, but the requested object is not a list ({go_type})"
    );
    ApiError::new(406, "NotAcceptable", message)
}

/// A document of a built-in type in this encoding.
pub fn encoded(code: StatusCode, value: &Value, accepted: Accepted) -> ApiResult<Reply> {
    let api_version = value["apiVersion"].as_str().unwrap_or("v1");
    let kind = value["kind"].as_str().unwrap_or_default();
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let ty = codec::builtin_type(group, version, kind).map(TypeHandle::Static);
    let of = Named { ty: ty.as_ref(), api_version, kind };
    let format = accepted.encoding.format();
    let bytes = (format.document)(&of, Form::Made(value), accepted.pretty)?;
    Ok(body::reply(code, format.media_type, bytes))
}

/// The answer to a failed request, in the client's encoding; in JSON where it takes none that is offered.
pub fn failure(call: &Call, error: &ApiError, offer: Offer<'_>) -> Reply {
    let code = body::status_code(error.code);
    let answer = crate::negotiate::accept(&call.headers, &call.query, offer).and_then(|accepted| {
        let media_type = accepted.encoding.format().media_type;
        trace::serialize(call, media_type, || encoded(code, &error.to_json(), accepted))
    });
    match answer {
        Ok(reply) => retry_after(reply, error),
        // Laid out for reading, as who takes none of the encodings may be no program.
        Err(_) => {
            let json = indented(error.to_json().to_string().as_bytes());
            retry_after(body::reply(code, JSON, json), error)
        }
    }
}

/// The answer to a failed request in JSON, where nothing is known of the client.
pub fn error(error: &ApiError) -> Reply {
    let (code, status) = (body::status_code(error.code), error.to_json());
    let reply = encoded(code, &status, Accepted::PLAIN).unwrap_or_else(|_| body::json_reply(code, &status));
    retry_after(reply, error)
}

fn retry_after(mut reply: Reply, error: &ApiError) -> Reply {
    if error.details.retry_after_s > 0
        && let Ok(value) = HeaderValue::from_str(&error.details.retry_after_s.to_string())
    {
        reply.headers_mut().insert(header::RETRY_AFTER, value);
    }
    reply
}

/// `PartialObjectMetadata` around the metadata of an object at rest, as JSON.
pub fn partial(raw: &Bytes, version: &str) -> Bytes {
    let metadata = span::member(raw, "metadata").map_or(&b"{}"[..], |at| &raw[at]);
    let mut out = BytesMut::with_capacity(metadata.len() + 96);
    out.extend_from_slice(b"{\"kind\":\"PartialObjectMetadata\",\"apiVersion\":\"meta.k8s.io/");
    out.extend_from_slice(version.as_bytes());
    out.extend_from_slice(b"\",\"metadata\":");
    out.extend_from_slice(metadata);
    out.extend_from_slice(b"}");
    out.freeze()
}

/// How upstream's messages call the type of a resource's object or list.
pub fn go_type(stored: &Stored, kind: &str) -> String {
    if stored.custom.is_some() {
        let list = if kind.ends_with("List") { "List" } else { "" };
        return format!("*unstructured.Unstructured{list}");
    }
    let package = match &*stored.group {
        "" | "events.k8s.io" => "core",
        "internal.apiserver.k8s.io" => "apiserverinternal",
        group => group.split('.').next().unwrap_or_default(),
    };
    format!("*{package}.{kind}")
}
