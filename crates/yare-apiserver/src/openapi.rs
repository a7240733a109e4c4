//! OpenAPI documents, made on demand and kept while hot.

/// Documents by what they are.
#[derive(Default)]
pub struct Cache {}

/// Answers `/openapi/…`.
pub fn handle(_call: &crate::core::Call, _rest: &[&str]) -> crate::status::ApiResult<crate::body::Reply> {
    Err(crate::status::ApiError::unknown_resource())
}
