//! What an expression may name: functions, variables, object types.

use std::{
    collections::HashMap,
    fmt,
    str::FromStr,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use crate::{
    ast::Ast,
    decl::{Decl, DeclKind},
    deep::{may_be_deep, with_room},
    error::CompileError,
    library::{self, Functions, LIBRARIES, Library, read_type},
    macros::MacroSet,
    parser::Options,
    types::Type,
};

/// A version of Kubernetes: which libraries expressions may use depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    major: u32,
    minor: u32,
}

impl Version {
    /// A version.
    pub const fn new(major: u32, minor: u32) -> Version {
        Version { major, minor }
    }
}

impl FromStr for Version {
    type Err = String;
    fn from_str(text: &str) -> Result<Version, String> {
        let invalid = || format!("{text:?} is no version: want MAJOR.MINOR");
        let (major, minor) = text.split_once('.').ok_or_else(invalid)?;
        Ok(Version {
            major: major.parse().map_err(|_| invalid())?,
            minor: minor.parse().map_err(|_| invalid())?,
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// An object type of an environment.
#[derive(Clone, Debug, Default)]
pub(crate) struct ObjectType {
    pub fields: HashMap<Box<str>, Type>,
    /// Whether `Name{…}` makes one.
    pub constructible: bool,
    /// Whether fields beyond those here are there, with any type.
    pub open: bool,
}

struct Inner {
    functions: Arc<Functions>,
    options: Arc<Options>,
    libraries: Vec<Library>,
    variables: HashMap<Arc<str>, Type>,
    objects: HashMap<Arc<str>, ObjectType>,
    /// Types that can be named, by name.
    type_names: HashMap<Arc<str>, Type>,
    container: Arc<str>,
    mixed_literals: bool,
    validate_literals: bool,
    escaped_names: bool,
    fold_constants: bool,
}

/// What an expression is compiled against. Immutable; clones are cheap.
#[derive(Clone)]
pub struct Env(Arc<Inner>);

impl fmt::Debug for Env {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Env").field("libraries", &self.0.libraries).finish_non_exhaustive()
    }
}

/// An environment in the making.
pub struct EnvBuilder {
    inner: Inner,
    added: bool,
}

impl Env {
    /// The specification's own functions and macros; lists and maps may mix types, and fields may
    /// stand between backquotes.
    pub fn standard() -> Env {
        let mut env = EnvBuilder::empty().library(Library::Standard);
        env.inner.mixed_literals = true;
        env.inner.validate_literals = false;
        env.inner.escaped_names = true;
        env.build()
    }

    /// The base environment of a version of Kubernetes. Built once per version and process.
    pub fn kubernetes(version: Version) -> Env {
        static CACHE: OnceLock<Mutex<HashMap<Version, Env>>> = OnceLock::new();
        let mut cache = CACHE.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
        cache
            .entry(version)
            .or_insert_with(|| {
                let mut env = EnvBuilder::empty();
                for library in library::base(version) {
                    env = env.library(library);
                }
                env.inner.validate_literals = version >= Version::new(1, 29);
                env.build()
            })
            .clone()
    }

    /// A builder that has everything of this one.
    pub fn extend(&self) -> EnvBuilder {
        let inner = &*self.0;
        EnvBuilder {
            inner: Inner {
                functions: inner.functions.clone(),
                options: inner.options.clone(),
                libraries: inner.libraries.clone(),
                variables: inner.variables.clone(),
                objects: inner.objects.clone(),
                type_names: inner.type_names.clone(),
                container: inner.container.clone(),
                mixed_literals: inner.mixed_literals,
                validate_literals: inner.validate_literals,
                escaped_names: inner.escaped_names,
                fold_constants: inner.fold_constants,
            },
            added: false,
        }
    }

    /// Parses, expands macros and checks types.
    ///
    /// # Errors
    /// All mistakes that were found, with their places.
    pub fn compile(&self, source: &str) -> Result<Ast, CompileError> {
        with_room(may_be_deep(source), || {
            let parsed = crate::parser::parse(source, &self.0.options)?;
            crate::check::check(parsed, source, self)
        })
    }

    pub(crate) fn functions(&self) -> &Functions {
        &self.0.functions
    }

    pub(crate) fn mixed_literals(&self) -> bool {
        self.0.mixed_literals
    }

    pub(crate) fn validates_literals(&self) -> bool {
        self.0.validate_literals
    }

    pub(crate) fn folds_constants(&self) -> bool {
        self.0.fold_constants
    }

    pub(crate) fn object(&self, name: &str) -> Option<&ObjectType> {
        self.0.objects.get(name).or_else(|| {
            let (root, _) = name.split_once('.')?;
            self.0.objects.get(root).filter(|object| object.open)
        })
    }

    pub(crate) fn variable(&self, name: &str) -> Option<(&Arc<str>, &Type)> {
        self.0.variables.get_key_value(name)
    }

    pub(crate) fn type_named(&self, name: &str) -> Option<Type> {
        if let Some(of) = self.0.type_names.get(name) {
            return Some(of.clone());
        }
        self.object(name).filter(|object| object.open).map(|_| Type::object(name))
    }

    pub(crate) fn container(&self) -> &str {
        &self.0.container
    }

    /// What a name may stand for, innermost first: `a.b.name`, `a.name`, `name` in container `a.b`.
    pub(crate) fn candidates(&self, name: &str) -> Vec<String> {
        if let Some(absolute) = name.strip_prefix('.') {
            return vec![absolute.to_owned()];
        }
        let mut candidates = Vec::new();
        let mut container = self.container();
        while !container.is_empty() {
            candidates.push(format!("{container}.{name}"));
            container = container.rsplit_once('.').map_or("", |(outer, _)| outer);
        }
        candidates.push(name.to_owned());
        candidates
    }
}

impl EnvBuilder {
    fn empty() -> EnvBuilder {
        let mut type_names: HashMap<Arc<str>, Type> = HashMap::new();
        for of in [Type::Bool, Type::Int, Type::Uint, Type::Double, Type::String, Type::Bytes, Type::Null] {
            type_names.insert(of.name().into(), of);
        }
        for of in [Type::Duration, Type::Timestamp, Type::Type(None)] {
            type_names.insert(of.name().into(), of);
        }
        type_names.insert("list".into(), Type::list(Type::Dyn));
        type_names.insert("map".into(), Type::map(Type::Dyn, Type::Dyn));
        EnvBuilder {
            inner: Inner {
                functions: Arc::default(),
                options: Arc::new(Options {
                    macros: MacroSet::default(),
                    optional_syntax: false,
                    escaped_names: false,
                }),
                libraries: Vec::new(),
                variables: HashMap::new(),
                objects: HashMap::new(),
                type_names,
                container: "".into(),
                mixed_literals: false,
                validate_literals: true,
                escaped_names: false,
                fold_constants: true,
            },
            added: true,
        }
    }

    /// Declares a variable.
    #[must_use]
    pub fn variable(mut self, name: &str, of: Type) -> EnvBuilder {
        self.inner.variables.insert(name.into(), of);
        self
    }

    /// Declares a variable of a declared shape, with all object types in it.
    #[must_use]
    pub fn declare(self, name: &str, decl: &Decl) -> EnvBuilder {
        self.register(decl, false).variable(name, decl.cel_type())
    }

    /// Makes the object types in here known by name, and constructible: `Name{field: value}`.
    #[must_use]
    pub fn constructible(self, decl: &Decl) -> EnvBuilder {
        self.register(decl, true)
    }

    /// An object type known by its fields' types alone (`variables` of admission policies, `JSONPatch`).
    /// Its name is no identifier unless it is constructible.
    #[must_use]
    pub fn object_type<'n>(
        mut self,
        name: &str,
        fields: impl IntoIterator<Item = (&'n str, Type)>,
        constructible: bool,
    ) -> EnvBuilder {
        let fields = fields.into_iter().map(|(name, of)| (name.into(), of)).collect();
        self.inner.objects.insert(name.into(), ObjectType { fields, constructible, open: false });
        if constructible {
            self.inner.type_names.insert(name.into(), Type::object(name));
        }
        self
    }

    /// An object type that mirrors a tree of unknown shape: any field is there and dynamic, and
    /// `Name.field{…}` makes one. Mutating policies' `Object` without a schema.
    #[must_use]
    pub fn open_type(mut self, name: &str) -> EnvBuilder {
        let of = ObjectType { fields: HashMap::new(), constructible: true, open: true };
        self.inner.objects.insert(name.into(), of);
        self.inner.type_names.insert(name.into(), Type::object(name));
        self
    }

    fn register(mut self, decl: &Decl, constructible: bool) -> EnvBuilder {
        decl.objects(&mut |object| {
            let fields =
                object.fields.iter().map(|(name, field)| (name.clone(), field.decl.cel_type())).collect();
            self.inner.objects.insert(object.name.clone(), ObjectType { fields, constructible, open: false });
            self.inner.type_names.insert(object.name.clone(), Type::Object(object.name.clone()));
        });
        debug_assert!(
            !constructible || matches!(decl.kind, DeclKind::Object(_)),
            "only objects are made by name"
        );
        self
    }

    /// Adds a library that the base has not.
    #[must_use]
    pub fn library(mut self, library: Library) -> EnvBuilder {
        if self.inner.libraries.contains(&library) {
            return self;
        }
        self.added = true;
        self.inner.libraries.push(library);
        self
    }

    /// The namespace in which names are looked up first.
    #[must_use]
    pub fn container(mut self, name: &str) -> EnvBuilder {
        self.inner.container = name.into();
        self
    }

    /// Whether elements of one literal may have different types. Kubernetes does not let them.
    #[must_use]
    pub fn mixed_literals(mut self, mixed: bool) -> EnvBuilder {
        self.inner.mixed_literals = mixed;
        self
    }

    /// Whether constants are evaluated when compiling. They are by default, and then cost nothing; the figures
    /// in upstream's documentation of costs are without.
    #[must_use]
    pub fn fold_constants(mut self, fold: bool) -> EnvBuilder {
        self.inner.fold_constants = fold;
        self
    }

    /// The environment.
    pub fn build(mut self) -> Env {
        if self.added {
            let mut functions = Functions::new();
            let mut macros = MacroSet::default();
            for library in &self.inner.libraries {
                library::add(&mut functions, *library);
            }
            for definition in LIBRARIES.iter().filter(|d| self.inner.libraries.contains(&d.library)) {
                macros.0.push(definition.macros);
                for signature in definition.types {
                    let of = read_type(signature).0;
                    self.inner.type_names.insert(of.name().into(), of);
                }
            }
            let optional_syntax = self.inner.libraries.contains(&Library::Optional);
            self.inner.functions = Arc::new(functions);
            self.inner.options =
                Arc::new(Options { macros, optional_syntax, escaped_names: self.inner.escaped_names });
        }
        if self.inner.libraries.contains(&Library::JsonPatch) && !self.inner.objects.contains_key("JSONPatch")
        {
            let fields =
                [("op", Type::String), ("path", Type::String), ("from", Type::String), ("value", Type::Dyn)];
            self = self.object_type("JSONPatch", fields, true);
        }
        Env(Arc::new(self.inner))
    }
}
