//! The expressions of admission: what they may name, what they must come to, what they may cost.
//!
//! One place for match conditions, validating and mutating policies, so that what is accepted when an object is
//! written is exactly what runs later (`k8s.io/apiserver/pkg/admission/plugin/cel`). In: text. Out: a
//! [`Compiled`] program, or upstream's words on why not.

use std::sync::OnceLock;

use yare_cel::{Decl, Env, Field, Library, Program, References, Type, Version, authz};
use yare_schema::{
    field::ErrorKind,
    release::{Emulation, MINOR, OLDEST_MINOR},
};

pub mod shapes;
pub mod written;

/// The most that one evaluation may cost.
pub const PER_CALL_LIMIT: u64 = 1_000_000;
/// The most that all validations, or all audit annotations, or one mutation of a binding may cost together.
pub const BUDGET: u64 = 10_000_000;
/// The most that the match conditions of a webhook or policy may cost together.
pub const CONDITIONS_BUDGET: u64 = 2_500_000;
/// The longest message that a `messageExpression` may make, in bytes.
pub const MAX_MESSAGE_B: usize = 5 * 1024;

/// The type of `variables`.
const VARIABLES: &str = "kubernetes.variables";
/// The type of what an apply configuration makes.
const OBJECT: &str = "Object";
/// The type of one operation of a JSON patch.
const JSON_PATCH: &str = "JSONPatch";

/// How old an expression is. A new one may only use what the oldest release that the server gets on with also knows, so
/// that an upgrade can be taken back; one that is stored may use all there is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Age {
    /// It is being written.
    New,
    /// It was there before.
    Stored,
}

impl Age {
    /// The version of Kubernetes whose functions it may use, beside what a server gets on with.
    pub fn version(self, emulation: Emulation) -> Version {
        Version::new(1, self.minor(emulation).into())
    }

    fn minor(self, emulation: Emulation) -> u16 {
        match self {
            Self::New => emulation.compatible_minor,
            Self::Stored => MINOR,
        }
    }

    /// Where environments for its version stand among those for all.
    pub(crate) fn place(self, emulation: Emulation) -> usize {
        self.minor(emulation).saturating_sub(OLDEST_MINOR).into()
    }
}

/// For how many versions of Kubernetes there can be environments.
pub(crate) const VERSIONS: usize = (MINOR - OLDEST_MINOR + 1) as usize;

/// What an expression may name beside `object`, `oldObject`, `request` and `namespaceObject`.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Scope {
    /// `params`
    pub params: bool,
    /// `authorizer` and `authorizer.requestResource`
    pub authorizer: bool,
    /// `Object{…}` and `JSONPatch{…}`
    pub patches: bool,
}

impl Scope {
    /// Of conditions, validations, variables and audit annotations.
    pub fn of_policy(params: bool) -> Self {
        Self { params, authorizer: true, patches: false }
    }

    /// Of message expressions.
    pub fn of_message(params: bool) -> Self {
        Self { params, ..Self::default() }
    }

    /// Of mutations.
    pub fn of_mutation(params: bool) -> Self {
        Self { params, authorizer: true, patches: true }
    }
}

/// What an expression must come to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Returns {
    /// A decision.
    Bool,
    /// A message.
    String,
    /// An audit annotation, or none.
    StringOrNull,
    /// A variable.
    Anything,
    /// An apply configuration.
    Object,
    /// A JSON patch.
    Patches,
}

impl Returns {
    fn types(self) -> Vec<Type> {
        match self {
            Self::Bool => vec![Type::Bool],
            Self::String => vec![Type::String],
            Self::StringOrNull => vec![Type::String, Type::Null],
            Self::Anything => Vec::new(),
            Self::Object => vec![Type::object(OBJECT)],
            Self::Patches => vec![Type::list(Type::object(JSON_PATCH))],
        }
    }
}

/// An expression that is ready to run.
#[derive(Debug)]
pub struct Compiled {
    /// Evaluates it.
    pub program: Program,
    /// What it reads.
    pub references: References,
}

/// What is known of a variable's type where it is read: objects and what libraries bring are dynamic.
fn variable_type(of: &Type) -> Type {
    match of {
        Type::List(elem) => Type::list(variable_type(elem)),
        Type::Map(kv) => Type::map(variable_type(&kv.0), variable_type(&kv.1)),
        Type::Object(_) | Type::Opaque(..) | Type::Type(_) | Type::Param(_) | Type::Error => Type::Dyn,
        simple => simple.clone(),
    }
}

