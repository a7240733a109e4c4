//! The shape of an API as an arena of types.
//!
//! Built-in kinds come from data tables and CustomResourceDefinitions from their OpenAPI schemas; both
//! end up here, so every algorithm of this crate (decoding, pruning, defaulting, patching, managed
//! fields, protobuf, OpenAPI) is written once. A [`Schema`] is immutable after construction.

use std::sync::Arc;

use serde_json::Value;

/// Index of a type within its [`Schema`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct TypeId(pub u32);

/// An arena of types. Types refer to each other by [`TypeId`] within the same arena.
#[derive(Debug, Default)]
pub struct Schema {
    /// The types; [`TypeId`] indexes here.
    pub types: Vec<Type>,
    /// Values are read and written as upstream's Go structs are (built-in kinds). Otherwise they are free
    /// JSON that a schema is held against (CustomResourceDefinitions).
    pub typed: bool,
    /// Whether there may be objects within objects (`x-kubernetes-embedded-resource`).
    pub embeds: bool,
}

/// One type.
#[derive(Debug)]
pub struct Type {
    /// OpenAPI definition name, for example `io.k8s.api.core.v1.Pod`; empty for anonymous types.
    pub name: Box<str>,
    /// What values of the type look like.
    pub shape: Shape,
    /// Value constraints of a CustomResourceDefinition schema; `None` for built-in types.
    pub constraints: Option<Box<crate::constraints::Constraints>>,
    /// The values of an enumerated string (`+enum`), sorted; empty for all other types.
    pub enumeration: Box<[Box<str>]>,
    /// How upstream's Go type differs on the wire from what `shape` says.
    pub wire: Wire,
}

impl Type {
    /// A type of this name (empty: anonymous) and shape, with nothing special about it.
    pub fn new(name: impl Into<Box<str>>, shape: Shape) -> Self {
        Self { name: name.into(), shape, constraints: None, enumeration: Box::default(), wire: Wire::Plain }
    }
}

/// Types whose JSON or protobuf form cannot be read off their [`Shape`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Wire {
    /// Nothing special.
    #[default]
    Plain,
    /// Free JSON that protobuf holds as text in field 1 of a message (`RawExtension`, `FieldsV1`, `JSON`).
    Raw,
    /// A list that protobuf wraps in a message with the items in field 1 (`ExtraValue`).
    Items,
    /// `JSONSchemaPropsOrBool`: the schema (field 2) or a boolean (field 1).
    SchemaOrBool(TypeId),
    /// `JSONSchemaPropsOrArray`: the schema (field 1) or a list of schemas (field 2).
    SchemaOrArray(TypeId),
    /// `JSONSchemaPropsOrStringArray`: the schema (field 1) or a list of strings (field 2).
    SchemaOrStrings(TypeId),
}

/// What values of a type look like.
#[derive(Debug)]
pub enum Shape {
    /// A JSON scalar.
    Scalar(Scalar),
    /// An object with known fields.
    Struct(Struct),
    /// An array.
    List(List),
    /// An object with free keys and values of one type.
    Map(Map),
    /// Any JSON value, kept as it is (`RawExtension`, `x-kubernetes-preserve-unknown-fields` without structure).
    Any,
}

/// JSON scalars, by how upstream's Go types read and write them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scalar {
    /// `true` or `false`.
    Bool,
    /// 32-bit integer.
    Int32,
    /// 64-bit integer.
    Int64,
    /// Double.
    Float64,
    /// UTF-8 string.
    String,
    /// Base64 in JSON, bytes in protobuf.
    Bytes,
    /// RFC 3339 with seconds (`metav1.Time`).
    Time,
    /// RFC 3339 with microseconds (`metav1.MicroTime`).
    MicroTime,
    /// Go duration string, such as `5m0s` (`metav1.Duration`).
    Duration,
    /// `resource.Quantity`: string or number.
    Quantity,
    /// String or 32-bit integer.
    IntOrString,
}

/// A value's place: its type and what holds of it only in this place.
#[derive(Clone, Debug)]
pub struct Slot {
    /// Type of the value.
    pub ty: TypeId,
    /// Value that takes the place of an absent one.
    pub default: Option<Arc<Value>>,
    /// Whether an explicit `null` is a value of its own (CustomResourceDefinitions).
    pub nullable: bool,
}

