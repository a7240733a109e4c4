//! Which definition may have which names: within a group, each name belongs to one.
//!
//! In: what definitions ask for and what they have. Out: what each gets, and who has a name that another one
//! wants. Pure, so that what is decided does not depend on the order of events.

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;
use yare_kinds::view::{View, ViewMut, same};

/// The names of one definition.
#[derive(Clone, Debug)]
pub struct Names {
    /// API group.
    pub group: String,
    /// `spec.names`
    pub wanted: Value,
    /// `status.acceptedNames`
    pub accepted: Value,
    /// `metadata.creationTimestamp`: who came first goes first.
    pub created: String,
}

/// What a definition gets.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// The new `status.acceptedNames`.
    pub accepted: Value,
    /// Reason and message of what it did not get.
    pub conflict: Option<(&'static str, String)>,
}

impl Names {
    /// The names in a definition.
    pub fn of(definition: &Value) -> Self {
        Self {
            group: definition.str_at("spec.group").to_owned(),
            wanted: definition.at("spec.names").clone(),
            accepted: definition.at("status.acceptedNames").clone(),
            created: definition.str_at("metadata.creationTimestamp").to_owned(),
        }
    }

    /// Whether the definition has what it wants.
    pub fn are_settled(&self) -> bool {
        same(&self.wanted, &self.accepted)
    }
}

/// Names of resources, and names of kinds, are spaces of their own.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Space {
    Resource,
    Kind,
}

/// Fields with one name: where its space is, and what a conflict is called. Later ones override earlier ones.
const SINGLE: &[(&str, Space, &str)] = &[
    ("plural", Space::Resource, "PluralConflict"),
    ("singular", Space::Resource, "SingularConflict"),
    ("kind", Space::Kind, "KindConflict"),
    ("listKind", Space::Kind, "ListKindConflict"),
];

/// Who has which name: kept up to date as definitions come, change and go, so that what is settled is never
/// looked at again.
#[derive(Default)]
pub struct Claims(HashMap<(Box<str>, Space, Box<str>), Box<str>>);

impl Claims {
    /// `definition` has `names` in `group`; what another one has stays that one's.
    pub fn add(&mut self, definition: &str, group: &str, names: &Value) {
        for (space, name) in all(names) {
            self.0.entry((group.into(), space, name.into())).or_insert_with(|| definition.into());
        }
    }

    /// `definition` has `names` no longer.
    pub fn remove(&mut self, definition: &str, group: &str, names: &Value) {
        for (space, name) in all(names) {
            let key = (Box::from(group), space, Box::from(name));
            if self.0.get(&key).is_some_and(|owner| **owner == *definition) {
                self.0.remove(&key);
            }
        }
    }
}

/// Every name in `spec.names` or `status.acceptedNames` that is one definition's alone.
fn all(names: &Value) -> impl Iterator<Item = (Space, &str)> {
    let single = SINGLE.iter().map(|(field, space, _)| (*space, names.str_at(field)));
    let short = names.strings("shortNames").into_iter().map(|name| (Space::Resource, name));
    single.chain(short).filter(|(_, name)| !name.is_empty())
}

/// What those definitions get that do not have what they want; whoever came first goes first. They claim what
/// they get.
pub fn judge<'a>(
    claims: &mut Claims,
    unsettled: impl Iterator<Item = (&'a str, &'a Names)>,
) -> BTreeMap<String, Verdict> {
    let mut all: Vec<(&str, &Names)> = unsettled.collect();
    all.sort_by(|(a, x), (b, y)| (&x.created, a).cmp(&(&y.created, b)));
    let mut out = BTreeMap::new();
    for (definition, names) in all {
        let verdict = decide(claims, definition, names);
        claims.add(definition, &names.group, &verdict.accepted);
        out.insert(definition.to_owned(), verdict);
    }
    out
}