/// Declares what all expressions of admission see; `shape` says of which type objects are, where that is known.
fn environment(version: Version, scope: Scope, shapes: Shapes<'_>) -> Env {
    let mut env = Env::kubernetes(version).extend();
    for name in ["object", "oldObject"] {
        env = match shapes.object {
            Some(decl) => env.declare(name, decl),
            None => env.variable(name, Type::Dyn),
        };
    }
    env = env.declare("request", &request()).declare("namespaceObject", &namespace());
    if scope.params {
        env = match shapes.params {
            Some(decl) => env.declare("params", decl),
            None => env.variable("params", Type::Dyn),
        };
    }
    if scope.authorizer {
        env = env
            .variable("authorizer", Type::object(authz::AUTHORIZER_TYPE))
            .variable("authorizer.requestResource", Type::object(authz::RESOURCE_CHECK_TYPE));
    }
    if scope.patches {
        env = env.library(Library::JsonPatch).open_type(OBJECT);
    }
    env.build()
}

/// The environments without shapes: there are few, and all expressions share them.
fn shared(age: Age, emulation: Emulation, scope: Scope) -> &'static Env {
    static ALL: [OnceLock<Env>; VERSIONS << 3] = [const { OnceLock::new() }; VERSIONS << 3];
    let place = age.place(emulation) << 3
        | usize::from(scope.params) << 2
        | usize::from(scope.authorizer) << 1
        | usize::from(scope.patches);
    ALL[place].get_or_init(|| environment(age.version(emulation), scope, Shapes::default()))
}

/// The types of objects and parameters, for type checking. Evaluation is dynamic.
#[derive(Clone, Copy, Default)]
pub struct Shapes<'a> {
    /// Of `object` and `oldObject`.
    pub object: Option<&'a Decl>,
    /// Of `params`.
    pub params: Option<&'a Decl>,
}

/// Compiles the expressions of one webhook or policy, whose variables they may read.
pub struct Compiler<'a> {
    emulation: Emulation,
    shapes: Shapes<'a>,
    /// Variables so far; `None` where there is no such thing as `variables`.
    variables: Option<Vec<(String, Type)>>,
    envs: Vec<(Age, Scope, Env)>,
}

impl Compiler<'static> {
    /// For expressions that stand alone.
    pub fn plain() -> Self {
        Self { emulation: Emulation::NONE, shapes: Shapes::default(), variables: None, envs: Vec::new() }
    }

    /// For expressions that share variables.
    pub fn composing() -> Self {
        Compiler::typed(Shapes::default())
    }
}

impl<'a> Compiler<'a> {
    /// For expressions that share variables, over objects of known types.
    pub fn typed(shapes: Shapes<'a>) -> Self {
        Self { emulation: Emulation::NONE, shapes, variables: Some(Vec::new()), envs: Vec::new() }
    }

    /// The same, on a server that may behave as another release.
    #[must_use]
    pub fn emulating(mut self, emulation: Emulation) -> Self {
        self.emulation = emulation;
        self
    }

    fn env(&mut self, age: Age, scope: Scope) -> Env {
        let is_shared = self.shapes.object.is_none() && self.shapes.params.is_none();
        if self.variables.is_none() && is_shared {
            return shared(age, self.emulation, scope).clone();
        }
        if let Some((.., env)) = self.envs.iter().find(|(a, s, _)| (*a, *s) == (age, scope)) {
            return env.clone();
        }
        let base = match is_shared {
            true => shared(age, self.emulation, scope).clone(),
            false => environment(age.version(self.emulation), scope, self.shapes),
        };
        let env = match &self.variables {
            Some(variables) => {
                let fields = variables.iter().map(|(name, of)| (name.as_str(), of.clone()));
                let env = base.extend().object_type(VARIABLES, fields, false);
                env.variable("variables", Type::object(VARIABLES)).build()
            }
            None => base,
        };
        self.envs.push((age, scope, env.clone()));
        env
    }

