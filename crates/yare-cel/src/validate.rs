//! Mistakes that types allow: constants that cannot be read, literals of mixed types, formats that do not fit.

use crate::{
    ast::{Ast, Expr, Id, Kind, Literal},
    error::Issue,
    library,
    time::Timestamp,
    types::Type,
};

/// What types allow and Kubernetes does not: constants that cannot be read, literals of mixed types.
pub(crate) fn validate(ast: &Ast) -> Vec<Issue> {
    let mut found = Vec::new();
    validate_expr(ast, &ast.root, false, &mut found);
    found
        .into_iter()
        .map(|(id, message)| {
            let (line, column) = ast.positions.of(id);
            Issue { message, line, column }
        })
        .collect()
}

fn validate_expr(ast: &Ast, expr: &Expr, in_format: bool, found: &mut Vec<(Id, String)>) {
    let mut in_format = in_format;
    match &expr.kind {
        Kind::Call(call) => {
            if ast.env.validates_literals()
                && let Some(Expr { id, kind: Kind::Literal(literal) }) = call.args.first()
            {
                let valid = match (&*call.function, literal) {
                    ("duration", Literal::String(text)) => crate::time::parse_duration(text).is_ok(),
                    ("timestamp", Literal::String(text)) => crate::time::parse_timestamp(text).is_ok(),
                    ("timestamp", Literal::Int(seconds)) => Timestamp::new(*seconds, 0).is_some(),
                    // The checker lets `null` through as a time that is absent.
                    ("duration" | "timestamp", Literal::Null) | ("duration", Literal::Int(_)) => false,
                    ("matches", Literal::String(text)) => library::precompile(text).is_ok(),
                    _ => true,
                };
                if !valid {
                    found.push((*id, format!("invalid {} argument", call.function)));
                }
            }
            if &*call.function == "format" && ast.overloads(expr) == ["string_format"] {
                in_format = true;
                if let (Some(Expr { kind: Kind::Literal(Literal::String(text)), .. }), [list]) =
                    (&call.target, call.args.as_slice())
                    && let Kind::List { items, .. } = &list.kind
                    && let Err((id, message)) = library::check_format(text, items, ast)
                {
                    found.push((id.unwrap_or(expr.id), message));
                }
            }
        }
        Kind::List { items, optional } if !ast.env.mixed_literals() && !in_format => {
            let mut first: Option<&Type> = None;
            for (index, item) in items.iter().enumerate() {
                let of = element_type(ast, item, optional.contains(&index));
                match first {
                    None => first = Some(of),
                    Some(first) if first != of => {
                        found.push((item.id, format!("expected type '{first}' but found '{of}'")));
                        break;
                    }
                    Some(_) => {}
                }
            }
        }
        Kind::Map(entries) if !ast.env.mixed_literals() && !in_format => {
            let mut first: Option<(&Type, &Type)> = None;
            for entry in entries {
                let of = (ast.type_of(&entry.key), element_type(ast, &entry.value, entry.optional));
                let (key, value) = *first.get_or_insert(of);
                if key != of.0 {
                    found.push((entry.key.id, format!("expected type '{key}' but found '{}'", of.0)));
                }
                if value != of.1 {
                    found.push((entry.value.id, format!("expected type '{value}' but found '{}'", of.1)));
                }
            }
        }
        _ => {}
    }
    expr.children(&mut |child| validate_expr(ast, child, in_format, found));
}

fn element_type<'a>(ast: &'a Ast, expr: &Expr, optional: bool) -> &'a Type {
    let of = ast.type_of(expr);
    if optional { of.as_optional().unwrap_or(of) } else { of }
}
