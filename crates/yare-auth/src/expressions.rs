//! Expressions in configuration files: what they may name, what they must come to, what they may cost
//! (`k8s.io/apiserver/pkg/authentication/cel` and `…/authorization/cel`). In: text. Out: an [`Expression`], or
//! upstream's words on why not.

use std::sync::OnceLock;

use serde_json::Value as Json;
use yare_cel::{Ast, Budget, Decl, Env, Field, Program, Type, Value, Vars, Version};

/// The most that one evaluation may cost.
const PER_CALL_LIMIT: u64 = 1_000_000;
/// All that this version has: a file is no stored object that the release before must be able to read.
const VERSION: Version = Version::new(1, 36);

/// What an expression is about: the one variable that it may read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum About {
    /// `claims` of a token.
    Claims,
    /// `user`, a UserInfo.
    User,
    /// `request`, a SubjectAccessReviewSpec.
    Request,
}

/// How claims and users are read: keys may be written escaped, and numbers are doubles.
static DOCUMENT: Decl = Decl::document();

impl About {
    fn variable(self) -> &'static str {
        match self {
            Self::Claims => "claims",
            Self::User => "user",
            Self::Request => "request",
        }
    }

    fn env(self) -> &'static Env {
        static ALL: [OnceLock<Env>; 3] = [const { OnceLock::new() }; 3];
        ALL[self as usize].get_or_init(|| {
            let env = Env::kubernetes(VERSION).extend();
            match self {
                Self::Claims => env.variable("claims", Type::map(Type::String, Type::Dyn)),
                Self::User => env.declare("user", &user()),
                Self::Request => env.declare("request", request()),
            }
            .build()
        })
    }

    /// How its value is read. Types were checked when the expression was compiled.
    fn shape(self) -> &'static Decl {
        match self {
            Self::Claims | Self::User => &DOCUMENT,
            Self::Request => request(),
        }
    }
}

/// What an expression must come to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Returns {
    /// A decision; a message that refuses another type does not name that.
    Bool,
    /// The same; the message names it.
    NamedBool,
    /// What it is, is looked at when it is evaluated.
    Anything,
}

/// Why an expression is not accepted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// It is wrong.
    Invalid(String),
    /// It cannot be made to run.
    Internal(String),
}

/// An expression that is ready to run.
#[derive(Debug)]
pub struct Expression {
    text: String,
    about: About,
    program: Program,
}

impl Expression {
    /// Compiles it. The tree is for those who want to know more.
    pub(crate) fn compile(text: &str, about: About, returns: Returns) -> Result<(Self, Ast), Refused> {
        let ast =
            about.env().compile(text).map_err(|e| Refused::Invalid(format!("compilation failed: {e}")))?;
        let found = ast.output_type();
        if returns != Returns::Anything && *found != Type::Bool {
            let but = match returns {
                Returns::NamedBool => format!(" but got {}", found.full_name()),
                _ => String::new(),
            };
            return Err(Refused::Invalid(format!("must evaluate to bool{but}")));
        }
        let program =
            ast.program().map_err(|e| Refused::Internal(format!("program instantiation failed: {e}")))?;
        Ok((Self { text: text.to_owned(), about, program }, ast))
    }

    /// Its text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What it comes to over `value`.
    ///
    /// # Errors
    /// One line that names the expression.
    pub(crate) fn eval<'a>(&'a self, value: &'a Json) -> Result<Value<'a>, String> {
        let mut vars = Vars::new();
        vars.bind_json(self.about.variable(), value, self.about.shape());
        let mut budget = Budget::new(PER_CALL_LIMIT, u64::MAX);
        self.program
            .eval(&vars, &mut budget)
            .map_err(|e| format!("expression '{}' resulted in error: {e}", self.text))
    }
}

fn object<'n>(name: &str, fields: impl IntoIterator<Item = (&'n str, Decl)>) -> Decl {
    Decl::object_as_is(name, fields.into_iter().map(|(name, decl)| (name, Field::optional(decl))))
}

