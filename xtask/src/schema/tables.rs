//! From Go declarations to the schema tables of `yare-schema`.
//!
//! In: a directory of unpacked `golang-k8s-*-dev` packages. Out: one text file per API group, whose
//! format `crates/yare-schema/src/builtin/read.rs` describes. Facts only: names, types, numbers, markers.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use super::go::{self, GoBody, GoDecl, GoField, GoPackage, GoType, Markers};

/// Where Debian installs Go sources.
pub const GOPATH: &str = "usr/share/gocode/src";

const META: &str = "k8s.io/apimachinery/pkg/apis/meta/v1";
const APIEXTENSIONS: &str = "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1";

/// API packages outside `k8s.io/api`: import path, file, how other packages' tables refer to it.
const EXTRA: &[(&str, &str, &str)] = &[
    (META, "meta", "meta/v1"),
    ("k8s.io/apimachinery/pkg/apis/meta/v1beta1", "meta", "meta/v1beta1"),
    (APIEXTENSIONS, "apiextensions", "apiextensions/v1"),
    ("k8s.io/apiserver/pkg/apis/audit/v1", "audit", "audit/v1"),
    // Configuration files: encryption at rest, authentication, authorization, admission.
    ("k8s.io/apiserver/pkg/apis/apiserver/v1", "apiserver", "apiserver/v1"),
];

/// Types with JSON or protobuf forms of their own: import path, name, spelling in the tables.
const SPECIAL: &[(&str, &str, &str)] = &[
    (META, "Time", "time"),
    (META, "MicroTime", "microTime"),
    (META, "Duration", "duration"),
    (META, "FieldsV1", "fieldsV1"),
    ("k8s.io/apimachinery/pkg/api/resource", "Quantity", "quantity"),
    ("k8s.io/apimachinery/pkg/util/intstr", "IntOrString", "intOrString"),
    ("k8s.io/apimachinery/pkg/runtime", "RawExtension", "rawExtension"),
    ("k8s.io/apimachinery/pkg/runtime", "Unknown", "rawExtension"),
    ("k8s.io/apimachinery/pkg/types", "UID", "uid"),
    ("k8s.io/apimachinery/pkg/types", "NodeName", "nodeName"),
    ("k8s.io/apimachinery/pkg/types", "NamespacedName", "any"),
    (APIEXTENSIONS, "JSON", "json"),
    (APIEXTENSIONS, "JSONSchemaPropsOrArray", "schemaOrArray"),
    (APIEXTENSIONS, "JSONSchemaPropsOrBool", "schemaOrBool"),
    (APIEXTENSIONS, "JSONSchemaPropsOrStringArray", "schemaOrStrings"),
];

/// Kinds of the machinery that are not registered in a `register.go` of their own group:
/// package, kind, group and version it goes by.
const MACHINERY: &[(&str, &str)] = &[
    ("Status", "/v1"),
    ("APIVersions", "/v1"),
    ("APIGroupList", "/v1"),
    ("APIGroup", "/v1"),
    ("APIResourceList", "/v1"),
    ("Table", "meta.k8s.io/v1"),
    ("TableOptions", "meta.k8s.io/v1"),
    ("PartialObjectMetadata", "meta.k8s.io/v1"),
    ("PartialObjectMetadataList", "meta.k8s.io/v1"),
    ("WatchEvent", "*"),
    ("ListOptions", "*"),
    ("GetOptions", "*"),
    ("DeleteOptions", "*"),
    ("CreateOptions", "*"),
    ("UpdateOptions", "*"),
    ("PatchOptions", "*"),
];