/// An object with known fields.
#[derive(Debug, Default)]
pub struct Struct {
    /// Fields in upstream's declaration order, which is also their order in written JSON.
    pub fields: Vec<Field>,
    /// Indexes of `fields`, sorted by field name; [`Struct::index`] makes them.
    pub by_name: Box<[u16]>,
    /// Indexes of the `fields` that protobuf has, sorted by their numbers; [`Struct::index`] makes them.
    pub by_number: Box<[u16]>,
    /// Go structs that are inlined here: from which of `fields` to (not with) which, and their names.
    pub inlined: Box<[(u16, u16, Box<str>)]>,
    /// `x-kubernetes-map-type: atomic`: server-side apply owns the object as a whole.
    pub atomic: bool,
    /// Fields not listed are kept instead of pruned, and have this type if one is given.
    pub additional: Additional,
    /// `x-kubernetes-embedded-resource`: has apiVersion, kind and metadata of its own.
    pub embedded: bool,
    /// What the schema of such an object says of its metadata, for the defaults in it: metadata has its own type
    /// otherwise.
    pub metadata: Option<TypeId>,
}

/// What becomes of fields that a [`Struct`] does not list.
#[derive(Debug, Default, Clone)]
pub enum Additional {
    /// They are unknown: reported in strict decoding, pruned otherwise.
    #[default]
    Prune,
    /// They are kept as they are.
    Preserve,
}

/// One field of a [`Struct`].
#[derive(Debug, Clone)]
pub struct Field {
    /// JSON name.
    pub name: Box<str>,
    /// Type, default, nullability.
    pub slot: Slot,
    /// Protobuf field numbers from the enclosing message: one for most, two or more where Go inlines a
    /// struct in JSON that protobuf nests (`Volume.volumeSource`). Empty: not in protobuf.
    pub proto: Box<[u32]>,
    /// Must be present (OpenAPI `required`).
    pub required: bool,
    /// Go's `omitempty` or `omitzero`: left out of written JSON when zero.
    pub omit_empty: bool,
    /// Go's `omitzero`: left out also where it is a struct without a set field.
    pub omit_zero: bool,
    /// A pointer in Go: an empty value is a value and differs from an absent one.
    pub pointer: bool,
    /// Strategic merge patch behaviour of this field.
    pub patch: PatchStrategy,
    /// Key for lists that strategic merge patch merges.
    pub merge_key: Option<Box<str>>,
}

impl Field {
    /// An optional field of this name and place, without protobuf numbers, patch strategy or merge key.
    pub fn new(name: impl Into<Box<str>>, slot: Slot) -> Self {
        Self {
            name: name.into(),
            slot,
            proto: Box::default(),
            required: false,
            omit_empty: true,
            omit_zero: false,
            pointer: true,
            patch: PatchStrategy::default(),
            merge_key: None,
        }
    }
}

/// `x-kubernetes-patch-strategy`.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct PatchStrategy {
    /// `merge`: lists merge by key (or as sets) instead of being replaced.
    pub merge: bool,
    /// `retainKeys`: only the keys present in the patch stay.
    pub retain_keys: bool,
    /// `replace`: the object is replaced as a whole instead of being merged.
    pub replace: bool,
}

/// An array.
#[derive(Debug)]
pub struct List {
    /// The items.
    pub item: Slot,
    /// `x-kubernetes-list-type`.
    pub kind: ListKind,
}

/// `x-kubernetes-list-type`, which decides who owns what in server-side apply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListKind {
    /// Owned and replaced as a whole.
    Atomic,
    /// A set of scalars.
    Set,
    /// Objects identified by these keys.
    Map(Box<[Box<str>]>),
}

/// An object with free keys.
#[derive(Debug)]
pub struct Map {
    /// The values.
    pub value: Slot,
    /// `x-kubernetes-map-type: atomic`.
    pub atomic: bool,
}

/// A type within its schema: what algorithms walk.
#[derive(Clone, Copy)]
pub struct TypeRef<'a> {
    /// The arena.
    pub schema: &'a Schema,
    /// The type.
    pub id: TypeId,
}