/// `kubernetes.UserInfo`
fn user() -> Decl {
    let text = Decl::string;
    object(
        "kubernetes.UserInfo",
        [
            ("username", text()),
            ("uid", text()),
            ("groups", Decl::list(text())),
            ("extra", Decl::map(Decl::list(text()))),
        ],
    )
}

/// `kubernetes.SubjectAccessReviewSpec`
fn request() -> &'static Decl {
    static SPEC: OnceLock<Decl> = OnceLock::new();
    SPEC.get_or_init(|| {
        let text = Decl::string;
        let requirement = object(
            "kubernetes.SelectorRequirement",
            [("key", text()), ("operator", text()), ("values", Decl::list(text()))],
        );
        let selector = |name| {
            let requirements = Decl::list(requirement.clone());
            object(name, [("rawSelector", text()), ("requirements", requirements)])
        };
        let resource = object(
            "kubernetes.ResourceAttributes",
            [
                ("namespace", text()),
                ("verb", text()),
                ("group", text()),
                ("version", text()),
                ("resource", text()),
                ("subresource", text()),
                ("name", text()),
                ("fieldSelector", selector("kubernetes.FieldSelectorAttributes")),
                ("labelSelector", selector("kubernetes.LabelSelectorAttributes")),
            ],
        );
        let path = object("kubernetes.NonResourceAttributes", [("path", text()), ("verb", text())]);
        object(
            "kubernetes.SubjectAccessReviewSpec",
            [
                ("resourceAttributes", resource),
                ("nonResourceAttributes", path),
                ("user", text()),
                ("groups", Decl::list(text())),
                ("extra", Decl::map(Decl::list(text()))),
                ("uid", text()),
            ],
        )
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_they_may_name_and_come_to() {
        use About::{Claims, Request, User};
        use Returns::{Anything, Bool, NamedBool};
        for (text, about, returns, expect) in [
            ("claims.foo", Claims, Anything, ""),
            ("claims.foo == 'bar'", Claims, Bool, ""),
            ("claims.foo", Claims, Bool, "must evaluate to bool"),
            ("user.username == 'foo'", Claims, Bool, "undeclared reference to 'user' (in container '')"),
            ("claims + 1", Claims, Anything, "ERROR: <input>:1:8: found no matching overload for '_+_'"),
            ("user.username == 'bar'", User, Bool, ""),
            ("user.username", User, Bool, "must evaluate to bool"),
            ("claims.foo", User, Anything, "undeclared reference to 'claims'"),
            ("user.unknown == 'foo'", User, Bool, "ERROR: <input>:1:5: undefined field 'unknown'"),
            ("request.user == 'bob'", Request, NamedBool, ""),
            ("request.resourceAttributes.namespace == 'kube-system'", Request, NamedBool, ""),
            ("request.time == 'now'", Request, NamedBool, "undefined field 'time'"),
            ("request++'", Request, NamedBool, "Syntax error"),
            ("request.user", Request, NamedBool, "must evaluate to bool but got string"),
            ("x.user", Request, NamedBool, "undeclared reference"),
            ("request.resourceAttributes.fieldSelector.rawSelector == 'foo'", Request, NamedBool, ""),
            (
                "request.resourceAttributes.labelSelector.requirements.exists(r, r.key == 'foo' && r.operator == 'In' && ('bar' in r.values))",
                Request,
                NamedBool,
                "",
            ),
        ] {
            match Expression::compile(text, about, returns) {
                Ok(_) => assert_eq!(expect, "", "{text}"),
                Err(Refused::Invalid(why)) => {
                    assert!(!expect.is_empty() && why.contains(expect), "{text}: {why}");
                }
                Err(Refused::Internal(why)) => panic!("{text}: {why}"),
            }
        }
    }

    #[test]
    fn what_costs_too_much_is_cut_off() {
        let text = "claims.a.all(x, claims.a.all(y, claims.a.all(z, x + y + z < 0.0 || true)))";
        let (expression, _) = Expression::compile(text, About::Claims, Returns::Bool).unwrap();
        let claims = json!({"a": vec![1; 200]});
        let error = expression.eval(&claims).unwrap_err();
        assert!(
            error.ends_with("resulted in error: operation cancelled: actual cost limit exceeded"),
            "{error}"
        );
    }
}