/// All Go packages that the API needs.
pub struct Sources {
    packages: BTreeMap<String, GoPackage>,
    /// Import path to file stem and reference.
    api: BTreeMap<String, (String, String)>,
    register: BTreeMap<String, String>,
    /// Package and kind to what its generated lifecycle methods say, such as `("removed", "1.25")`.
    lifecycle: BTreeMap<(String, String), Vec<(&'static str, String)>>,
}

impl Sources {
    /// Reads the packages below `root`.
    pub fn read(root: &Path) -> Result<Self> {
        let mut out = Self {
            packages: BTreeMap::new(),
            api: BTreeMap::new(),
            register: BTreeMap::new(),
            lifecycle: BTreeMap::new(),
        };
        let api = root.join(GOPATH).join("k8s.io/api");
        for group in sorted(&api)? {
            let Some(name) = group.file_name().and_then(|n| n.to_str()).map(str::to_owned) else { continue };
            if !group.is_dir() || name == "testdata" {
                continue;
            }
            for version in sorted(&group)? {
                let v = version.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
                if version.join("register.go").is_file() {
                    out.api.insert(format!("k8s.io/api/{name}/{v}"), (name.clone(), format!("{name}/{v}")));
                }
            }
        }
        for (path, file, reference) in EXTRA {
            out.api.insert((*path).to_owned(), ((*file).to_owned(), (*reference).to_owned()));
        }
        for path in out.api.keys().cloned().collect::<Vec<_>>() {
            let dir = root.join(GOPATH).join(&path);
            let mut package = GoPackage::default();
            for file in sorted(&dir).with_context(|| format!("no package {path} in {}", root.display()))? {
                let name = file.file_name().and_then(|n| n.to_str()).unwrap_or_default();
                // Core's are written by hand.
                if matches!(name, "zz_generated.prerelease-lifecycle.go" | "lifecycle.go") {
                    lifecycle(&path, &fs::read_to_string(&file)?, &mut out.lifecycle);
                }
                if !name.ends_with(".go")
                    || name.starts_with("zz_")
                    || name.ends_with("_test.go")
                    || name.ends_with(".pb.go")
                    || name.contains("swagger_doc")
                {
                    continue;
                }
                let text = fs::read_to_string(&file)?;
                if name == "register.go" {
                    out.register.insert(path.clone(), text.clone());
                }
                go::parse(&path, &text, &mut package);
            }
            out.packages.insert(path, package);
        }
        Ok(out)
    }

    fn decl(&self, path: &str, name: &str) -> Option<&GoDecl> {
        let decl = self.packages.get(path)?.decls.get(name)?;
        match &decl.body {
            GoBody::Same(GoType::Named(path, name)) => self.decl(path, name),
            _ => Some(decl),
        }
    }

    /// Where the type of this name is declared by its own name.
    fn resolve<'a>(&'a self, path: &'a str, name: &'a str) -> (&'a str, &'a str) {
        match self.packages.get(path).and_then(|p| p.decls.get(name)).map(|d| &d.body) {
            Some(GoBody::Same(GoType::Named(path, name))) => self.resolve(path, name),
            _ => (path, name),
        }
    }

    /// The tables: file name to text.
    pub fn tables(&self) -> Result<BTreeMap<String, String>> {
        let mut files: BTreeMap<String, String> = BTreeMap::new();
        let kinds: BTreeMap<&String, Kinds> =
            self.api.keys().map(|p| Ok((p, self.kinds(p)?))).collect::<Result<_>>()?;
        let mut reachable = BTreeSet::new();
        for (path, kinds) in &kinds {
            for kind in &kinds.names {
                self.reach(path, kind, &mut reachable);
            }
        }
        for (path, (file, reference)) in &self.api {
            let package = &self.packages[path];
            let text = files.entry(file.clone()).or_insert_with(|| {
                "# Written by `cargo xtask schema` from upstream's packages: change it there.\n".into()
            });
            let kinds = &kinds[path];
            if path == META {
                writeln!(text, "package {reference} {}", openapi(path))?;
            } else {
                writeln!(text, "package {reference} {} {}/{}", openapi(path), kinds.group, kinds.version)?;
            }
            for name in &package.order {
                if kinds.names.contains(name.as_str()) && !self.is_plain_list(path, name, &kinds.names) {
                    write!(text, "kind {name}")?;
                    if path == META {
                        let at = MACHINERY.iter().find(|(kind, _)| kind == name).map_or("*", |(_, gv)| gv);
                        write!(text, " as={at}")?;
                    }
                    let list = format!("{name}List");
                    if kinds.names.contains(&list) && self.is_plain_list(path, &list, &kinds.names) {
                        write!(text, " list")?;
                    }
                    let said = self.lifecycle.get(&(path.clone(), name.clone()));
                    for part in ["introduced", "deprecated", "replacement", "removed"] {
                        for (_, value) in said.into_iter().flatten().filter(|(p, _)| *p == part) {
                            write!(text, " {part}={value}")?;
                        }
                    }
                    text.push('\n');
                }
            }
            for name in &package.order {
                if reachable.contains(&(path.clone(), name.clone()))
                    && !self.is_plain_list(path, name, &kinds.names)
                {
                    self.write_type(text, path, name)
                        .with_context(|| format!("cannot tabulate {path}.{name}"))?;
                }
            }
        }
        Ok(files)
    }

