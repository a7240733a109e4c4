//! A reader of Go type declarations: just as much of the language as gofmt-ed API packages use.
//!
//! In: the text of Go files. Out: their structs with tags and `+markers`, named types and constants.

use std::collections::{BTreeMap, HashMap};

/// A Go type expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GoType {
    /// A predeclared type: `string`, `int32`, `interface{}`.
    Basic(String),
    /// A declared type: import path and name.
    Named(String, String),
    /// `*T`
    Pointer(Box<GoType>),
    /// `[]T`
    Slice(Box<GoType>),
    /// `map[string]T`; all maps in the API have keys of a string kind.
    Map(Box<GoType>),
}

/// Lines of a comment that begin with `+`, without it.
#[derive(Clone, Debug, Default)]
pub struct Markers(Vec<String>);

impl Markers {
    /// The value of `+name=value`, unquoted by nobody.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find_map(|l| l.strip_prefix(name)?.strip_prefix('='))
    }

    /// Every value of `+name=value`, in order.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter_map(move |l| l.strip_prefix(name)?.strip_prefix('='))
    }

    /// Whether `+name` stands there.
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|l| l == name || l.strip_prefix(name).is_some_and(|r| r.starts_with('=')))
    }
}

/// One field of a struct.
#[derive(Clone, Debug)]
pub struct GoField {
    /// Go name; for an embedded field that of its type.
    pub name: String,
    /// Whether the field is embedded.
    pub embedded: bool,
    /// Its type.
    pub ty: GoType,
    /// Its tags by key.
    pub tags: HashMap<String, String>,
    /// Its markers.
    pub markers: Markers,
}

/// What a type declaration declares.
#[derive(Clone, Debug)]
pub enum GoBody {
    /// A struct.
    Struct(Vec<GoField>),
    /// Any other type.
    Alias(GoType),
    /// Another name of the same type (`type A = B`).
    Same(GoType),
}

/// One type declaration.
#[derive(Clone, Debug)]
pub struct GoDecl {
    /// Its markers.
    pub markers: Markers,
    /// What it declares.
    pub body: GoBody,
}

/// One package.
#[derive(Clone, Debug, Default)]
pub struct GoPackage {
    /// Type names in order of declaration.
    pub order: Vec<String>,
    /// Declarations.
    pub decls: BTreeMap<String, GoDecl>,
    /// String constants: name, type (empty: untyped), value.
    pub consts: Vec<(String, String, String)>,
    /// Constants that are another package's in a type of this one: type, import path and name of the other.
    pub borrowed: Vec<(String, String, String)>,
}

/// Reads one file of the package `path` into `package`.
pub fn parse(path: &str, text: &str, package: &mut GoPackage) {
    let mut imports: HashMap<String, String> = HashMap::new();
    let mut comments: Vec<String> = Vec::new();
    let mut blanks = 0;
    let mut lines = text.lines().peekable();
    let mut in_import = false;
    let mut in_const = false;
    while let Some(raw) = lines.next() {
        let line = raw.trim();
        if in_import {
            match line {
                ")" => in_import = false,
                _ => import(line, &mut imports),
            }
            continue;
        }
        if in_const {
            match line {
                ")" => in_const = false,
                _ => constant(line, &imports, package),
            }
            continue;
        }
        if line.is_empty() {
            blanks += 1;
            if blanks > 1 {
                comments.clear();
            }
            continue;
        }
        if let Some(comment) = line.strip_prefix("//") {
            if blanks > 1 {
                comments.clear();
            }
            blanks = 0;
            comments.push(comment.trim().to_owned());
            continue;
        }
        if line == "import (" {
            in_import = true;
        } else if let Some(rest) = line.strip_prefix("import ") {
            import(rest, &mut imports);
        } else if line == "const (" {
            in_const = true;
        } else if let Some(rest) = line.strip_prefix("const ") {
            constant(rest, &imports, package);
        } else if let Some(rest) = line.strip_prefix("type ") {
            let (name, rest) = rest.split_once(' ').unwrap_or((rest, ""));
            let rest = rest.trim();
            let body = if rest.starts_with("struct") {
                let fields =
                    if rest.ends_with("{}") { Vec::new() } else { fields(path, &imports, &mut lines) };
                Some(GoBody::Struct(fields))
            } else if rest.starts_with("interface") || rest.starts_with("func") {
                None
            } else if let Some(same) = rest.strip_prefix("= ") {
                Some(GoBody::Same(type_expr(path, &imports, same)))
            } else {
                Some(GoBody::Alias(type_expr(path, &imports, rest)))
            };
            if let Some(body) = body {
                package.order.push(name.to_owned());
                let markers = markers(&comments);
                package.decls.insert(name.to_owned(), GoDecl { markers, body });
            }
        }
        comments.clear();
        blanks = 0;
    }
}

