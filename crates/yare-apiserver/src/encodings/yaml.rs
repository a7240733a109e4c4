//! YAML, for people. It has no frames to tell a watch's events apart.

use bytes::Bytes;
use serde_json::Value;
use yare_schema::decode::Syntax;

use super::{Encoding, Form, Format, Listing, Named, json};
use crate::{
    body::Body,
    codec,
    status::{ApiError, ApiResult},
};

pub(super) const FORMAT: Format = Format {
    encoding: Encoding::Yaml,
    media_type: "application/yaml",
    gate: None,
    custom: true,
    tables: true,
    syntax: Some(Syntax::Yaml),
    document,
    list,
    stream: None,
};

fn document(of: &Named<'_>, form: Form<'_>, _: bool) -> ApiResult<Bytes> {
    match form {
        Form::Made(value) => Ok(codec::to_yaml(value).into()),
        form => yaml(&form.json(of.ty)),
    }
}

fn list(listing: Listing) -> ApiResult<Body> {
    Ok(Body::full(yaml(&json::whole(&listing)?)?))
}

fn yaml(json: &[u8]) -> ApiResult<Bytes> {
    let value: Value = serde_json::from_slice(json).map_err(ApiError::internal)?;
    Ok(codec::to_yaml(&value).into())
}