    /// Everything that the type reaches, spelled specially or not at all excluded.
    fn reach(&self, path: &str, name: &str, out: &mut BTreeSet<(String, String)>) {
        let (path, name) = self.resolve(path, name);
        if special(path, name).is_some_and(|s| !s.starts_with("schemaOr")) {
            return;
        }
        let Some(decl) = self.decl(path, name) else { return };
        if !out.insert((path.to_owned(), name.to_owned())) {
            return;
        }
        match &decl.body {
            GoBody::Struct(fields) => fields.iter().for_each(|f| self.reach_type(&f.ty, out)),
            GoBody::Alias(ty) | GoBody::Same(ty) => self.reach_type(ty, out),
        }
    }

    fn reach_type(&self, ty: &GoType, out: &mut BTreeSet<(String, String)>) {
        match ty {
            GoType::Basic(_) => {}
            GoType::Named(path, name) => self.reach(path, name, out),
            GoType::Pointer(t) | GoType::Slice(t) | GoType::Map(t) => self.reach_type(t, out),
        }
    }

    /// Whether `name` is a list of a registered kind with nothing particular about it.
    fn is_plain_list(&self, path: &str, name: &str, kinds: &BTreeSet<String>) -> bool {
        let Some(item) = name.strip_suffix("List") else { return false };
        let Some(GoBody::Struct(fields)) = self.decl(path, name).map(|d| &d.body) else { return false };
        let [meta, list, items] = fields.as_slice() else { return false };
        let tag = |f: &GoField, key: &str| f.tags.get(key).cloned().unwrap_or_default();
        kinds.contains(item)
            && meta.name == "TypeMeta"
            && list.name == "ListMeta"
            && tag(list, "json") == "metadata,omitempty"
            && number(&tag(list, "protobuf")) == Some(1)
            && tag(items, "json") == "items"
            && number(&tag(items, "protobuf")) == Some(2)
            && items.ty == GoType::Slice(Box::new(GoType::Named(path.to_owned(), item.to_owned())))
            && items.markers.get("listType").is_none()
            && list_kind(&items.markers).is_empty()
    }

    fn kinds(&self, path: &str) -> Result<Kinds> {
        if path == META {
            let names = MACHINERY.iter().map(|(k, _)| (*k).to_owned()).collect();
            return Ok(Kinds { group: "meta.k8s.io".into(), version: "v1".into(), names });
        }
        let version = path.rsplit('/').next().unwrap_or_default().to_owned();
        let Some(register) = self.register.get(path) else { bail!("{path} has no register.go") };
        let package = &self.packages[path];
        let group = package.consts.iter().find(|(name, ..)| name == "GroupName").map(|(_, _, v)| v.clone());
        let mut names = BTreeSet::new();
        for piece in register.split('&').skip(1) {
            let name: String = piece.chars().take_while(|c| c.is_alphanumeric()).collect();
            if piece[name.len()..].starts_with("{}") && package.decls.contains_key(&name) {
                names.insert(name);
            }
        }
        if path == "k8s.io/apimachinery/pkg/apis/meta/v1beta1" {
            // Shares its kinds with v1 but for the list, which v1beta1 declares itself.
            names.retain(|n| n == "PartialObjectMetadataList");
            return Ok(Kinds { group: "meta.k8s.io".into(), version, names });
        }
        // Embeds a type of component-base, which is in none of the packages.
        names.remove("TracingConfiguration");
        let group = group.with_context(|| format!("{path}/register.go names no GroupName"))?;
        Ok(Kinds { group, version, names })
    }

