//! Value constraints of a structural CustomResourceDefinition schema (JSON Schema's validation keywords).

/// Constraints on the values of one type.
#[derive(Debug, Default, Clone)]
pub struct Constraints {}
