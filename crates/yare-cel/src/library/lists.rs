//! Functions on lists: Kubernetes' own, and those of the language's extension.

use std::{cmp::Ordering, sync::Arc};

use super::{Cost, Function, row, standard::never};
use crate::{
    equality::{compare, equal},
    error::EvalError,
    number::overflow,
    time::Duration,
    value::{List, Value},
};

type Res<'a> = Result<Value<'a>, EvalError>;

pub(super) const WALKS: &[Function] = &[
    row(
        "isSorted",
        Cost::ListWalk,
        is_sorted,
        &[
            ("list_int_is_sorted_bool", ".list(int) -> bool"),
            ("list_uint_is_sorted_bool", ".list(uint) -> bool"),
            ("list_double_is_sorted_bool", ".list(double) -> bool"),
            ("list_bool_is_sorted_bool", ".list(bool) -> bool"),
            ("list_duration_is_sorted_bool", ".list(duration) -> bool"),
            ("list_timestamp_is_sorted_bool", ".list(timestamp) -> bool"),
            ("list_string_is_sorted_bool", ".list(string) -> bool"),
            ("list_bytes_is_sorted_bool", ".list(bytes) -> bool"),
        ],
    ),
    row("sum", Cost::ListWalk, sum_int, &[("list_int_sum_int", ".list(int) -> int")]),
    row("sum", Cost::ListWalk, sum_uint, &[("list_uint_sum_uint", ".list(uint) -> uint")]),
    row("sum", Cost::ListWalk, sum_double, &[("list_double_sum_double", ".list(double) -> double")]),
    row(
        "sum",
        Cost::ListWalk,
        sum_duration,
        &[("list_duration_sum_duration", ".list(duration) -> duration")],
    ),
    row(
        "max",
        Cost::ListWalk,
        max,
        &[
            ("list_int_max_int", ".list(int) -> int"),
            ("list_uint_max_uint", ".list(uint) -> uint"),
            ("list_double_max_double", ".list(double) -> double"),
            ("list_bool_max_bool", ".list(bool) -> bool"),
            ("list_duration_max_duration", ".list(duration) -> duration"),
            ("list_timestamp_max_timestamp", ".list(timestamp) -> timestamp"),
            ("list_string_max_string", ".list(string) -> string"),
            ("list_bytes_max_bytes", ".list(bytes) -> bytes"),
        ],
    ),
    row(
        "min",
        Cost::ListWalk,
        min,
        &[
            ("list_int_min_int", ".list(int) -> int"),
            ("list_uint_min_uint", ".list(uint) -> uint"),
            ("list_double_min_double", ".list(double) -> double"),
            ("list_bool_min_bool", ".list(bool) -> bool"),
            ("list_duration_min_duration", ".list(duration) -> duration"),
            ("list_timestamp_min_timestamp", ".list(timestamp) -> timestamp"),
            ("list_string_min_string", ".list(string) -> string"),
            ("list_bytes_min_bytes", ".list(bytes) -> bytes"),
        ],
    ),
    row("indexOf", Cost::ListWalk, index_of, &[("list_a_index_of_int", ".list(A), A -> int")]),
    row("lastIndexOf", Cost::ListWalk, last_index_of, &[("list_a_last_index_of_int", ".list(A), A -> int")]),
];

