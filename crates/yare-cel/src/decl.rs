//! What callers declare about their values: the shape a schema gives to JSON.
//!
//! A [`Decl`] does three things. It gives the checker a [`Type`]; it tells the evaluator how to read a
//! JSON value (a string with format `byte` is `bytes`, a number of type `number` is `double` even when it
//! has no fraction, a list with list type `set` is equal to another in any order); and it bounds sizes for
//! the cost estimate. Nothing is converted before it is looked at.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use crate::{types::Type, written::Written};

/// How two lists compare and add (`x-kubernetes-list-type`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ListKind {
    /// In order, element by element.
    #[default]
    Atomic,
    /// Order does not matter; `+` keeps the union.
    Set,
    /// Elements are known by these fields; order does not matter; `+` replaces and appends.
    Map(Arc<[Box<str>]>),
}

/// The kind of a declaration.
#[derive(Clone, Debug, PartialEq)]
pub enum DeclKind {
    /// Whatever JSON is there: integers are `int`, other numbers `double`.
    Dyn,
    /// `x-kubernetes-int-or-string`: dynamic, but nothing else than these two.
    IntOrString,
    /// A document that no schema describes, such as the claims of a token: dynamic as [`DeclKind::Dyn`], but every
    /// number is a `double`, and a key may be written as an escaped field (`claims.kubernetes__dot__io`).
    Document,
    /// What a typed program writes: dynamic as [`DeclKind::Dyn`], with fields that nobody set.
    Written(&'static dyn Written),
    /// JSON under `x-kubernetes-preserve-unknown-fields` without a type: only equality looks into it.
    Preserved,
    /// `bool`
    Bool,
    /// `int`
    Int,
    /// `double`
    Double,
    /// `string`
    String,
    /// Base64 in JSON, `bytes` in CEL.
    Bytes,
    /// RFC 3339 in JSON, `timestamp` in CEL.
    DateTime,
    /// `2006-01-02` in JSON, `timestamp` in CEL.
    Date,
    /// Go's or ISO 8601's notation in JSON, `duration` in CEL.
    Duration,
    /// An array.
    List {
        /// What it holds.
        elem: Arc<Decl>,
        /// How it compares and adds.
        kind: ListKind,
    },
    /// An object with free keys.
    Map {
        /// What its keys lead to.
        value: Arc<Decl>,
    },
    /// An object with fields.
    Object(Arc<ObjectDecl>),
}

/// An object type: a name that is unique in the environment, and fields.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct ObjectDecl {
    /// The type's name, as `Object{…}` writes it and messages print it.
    pub name: Arc<str>,
    /// By the name an expression uses: escaped ([`crate::escape`]).
    pub fields: BTreeMap<Box<str>, Field>,
    /// Expressions use the fields' names as they are.
    pub as_is: bool,
}

impl ObjectDecl {
    /// What expressions call a field; `None` where they cannot name it.
    pub(crate) fn spelled<'n>(&self, name: &'n str) -> Option<Cow<'n, str>> {
        if self.as_is {
            return Some(Cow::Borrowed(name));
        }
        let escaped = crate::escape::escape(name)?;
        Some(if escaped == name { Cow::Borrowed(name) } else { Cow::Owned(escaped) })
    }
}

/// A field of an object type.
#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    /// What it holds.
    pub decl: Decl,
    /// Whether the schema requires it. Only the least serialized size depends on it.
    pub required: bool,
}

impl Field {
    /// A field that must be there.
    pub fn required(decl: Decl) -> Field {
        Field { decl, required: true }
    }

    /// A field that may be absent.
    pub fn optional(decl: Decl) -> Field {
        Field { decl, required: false }
    }
}

/// The shape of a value. Clones are cheap: children are shared.
#[derive(Clone, Debug, PartialEq)]
pub struct Decl {
    /// What it is.
    pub kind: DeclKind,
    /// Whether JSON `null` is a value (`null`) and not an error.
    pub nullable: bool,
    /// The most characters, bytes, items or entries; 0 for what has no size. Unbounded: `i64::MAX`.
    pub max_elements: u64,
    /// The fewest bytes it takes in JSON; bounds how many fit into a request.
    pub min_serialized_size: u64,
}

