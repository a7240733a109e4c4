//! Types as the checker sees them, and how they print.

use std::{fmt, sync::Arc};

/// A CEL type. Equality is structural; objects and opaque types are equal by name (and parameters).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Type {
    /// Known at run time only.
    Dyn,
    /// `google.protobuf.Any`: as [`Type::Dyn`], but no list or map that can be walked through.
    Any,
    /// What an expression with an error has; it goes with everything, so that one mistake is told once.
    Error,
    /// `null_type`
    Null,
    /// `bool`
    Bool,
    /// `int`, 64 bits
    Int,
    /// `uint`, 64 bits
    Uint,
    /// `double`
    Double,
    /// `string`
    String,
    /// `bytes`
    Bytes,
    /// `google.protobuf.Duration`
    Duration,
    /// `google.protobuf.Timestamp`
    Timestamp,
    /// `list(T)`
    List(Arc<Type>),
    /// `map(K, V)`
    Map(Arc<(Type, Type)>),
    /// An object by its name; its fields are the [`crate::Env`]'s business.
    Object(Arc<str>),
    /// A type that only functions can look into: `optional_type(T)`, `net.IP`, …
    Opaque(Arc<str>, Arc<[Type]>),
    /// The type of a type.
    Type(Option<Arc<Type>>),
    /// A type parameter of an overload, or a free variable of the checker.
    Param(Arc<str>),
}

/// The name of the type of optional values.
pub(crate) const OPTIONAL: &str = "optional_type";

impl Type {
    /// `list(elem)`
    pub fn list(elem: Type) -> Type {
        Type::List(Arc::new(elem))
    }

    /// `map(key, value)`
    pub fn map(key: Type, value: Type) -> Type {
        Type::Map(Arc::new((key, value)))
    }

    /// An object type.
    pub fn object(name: &str) -> Type {
        Type::Object(name.into())
    }

    /// An opaque type without parameters.
    pub fn opaque(name: &str) -> Type {
        Type::Opaque(name.into(), Arc::new([]))
    }

    /// `optional_type(inner)`
    pub fn optional(inner: Type) -> Type {
        Type::Opaque(OPTIONAL.into(), Arc::new([inner]))
    }

    /// What an optional type wraps.
    pub fn as_optional(&self) -> Option<&Type> {
        match self {
            Type::Opaque(name, params) if &**name == OPTIONAL => params.first(),
            _ => None,
        }
    }

    pub(crate) fn is_dyn(&self) -> bool {
        matches!(self, Type::Dyn | Type::Any)
    }

    pub(crate) fn is_dyn_or_error(&self) -> bool {
        self.is_dyn() || matches!(self, Type::Error)
    }

    /// Sizes of such values are known when compiling: they count as one.
    pub(crate) fn is_scalar(&self) -> bool {
        match self {
            Type::Bool | Type::Double | Type::Duration | Type::Int | Type::Timestamp | Type::Uint => true,
            _ => self.as_optional().is_some_and(Type::is_scalar),
        }
    }

    /// The name at run time with its parameters, as Go prints the type: how messages about what an expression must
    /// come to have it.
    pub fn full_name(&self) -> String {
        match self {
            Type::List(elem) => format!("list({})", elem.full_name()),
            Type::Map(kv) => format!("map({}, {})", kv.0.full_name(), kv.1.full_name()),
            Type::Type(Some(of)) => format!("type({})", of.full_name()),
            Type::Opaque(name, params) if !params.is_empty() => {
                let params: Vec<String> = params.iter().map(Type::full_name).collect();
                format!("{name}({})", params.join(", "))
            }
            other => other.name().to_owned(),
        }
    }

    /// The name at run time, as `type(x)` prints it: without parameters.
    pub fn name(&self) -> &str {
        match self {
            Type::Dyn => "dyn",
            Type::Any => "google.protobuf.Any",
            Type::Error => "!error!",
            Type::Null => "null_type",
            Type::Bool => "bool",
            Type::Int => "int",
            Type::Uint => "uint",
            Type::Double => "double",
            Type::String => "string",
            Type::Bytes => "bytes",
            Type::Duration => "google.protobuf.Duration",
            Type::Timestamp => "google.protobuf.Timestamp",
            Type::List(_) => "list",
            Type::Map(_) => "map",
            Type::Object(name) | Type::Opaque(name, _) | Type::Param(name) => name,
            Type::Type(_) => "type",
        }
    }
}

/// As the checker's messages write types.
impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Any => f.write_str("any"),
            Type::Null => f.write_str("null"),
            Type::Duration => f.write_str("duration"),
            Type::Timestamp => f.write_str("timestamp"),
            Type::List(elem) => write!(f, "list({elem})"),
            Type::Map(kv) => write!(f, "map({}, {})", kv.0, kv.1),
            Type::Type(Some(of)) => write!(f, "type({of})"),
            Type::Opaque(name, params) if !params.is_empty() => {
                write!(f, "{name}(")?;
                for (i, param) in params.iter().enumerate() {
                    if i > 0 {
                        f.write_str(", ")?;
                    }
                    write!(f, "{param}")?;
                }
                f.write_str(")")
            }
            other => f.write_str(other.name()),
        }
    }
}