pub(super) const FUNCTIONS: &[Function] = &[
    row("slice", Cost::Slice, slice, &[("list_slice", ".list(T), int, int -> list(T)")]),
    row(
        "flatten",
        Cost::Flatten,
        flatten,
        &[
            ("list_flatten", ".list(list(T)) -> list(T)"),
            ("list_flatten_int", ".list(dyn), int -> list(dyn)"),
        ],
    ),
    row(
        "sort",
        Cost::Sort,
        sort,
        &[
            ("list_int_sort", ".list(int) -> list(int)"),
            ("list_uint_sort", ".list(uint) -> list(uint)"),
            ("list_double_sort", ".list(double) -> list(double)"),
            ("list_bool_sort", ".list(bool) -> list(bool)"),
            ("list_google.protobuf.Duration_sort", ".list(duration) -> list(duration)"),
            ("list_google.protobuf.Timestamp_sort", ".list(timestamp) -> list(timestamp)"),
            ("list_string_sort", ".list(string) -> list(string)"),
            ("list_bytes_sort", ".list(bytes) -> list(bytes)"),
        ],
    ),
    row(
        "@sortByAssociatedKeys",
        Cost::SortBy,
        sort_by_keys,
        &[
            ("list_int_sortByAssociatedKeys", ".list(T), list(int) -> list(T)"),
            ("list_uint_sortByAssociatedKeys", ".list(T), list(uint) -> list(T)"),
            ("list_double_sortByAssociatedKeys", ".list(T), list(double) -> list(T)"),
            ("list_bool_sortByAssociatedKeys", ".list(T), list(bool) -> list(T)"),
            ("list_google.protobuf.Duration_sortByAssociatedKeys", ".list(T), list(duration) -> list(T)"),
            ("list_google.protobuf.Timestamp_sortByAssociatedKeys", ".list(T), list(timestamp) -> list(T)"),
            ("list_string_sortByAssociatedKeys", ".list(T), list(string) -> list(T)"),
            ("list_bytes_sortByAssociatedKeys", ".list(T), list(bytes) -> list(T)"),
        ],
    ),
    row("lists.range", Cost::Range, range, &[("lists_range", "int -> list(int)")]),
    row("reverse", Cost::Reverse, reverse, &[("list_reverse", ".list(T) -> list(T)")]),
    row("distinct", Cost::Distinct, distinct, &[("list_distinct", ".list(T) -> list(T)")]),
];

/// The most items that a list made from a number may have. What is charged for them comes after they are
/// made, so that the number alone must not fill the memory. No evaluation in Kubernetes may cost as much as this.
const MAX_RANGE: i64 = 1_000_000;
/// How deep lists are flattened at most; upstream's parser lets nothing nest deeper.
const MAX_DEPTH: i64 = 250;

fn is_sorted<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    let [Value::List(list)] = args else { return never(args) };
    let values = list.values()?;
    for pair in values.windows(2) {
        if compare(&pair[0], &pair[1])? == Ordering::Greater {
            return Ok(Value::Bool(false));
        }
    }
    Ok(Value::Bool(true))
}

fn sum<'a>(args: &[Value<'a>], zero: Value<'a>, add: impl Fn(&Value<'a>, &Value<'a>) -> Res<'a>) -> Res<'a> {
    match args {
        [Value::List(list)] => list.values()?.iter().try_fold(zero, |total, item| add(&total, item)),
        _ => Err(EvalError::NoSuchOverload),
    }
}

fn sum_int<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    sum(args, Value::Int(0), |a, b| match (a, b) {
        (Value::Int(a), Value::Int(b)) => {
            a.checked_add(*b).map(Value::Int).ok_or_else(|| overflow("integer"))
        }
        _ => Err(EvalError::no_such_overload()),
    })
}

fn sum_uint<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    sum(args, Value::Uint(0), |a, b| match (a, b) {
        (Value::Uint(a), Value::Uint(b)) => {
            a.checked_add(*b).map(Value::Uint).ok_or_else(|| overflow("unsigned integer"))
        }
        _ => Err(EvalError::no_such_overload()),
    })
}

fn sum_double<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    sum(args, Value::Double(0.0), |a, b| match (a, b) {
        (Value::Double(a), Value::Double(b)) => Ok(Value::Double(a + b)),
        _ => Err(EvalError::no_such_overload()),
    })
}

fn sum_duration<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    sum(args, Value::Duration(Duration(0)), |a, b| match (a, b) {
        (Value::Duration(a), Value::Duration(b)) => a.checked_add(*b).map(Value::Duration),
        _ => Err(EvalError::no_such_overload()),
    })
}

fn extreme<'a>(args: &[Value<'a>], name: &str, replace_when: Ordering) -> Res<'a> {
    let [Value::List(list)] = args else { return Err(EvalError::NoSuchOverload) };
    let mut best: Option<Value<'a>> = None;
    for item in list.values()? {
        match &best {
            Some(before) if compare(before, &item)? != replace_when => {}
            _ => best = Some(item),
        }
    }
    best.ok_or_else(|| EvalError::failed(format!("{name} called on empty list")))
}

fn min<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    extreme(args, "min", Ordering::Greater)
}

fn max<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    extreme(args, "max", Ordering::Less)
}

