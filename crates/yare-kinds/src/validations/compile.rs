//! From a rule to programs.

use serde_json::Value;
use yare_cel::{Ast, Decl, DeclKind, DeclSizes, Env, Program, Type, Version, escape};
use yare_schema::{crd::field_path, release::Emulation};

use crate::view::View;

/// What stored expressions may use: everything that any release knows.
const STORED: Version = Version::new(1, u32::MAX);

/// The environments of the expressions of one schema, made when they are first asked for.
pub(super) struct Envs<'d> {
    decl: &'d Decl,
    /// What new expressions may use: whatever the oldest release that the server gets on with knows.
    new: Version,
    made: Vec<(Version, bool, Env)>,
}

impl<'d> Envs<'d> {
    pub fn new(decl: &'d Decl, emulation: Emulation) -> Self {
        let new = Version::new(1, emulation.compatible_minor.into());
        Self { decl, new, made: Vec::new() }
    }

    /// `optional`: `oldSelf` is an optional value.
    fn get(&mut self, stored: bool, optional: bool) -> Env {
        let version = if stored { STORED } else { self.new };
        if let Some((.., env)) = self.made.iter().find(|(v, o, _)| *v == version && *o == optional) {
            return env.clone();
        }
        let of = self.decl.cel_type();
        let old = if optional { Type::optional(of) } else { of };
        let env =
            Env::kubernetes(version).extend().declare("self", self.decl).variable("oldSelf", old).build();
        self.made.push((version, optional, env.clone()));
        env
    }
}

/// A compiled rule.
pub(super) struct Compiled {
    /// What decides; the error's text if it did not compile. `None`: the rule is empty.
    pub program: Option<Result<Program, String>>,
    /// It reads `oldSelf`.
    pub is_transition: bool,
    /// `oldSelf` is an optional value.
    pub optional_old: bool,
    /// What the rule may cost for one value.
    pub max_cost: u64,
    /// What makes the message, with what that may cost.
    pub message: Option<Result<(Program, u64), String>>,
    /// The field that the error is about, below the value; empty: the value.
    pub field_path: String,
}

/// Compiles `rule`, which stands in `schema`. `stored` says of a rule's and of a message's expression whether
/// it has been accepted before.
pub(super) fn compile(
    rule: &Value,
    schema: &Value,
    envs: &mut Envs<'_>,
    stored: &dyn Fn(&str, bool) -> bool,
) -> Compiled {
    let (text, message) = (rule.str_at("rule"), rule.str_at("messageExpression"));
    let mut out = Compiled {
        program: None,
        is_transition: false,
        optional_old: rule.bool_at("optionalOldSelf"),
        max_cost: 0,
        message: None,
        field_path: String::new(),
    };
    if text.trim().is_empty() {
        return out;
    }
    let sizes = DeclSizes(envs.decl);
    let compiled = one(&envs.get(stored(text, false), out.optional_old), text, &Type::Bool, &RULE);
    let (ast, program) = match compiled {
        Ok(compiled) => compiled,
        Err(why) => {
            out.program = Some(Err(why));
            return out;
        }
    };
    out.is_transition = ast.references().reads("oldSelf");
    out.max_cost = ast.estimate(&sizes).max;
    out.program = Some(Ok(program));
    if !message.is_empty() {
        let env = envs.get(stored(message, true), out.optional_old);
        let compiled = one(&env, message, &Type::String, &MESSAGE);
        out.message = Some(compiled.map(|(ast, program)| (program, ast.estimate(&sizes).max)));
    }
    let path = rule.str_at("fieldPath");
    if !path.is_empty() {
        out.field_path = field_path(schema, path).unwrap_or_default();
    }
    out
}

/// How errors of an expression are told.
struct Words {
    compilation: &'static str,
    result: &'static str,
    program: &'static str,
}

const RULE: Words = Words {
    compilation: "compilation failed",
    result: "cel expression must evaluate to a bool",
    program: "program instantiation failed",
};
const MESSAGE: Words = Words {
    compilation: "messageExpression compilation failed",
    result: "messageExpression must evaluate to a string",
    program: "messageExpression instantiation failed",
};

fn one(env: &Env, text: &str, wanted: &Type, words: &Words) -> Result<(Ast, Program), String> {
    let ast = env.compile(text).map_err(|error| format!("{}: {error}", words.compilation))?;
    if ast.output_type() != wanted {
        return Err(words.result.to_owned());
    }
    let program = ast.program().map_err(|error| format!("{}: {error}", words.program))?;
    Ok((ast, program))
}

/// The declaration of a schema's values. Its name changes with the schema, so that no expression comes to
/// depend on it.
pub(super) fn declare(schema: &Value, is_resource: bool) -> Option<Decl> {
    let decl = yare_cel::schema::decl(schema, is_resource)?;
    // FNV-1a: the same on every server and in every run.
    let hash = schema
        .to_string()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    Some(decl.named(&format!("selfType{}", hash % 1_000_000_000)))
}

/// The declaration of items or values.
pub(super) fn element(decl: Option<&Decl>) -> Option<Decl> {
    match &decl?.kind {
        DeclKind::List { elem: child, .. } | DeclKind::Map { value: child } => Some(Decl::clone(child)),
        _ => None,
    }
}

/// The declaration of a field.
pub(super) fn member(decl: Option<&Decl>, name: &str) -> Option<Decl> {
    let DeclKind::Object(object) = &decl?.kind else { return None };
    Some(object.fields.get(&*escape(name)?)?.decl.clone())
}