impl Slot {
    /// A place for values of the type `ty`, without default.
    pub fn new(ty: TypeId) -> Self {
        Self { ty, default: None, nullable: false }
    }
}

impl Schema {
    /// Adds a type and says where it stands.
    pub fn push(&mut self, ty: Type) -> TypeId {
        let id = TypeId(u32::try_from(self.types.len()).expect("schemas are bounded far below 2^32 types"));
        self.types.push(ty);
        id
    }

    /// A walkable reference to the type `id`, which must come from this schema.
    pub fn at(&self, id: TypeId) -> TypeRef<'_> {
        TypeRef { schema: self, id }
    }
}

impl<'a> TypeRef<'a> {
    /// The type itself.
    pub fn ty(self) -> &'a Type {
        &self.schema.types[self.id.0 as usize]
    }

    /// What values look like.
    pub fn shape(self) -> &'a Shape {
        &self.ty().shape
    }

    /// Whether values are free JSON that is owned as a whole (`RawExtension`): upstream publishes these as
    /// objects of nothing known, and apiextensions' `JSON` as anything at all.
    pub fn is_opaque(self) -> bool {
        self.ty().wire == Wire::Raw && !self.ty().name.ends_with(".JSON")
    }

    /// Whether the schema gives no JSON type: objects look as the shape says, and anything else is one too.
    pub fn is_untyped(self) -> bool {
        self.ty().constraints.as_ref().is_some_and(|c| c.untyped)
    }

    /// Whether the schema allows free keys and does not say of what (`additionalProperties: true`).
    pub fn is_unspecified(self) -> bool {
        let says_nothing = |s: &Struct| s.fields.is_empty() && matches!(s.additional, Additional::Prune);
        self.is_untyped() && self.as_struct().is_some_and(says_nothing)
    }

    /// The struct, where the type is one.
    pub fn as_struct(self) -> Option<&'a Struct> {
        match self.shape() {
            Shape::Struct(s) => Some(s),
            _ => None,
        }
    }

    /// The field `name` of a struct.
    pub fn field(self, name: &str) -> Option<&'a Field> {
        self.as_struct()?.field(name)
    }

    /// The type in `slot`, which must come from the same schema.
    pub fn to(self, slot: &Slot) -> TypeRef<'a> {
        TypeRef { schema: self.schema, id: slot.ty }
    }

    /// The type that the member `name` has: a struct's field or a map's value.
    pub fn member(self, name: &str) -> Option<TypeRef<'a>> {
        match self.shape() {
            Shape::Struct(s) => s.field(name).map(|f| self.to(&f.slot)),
            Shape::Map(m) => Some(self.to(&m.value)),
            _ => None,
        }
    }

    /// The type of a list's items.
    pub fn item(self) -> Option<TypeRef<'a>> {
        match self.shape() {
            Shape::List(l) => Some(self.to(&l.item)),
            _ => None,
        }
    }
}

impl Struct {
    /// The field with this JSON name.
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.position(name).map(|i| &self.fields[i])
    }

    /// Where in `fields` the field with this JSON name stands.
    pub fn position(&self, name: &str) -> Option<usize> {
        self.by_name
            .binary_search_by(|&i| (*self.fields[usize::from(i)].name).cmp(name))
            .ok()
            .map(|at| usize::from(self.by_name[at]))
    }

    /// Builds the indexes; call once after `fields` is complete.
    pub fn index(mut self) -> Self {
        let count = u16::try_from(self.fields.len()).expect("schemas are bounded far below 65,536 fields");
        let mut order: Vec<u16> = (0..count).collect();
        order.sort_by(|&a, &b| self.fields[usize::from(a)].name.cmp(&self.fields[usize::from(b)].name));
        self.by_name = order.into_boxed_slice();
        let mut order: Vec<u16> =
            (0..count).filter(|&i| !self.fields[usize::from(i)].proto.is_empty()).collect();
        order.sort_by(|&a, &b| self.fields[usize::from(a)].proto.cmp(&self.fields[usize::from(b)].proto));
        self.by_number = order.into_boxed_slice();
        self
    }
}
