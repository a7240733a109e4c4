//! What selectors of devices have beside the rest (`k8s.io/dynamic-resource-allocation/cel`, KEP-5491).

use super::{Cost, Function, row, standard::never};
use crate::{equality::equal, error::EvalError, value::Value};

/// The most values that an attribute of a device may have.
pub(super) const MAX_VALUES: usize = 48;

pub(super) const FUNCTIONS: &[Function] =
    &[row("includes", Cost::Includes, includes, &[("dra_includes_dyn_dyn", ".dyn, dyn -> bool")])];

/// Whether a value is this one, or a list that has it. What cannot be compared is something else.
fn includes<'a>(args: &mut [Value<'a>]) -> Result<Value<'a>, EvalError> {
    let [target, wanted] = args else { return never(args) };
    let Value::List(list) = target else {
        return Ok(Value::Bool(equal(target, wanted).unwrap_or(false)));
    };
    for index in 0..list.len().min(MAX_VALUES) {
        let Some(item) = list.get(index) else { break };
        if equal(&item?, wanted).unwrap_or(false) {
            return Ok(Value::Bool(true));
        }
    }
    if list.len() > MAX_VALUES {
        let most = format!("'includes' function cannot be applied to lists longer than {MAX_VALUES} values");
        return Err(EvalError::failed(most));
    }
    Ok(Value::Bool(false))
}