/// The largest request that upstream reckons with, in bytes; bounds what has no bound of its own.
pub const MAX_REQUEST_SIZE_BYTES: u64 = 3 * 1024 * 1024;
const UNBOUNDED: u64 = i64::MAX as u64;

impl Decl {
    fn of(kind: DeclKind, min_serialized_size: u64) -> Decl {
        Decl { kind, nullable: false, max_elements: 0, min_serialized_size }
    }

    /// Anything, and `null` too.
    pub const DYNAMIC: Decl =
        Decl { kind: DeclKind::Dyn, nullable: true, max_elements: 0, min_serialized_size: 1 };

    /// Anything.
    pub fn any() -> Decl {
        Decl::of(DeclKind::Dyn, 1)
    }

    /// A document without a schema.
    pub const fn document() -> Decl {
        Decl { kind: DeclKind::Document, nullable: true, max_elements: 0, min_serialized_size: 1 }
    }

    /// What a typed program writes.
    pub const fn written(written: &'static dyn Written) -> Decl {
        Decl { kind: DeclKind::Written(written), nullable: true, max_elements: 0, min_serialized_size: 1 }
    }

    /// An integer or a string.
    pub fn int_or_string() -> Decl {
        Decl::of(DeclKind::IntOrString, 1).max_elements(MAX_REQUEST_SIZE_BYTES - 2)
    }

    /// Opaque JSON.
    pub fn preserved() -> Decl {
        Decl::of(DeclKind::Preserved, 1)
    }

    /// `bool`
    pub fn bool() -> Decl {
        Decl::of(DeclKind::Bool, 4)
    }

    /// `int`
    pub fn int() -> Decl {
        Decl::of(DeclKind::Int, 1)
    }

    /// `double`
    pub fn double() -> Decl {
        Decl::of(DeclKind::Double, 1)
    }

    /// `string`, as long as a request may be.
    pub fn string() -> Decl {
        Decl::of(DeclKind::String, 2).max_elements(MAX_REQUEST_SIZE_BYTES - 2)
    }

    /// `bytes`, in base64.
    pub fn bytes() -> Decl {
        Decl::of(DeclKind::Bytes, 2).max_elements(MAX_REQUEST_SIZE_BYTES - 2)
    }

    /// `timestamp`, format `date-time`.
    pub fn date_time() -> Decl {
        Decl::of(DeclKind::DateTime, 21).max_elements(32)
    }

    /// `timestamp`, format `date`.
    pub fn date() -> Decl {
        Decl::of(DeclKind::Date, 12).max_elements(12)
    }

    /// `duration`
    pub fn duration() -> Decl {
        Decl::of(DeclKind::Duration, 3).max_elements(32)
    }

    /// `list(elem)`, as many items as fit into a request.
    pub fn list(elem: Decl) -> Decl {
        let max = (MAX_REQUEST_SIZE_BYTES - 2) / (elem.min_serialized_size + 1);
        Decl::of(DeclKind::List { elem: Arc::new(elem), kind: ListKind::Atomic }, 2).max_elements(max)
    }

    /// `map(string, value)`, as many entries as fit into a request.
    pub fn map(value: Decl) -> Decl {
        let max = (MAX_REQUEST_SIZE_BYTES - 2) / (value.min_serialized_size + 6);
        Decl::of(DeclKind::Map { value: Arc::new(value) }, 2).max_elements(max)
    }