fn markers(comments: &[String]) -> Markers {
    Markers(comments.iter().filter_map(|c| c.strip_prefix('+')).map(|c| c.trim().to_owned()).collect())
}

fn import(line: &str, imports: &mut HashMap<String, String>) {
    let line = line.split("//").next().unwrap_or_default().trim();
    let Some((alias, path)) = line.split_once('"') else { return };
    let path = path.trim_end_matches('"');
    let alias = match alias.trim() {
        "" => path.rsplit('/').next().unwrap_or(path),
        alias => alias,
    };
    imports.insert(alias.to_owned(), path.to_owned());
}

fn constant(line: &str, imports: &HashMap<String, String>, package: &mut GoPackage) {
    let Some((left, right)) = line.split_once('=') else { return };
    let mut left = left.split_whitespace();
    let (Some(name), ty) = (left.next(), left.next().unwrap_or_default()) else { return };
    let right = right.trim();
    let (ty, right) = match right.split_once('(') {
        // `Name = Type("value")`
        Some((conversion, value)) if !right.starts_with('"') => (conversion, value),
        _ => (ty, right),
    };
    let Some(value) = right.strip_prefix('"').and_then(|r| r.split('"').next()) else {
        // `Name = Type(other.Name)`
        if let Some((alias, other)) = right.trim_end_matches(')').split_once('.')
            && let Some(path) = imports.get(alias)
        {
            package.borrowed.push((ty.to_owned(), path.clone(), other.to_owned()));
        }
        return;
    };
    package.consts.push((name.to_owned(), ty.to_owned(), value.to_owned()));
}

fn fields<'a>(
    path: &str,
    imports: &HashMap<String, String>,
    lines: &mut std::iter::Peekable<impl Iterator<Item = &'a str>>,
) -> Vec<GoField> {
    let mut fields = Vec::new();
    let mut comments = Vec::new();
    let mut in_comment = false;
    for raw in lines.by_ref() {
        let line = raw.trim();
        if line == "}" && !in_comment {
            break;
        }
        if in_comment || line.starts_with("/*") {
            in_comment = !line.contains("*/");
            continue;
        }
        if line.is_empty() {
            comments.clear();
            continue;
        }
        if let Some(comment) = line.strip_prefix("//") {
            comments.push(comment.trim().to_owned());
            continue;
        }
        let (decl, tag) = match line.split_once('`') {
            Some((decl, rest)) => (decl.trim(), rest.split('`').next().unwrap_or_default()),
            None => (line.split("//").next().unwrap_or_default().trim(), ""),
        };
        let tags = tags(tag);
        let (name, ty, embedded) = match decl.split_once(char::is_whitespace) {
            Some((name, ty)) => (name.to_owned(), ty.trim(), false),
            None => {
                let name = decl.trim_start_matches('*');
                (name.rsplit('.').next().unwrap_or(name).to_owned(), decl, true)
            }
        };
        fields.push(GoField {
            name,
            embedded,
            ty: type_expr(path, imports, ty),
            tags,
            markers: markers(&comments),
        });
        comments.clear();
    }
    fields
}

