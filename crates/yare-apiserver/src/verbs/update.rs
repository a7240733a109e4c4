//! `update`: a whole object in the place of another.

use std::sync::Arc;

use bytes::Bytes;
use yare_kinds::view::View;

use crate::{
    body::Reply,
    core::Call,
    negotiate::Asked,
    options::WriteOptions,
    registry::Served,
    render::Renderer,
    status::ApiResult,
    trace,
    verbs::{
        create,
        write::{self, Target, Update},
    },
};

/// Replaces an object, or one of its subresources.
pub async fn update(call: &Call, served: &Arc<Served>, target: &Target, body: Bytes) -> ApiResult<Reply> {
    let renderer = Renderer::new(call, served, Asked::One)?;
    let options = WriteOptions::parse(&call.query, "UpdateOptions", None, call.user_agent())?;
    let mut object = write::decode(call, served, &body, options.field_validation)?;
    let name = call.info.name.as_str();
    write::settle_namespace(served, &mut object, &call.info.namespace)?;
    write::check_name(&object, name)?;
    let make = |_: &serde_json::Value| Ok(object.clone());
    let update = Update {
        call,
        served,
        name,
        target,
        options: &options,
        make: &make,
        apply: false,
        retry: true,
        view: None,
    };
    yare_trace::event("About to store object in database", &[]);
    let written = match write::update(&update).await {
        Err(error)
            if error.reason == "NotFound"
                && target.subresource.is_empty()
                && served.stored.strategy.allow_create_on_update() =>
        {
            let uid = object.str_at("metadata.uid");
            if !uid.is_empty() {
                return Err(write::another_uid(call, served, name, (uid, ""), options.dry_run));
            }
            create::authorize(call).await?;
            create::object_of(call, served, object.clone(), &options, create::By::Update).await
        }
        done => done,
    };
    let written = trace::written(body.len(), written)?;
    write::answer(call, &renderer, &written)
}
