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
//! | Types, unification, overload resolution | `types.rs`, `check.rs`, `validate.rs` |
//! | What an expression may cost, from sizes that a schema bounds | `estimate.rs` |
//! | Names to slots, constants folded, regular expressions compiled | `plan.rs` |
//! | Evaluation and what it did cost | `eval.rs` |
//! | JSON read through its declaration, equality, order | `json.rs`, `equality.rs` |
//! | One file per function library, each a table | `library/` |
//! | Declarations from OpenAPI schemas | `schema.rs` |
//!
//! # Compile once
//!
//! An [`Env`] says which functions, variables and object types exist. It is immutable and cheap to
//! clone; [`Env::kubernetes`] is built once per process and version, and extended per use:
//!
//! ```
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
//! Where patches are made, add [`Library::JsonPatch`] (`JSONPatch{…}`, `jsonpatch.escapeKey`) and either
//! [`EnvBuilder::constructible`] with a declaration called `Object`, or [`EnvBuilder::open_type`] when there is no
//! schema; [`Struct::misnamed`] checks what came out, [`Value::to_json`] gives the patch.
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

mod ast;
mod check;
mod cost;
mod decl;
mod deep;
mod env;
mod equality;
mod error;
mod escape;
mod estimate;
mod eval;
mod json;
mod lexer;
pub mod library;
mod macros;
mod number;
mod parser;
mod plan;
pub mod schema;
mod time;
mod types;
mod validate;
mod value;
mod vars;
mod written;

pub use ast::{Ast, References};
pub use cost::{Budget, CostEstimate, DeclSizes, NoSizes, PathStep, SizeEstimate, SizeEstimator};
pub use decl::{Decl, DeclKind, Field, ListKind, MAX_REQUEST_SIZE_BYTES, ObjectDecl};
pub use env::{Env, EnvBuilder, Version};
pub use error::{CompileError, EvalError, Issue};
pub use escape::{RESERVED, escape, unescape};
pub use library::{Library, authz};
pub use plan::Program;
pub use time::{Duration, Timestamp};
pub use types::Type;
pub use value::{Key, List, Map, OpaqueValue, Str, Struct, Value};
pub use vars::{Lazy, Vars};
pub use written::Written;