    fn write_type(&self, text: &mut String, path: &str, name: &str) -> Result<()> {
        let decl = self.decl(path, name).expect("reachable types are declared");
        if let Some(spelling) = special(path, name) {
            if spelling.starts_with("schemaOr") {
                writeln!(text, "{spelling} {name}")?;
            }
            return Ok(());
        }
        match &decl.body {
            GoBody::Struct(fields) => {
                let atomic = match decl.markers.get("structType") {
                    Some("atomic") => " atomic",
                    Some("granular") | None => "",
                    Some(other) => bail!("unknown structType {other}"),
                };
                writeln!(text, "struct {name}{atomic}")?;
                self.write_fields(text, path, fields, &mut Vec::new(), true)
            }
            GoBody::Alias(GoType::Basic(basic)) if basic == "string" => {
                write!(text, "string {name}")?;
                if decl.markers.has("enum") {
                    let values = self.values(path, name);
                    let quoted = values.iter().any(|v| v.contains(' '));
                    for value in values {
                        if quoted { write!(text, " {value:?}") } else { write!(text, " {value}") }?;
                    }
                }
                text.push('\n');
                Ok(())
            }
            // `type List metav1.List`: the same fields under a new name.
            GoBody::Alias(GoType::Named(of, target))
                if matches!(self.decl(of, target), Some(GoDecl { body: GoBody::Struct(_), .. })) =>
            {
                let Some(GoDecl { body: GoBody::Struct(fields), .. }) = self.decl(of, target) else {
                    unreachable!("matched above");
                };
                writeln!(text, "struct {name}")?;
                self.write_fields(text, path, fields, &mut Vec::new(), true)
            }
            GoBody::Alias(ty) | GoBody::Same(ty) => {
                let items = if decl.markers.has("protobuf.nullable") { "items" } else { "alias" };
                writeln!(text, "{items} {name} {}", self.spell(path, ty, &Markers::default())?)?;
                Ok(())
            }
        }
    }

    /// The constants of a string type, sorted.
    fn values(&self, path: &str, name: &str) -> BTreeSet<&str> {
        let package = &self.packages[path];
        let own = package.consts.iter().filter(|(_, ty, _)| ty == name).map(|(.., v)| v.as_str());
        let borrowed =
            package.borrowed.iter().filter(|(ty, ..)| ty == name).filter_map(|(_, path, other)| {
                let consts = &self.packages.get(path)?.consts;
                consts.iter().find(|(n, ..)| n == other).map(|(.., v)| v.as_str())
            });
        own.chain(borrowed).collect()
    }