    /// Compiles a variable, which those that come after may read.
    ///
    /// # Errors
    /// What is wrong. Others may read the variable even so, and are not told again.
    pub fn variable(
        &mut self,
        name: &str,
        expression: &str,
        scope: Scope,
        age: Age,
    ) -> Result<Compiled, Unfit> {
        let done = self.compile_typed(expression, scope, Returns::Anything, age);
        let of = done.as_ref().map_or(Type::Dyn, |(_, of)| variable_type(of));
        self.variables.get_or_insert_default().push((name.to_owned(), of));
        self.envs.clear();
        done.map(|(compiled, _)| compiled)
    }

    /// Compiles an expression.
    ///
    /// # Errors
    /// What is wrong.
    pub fn compile(
        &mut self,
        expression: &str,
        scope: Scope,
        returns: Returns,
        age: Age,
    ) -> Result<Compiled, Unfit> {
        self.compile_typed(expression, scope, returns, age).map(|(compiled, _)| compiled)
    }

    fn compile_typed(
        &mut self,
        expression: &str,
        scope: Scope,
        returns: Returns,
        age: Age,
    ) -> Result<(Compiled, Type), Unfit> {
        let env = self.env(age, scope);
        let ast = env.compile(expression).map_err(|e| Unfit::invalid(format!("compilation failed: {e}")))?;
        let (found, wanted) = (ast.output_type(), returns.types());
        if !wanted.is_empty() && !wanted.contains(found) {
            return Err(Unfit::invalid(match wanted.as_slice() {
                [one] => format!("must evaluate to {} but got {}", one.full_name(), found.full_name()),
                many => {
                    let many: Vec<String> = many.iter().map(Type::full_name).collect();
                    format!("must evaluate to one of [{}] but got {}", many.join(" "), found.full_name())
                }
            }));
        }
        let program = ast.program().map_err(|e| Unfit {
            kind: ErrorKind::Internal,
            why: format!("program instantiation failed: {e}"),
        })?;
        Ok((Compiled { program, references: ast.references() }, found.clone()))
    }

    /// What the type checker has to say; nothing if all is well.
    pub fn check(&mut self, expression: &str, scope: Scope, age: Age) -> Option<String> {
        self.env(age, scope).compile(expression).err().map(|e| e.to_string())
    }
}

/// Why an expression is none that may stand where it does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfit {
    /// How validation tells it.
    pub kind: ErrorKind,
    /// What is wrong.
    pub why: String,
}

impl Unfit {
    fn invalid(why: String) -> Self {
        Self { kind: ErrorKind::Invalid, why }
    }
}

impl std::fmt::Display for Unfit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.why)
    }
}

impl std::error::Error for Unfit {}

fn object<'n>(name: &str, fields: impl IntoIterator<Item = (&'n str, Decl)>) -> Decl {
    Decl::object_as_is(name, fields.into_iter().map(|(name, decl)| (name, Field::optional(decl))))
}

/// `request`: an AdmissionRequest without its objects.
fn request() -> Decl {
    let text = Decl::string;
    let kind =
        object("kubernetes.GroupVersionKind", [("group", text()), ("version", text()), ("kind", text())]);
    let resource = object(
        "kubernetes.GroupVersionResource",
        [("group", text()), ("version", text()), ("resource", text())],
    );
    let user = object(
        "kubernetes.UserInfo",
        [
            ("username", text()),
            ("uid", text()),
            ("groups", Decl::list(text())),
            ("extra", Decl::map(Decl::list(text()))),
        ],
    );
    object(
        "kubernetes.AdmissionRequest",
        [
            ("kind", kind.clone()),
            ("resource", resource.clone()),
            ("subResource", text()),
            ("requestKind", kind),
            ("requestResource", resource),
            ("requestSubResource", text()),
            ("name", text()),
            ("namespace", text()),
            ("operation", text()),
            ("userInfo", user),
            ("dryRun", Decl::bool()),
            ("options", Decl::any()),
        ],
    )
}