fn position(list: &List<'_>, wanted: &Value<'_>, mut indices: impl Iterator<Item = usize>) -> i64 {
    let same = |index: &usize| match list.get(*index) {
        Some(Ok(item)) => equal(&item, wanted).unwrap_or(false),
        _ => false,
    };
    indices.find(same).map_or(-1, |index| index as i64)
}

fn index_of<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    match args {
        [Value::List(list), wanted] => Ok(Value::Int(position(list, wanted, 0..list.len()))),
        _ => never(args),
    }
}

fn last_index_of<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    match args {
        [Value::List(list), wanted] => Ok(Value::Int(position(list, wanted, (0..list.len()).rev()))),
        _ => never(args),
    }
}

fn slice<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    let [Value::List(list), Value::Int(start), Value::Int(end)] = args else { return never(args) };
    let (start, end) = (*start, *end);
    if start < 0 || end < 0 {
        return Err(EvalError::failed(format!(
            "cannot slice({start}, {end}), negative indexes not supported"
        )));
    }
    if start > end {
        let message =
            format!("cannot slice({start}, {end}), start index must be less than or equal to end index");
        return Err(EvalError::failed(message));
    }
    let length = list.len();
    if (length as i64) < end {
        return Err(EvalError::failed(format!("cannot slice({start}, {end}), list is length {length}")));
    }
    (start as usize..end as usize)
        .filter_map(|index| list.get(index))
        .collect::<Result<_, _>>()
        .map(Value::list)
}

fn flatten_into<'a>(list: &List<'a>, depth: i64, into: &mut Vec<Value<'a>>) -> Result<(), EvalError> {
    for item in list.values()? {
        match item {
            Value::List(inner) if depth > 0 => flatten_into(&inner, depth - 1, into)?,
            other => into.push(other),
        }
    }
    Ok(())
}

fn flatten<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    let (list, depth) = match args {
        [Value::List(list)] => (list, 1),
        [Value::List(list), Value::Int(depth)] => (list, *depth),
        _ => return never(args),
    };
    if depth < 0 {
        return Err(EvalError::failed("level must be non-negative"));
    }
    let mut flat = Vec::new();
    flatten_into(list, depth.min(MAX_DEPTH), &mut flat)?;
    Ok(Value::list(flat))
}

fn sorted_by<'a>(values: Vec<Value<'a>>, keys: Vec<Value<'a>>) -> Res<'a> {
    let Some(first) = keys.first() else { return Ok(Value::list(values)) };
    if compare(first, first).is_err() {
        return Err(EvalError::failed("list elements must be comparable"));
    }
    if keys.iter().any(|key| key.type_name() != first.type_name()) {
        return Err(EvalError::failed("list elements must have the same type"));
    }
    let mut pairs: Vec<(Value<'a>, Value<'a>)> = keys.into_iter().zip(values).collect();
    pairs.sort_by(|(a, _), (b, _)| compare(a, b).unwrap_or(Ordering::Equal));
    Ok(Value::list(pairs.into_iter().map(|(_, value)| value).collect()))
}

fn sort<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    let [Value::List(list)] = args else { return never(args) };
    let values = list.values()?;
    sorted_by(values.clone(), values)
}

fn sort_by_keys<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    let [Value::List(list), Value::List(keys)] = args else { return never(args) };
    if list.len() != keys.len() {
        return Err(EvalError::failed(format!(
            "@sortByAssociatedKeys() expected a list of the same size as the associated keys list, but got {} and {} \
             elements respectively",
            list.len(),
            keys.len()
        )));
    }
    sorted_by(list.values()?, keys.values()?)
}

fn range<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    match args {
        [Value::Int(count)] if *count > MAX_RANGE => Err(EvalError::CostLimit),
        [Value::Int(count)] => Ok(Value::list((0..*count).map(Value::Int).collect())),
        _ => never(args),
    }
}

fn reverse<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    let [Value::List(list)] = args else { return never(args) };
    let mut values = list.values()?;
    values.reverse();
    Ok(Value::list(values))
}

fn distinct<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    let [Value::List(list)] = args else { return never(args) };
    let mut kept: Vec<Value<'a>> = Vec::new();
    for item in list.values()? {
        if !kept.iter().any(|other| equal(&item, other).unwrap_or(false)) {
            kept.push(item);
        }
    }
    Ok(Value::List(List::Made(Arc::new(kept), None)))
}