    fn write_fields(
        &self,
        text: &mut String,
        path: &str,
        fields: &[GoField],
        numbers: &mut Vec<u32>,
        in_proto: bool,
    ) -> Result<()> {
        for field in fields {
            let json = field.tags.get("json").cloned().unwrap_or_default();
            if json == "-" || !field.name.starts_with(char::is_uppercase) {
                continue;
            }
            let mut parts = json.split(',');
            let json_name = parts.next().unwrap_or_default();
            let options: Vec<&str> = parts.collect();
            let number = field.tags.get("protobuf").and_then(|t| number(t));
            if field.embedded && json_name.is_empty() {
                if field.name == "TypeMeta" {
                    writeln!(text, "  TypeMeta")?;
                    continue;
                }
                let GoType::Named(of, name) = unpointer(&field.ty) else { bail!("odd embedded field") };
                let Some(GoDecl { body: GoBody::Struct(inner), .. }) = self.decl(of, name) else {
                    bail!("embeds {of}.{name}, which is no known struct");
                };
                writeln!(text, "  inline {}", field.name)?;
                if let Some(n) = number {
                    numbers.push(n);
                }
                // Types are spelled as seen from the struct they are inlined into.
                self.write_fields(text, path, inner, numbers, in_proto && number.is_some())?;
                if number.is_some() {
                    numbers.pop();
                }
                writeln!(text, "  end")?;
                continue;
            }
            let json_name = if json_name.is_empty() { &field.name } else { json_name };
            let omit_empty = options.contains(&"omitempty");
            let omit_zero = options.contains(&"omitzero");
            // As openapi-gen decides it: markers go before `omitempty`.
            let required = field.markers.has("required")
                || (!field.markers.has("optional")
                    && !field.markers.has("k8s:optional")
                    && !omit_empty
                    && !omit_zero);
            write!(text, "  {json_name}")?;
            if required {
                text.push('!');
            }
            match (omit_empty, omit_zero) {
                (_, true) => text.push_str("??"),
                (true, false) => text.push('?'),
                (false, false) => {}
            }
            write!(text, " {} ", self.spell(path, &field.ty, &field.markers)?)?;
            match number {
                Some(n) if in_proto => {
                    for outer in numbers.iter() {
                        write!(text, "{outer}.")?;
                    }
                    write!(text, "{n}")?;
                }
                _ => text.push('-'),
            }
            match field.tags.get("patchStrategy").map(String::as_str) {
                None => {}
                Some("replace") => text.push_str(" replace"),
                Some("merge") => text.push_str(" merge"),
                Some("retainKeys") => text.push_str(" retainKeys"),
                Some("merge,retainKeys") => text.push_str(" merge retainKeys"),
                Some(other) => bail!("{json_name}: unknown patch strategy {other}"),
            }
            if let Some(key) = field.tags.get("patchMergeKey") {
                write!(text, " key={key}")?;
            }
            if let Some(kind) = field.markers.get("structType") {
                write!(text, " {kind}")?;
            }
            if let Some(default) = field.markers.get("default") {
                write!(text, " default={}", self.default(path, default)?)?;
            }
            text.push('\n');
        }
        Ok(())
    }

    fn default(&self, path: &str, text: &str) -> Result<String> {
        let Some(name) = text.strip_prefix("ref(").and_then(|t| t.strip_suffix(')')) else {
            let value: serde_json::Value = serde_json::from_str(text)?;
            return Ok(value.to_string());
        };
        let consts = &self.packages[path].consts;
        let (.., value) = consts
            .iter()
            .find(|(n, ..)| n == name)
            .with_context(|| format!("no constant {name} in {path}"))?;
        Ok(serde_json::Value::from(value.as_str()).to_string())
    }

