//! Subresources: [`TABLE`] says what each one does; a row is found by name and, where it matters, resource.

use std::sync::Arc;

use http::Extensions;

use crate::{
    body::{self, Reply, RequestBody},
    core::Call,
    registry::Served,
    status::{ApiError, ApiResult},
    verbs::{list, patch, update, write},
};

/// Answers a request for a subresource.
pub async fn handle(
    call: &Call,
    served: &Arc<Served>,
    body: RequestBody,
    _upgrade: &mut Extensions,
) -> ApiResult<Reply> {
    let info = &call.info;
    let Some(sub) = served.sub(&info.subresource) else { return Err(ApiError::unknown_resource()) };
    if !sub.verbs.iter().any(|v| **v == *info.verb) {
        return Err(ApiError::method_not_supported(served.group_resource(), info.verb));
    }
    match (info.subresource.as_str(), info.verb) {
        ("status", "get") => list::get(call, served).await,
        ("status", verb) => {
            let bytes = body::read(&call.headers, body).await?;
            if verb == "update" {
                update::update(call, served, &write::STATUS, bytes).await
            } else {
                patch::patch(call, served, &write::STATUS, bytes).await
            }
        }
        _ => Err(ApiError::unknown_resource()),
    }
}
