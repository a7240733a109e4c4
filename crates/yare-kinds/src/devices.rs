//! Selectors of devices in CEL: the environment that validation and scheduling share, and what a device is in it
//! (`k8s.io/dynamic-resource-allocation/cel`).
//!
//! In: expressions, and what a driver says of a device. Out: whether the expression wants the device.

use std::{collections::BTreeMap, sync::OnceLock};

use yare_cel::{Ast, Budget, Env, Key, Library, Program, Str, Type, Value, Vars};
use yare_schema::{features::Gates, field::ErrorKind, quantity::Quantity, release::Emulation};

use crate::expressions::{Age, VERSIONS};

/// The most that an expression may cost for one device, by estimate and when it is evaluated.
pub(crate) const MAX_COST: u64 = 1_000_000;

/// The type of `device`.
const DEVICE: &str = "kubernetes.DRADevice";

/// How selectors are looked at.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    emulation: Emulation,
    age: Age,
    /// Devices may be shared, and say so.
    shared: bool,
    /// Attributes may be lists.
    lists: bool,
}

impl Terms {
    /// `stored`: the selectors are those that were there before.
    pub fn new(gates: &Gates, stored: bool) -> Self {
        Self {
            emulation: gates.emulation(),
            age: if stored { Age::Stored } else { Age::New },
            shared: gates.is_on("DRAConsumableCapacity"),
            lists: gates.is_on("DRAListTypeAttributes"),
        }
    }

    /// The type of an attribute, which is one of several: what it is shows when it is read.
    fn attribute(self) -> Type {
        if self.lists { Type::Dyn } else { Type::Any }
    }

    /// What is stored may use all that some gate lets one use.
    fn environment(self) -> &'static Env {
        static MADE: [OnceLock<Env>; VERSIONS << 3] = [const { OnceLock::new() }; VERSIONS << 3];
        let stored = self.age == Age::Stored;
        let at = self.age.place(self.emulation) << 3
            | usize::from(stored) << 2
            | usize::from(self.shared) << 1
            | usize::from(self.lists);
        MADE[at].get_or_init(|| {
            let by_name = |of: Type| Type::map(Type::String, Type::map(Type::String, of));
            let mut fields = vec![
                ("driver", Type::String),
                ("attributes", by_name(self.attribute())),
                ("capacity", by_name(Type::object("kubernetes.Quantity"))),
            ];
            if stored || self.shared {
                fields.push(("allowMultipleAllocations", Type::Bool));
            }
            let mut env = Env::kubernetes(self.age.version(self.emulation))
                .extend()
                .library(Library::Bindings)
                .object_type(DEVICE, fields, false)
                .variable("device", Type::object(DEVICE));
            if stored || self.lists {
                env = env.library(Library::Devices);
            }
            env.build()
        })
    }

    /// Compiles an expression.
    pub(crate) fn compile(self, expression: &str) -> Result<Ast, (ErrorKind, String)> {
        let invalid = |why: String| (ErrorKind::Invalid, why);
        let ast = self.environment().compile(expression);
        let ast = ast.map_err(|error| invalid(format!("compilation failed: {error}")))?;
        match ast.output_type() {
            Type::Bool | Type::Any => {}
            Type::Dyn if self.lists => {}
            other => {
                let found = other.full_name();
                return Err(invalid(format!("must evaluate to bool or the unknown type, not {found}")));
            }
        }
        match ast.program() {
            Ok(_) => Ok(ast),
            Err(error) => Err((ErrorKind::Internal, format!("program instantiation failed: {error}"))),
        }
    }
}

/// A compiled selector.
#[derive(Debug)]
pub struct Selector(Program);

impl Selector {
    /// Compiles a selector that is stored already. `Err`: why it cannot be, as upstream words it.
    pub fn new(expression: &str, gates: &Gates) -> Result<Self, String> {
        let ast = Terms::new(gates, true).compile(expression).map_err(|(_, why)| why)?;
        ast.program().map(Self).map_err(|error| format!("program instantiation failed: {error}"))
    }

    /// Whether it wants a device. `Err`: why that cannot be said.
    pub fn matches(&self, device: &Value<'_>) -> Result<bool, String> {
        let mut vars = Vars::new();
        vars.bind("device", device.clone());
        let value = self.0.eval(&vars, &mut Budget::new(MAX_COST, MAX_COST)).map_err(|e| e.to_string())?;
        value.as_bool().ok_or_else(|| {
            let found = value.type_name();
            format!(
                "CEL result of type {found} could not be converted to bool: type conversion error from '{found}' to 'bool'"
            )
        })
    }
}

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attribute {
    /// `int`
    Int(i64),
    /// `bool`
    Bool(bool),
    /// `string`
    String(Box<str>),
    /// `version`
    Version(Box<str>),
    /// Nothing that is known here.
    Unknown,
}