    fn spell(&self, path: &str, ty: &GoType, markers: &Markers) -> Result<String> {
        Ok(match ty {
            GoType::Basic(name) => match name.as_str() {
                "string" | "bool" | "int32" | "int64" | "float64" => name.clone(),
                "int" | "uint32" => "int64".to_owned(),
                "int16" | "uint16" | "uint8" => "int32".to_owned(),
                "interface{}" | "any" => "any".to_owned(),
                other => bail!("no spelling for the Go type {other}"),
            },
            GoType::Named(of, name) => {
                let (of, name) = self.resolve(of, name);
                if let Some(spelling) = special(of, name).filter(|s| !s.starts_with("schemaOr")) {
                    return Ok(spelling.to_owned());
                }
                let Some((_, reference)) = self.api.get(of) else { bail!("refers to {of}.{name}") };
                let relation = match markers.get("mapType") {
                    Some("atomic") => "{atomic}".to_owned(),
                    _ => list_kind_suffix(markers)?,
                };
                if of == path { format!("{name}{relation}") } else { format!("{reference}.{name}{relation}") }
            }
            GoType::Pointer(inner) => format!("*{}", self.spell(path, inner, markers)?),
            GoType::Slice(item) if **item == GoType::Basic("byte".into()) => "bytes".to_owned(),
            GoType::Slice(item) => {
                format!("[]{}{}", self.spell(path, item, &Markers::default())?, list_kind_suffix(markers)?)
            }
            GoType::Map(value) => {
                let atomic = match markers.get("mapType") {
                    Some("atomic") => "{atomic}",
                    Some("granular") | None => "",
                    Some(other) => bail!("unknown mapType {other}"),
                };
                format!("map[{}]{atomic}", self.spell(path, value, &Markers::default())?)
            }
        })
    }
}

struct Kinds {
    group: String,
    version: String,
    names: BTreeSet<String>,
}

fn list_kind(markers: &Markers) -> &str {
    match markers.get("listType") {
        Some("set") => "set",
        Some("map") => "map",
        _ => "",
    }
}

fn list_kind_suffix(markers: &Markers) -> Result<String> {
    Ok(match markers.get("listType") {
        None => String::new(),
        Some("atomic") => "{atomic}".to_owned(),
        Some("set") => "{set}".to_owned(),
        Some("map") => format!("{{{}}}", markers.all("listMapKey").collect::<Vec<_>>().join(",")),
        Some(other) => bail!("unknown listType {other}"),
    })
}

fn unpointer(ty: &GoType) -> &GoType {
    match ty {
        GoType::Pointer(inner) => inner,
        ty => ty,
    }
}

fn special(path: &str, name: &str) -> Option<&'static str> {
    SPECIAL.iter().find(|(p, n, _)| *p == path && *n == name).map(|(.., s)| *s)
}

/// Reads `func (in *Kind) APILifecycleRemoved() … {` and the `return` below it.
fn lifecycle(path: &str, text: &str, out: &mut BTreeMap<(String, String), Vec<(&'static str, String)>>) {
    let mut current: Option<(&str, &'static str)> = None;
    for line in text.lines() {
        if let Some((kind, method)) =
            line.strip_prefix("func (in *").and_then(|l| l.split_once(") APILifecycle"))
        {
            current = ["Introduced", "Deprecated", "Removed", "Replacement"]
                .into_iter()
                .zip(["introduced", "deprecated", "removed", "replacement"])
                .find(|(m, _)| method.starts_with(m))
                .map(|(_, part)| (kind, part));
        } else if let (Some((kind, part)), Some(value)) = (current, line.trim().strip_prefix("return ")) {
            let value = match part {
                // schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: "Scale"}
                "replacement" => value.split('"').skip(1).step_by(2).collect::<Vec<_>>().join("/"),
                _ => value.replace(", ", "."),
            };
            out.entry((path.to_owned(), kind.to_owned())).or_default().push((part, value));
            current = None;
        }
    }
}

/// The field number in a protobuf struct tag.
fn number(tag: &str) -> Option<u32> {
    tag.split(',').nth(1)?.parse().ok()
}

/// `k8s.io/api/core/v1` is `io.k8s.api.core.v1` in OpenAPI.
fn openapi(path: &str) -> String {
    let (domain, rest) = path.split_once('/').unwrap_or((path, ""));
    let mut parts: Vec<&str> = domain.split('.').rev().collect();
    parts.extend(rest.split('/'));
    parts.join(".")
}

fn sorted(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut out: Vec<PathBuf> = fs::read_dir(dir)
        .with_context(|| format!("cannot list {}", dir.display()))?
        .map(|e| e.map(|e| e.path()))
        .collect::<std::io::Result<_>>()?;
    out.sort();
    Ok(out)
}
