//! Selectors of devices: expressions in CEL, compiled, checked and costed when they are written.
//!
//! In: text, how old it is, and which features are on. Out: nothing, or upstream's words on why not
//! (`k8s.io/dynamic-resource-allocation/cel`).

use serde_json::Value;
use yare_cel::{PathStep, SizeEstimate, SizeEstimator, Type};
use yare_schema::field::{ErrorKind, FieldError, Path};

use super::claims::at_most;
pub use crate::devices::Terms;
use crate::{
    check::{Check, Errors},
    devices::MAX_COST,
    view::View,
};

const MAX_SELECTORS: usize = 32;
/// Longest expression, in bytes.
const MAX_EXPRESSION_BYTES: usize = 10 * 1024;
/// Attributes and capacities of a device.
const MAX_ENTRIES: u64 = 32;
/// Characters of the domain of an attribute's name.
const MAX_DOMAIN: u64 = 63;
/// Characters of an attribute's name below its domain.
const MAX_ID: u64 = 32;
const MAX_DRIVER: u64 = 63;
/// Characters of an attribute's value, and more than the values it may have.
const MAX_VALUE: u64 = 64;

/// The sizes of what stands in a device.
struct DeviceSizes;

impl SizeEstimator for DeviceSizes {
    fn size(&self, path: &[PathStep], _of: &Type) -> Option<SizeEstimate> {
        use PathStep::{Field, Items, Keys, Values};
        let (root, steps) = path.split_first()?;
        if *root != Field("device".into()) {
            return None;
        }
        let Some((Field(field), steps)) = steps.split_first() else {
            return Some(SizeEstimate { min: 0, max: 0 });
        };
        let max = match (&**field, steps) {
            ("driver", []) => MAX_DRIVER,
            ("allowMultipleAllocations", []) => 1,
            ("attributes" | "capacity", [] | [Values | Items]) => MAX_ENTRIES,
            ("attributes" | "capacity", [Keys]) => MAX_DOMAIN,
            ("attributes" | "capacity", [Values | Items, Keys]) => MAX_ID,
            // Upstream knows an attribute by name too, but a capacity only by key; either has no domain before it.
            ("attributes", [Values | Items, Values | Items | Field(_)]) => MAX_VALUE,
            ("capacity", [Values | Items, Values | Items]) => 0,
            _ => return None,
        };
        Some(SizeEstimate { min: 0, max })
    }
}

/// Errors in selectors.
pub fn check(errs: &mut Errors, path: &Path<'_>, selectors: &[Value], terms: Terms) {
    at_most(errs, path, selectors, MAX_SELECTORS);
    for (i, selector) in selectors.iter().enumerate().filter(|_| selectors.len() <= MAX_SELECTORS) {
        let p = path.index(i);
        let p = p.child("cel");
        if !selector.has("cel") {
            errs.required(&p, "");
            continue;
        }
        let (p, expression) = (p.child("expression"), selector.str_at("cel.expression"));
        if expression.len() > MAX_EXPRESSION_BYTES {
            errs.push(FieldError::too_long(&p, MAX_EXPRESSION_BYTES));
            continue;
        }
        match terms.compile(expression) {
            Ok(ast) if ast.estimate(&DeviceSizes).max > MAX_COST => {
                errs.forbidden(&p, "too complex, exceeds cost limit");
            }
            Ok(_) => {}
            Err((ErrorKind::Internal, why)) => errs.push(FieldError {
                kind: ErrorKind::Internal,
                field: p.to_string(),
                value: None,
                detail: why,
            }),
            Err((_, why)) => errs.invalid(&p, expression, why),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The figures are those that upstream's own tests hold its estimates to.
    #[test]
    fn costs() {
        let stored = |gates: &str| Terms::new(&yare_schema::features::Gates::parse(gates).unwrap(), true);
        let (default, lists) = (stored(""), stored("DRAListTypeAttributes=true"));
        let by_domain = r#"device.attributes["dra.example.com"]"#;
        #[rustfmt::skip]
        let cases = [
            (default, "true".to_owned(), 0),
            (default, r#"device.attributes["no-such-domain"].noSuchAttr.isGreaterThan(quantity("0"))"#.into(), 6),
            (default, r#"device.attributes["no-such-domain"]["noSuchAttr"].isGreaterThan(quantity("0"))"#.into(), 6),
            (default, r#""no-such-domain" in device.attributes"#.into(), 3),
            (default, r#"device.driver == """#.into(), 2),
            (default, r#"device.driver == "dra.example.com""#.into(), 4),
            (default, format!("{by_domain}.name"), 4),
            (default, format!(r#"{by_domain}["name"]"#), 4),
            (default, format!("cel.bind(dra, {by_domain}, dra.name)"), 15),
            (default, format!("{by_domain}.name > 0"), 5),
            (default, format!(r#"{by_domain}.name == "fish""#), 5),
            (default, format!(r#"{by_domain}.name.isGreaterThan(semver("0.0.1"))"#), 6),
            (default, format!(r#"{by_domain}.name.isGreaterThan(semver("v0.0.1", true)) && isSemver("v1.0.0", true)"#), 7),
            (default, r#"device.capacity["dra.example.com"].name.isGreaterThan(quantity("1Ki"))"#.into(), 6),
            (default, format!("{by_domain}.a && {by_domain}.b && {by_domain}.c"), 12),
            (default, r#"device.attributes.exists_one(x, x == "dra.example.com")"#.into(), 164),
            (default, format!(r#"{by_domain}.exists_one(x, x == "services")"#), 133),
            (default, format!(r#"{by_domain}.services.split("example").size() >= 2"#), 19),
            (lists, format!("{by_domain}.name.exists(x, x > 0)"), 5 + 6 * 64),
            (lists, format!(r#"{by_domain}.names.all(x, x != "")"#), 5 + 4 * 64),
            (lists, format!(r#"{by_domain}.names.all(x, x.isGreaterThan(semver("0.0.1")))"#), 5 + 6 * 64),
            (lists, format!("{by_domain}.names.size() == 2"), 6),
            (lists, format!("{by_domain}.name.includes(true)"), 4 + 48),
            (lists, format!(r#"{by_domain}.name.includes(semver("1.0.0"))"#), 4 + 48 + 1),
            (lists, format!("1 in {by_domain}.names"), 4 + 64),
        ];
        for (terms, expression, cost) in cases {
            let ast = terms.compile(&expression).unwrap_or_else(|e| panic!("{expression}: {e:?}"));
            assert_eq!(ast.estimate(&DeviceSizes).max, cost, "{expression}");
        }
    }
}
