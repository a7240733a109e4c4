//! Costs and sizes as ranges, the budget of evaluations, and where estimates of sizes come from.

use crate::{
    decl::{Decl, DeclKind},
    types::Type,
};

/// A range of sizes: characters, bytes, items or entries. Arithmetic stops at `u64::MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SizeEstimate {
    /// At least.
    pub min: u64,
    /// At most.
    pub max: u64,
}

/// A range of costs, in upstream's units (one is about 50 ns of cel-go). Arithmetic stops at `u64::MAX`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CostEstimate {
    /// At least.
    pub min: u64,
    /// At most. What admission of an expression is decided by.
    pub max: u64,
}

/// What reading a variable or a field costs.
pub(crate) const SELECT: u64 = 1;
pub(crate) const LIST_CREATE: u64 = 10;
pub(crate) const MAP_CREATE: u64 = 30;
pub(crate) const STRUCT_CREATE: u64 = 40;
/// Per character of a string that is walked through.
pub(crate) const TRAVERSAL: f64 = 0.1;
/// Per character of a regular expression, for each unit of the string.
pub(crate) const REGEX: f64 = 0.25;

/// `value * factor`, rounded up; what no longer fits is `u64::MAX`.
pub(crate) fn scale(value: u64, factor: f64) -> u64 {
    let scaled = (value as f64 * factor).ceil();
    if scaled >= 18_446_744_073_709_551_616.0 { u64::MAX } else { scaled as u64 }
}

impl SizeEstimate {
    /// Nothing is known.
    pub const UNKNOWN: SizeEstimate = SizeEstimate { min: 0, max: u64::MAX };

    /// Exactly this.
    pub fn fixed(size: u64) -> SizeEstimate {
        SizeEstimate { min: size, max: size }
    }

    pub(crate) fn plus(self, other: SizeEstimate) -> SizeEstimate {
        SizeEstimate { min: self.min.saturating_add(other.min), max: self.max.saturating_add(other.max) }
    }

    pub(crate) fn by(self, other: SizeEstimate) -> SizeEstimate {
        SizeEstimate { min: self.min.saturating_mul(other.min), max: self.max.saturating_mul(other.max) }
    }

    pub(crate) fn scale(self, factor: f64) -> CostEstimate {
        CostEstimate { min: scale(self.min, factor), max: scale(self.max, factor) }
    }

    pub(crate) fn times(self, cost: CostEstimate) -> CostEstimate {
        CostEstimate { min: self.min.saturating_mul(cost.min), max: self.max.saturating_mul(cost.max) }
    }

    pub(crate) fn union(self, other: SizeEstimate) -> SizeEstimate {
        SizeEstimate { min: self.min.min(other.min), max: self.max.max(other.max) }
    }
}

impl CostEstimate {
    /// Exactly this.
    pub fn fixed(cost: u64) -> CostEstimate {
        CostEstimate { min: cost, max: cost }
    }

    /// Both, one after the other.
    #[must_use]
    pub fn plus(self, other: CostEstimate) -> CostEstimate {
        CostEstimate { min: self.min.saturating_add(other.min), max: self.max.saturating_add(other.max) }
    }

    /// One for each unit of the other.
    #[must_use]
    pub fn times(self, other: CostEstimate) -> CostEstimate {
        CostEstimate { min: self.min.saturating_mul(other.min), max: self.max.saturating_mul(other.max) }
    }

    pub(crate) fn scale(self, factor: f64) -> CostEstimate {
        CostEstimate { min: scale(self.min, factor), max: scale(self.max, factor) }
    }

    pub(crate) fn union(self, other: CostEstimate) -> CostEstimate {
        CostEstimate { min: self.min.min(other.min), max: self.max.max(other.max) }
    }
}

/// One step of the path from a variable to a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathStep {
    /// The variable itself (always and only first), or a field.
    Field(Box<str>),
    /// An item of a list: `@items`.
    Items,
    /// A key of a map: `@keys`.
    Keys,
    /// A value of a map: `@values`.
    Values,
    /// An index of a list, in comprehensions of two variables: `@indices`.
    Indices,
}

/// Bounds the sizes of values that come from outside of the expression.
pub trait SizeEstimator: Sync {
    /// The size of what `path` leads to, `None` when nothing is known. `path` is empty when the value does
    /// not lie under a variable.
    fn size(&self, path: &[PathStep], of: &Type) -> Option<SizeEstimate>;
}

/// Knows no size.
pub struct NoSizes;

impl SizeEstimator for NoSizes {
    fn size(&self, _path: &[PathStep], _of: &Type) -> Option<SizeEstimate> {
        None
    }
}

/// Sizes as one declaration bounds them, whichever variable the path starts with: what rules of
/// CustomResourceDefinitions are estimated by, where `self` and `oldSelf` have the same shape.
pub struct DeclSizes<'d>(pub &'d Decl);

impl SizeEstimator for DeclSizes<'_> {
    fn size(&self, path: &[PathStep], _of: &Type) -> Option<SizeEstimate> {
        let (_, steps) = path.split_first()?;
        let mut at = self.0;
        for step in steps {
            at = match (step, &at.kind) {
                (PathStep::Items | PathStep::Values, DeclKind::List { elem: child, .. })
                | (PathStep::Items | PathStep::Values, DeclKind::Map { value: child }) => child,
                // Upstream's key type is the plain string, whose size nobody has bounded.
                (PathStep::Keys, DeclKind::Map { .. }) => return Some(SizeEstimate { min: 0, max: 0 }),
                (PathStep::Field(name), DeclKind::Object(object)) => &object.fields.get(&**name)?.decl,
                _ => return None,
            };
        }
        Some(SizeEstimate { min: 0, max: at.max_elements })
    }
}

/// What evaluations may still cost.
///
/// One budget serves all expressions of a request or of an object: each evaluation takes what it used.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// The most that one evaluation may cost (upstream: 1,000,000).
    pub per_call: u64,
    /// What is left for all of them (upstream: 10,000,000 at the start).
    pub remaining: u64,
}

impl Budget {
    /// A budget with these limits.
    pub fn new(per_call: u64, total: u64) -> Budget {
        Budget { per_call, remaining: total }
    }

    /// No limits.
    pub fn unlimited() -> Budget {
        Budget { per_call: u64::MAX, remaining: u64::MAX }
    }
}
