//! What calls cost: before they run, as a range, and when they run.
//!
//! Both figures are upstream's. They differ from each other where upstream's do (`join` is estimated at one
//! walk and charged two); changing either changes which CustomResourceDefinitions are accepted.

use crate::{
    ast::Literal,
    cost::{
        CostEstimate, LIST_CREATE, PathStep, REGEX, STRUCT_CREATE, SizeEstimate, SizeEstimator, TRAVERSAL,
        scale,
    },
    types::Type,
    value::{List, Map, Value},
};

/// How a function is charged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Cost {
    /// By its overload, as the specification's functions are; most cost 1.
    Standard,
    /// 1, and no more.
    Unit,
    /// An authorization check: two of them fit into an expression.
    Check,
    /// A selector is parsed from the second operand.
    Selector,
    /// All elements of a list are looked at, or a string is.
    ListWalk,
    /// A string is walked through so many times. With `sized`, the result is as long.
    Walk {
        times: f64,
        sized: bool,
    },
    Replace,
    Split,
    Join,
    Find,
    ContainsIp,
    ContainsCidr,
    Validate,
    Equal,
    Slice,
    Range,
    Reverse,
    Flatten,
    Distinct,
    Sort,
    SortBy,
    /// At most one unit for each value that an attribute of a device may have.
    Includes,
    /// Each element of one list against each of the other, so many times.
    Sets(f64),
}

/// What a call is estimated at, and how large its result may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CallEstimate {
    pub cost: CostEstimate,
    pub result: Option<SizeEstimate>,
}

/// A receiver or argument, as estimates see it.
pub(crate) struct Operand<'e> {
    pub path: Vec<PathStep>,
    pub of: Type,
    pub literal: Option<&'e Literal>,
    /// What is known of its size.
    pub size: Option<SizeEstimate>,
}

impl Operand<'_> {
    pub(crate) fn size_or_unknown(&self) -> SizeEstimate {
        self.size.unwrap_or(SizeEstimate::UNKNOWN)
    }

    fn int_or(&self, otherwise: u64) -> u64 {
        match self.literal {
            Some(Literal::Int(value)) => (*value).max(0) as u64,
            _ => otherwise,
        }
    }
}

/// The largest regular expression a named format is taken for.
const MAX_FORMAT_REGEX: f64 = 128.0;
/// The longest name of a format.
const MAX_FORMAT_NAME: u64 = 64;
const CHECK: u64 = 350_000;
/// An address, in bytes.
const ADDRESS: SizeEstimate = SizeEstimate { min: 4, max: 16 };

fn selector(length: SizeEstimate) -> CostEstimate {
    // The shortest requirement is two characters, and makes a structure and a list.
    let requirements = length.scale(0.5).scale((LIST_CREATE + STRUCT_CREATE) as f64);
    CostEstimate::fixed(LIST_CREATE).plus(length.scale(TRAVERSAL)).plus(requirements)
}

fn allocating(factor: f64, size: SizeEstimate) -> CallEstimate {
    let cost = size.scale(factor).plus(CostEstimate::fixed(1)).plus(CostEstimate::fixed(LIST_CREATE));
    CallEstimate { cost, result: Some(size) }
}

fn plain(cost: CostEstimate) -> CallEstimate {
    CallEstimate { cost, result: None }
}