/// `namespaceObject`: a Namespace without owner references and managed fields.
fn namespace() -> Decl {
    let text = Decl::string;
    let condition = object(
        "kubernetes.NamespaceCondition",
        [
            ("status", text()),
            ("type", text()),
            ("lastTransitionTime", Decl::date_time()),
            ("message", text()),
            ("reason", text()),
        ],
    );
    let metadata = object(
        "kubernetes.NamespaceMetadata",
        [
            ("name", text()),
            ("generateName", text()),
            ("namespace", text()),
            ("labels", Decl::map(text())),
            ("annotations", Decl::map(text())),
            // As upstream spells it.
            ("UID", text()),
            ("creationTimestamp", Decl::date_time()),
            ("deletionGracePeriodSeconds", Decl::int()),
            ("deletionTimestamp", Decl::date_time()),
            ("generation", Decl::int()),
            ("resourceVersion", text()),
            ("finalizers", Decl::list(text())),
        ],
    );
    object(
        "kubernetes.Namespace",
        [
            ("metadata", metadata),
            ("spec", object("kubernetes.NamespaceSpec", [("finalizers", Decl::list(text()))])),
            (
                "status",
                object(
                    "kubernetes.NamespaceStatus",
                    [("conditions", Decl::list(condition)), ("phase", text())],
                ),
            ),
        ],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_expressions_may_name() {
        let (policy, message) = (Scope::of_policy(true), Scope::of_message(false));
        for (expression, scope, returns, expect) in [
            ("object.spec.replicas > 1 && params.max == 2", policy, Returns::Bool, ""),
            ("request.userInfo.username == 'x'", policy, Returns::Bool, ""),
            ("has(request.namespace) && request.namespace == 'x'", policy, Returns::Bool, ""),
            ("namespaceObject.metadata.namespace == ''", policy, Returns::Bool, ""),
            ("namespaceObject.metadata.labels['a'] == 'b'", policy, Returns::Bool, ""),
            ("authorizer.group('').resource('pods').check('get').allowed()", policy, Returns::Bool, ""),
            ("authorizer.requestResource.check('get').allowed()", policy, Returns::Bool, ""),
            ("1", policy, Returns::Bool, "must evaluate to bool but got int"),
            ("[1]", message, Returns::String, "must evaluate to string but got list(int)"),
            ("1", policy, Returns::StringOrNull, "must evaluate to one of [string null_type] but got int"),
            ("null", policy, Returns::StringOrNull, ""),
            (
                "int('x') == 1",
                policy,
                Returns::Bool,
                "program instantiation failed: type conversion error from 'string' to 'int'",
            ),
            ("Object{spec: Object.spec{replicas: 3}}", Scope::of_mutation(false), Returns::Object, ""),
            (
                "[JSONPatch{op: 'add', path: '/a/' + jsonpatch.escapeKey('b/c'), value: 1}]",
                Scope::of_mutation(false),
                Returns::Patches,
                "",
            ),
            (
                "{'a': 1}",
                Scope::of_mutation(false),
                Returns::Object,
                "must evaluate to Object but got map(string, int)",
            ),
        ] {
            let found = Compiler::plain().compile(expression, scope, returns, Age::New);
            assert_eq!(found.err().map(|unfit| unfit.why).unwrap_or_default(), expect, "{expression}");
        }
        let found = Compiler::plain().compile("params.x", message, Returns::Bool, Age::New);
        let expect = "compilation failed: ERROR: <input>:1:1: undeclared reference to 'params' (in container '')\n | params.x\n | ^";
        assert_eq!(found.err().map(|unfit| unfit.why).unwrap_or_default(), expect);
    }

    #[test]
    fn variables_are_known_to_those_after_them() {
        let scope = Scope::of_policy(false);
        let mut compiler = Compiler::composing();
        compiler.variable("a", "[1]", scope, Age::New).unwrap();
        compiler.variable("b", "variables.a[0] + 1", scope, Age::New).unwrap();
        compiler.variable("broken", "nothing", scope, Age::New).unwrap_err();
        compiler.compile("variables.b > 1 && variables.broken", scope, Returns::Bool, Age::New).unwrap();
        let error = compiler.compile("variables.b == 'x'", scope, Returns::Bool, Age::New).unwrap_err().why;
        assert!(
            error.contains("found no matching overload for '_==_' applied to '(int, string)'"),
            "{error}"
        );
        let error = compiler.compile("variables.c", scope, Returns::Bool, Age::New).unwrap_err().why;
        assert!(error.contains("undefined field 'c'"), "{error}");
        let error = Compiler::plain().compile("variables.a", scope, Returns::Bool, Age::New).unwrap_err().why;
        assert!(error.contains("undeclared reference to 'variables'"), "{error}");
    }
}