    /// An object. Field names are JSON's; one that cannot be escaped into an identifier is left out.
    pub fn object<'n>(name: &str, fields: impl IntoIterator<Item = (&'n str, Field)>) -> Decl {
        Decl::object_of(name, fields, false)
    }

    /// An object whose fields are spelled as they are called, `namespace` among them, which is a reserved word:
    /// so it is with the types that are declared by hand and not by a schema.
    pub fn object_as_is<'n>(name: &str, fields: impl IntoIterator<Item = (&'n str, Field)>) -> Decl {
        Decl::object_of(name, fields, true)
    }

    fn object_of<'n>(name: &str, fields: impl IntoIterator<Item = (&'n str, Field)>, as_is: bool) -> Decl {
        let mut min = 2;
        let mut decl = ObjectDecl { name: name.into(), fields: BTreeMap::new(), as_is };
        for (json_name, field) in fields {
            if field.required {
                min += json_name.len() as u64 + field.decl.min_serialized_size + 4;
            }
            if let Some(spelled) = decl.spelled(json_name) {
                decl.fields.insert((&*spelled).into(), field);
            }
        }
        Decl::of(DeclKind::Object(Arc::new(decl)), min)
    }

    /// Bounds the size.
    #[must_use]
    pub fn max_elements(mut self, max: u64) -> Decl {
        self.max_elements = max.min(UNBOUNDED);
        self
    }

    /// Lets JSON `null` be the value `null`.
    #[must_use]
    pub fn nullable(mut self) -> Decl {
        self.nullable = true;
        self
    }

    /// Says how a list compares and adds; nothing else has a list kind.
    #[must_use]
    pub fn list_kind(mut self, list_kind: ListKind) -> Decl {
        if let DeclKind::List { kind, .. } = &mut self.kind {
            *kind = list_kind;
        }
        self
    }

    /// Names this object and those below it that are called `object` after their path, as
    /// upstream does: `name`, `name.field`, `name.list.@idx`, `name.map.@elem`.
    #[must_use]
    pub fn named(&self, name: &str) -> Decl {
        let kind = match &self.kind {
            DeclKind::Object(object) => {
                let name = if &*object.name == "object" { name } else { &object.name };
                let fields = object.fields.iter().map(|(field_name, field)| {
                    let decl = field.decl.named(&format!("{name}.{field_name}"));
                    (field_name.clone(), Field { decl, required: field.required })
                });
                DeclKind::Object(Arc::new(ObjectDecl {
                    name: name.into(),
                    fields: fields.collect(),
                    as_is: object.as_is,
                }))
            }
            DeclKind::Map { value } => {
                DeclKind::Map { value: Arc::new(value.named(&format!("{name}.@elem"))) }
            }
            DeclKind::List { elem, kind } => {
                DeclKind::List { elem: Arc::new(elem.named(&format!("{name}.@idx"))), kind: kind.clone() }
            }
            other => other.clone(),
        };
        Decl { kind, ..self.clone() }
    }

    /// The type that the checker gives to such values.
    pub fn cel_type(&self) -> Type {
        match &self.kind {
            DeclKind::Dyn
            | DeclKind::Document
            | DeclKind::IntOrString
            | DeclKind::Preserved
            | DeclKind::Written(_) => Type::Dyn,
            DeclKind::Bool => Type::Bool,
            DeclKind::Int => Type::Int,
            DeclKind::Double => Type::Double,
            DeclKind::String => Type::String,
            DeclKind::Bytes => Type::Bytes,
            DeclKind::DateTime | DeclKind::Date => Type::Timestamp,
            DeclKind::Duration => Type::Duration,
            DeclKind::List { elem, .. } => Type::list(elem.cel_type()),
            DeclKind::Map { value } => Type::map(Type::String, value.cel_type()),
            DeclKind::Object(object) => Type::Object(object.name.clone()),
        }
    }

    /// Calls `visit` with every object type in here.
    pub(crate) fn objects(&self, visit: &mut impl FnMut(&Arc<ObjectDecl>)) {
        match &self.kind {
            DeclKind::Object(object) => {
                visit(object);
                object.fields.values().for_each(|field| field.decl.objects(visit));
            }
            DeclKind::Map { value: child } | DeclKind::List { elem: child, .. } => child.objects(visit),
            _ => {}
        }
    }
}