fn tags(tag: &str) -> HashMap<String, String> {
    let mut out = HashMap::new();
    let mut rest = tag.trim();
    while let Some((key, after)) = rest.split_once(":\"") {
        let (value, after) = after.split_once('"').unwrap_or((after, ""));
        out.insert(key.trim().to_owned(), value.to_owned());
        rest = after.trim();
    }
    out
}

fn type_expr(path: &str, imports: &HashMap<String, String>, text: &str) -> GoType {
    let text = text.split("//").next().unwrap_or_default().trim();
    if let Some(rest) = text.strip_prefix('*') {
        return GoType::Pointer(Box::new(type_expr(path, imports, rest)));
    }
    if let Some(rest) = text.strip_prefix("[]") {
        return GoType::Slice(Box::new(type_expr(path, imports, rest)));
    }
    if let Some(rest) = text.strip_prefix("map[") {
        let value = rest.split_once(']').map_or("", |(_, v)| v);
        return GoType::Map(Box::new(type_expr(path, imports, value)));
    }
    match text {
        "string" | "bool" | "byte" | "int" | "int8" | "int16" | "int32" | "int64" | "uint" | "uint8"
        | "uint16" | "uint32" | "uint64" | "float32" | "float64" | "interface{}" | "any" | "rune" => {
            return GoType::Basic(text.to_owned());
        }
        _ => {}
    }
    match text.split_once('.') {
        Some((alias, name)) => {
            let path = imports.get(alias).cloned().unwrap_or_else(|| alias.to_owned());
            GoType::Named(path, name.to_owned())
        }
        None => GoType::Named(path.to_owned(), text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declarations_are_read() {
        let mut package = GoPackage::default();
        parse(
            "example.com/api/v1",
            r#"package v1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// Phase of a thing.
// +enum
type Phase string

const (
	// First.
	PhaseOne Phase = "One"
	PhaseTwo       = Phase("Two")
	PhaseThree     = Phase(metav1.Three)
)

// +structType=atomic
type Thing struct {
	metav1.TypeMeta `json:",inline"`
	/* A block
	   comment. */
	// Names of it.
	// +listType=map
	// +listMapKey=a
	// +listMapKey=b
	Names []*Other `json:"names,omitempty" protobuf:"bytes,2,rep,name=names"` // trailing

	Raw map[string]runtime.RawExtension `json:"raw"`
}

type Other = Thing
type Ignored interface {
	Do()
}
"#,
            &mut package,
        );
        assert_eq!(package.order, ["Phase", "Thing", "Other"]);
        assert!(package.decls["Phase"].markers.has("enum"));
        let consts: Vec<_> = package.consts.iter().map(|(n, t, v)| (&**n, &**t, &**v)).collect();
        assert_eq!(consts, [("PhaseOne", "Phase", "One"), ("PhaseTwo", "Phase", "Two")]);
        let three =
            ("Phase".to_owned(), "k8s.io/apimachinery/pkg/apis/meta/v1".to_owned(), "Three".to_owned());
        assert_eq!(package.borrowed, [three]);
        let thing = &package.decls["Thing"];
        assert_eq!(thing.markers.get("structType"), Some("atomic"));
        let GoBody::Struct(fields) = &thing.body else { panic!("Thing is a struct") };
        assert_eq!(fields.iter().map(|f| &*f.name).collect::<Vec<_>>(), ["TypeMeta", "Names", "Raw"]);
        assert!(fields[0].embedded);
        assert_eq!(fields[1].markers.all("listMapKey").collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(fields[1].tags["json"], "names,omitempty");
        let other = GoType::Named("example.com/api/v1".into(), "Other".into());
        assert_eq!(fields[1].ty, GoType::Slice(Box::new(GoType::Pointer(Box::new(other)))));
        let raw = GoType::Named("k8s.io/apimachinery/pkg/runtime".into(), "RawExtension".into());
        assert_eq!(fields[2].ty, GoType::Map(Box::new(raw)));
        assert!(matches!(package.decls["Other"].body, GoBody::Same(_)));
    }
}
