//! The Common Expression Language as Kubernetes speaks it.
//!
//! Source text goes in; what comes out is a [`Program`] that evaluates in microseconds against JSON it
//! borrows. No I/O, no async, no Kubernetes client types. The crate knows nothing of schemas: callers
//! describe the shape of their values with a [`Decl`].
//!
//! # The way of an expression
//!
//! ```text
//! text ─ parse ─→ tree ─ macros ─→ tree ─ check ─→ Ast ─ plan ─→ Program ─ eval ─→ Value
//!                                                   └─ estimate ─→ CostEstimate
//! ```
//!
//! | Step | File |
//! |---|---|
//! | Tokens, grammar, limits (100,000 code points, depth 250) | `lexer.rs`, `parser.rs` |
//! | `has`, `all`, `exists`, `map`, `filter`, `optMap`, `transformList`, `cel.bind`, … | `macros.rs` |
//! | Types, unification, overload resolution | `types.rs`, `check.rs` |
//! | What an expression may cost, from sizes that a schema bounds | `estimate.rs` |
//! | Names to slots, constants folded, regular expressions compiled | `plan.rs` |
//! | Evaluation and what it did cost | `eval.rs` |
//! | One file per function library, each a table | `library/` |
//!
//! # Compile once
//!
//! An [`Env`] says which functions, variables and object types exist. It is immutable and cheap to
//! clone; [`Env::kubernetes`] is built once per process and version, and extended per use:
//!
//! ```ignore
//! use yare_cel::{Budget, Decl, Env, Field, Type, Vars};
//! use serde_json::json;
//!
//! let spec = Decl::object("Spec", [
//!     ("replicas", Field::required(Decl::int())),
//!     ("name", Field::optional(Decl::string().max_elements(63))),
//! ]);
//! let env = Env::kubernetes("1.36".parse().unwrap())
//!     .extend()
//!     .declare("self", &spec)
//!     .build();
//! let ast = env.compile("self.replicas <= 5 && has(self.name)").unwrap();
//! assert_eq!(ast.output_type(), &Type::Bool);
//! let program = ast.program().unwrap();
//!
//! let object = json!({"replicas": 3, "name": "web"});
//! let mut vars = Vars::new();
//! vars.bind_json("self", &object, &spec);
//! let mut budget = Budget::new(1_000_000, 10_000_000);
//! assert_eq!(program.eval(&vars, &mut budget).unwrap().as_bool(), Some(true));
//! ```
//!
//! `Env`, `Ast` and `Program` are `Send + Sync`; share them in an `Arc`. Keep the `Program` and drop the
//! `Ast`, unless costs or references are still to be asked of it.
//!
//! # What callers ask of an [`Ast`]
//!
//! - [`Ast::output_type`]: compare with what the place expects (`bool`, `string`, …).
//! - [`Ast::estimate`]: the static cost, with the caller's [`SizeEstimator`]; [`DeclSizes`] reads the
//!   sizes off a [`Decl`].
//! - [`Ast::references`]: which variables it reads (`oldSelf` makes a transition rule).
//!
//! # Variables
//!
//! [`Vars`] binds names for one evaluation, borrowing for `'a`: JSON with its [`Decl`]
//! ([`Vars::bind_json`]), ready values ([`Vars::bind`]), and groups of lazily evaluated expressions
//! ([`Vars::bind_lazy`], for admission policies' `variables.*`: each is evaluated at most once, and its
//! cost is charged to the [`Budget`] once). `authorizer` is [`authz::authorizer`], an opaque value whose
//! methods call an [`authz::Authorizer`] back, synchronously.
//!
//! # Costs
//!
//! A [`Budget`] carries the per-call limit and what remains for a whole request or object; each
//! [`Program::eval`] subtracts what it used. Figures are upstream's, unit for unit (`cel-go`'s
//! `checker/cost.go` and `interpreter/runtimecost.go`, `k8s.io/apiserver/pkg/cel/library/cost.go`),
//! because CustomResourceDefinitions are accepted and refused by them.
//!
//! # Errors
//!
//! [`CompileError`] displays as upstream's text, with the source line and a caret. [`EvalError`] displays
//! as upstream's message (`no such key: x`) and tells limits and cancellation apart.
//!
//! # Surface that is still to be filled in
//!
//! ```ignore
//! impl Env {
//!     pub fn standard() -> Env;                     // the specification's functions and nothing else
//!     pub fn kubernetes(version: Version) -> Env;   // what that version of Kubernetes has; cached
//!     pub fn extend(&self) -> EnvBuilder;
//!     pub fn compile(&self, source: &str) -> Result<Ast, CompileError>;  // parse, expand, check
//! }
//! impl EnvBuilder {
//!     pub fn variable(self, name: &str, of: Type) -> Self;
//!     pub fn declare(self, name: &str, decl: &Decl) -> Self;   // variable and all object types below it
//!     pub fn object_types(self, decl: &Decl) -> Self;          // constructible: Object{…}, Object.spec{…}
//!     pub fn variables_type(self, name: &str, fields: impl IntoIterator<Item = (&str, Type)>) -> Self;
//!     pub fn library(self, library: Library) -> Self;          // jsonpatch, bindings, …
//!     pub fn build(self) -> Env;
//! }
//! impl Ast {
//!     pub fn output_type(&self) -> &Type;
//!     pub fn estimate(&self, sizes: &dyn SizeEstimator) -> CostEstimate;
//!     pub fn references(&self) -> References;                  // .variables(): names; .reads("oldSelf")
//!     pub fn program(&self) -> Result<Program, CompileError>;
//! }
//! impl Program {
//!     pub fn eval<'a>(&self, vars: &Vars<'a>, budget: &mut Budget) -> Result<Value<'a>, EvalError>;
//! }
//! // Value<'a>: Null, Bool, Int, Uint, Double, String, Bytes, Timestamp, Duration, List, Map, Struct, Type,
//! //   Optional, Opaque; as_bool, as_str, to_json, type_of.
//! // Vars<'a>: bind(name, Value), bind_json(name, &'a Json, &'a Decl), bind_lazy(name, &'a Lazy), cancel_when(&dyn Fn() -> bool)
//! // Lazy<'a>: push(name, &'a Program): admission's `variables.*`, evaluated once, charged once.
//! // schema::decl(openapi: &Json, is_resource_root: bool) -> Option<Decl>: from an OpenAPI v3 / structural schema.
//! // authz::authorizer(Arc<dyn Authorizer>, user) -> Value; trait Authorizer { fn authorize(&self, &Attributes) -> Decision }
//! ```

mod cost;
mod decl;
mod error;
mod escape;
mod types;

pub use cost::{Budget, CostEstimate, DeclSizes, NoSizes, PathStep, SizeEstimate, SizeEstimator};
pub use decl::{Decl, DeclKind, Field, ListKind, MAX_REQUEST_SIZE_BYTES, ObjectDecl};
pub use error::{CompileError, EvalError, Issue};
pub use escape::{escape, unescape};
pub use types::Type;