fn decide(claims: &Claims, definition: &str, names: &Names) -> Verdict {
    let (wanted, has) = (&names.wanted, &names.accepted);
    let taken = |space, name: &str| {
        let owner = claims.0.get(&(names.group.as_str().into(), space, name.into()));
        owner.is_some_and(|owner| **owner != *definition).then(|| format!("{name:?} is already in use"))
    };
    let mut accepted = has.clone();
    let mut conflict = None;
    for (field, space, reason) in SINGLE {
        let name = wanted.str_at(field);
        // Short names are judged between the names of the resource and those of the kind.
        if *field == "kind"
            && let Some(message) = short_names(wanted, has, &mut accepted, &taken)
        {
            conflict = Some(("ShortNamesConflict", message));
        }
        match (name != has.str_at(field)).then(|| taken(*space, name)).flatten() {
            Some(message) => conflict = Some((*reason, message)),
            None => accepted.copy_from(wanted, field),
        }
    }
    accepted.copy_from(wanted, "categories");
    Verdict { accepted, conflict }
}

/// Takes over the short names, unless one is another's.
fn short_names(
    wanted: &Value,
    has: &Value,
    accepted: &mut Value,
    taken: &dyn Fn(Space, &str) -> Option<String>,
) -> Option<String> {
    let had = has.strings("shortNames");
    let mut messages: Vec<String> = Vec::new();
    for message in wanted
        .strings("shortNames")
        .into_iter()
        .filter(|n| !had.contains(n))
        .filter_map(|n| taken(Space::Resource, n))
    {
        if !messages.contains(&message) {
            messages.push(message);
        }
    }
    match &messages[..] {
        [] => {
            accepted.copy_from(wanted, "shortNames");
            None
        }
        [one] => Some(one.clone()),
        _ => Some(format!("[{}]", messages.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn names(group: &str, created: &str, wanted: Value, accepted: Value) -> Names {
        Names { group: group.into(), wanted, accepted, created: created.into() }
    }

    #[test]
    fn names_belong_to_who_has_or_came_first() {
        let own = |plural: &str, kind: &str| json!({"plural": plural, "singular": plural.trim_end_matches('s'), "kind": kind, "listKind": format!("{kind}List")});
        let mut short = own("cs", "C");
        short["shortNames"] = json!(["as", "x", "b"]);
        let all = [
            ("as.g", names("g", "1", own("as", "A"), json!({}))),
            ("bs.g", names("g", "2", own("bs", "A"), Value::Null)),
            ("cs.g", names("g", "3", short.clone(), json!({}))),
            ("as.h", names("h", "4", own("as", "A"), json!({}))),
            ("ds.g", names("g", "0", own("ds", "E"), own("ds", "D"))),
            ("es.g", names("g", "5", own("es", "E"), own("es", "E"))),
        ];
        let mut claims = Claims::default();
        for (name, names) in &all {
            claims.add(name, &names.group, &names.accepted);
        }
        let unsettled = || all.iter().filter(|(_, n)| !n.are_settled()).map(|(n, names)| (*n, names));
        let out = judge(&mut claims, unsettled());
        let conflict = |name: &str| out[name].conflict.clone();
        assert_eq!(conflict("as.g"), None);
        assert_eq!(conflict("bs.g"), Some(("ListKindConflict", "\"AList\" is already in use".into())));
        assert_eq!(out["bs.g"].accepted, json!({"plural": "bs", "singular": "b"}));
        assert_eq!(
            conflict("cs.g"),
            Some(("ShortNamesConflict", "[\"as\" is already in use, \"b\" is already in use]".into()))
        );
        assert_eq!(out["cs.g"].accepted, own("cs", "C"));
        assert_eq!(conflict("as.h"), None, "groups do not see each other");
        assert_eq!(conflict("ds.g"), Some(("ListKindConflict", "\"EList\" is already in use".into())));
        assert_eq!(out["ds.g"].accepted, own("ds", "D"), "what it had it keeps");
        assert!(!out.contains_key("es.g"), "nothing to decide");
        // Whose names another one wanted goes: they are free.
        claims.remove("as.g", "g", &out["as.g"].accepted);
        assert_eq!(judge(&mut claims, unsettled().filter(|(n, _)| *n == "bs.g"))["bs.g"].conflict, None);
    }
}
