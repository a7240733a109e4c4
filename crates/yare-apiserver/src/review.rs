//! Resources that are questions: a create is answered at once and nothing is stored.

use std::sync::Arc;

use bytes::Bytes;

use crate::{
    body::Reply,
    core::Call,
    registry::Served,
    status::{ApiError, ApiResult},
};

/// Answers a question.
pub async fn handle(call: &Call, served: &Arc<Served>, _body: Bytes) -> ApiResult<Reply> {
    Err(ApiError::method_not_supported(served.group_resource(), call.info.verb))
}