impl Attribute {
    fn value(&self) -> Result<Value<'static>, String> {
        Ok(match self {
            Self::Int(value) => Value::Int(*value),
            Self::Bool(value) => Value::Bool(*value),
            Self::String(text) => Value::string(&**text),
            Self::Version(text) => {
                Value::semver(text).map_err(|why| format!("parse semantic version: {why}"))?
            }
            Self::Unknown => return Err("unsupported attribute value".into()),
        })
    }
}

/// What expressions see of a device: `device.driver`, `device.attributes[domain].id`, …. Names without a domain
/// are in the driver's. `Err`: an attribute that cannot be read.
pub fn value<'n>(
    driver: &str,
    shared: bool,
    attributes: impl Iterator<Item = (&'n str, &'n Attribute)>,
    capacity: impl Iterator<Item = (&'n str, Quantity)>,
) -> Result<Value<'static>, String> {
    let mut facts = Domains::default();
    for (name, attribute) in attributes {
        let value = attribute.value().map_err(|why| format!("attribute {name}: {why}"))?;
        facts.add(driver, name, value);
    }
    let mut amounts = Domains::default();
    for (name, quantity) in capacity {
        // A quantity's own text is one.
        amounts.add(driver, name, Value::quantity(&quantity.to_string()).unwrap_or(Value::Null));
    }
    Ok(Value::map(BTreeMap::from([
        (key("driver"), Value::string(driver)),
        (key("allowMultipleAllocations"), Value::Bool(shared)),
        (key("attributes"), facts.into()),
        (key("capacity"), amounts.into()),
    ])))
}

fn key(name: &str) -> Key<'static> {
    Key::String(Str::Shared(name.into()))
}

/// Values by domain and id.
#[derive(Default)]
struct Domains(BTreeMap<Key<'static>, BTreeMap<Key<'static>, Value<'static>>>);

impl Domains {
    fn add(&mut self, driver: &str, name: &str, value: Value<'static>) {
        let (domain, id) = name.split_once('/').unwrap_or((driver, name));
        self.0.entry(key(domain)).or_default().insert(key(id), value);
    }
}

impl From<Domains> for Value<'static> {
    fn from(domains: Domains) -> Self {
        Value::domains(domains.0.into_iter().map(|(name, values)| (name, Value::map(values))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_seen() {
        let attributes = [
            ("model", Attribute::String("a100".into())),
            ("index", Attribute::Int(3)),
            ("other.example.com/numa", Attribute::Int(1)),
            ("ok", Attribute::Bool(true)),
            ("version", Attribute::Version("1.2.3".into())),
        ];
        let memory = Quantity::parse("40Gi").unwrap();
        let device = value(
            "gpu.example.com",
            true,
            attributes.iter().map(|(n, a)| (*n, a)),
            [("memory", memory)].into_iter(),
        )
        .unwrap();
        let no_key = |name: &str| Err(format!("no such key: {name}"));
        let cases = [
            (r#"device.driver == "gpu.example.com""#, Ok(true)),
            (r#"device.allowMultipleAllocations"#, Ok(true)),
            (r#"device.attributes["gpu.example.com"].model == "a100""#, Ok(true)),
            (r#"device.attributes["gpu.example.com"].index > 3"#, Ok(false)),
            (r#"device.attributes["gpu.example.com"].ok"#, Ok(true)),
            (r#"device.attributes["other.example.com"].numa == 1"#, Ok(true)),
            (r#"device.attributes["gpu.example.com"].version.isGreaterThan(semver("1.2.0"))"#, Ok(true)),
            (r#"device.capacity["gpu.example.com"].memory.compareTo(quantity("40Gi")) == 0"#, Ok(true)),
            // A domain that is not there is empty, and is not there.
            (r#"device.attributes["none.example.com"].model == "a100""#, no_key("model")),
            (r#"has(device.attributes["none.example.com"].model)"#, Ok(false)),
            (r#""none.example.com" in device.attributes"#, Ok(false)),
            (r#""other.example.com" in device.attributes"#, Ok(true)),
            (r#"device.attributes.exists(d, d == "other.example.com")"#, Ok(true)),
            (
                r#"device.attributes["gpu.example.com"].model"#,
                Err("CEL result of type string could not be converted to bool: type conversion error from 'string' to 'bool'".into()),
            ),
        ];
        for (expression, expected) in cases {
            let selector = Selector::new(expression, &Gates::default()).unwrap();
            assert_eq!(selector.matches(&device), expected, "{expression}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_told() {
        let of = |a: Attribute| {
            value("d", false, [("x", &a)].into_iter(), std::iter::empty()).map(|_| ()).unwrap_err()
        };
        assert_eq!(of(Attribute::Unknown), "attribute x: unsupported attribute value");
        let version = of(Attribute::Version("1".into()));
        assert_eq!(version, "attribute x: parse semantic version: No Major.Minor.Patch elements found");
        let gates = Gates::default();
        assert!(Selector::new("device.nothing", &gates).unwrap_err().starts_with("compilation failed: "));
        assert!(Selector::new("1", &gates).unwrap_err().starts_with("must evaluate to bool"));
    }
}
