//! What values of the configuration look like: in a document, on the command line, and as types of the schema
//! that documents are read against.

use serde_json::{Map, Value, json};
use yare_schema::features::parse_bool;
use yare_schema::gotime;
use yare_schema::model::{
    Field, List, ListKind, Map as MapShape, Scalar, Schema, Shape, Slot, Struct, Type, TypeId,
};

use super::table::ROWS;

/// A form. Those with `Opt` are pointers upstream: zero is a value there and not an absent one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `true`
    Bool,
    /// Whole number; zero is absent.
    Int32,
    /// Whole number.
    OptInt32,
    /// Whole number; zero is absent.
    Int64,
    /// Whole number.
    OptInt64,
    /// Number.
    OptFloat,
    /// Text; empty is absent.
    Text,
    /// Text.
    OptText,
    /// `5m0s`; zero is absent.
    Duration,
    /// `5m0s`.
    OptDuration,
    /// List of texts.
    Texts,
    /// List of whole numbers.
    Int32s,
    /// Names and texts.
    TextMap,
    /// Names and whether they are on.
    Gates,
    /// Names and lists of texts.
    Headers,
    /// `v1.Taint`s.
    Taints,
    /// `ShutdownGracePeriodByPodPriority`s.
    Priorities,
    /// `MemoryReservation`s.
    Reservations,
    /// Whatever is there.
    Free,
}

/// Where upstream's types live, for messages that name them.
const PACKAGE: &str = "io.k8s.kubelet.config.v1beta1";

/// The schema of the document, and the type of its root.
pub(super) fn schema() -> (Schema, TypeId) {
    let mut schema = Schema { typed: true, ..Schema::default() };
    let mut root = Branch::default();
    for meta in ["kind", "apiVersion"] {
        root.leaves.push((meta, Form::Text));
    }
    for row in ROWS {
        root.add(row.field, row.form);
    }
    let id = root.build(&mut schema, "KubeletConfiguration");
    (schema, id)
}