impl Cost {
    /// The range for one overload, without the costs of the operands. `None`: as the specification's
    /// functions are, by overload.
    pub(crate) fn estimate(
        self,
        overload: &str,
        operands: &[Operand<'_>],
        sizes: &dyn SizeEstimator,
    ) -> Option<CallEstimate> {
        let size = |index: usize| operands.get(index).map_or(SizeEstimate::UNKNOWN, Operand::size_or_unknown);
        Some(match self {
            Cost::Standard => return None,
            Cost::Unit => plain(CostEstimate::fixed(1)),
            Cost::Check => plain(CostEstimate::fixed(CHECK)),
            Cost::Includes => plain(CostEstimate { min: 0, max: super::devices::MAX_VALUES as u64 }),
            Cost::Selector => plain(selector(size(1))),
            Cost::ListWalk => match element(operands.first()?, sizes) {
                Some((of, elem)) => {
                    let mut each = CostEstimate::fixed(1);
                    if matches!(of, Type::String | Type::Bytes) {
                        each = each.plus(elem.scale(TRAVERSAL));
                    }
                    plain(size(0).times(each))
                }
                None => plain(size(0).scale(TRAVERSAL)),
            },
            Cost::Walk { times, sized } => {
                CallEstimate { cost: size(0).scale(times * TRAVERSAL), result: sized.then(|| size(0)) }
            }
            Cost::Replace => {
                let result = replaced(size(0), size(1), size(2));
                CallEstimate { cost: size(0).scale(2.0 * TRAVERSAL), result: Some(result) }
            }
            Cost::Split => {
                let max = match operands.get(2).and_then(|operand| operand.literal) {
                    Some(Literal::Int(limit)) => *limit as u64,
                    _ => size(0).max,
                };
                CallEstimate {
                    cost: size(0).scale(2.0 * TRAVERSAL),
                    result: Some(SizeEstimate { min: 0, max }),
                }
            }
            Cost::Join => {
                let items = size(0);
                let mut result = SizeEstimate { min: 0, max: 0 };
                if let Some((_, elem)) = element(operands.first()?, sizes) {
                    result = items.by(elem);
                }
                if operands.len() > 1 {
                    let gaps =
                        SizeEstimate { min: items.min.saturating_sub(1), max: items.max.saturating_sub(1) };
                    result = result.plus(size(1).by(gaps));
                }
                CallEstimate { cost: result.scale(TRAVERSAL), result: Some(result) }
            }
            Cost::Find => {
                let text = size(0).plus(SizeEstimate::fixed(1)).scale(TRAVERSAL);
                let result = SizeEstimate { min: 0, max: size(0).max };
                CallEstimate { cost: text.times(size(1).scale(REGEX)), result: Some(result) }
            }
            Cost::ContainsIp | Cost::ContainsCidr => {
                let mut cost = ADDRESS.plus(ADDRESS).scale(TRAVERSAL);
                if self == Cost::ContainsCidr {
                    cost = cost.plus(ADDRESS.scale(TRAVERSAL)).plus(CostEstimate::fixed(1));
                }
                if overload.ends_with("_string") {
                    cost = cost.plus(size(1).scale(TRAVERSAL));
                }
                plain(cost)
            }
            Cost::Validate => plain(size(1).scale(TRAVERSAL).scale(MAX_FORMAT_REGEX * REGEX)),
            Cost::Equal => {
                let [left, right] = operands else { return None };
                if left.of != right.of {
                    return None;
                }
                match left.of.name() {
                    "net.IP" | "net.CIDR" | "kubernetes.Quantity" | "kubernetes.Semver" => {
                        plain(CostEstimate::fixed(1))
                    }
                    name if name.starts_with("kubernetes.authorization.") => plain(CostEstimate::fixed(1)),
                    "kubernetes.NamedFormat" => {
                        plain(CostEstimate { min: 1, max: MAX_FORMAT_NAME }.scale(TRAVERSAL))
                    }
                    "kubernetes.URL" => {
                        let max = right.size.map_or(1, |size| size.max);
                        plain(CostEstimate { min: 1, max }.scale(TRAVERSAL))
                    }
                    _ => return None,
                }
            }
            Cost::Slice => {
                let start = operands.get(1)?.int_or(0);
                let end = operands.get(2)?.int_or(size(0).max);
                allocating(1.0, SizeEstimate::fixed(end.wrapping_sub(start)))
            }
            Cost::Range => allocating(1.0, SizeEstimate::fixed(operands.first()?.int_or(u64::MAX))),
            Cost::Reverse => allocating(1.0, size(0)),
            Cost::Flatten => {
                let depth = operands.get(1).map_or(1, |depth| depth.int_or(u64::MAX));
                allocating(depth as f64, size(0))
            }
            Cost::Distinct => allocating(2.0, size(0).by(size(0))),
            Cost::Sort | Cost::SortBy => {
                let keys = size(usize::from(self == Cost::SortBy));
                let text = overload.starts_with("list_string_") || overload.starts_with("list_bytes_");
                allocating(if text { 2.0 + TRAVERSAL } else { 2.0 }, keys.by(keys))
            }
            Cost::Sets(times) => plain(size(0).by(size(1)).scale(times).plus(CostEstimate::fixed(1))),
        })
    }

    /// What a call costs by its arguments, which it may take afterwards. `overload` is empty when several
    /// came into question.
    pub(crate) fn charge(self, overload: &str, args: &[Value<'_>]) -> u64 {
        let size = |index: usize| args.get(index).map_or(1, Value::size);
        match self {
            Cost::Standard => standard(overload, args),
            Cost::Unit | Cost::Includes => 1,
            Cost::Check => CHECK,
            Cost::Selector => selector(SizeEstimate::fixed(size(1))).max,
            Cost::ListWalk => args.first().map_or(0, walk),
            Cost::Walk { times, .. } => scale(size(0), times * TRAVERSAL),
            Cost::Replace | Cost::Split => scale(size(0), 2.0 * TRAVERSAL),
            Cost::Find => matching(size(0), size(1)),
            Cost::ContainsIp | Cost::ContainsCidr => {
                let mut cost = scale(size(0) * 2, TRAVERSAL);
                if self == Cost::ContainsCidr {
                    cost += scale(size(0), TRAVERSAL) + 1;
                }
                if overload.ends_with("_string") {
                    cost += scale(size(1), TRAVERSAL);
                }
                cost
            }
            Cost::Validate => {
                let regex = args.first().and_then(super::format::regex_size).unwrap_or(1);
                matching(size(1), regex)
            }
            Cost::Equal if matches!(args.first(), Some(Value::Opaque(_))) => 1,
            Cost::Equal => standard(overload, args),
            // By the result, below; unless nobody knows which overload it is.
            Cost::Join => 0,
            Cost::Slice | Cost::Range | Cost::Reverse if !overload.is_empty() => 0,
            Cost::Slice | Cost::Range | Cost::Reverse => 1,
            _ if overload.is_empty() => 1,
            Cost::Flatten => {
                let depth = match args.get(1) {
                    Some(Value::Int(depth)) => *depth as f64,
                    _ => 1.0,
                };
                made(depth, size(0))
            }
            Cost::Distinct | Cost::Sort => compared(args.first()),
            Cost::SortBy => compared(args.get(1)),
            Cost::Sets(times) => 1 + (size(0).saturating_mul(size(1)) as f64 * times) as u64,
        }
    }

    /// What it costs by its result.
    pub(crate) fn charge_result(self, overload: &str, result: Option<&Value<'_>>) -> u64 {
        let size = || result.map_or(1, Value::size);
        match self {
            Cost::Join => scale(size(), 2.0 * TRAVERSAL),
            Cost::Slice | Cost::Range | Cost::Reverse if !overload.is_empty() => made(1.0, size()),
            _ => 0,
        }
    }
}

fn standard(overload: &str, args: &[Value<'_>]) -> u64 {
    let size = |index: usize| args.get(index).map_or(1, Value::size);
    match overload {
        "starts_with_string" | "ends_with_string" | "string_to_bytes" | "bytes_to_string"
        | "strings_quote" | "string_format" => scale(size(0), TRAVERSAL),
        "in_list" => size(1),
        "equals"
        | "not_equals"
        | "less_string"
        | "greater_string"
        | "less_equals_string"
        | "greater_equals_string"
        | "less_bytes"
        | "greater_bytes"
        | "less_equals_bytes"
        | "greater_equals_bytes" => scale(size(0).min(size(1)), TRAVERSAL),
        "add_string" | "add_bytes" => scale(size(0) + size(1), TRAVERSAL),
        "matches_string" => matching(size(0), size(1)),
        "contains_string" => scale(size(0), TRAVERSAL).saturating_mul(scale(size(1), TRAVERSAL)),
        _ => 1,
    }
}

fn matching(text: u64, regex: u64) -> u64 {
    scale(text + 1, TRAVERSAL).saturating_mul(scale(regex, REGEX))
}

fn made(factor: f64, size: u64) -> u64 {
    ((size as f64 * factor) as u64).saturating_add(1 + LIST_CREATE)
}

fn compared(list: Option<&Value<'_>>) -> u64 {
    let Some(Value::List(list)) = list else { return made(2.0, 1) };
    let size = list.len() as u64;
    let text = matches!(list.get(0), Some(Ok(Value::String(_) | Value::Bytes(_))));
    made(if text { 2.0 + TRAVERSAL } else { 2.0 }, size.saturating_mul(size))
}

/// One walk through everything in a value.
fn walk(value: &Value<'_>) -> u64 {
    let part = |length: usize| (length as f64 * TRAVERSAL) as u64;
    match value {
        Value::String(text) => part(text.len()),
        Value::Bytes(bytes) => part(bytes.len()),
        Value::List(list) => list_items(list).map(|item| walk(&item)).sum(),
        Value::Map(map) => map_entries(map).map(|(key, value)| walk(&key) + walk(&value)).sum(),
        _ => 1,
    }
}

fn list_items<'v, 'a>(list: &'v List<'a>) -> impl Iterator<Item = Value<'a>> + 'v {
    (0..list.len()).filter_map(|index| list.get(index)?.ok())
}

fn map_entries<'v, 'a>(map: &'v Map<'a>) -> impl Iterator<Item = (Value<'a>, Value<'a>)> + 'v {
    map.keys().filter_map(|key| {
        let key = Value::from(key);
        let value = map.find(&key).ok().flatten()?;
        Some((key, value))
    })
}

/// The type and size of a list's items; `None` for what has none.
fn element(list: &Operand<'_>, sizes: &dyn SizeEstimator) -> Option<(Type, SizeEstimate)> {
    let of = match &list.of {
        Type::List(elem) => (**elem).clone(),
        Type::Map(kv) => kv.0.clone(),
        Type::Opaque(_, params) => params.first()?.clone(),
        _ => return None,
    };
    let mut path = list.path.clone();
    if !path.is_empty() {
        path.push(PathStep::Items);
    }
    let size = sizes.size(&path, &of).unwrap_or(SizeEstimate::UNKNOWN);
    Some((of, size))
}

/// The size of `text` with all of `from` turned into `to`: the longest and shortest that can be.
fn replaced(text: SizeEstimate, from: SizeEstimate, to: SizeEstimate) -> SizeEstimate {
    let (mut count, mut kept) = (SizeEstimate { min: 0, max: 0 }, SizeEstimate { min: 0, max: 0 });
    if from.min == 0 {
        // Replacing nothing puts the replacement around every character.
        count.max = text.max.saturating_add(1);
        kept.max = text.max;
    } else if to.max <= from.min {
        kept.max = text.max;
    } else {
        count.max = (text.max as f64 / from.min as f64).ceil() as u64;
    }
    if from.max == 0 {
        count.min = text.min.saturating_add(1);
        kept.min = text.min;
    } else if from.max <= to.min {
        kept.min = text.min;
    } else {
        count.min = (text.min as f64 / from.max as f64).ceil() as u64;
    }
    count.by(to).plus(kept)
}