/// A struct on its way into the schema.
#[derive(Default)]
struct Branch {
    leaves: Vec<(&'static str, Form)>,
    branches: Vec<(&'static str, Branch)>,
}

impl Branch {
    fn add(&mut self, path: &'static str, form: Form) {
        let Some((head, rest)) = path.split_once('.') else {
            self.leaves.push((path, form));
            return;
        };
        let at = self.branches.iter().position(|(name, _)| *name == head).unwrap_or_else(|| {
            self.branches.push((head, Self::default()));
            self.branches.len() - 1
        });
        self.branches[at].1.add(rest, form);
    }

    fn build(self, schema: &mut Schema, name: &str) -> TypeId {
        let mut fields = Vec::new();
        for (name, form) in self.leaves {
            fields.push(form.field(schema, name));
        }
        for (name, branch) in self.branches {
            let ty = branch.build(schema, name);
            fields.push(Field::new(name, Slot::new(ty)));
        }
        structure(schema, name, fields)
    }
}

fn structure(schema: &mut Schema, name: &str, fields: Vec<Field>) -> TypeId {
    let shape = Struct { fields, ..Struct::default() }.index();
    schema.push(Type::new(format!("{PACKAGE}.{name}"), Shape::Struct(shape)))
}

fn scalar(schema: &mut Schema, scalar: Scalar) -> TypeId {
    schema.push(Type::new("", Shape::Scalar(scalar)))
}

fn list(schema: &mut Schema, item: TypeId) -> TypeId {
    schema.push(Type::new("", Shape::List(List { item: Slot::new(item), kind: ListKind::Atomic })))
}

fn map(schema: &mut Schema, value: TypeId) -> TypeId {
    schema.push(Type::new("", Shape::Map(MapShape { value: Slot::new(value), atomic: false })))
}

impl Form {
    fn field(self, schema: &mut Schema, name: &str) -> Field {
        let mut members = |name: &str, of: &[(&str, Scalar)]| {
            let fields = of
                .iter()
                .map(|(name, kind)| {
                    let ty = scalar(schema, *kind);
                    Field { pointer: false, ..Field::new(*name, Slot::new(ty)) }
                })
                .collect();
            structure(schema, name, fields)
        };
        let ty = match self {
            Self::Bool => scalar(schema, Scalar::Bool),
            Self::Int32 | Self::OptInt32 => scalar(schema, Scalar::Int32),
            Self::Int64 | Self::OptInt64 => scalar(schema, Scalar::Int64),
            Self::OptFloat => scalar(schema, Scalar::Float64),
            Self::Text | Self::OptText => scalar(schema, Scalar::String),
            Self::Duration | Self::OptDuration => scalar(schema, Scalar::Duration),
            Self::Texts => {
                let item = scalar(schema, Scalar::String);
                list(schema, item)
            }
            Self::Int32s => {
                let item = scalar(schema, Scalar::Int32);
                list(schema, item)
            }
            Self::TextMap => {
                let value = scalar(schema, Scalar::String);
                map(schema, value)
            }
            Self::Gates => {
                let value = scalar(schema, Scalar::Bool);
                map(schema, value)
            }
            Self::Headers => {
                let item = scalar(schema, Scalar::String);
                let value = list(schema, item);
                map(schema, value)
            }
            Self::Taints => {
                let text = Scalar::String;
                let item = members("Taint", &[("key", text), ("value", text), ("effect", text)]);
                list(schema, item)
            }
            Self::Priorities => {
                let of = [("priority", Scalar::Int32), ("shutdownGracePeriodSeconds", Scalar::Int64)];
                let item = members("ShutdownGracePeriodByPodPriority", &of);
                list(schema, item)
            }
            Self::Reservations => {
                let value = scalar(schema, Scalar::Quantity);
                let limits = map(schema, value);
                let node = scalar(schema, Scalar::Int32);
                let fields = vec![
                    Field { omit_empty: false, pointer: false, ..Field::new("numaNode", Slot::new(node)) },
                    Field { pointer: false, ..Field::new("limits", Slot::new(limits)) },
                ];
                let item = structure(schema, "MemoryReservation", fields);
                list(schema, item)
            }
            Self::Free => schema.push(Type::new("", Shape::Any)),
        };
        Field { pointer: self.is_pointer(), ..Field::new(name, Slot::new(ty)) }
    }

    fn is_pointer(self) -> bool {
        // A plain bool's zero value is its default wherever it is one, so that it can be kept.
        matches!(
            self,
            Self::Bool | Self::OptInt32 | Self::OptInt64 | Self::OptFloat | Self::OptText | Self::OptDuration
        )
    }

    /// Whether a value counts as absent.
    pub(super) fn is_zero(self, value: &Value) -> bool {
        match self {
            Self::Int32 | Self::Int64 => value.as_i64() == Some(0),
            Self::Text => value == "",
            Self::Duration => value == "0s",
            _ => false,
        }
    }

    /// What a flag's value means; `before` is what the same flag, given earlier, came to. The message is
    /// what upstream's flags say of a bad value.
    pub(super) fn flag(self, name: &str, text: &str, before: Option<&Value>) -> Result<Value, String> {
        let number = |bits: u32, what: &str| -> Result<Value, String> {
            let (function, min, max) = (what, -(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1);
            match text.parse::<i128>() {
                Ok(n) if (min..=max).contains(&n) => Ok(json!(i64::try_from(n).unwrap_or_default())),
                Ok(_) => Err(format!("strconv.{function}: parsing {text:?}: value out of range")),
                Err(_) => Err(format!("strconv.{function}: parsing {text:?}: invalid syntax")),
            }
        };
        let list = || before.and_then(Value::as_array).cloned().unwrap_or_default();
        let map = || before.and_then(Value::as_object).cloned().unwrap_or_default();
        Ok(match self {
            Self::Bool => match parse_bool(text) {
                Some(on) => json!(on),
                None => return Err(format!("strconv.ParseBool: parsing {text:?}: invalid syntax")),
            },
            Self::Int32 | Self::OptInt32 => number(32, "ParseInt")?,
            Self::Int64 | Self::OptInt64 => number(64, "ParseInt")?,
            Self::OptFloat => {
                let parsed = text.parse::<f64>().ok().and_then(serde_json::Number::from_f64);
                let bad = || format!("strconv.ParseFloat: parsing {text:?}: invalid syntax");
                Value::Number(parsed.ok_or_else(bad)?)
            }
            Self::Text | Self::OptText => json!(text),
            Self::Duration | Self::OptDuration => {
                json!(gotime::format_duration(gotime::parse_duration(text)?))
            }
            Self::Texts => {
                let mut all = list();
                all.extend(text.split(',').filter(|t| !t.is_empty()).map(|t| json!(t)));
                Value::Array(all)
            }
            Self::TextMap => {
                // Thresholds of eviction stand behind `<`.
                let sign = if matches!(name, "eviction-hard" | "eviction-soft") { '<' } else { '=' };
                let mut all = map();
                for (key, value) in pairs(text, sign)? {
                    all.insert(key, json!(value));
                }
                Value::Object(all)
            }
            Self::Gates => {
                let mut all = map();
                for (key, value) in pairs(text, '=')? {
                    let on = parse_bool(&value).ok_or_else(|| format!("invalid value of {key}: {value}"))?;
                    all.insert(key, json!(on));
                }
                Value::Object(all)
            }
            Self::Headers => {
                let mut all = map();
                for pair in text.split(',').filter(|p| !p.is_empty()) {
                    let (key, value) = pair.split_once(':').ok_or("malformed pair, expect string:string")?;
                    let entry = all.entry(key.trim()).or_insert_with(|| json!([]));
                    if let Some(values) = entry.as_array_mut() {
                        values.push(json!(value.trim()));
                    }
                }
                Value::Object(all)
            }
            Self::Taints => {
                let mut all = list();
                for one in text.split(',').filter(|t| !t.is_empty()) {
                    all.push(taint(one)?);
                }
                Value::Array(all)
            }
            Self::Reservations => {
                let mut all = list();
                for one in text.split(';').filter(|t| !t.is_empty()) {
                    all.push(reservation(one)?);
                }
                Value::Array(all)
            }
            Self::Int32s | Self::Priorities | Self::Free => return Err("has no flag".to_owned()),
        })
    }
}

fn pairs(text: &str, sign: char) -> Result<Vec<(String, String)>, String> {
    text.split(',')
        .filter(|pair| !pair.is_empty())
        .map(|pair| match pair.split_once(sign) {
            Some((key, value)) => Ok((key.trim().to_owned(), value.trim().to_owned())),
            None => Err(format!("malformed pair, expect string{sign}string")),
        })
        .collect()
}

/// `KEY=VALUE:EFFECT` or `KEY:EFFECT`.
fn taint(text: &str) -> Result<Value, String> {
    let invalid = |why: &str| format!("invalid taint spec: {text}, {why}");
    let (pair, effect) = text.rsplit_once(':').ok_or_else(|| invalid("there is no effect"))?;
    if !["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect) {
        return Err(format!("invalid taint effect: {effect}, unsupported taint effect"));
    }
    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
    if key.is_empty() {
        return Err(invalid("there is no key"));
    }
    let mut taint = Map::from_iter([("key".to_owned(), json!(key)), ("effect".to_owned(), json!(effect))]);
    if !value.is_empty() {
        taint.insert("value".to_owned(), json!(value));
    }
    Ok(Value::Object(taint))
}

/// `0:memory=1Gi,hugepages-2Mi=1Gi`
fn reservation(text: &str) -> Result<Value, String> {
    let expected =
        || "invalid format, expected numaNode:type1=quantity1,type2=quantity2,...;numaNode:...".to_owned();
    let (node, limits) = text.split_once(':').ok_or_else(expected)?;
    let node: i32 = node.trim().parse().map_err(|_| expected())?;
    let limits: Map<String, Value> =
        pairs(limits, '=')?.into_iter().map(|(name, amount)| (name, json!(amount))).collect();
    if limits.is_empty() {
        return Err(expected());
    }
    Ok(json!({ "numaNode": node, "limits": limits }))
}
