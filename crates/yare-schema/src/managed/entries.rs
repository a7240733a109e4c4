//! `metadata.managedFields`: who manages which fields of an object, since when.

use serde_json::{Map, Value};

use super::set::Set;
use crate::goprint;

/// How a manager came to own fields.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Operation {
    /// By server-side apply.
    Apply,
    /// By create, update or any other patch.
    Update,
}

/// One manager's fields.
#[derive(Clone, PartialEq, Debug)]
pub struct Entry {
    /// Its name.
    pub manager: String,
    /// How it came to own them.
    pub operation: Operation,
    /// The API version that the paths are of.
    pub api_version: String,
    /// The subresource it wrote through, empty for the object itself.
    pub subresource: String,
    /// When its fields last changed, RFC 3339 in UTC.
    pub time: Option<String>,
    /// The fields.
    pub fields: Set,
}

impl Entry {
    /// Whether both are of the same manager. A manager has one applied configuration, whatever its version,
    /// but updates count per version.
    pub fn same_manager(&self, other: &Entry) -> bool {
        self.manager == other.manager
            && self.operation == other.operation
            && self.subresource == other.subresource
            && (self.operation == Operation::Apply || self.api_version == other.api_version)
    }

    /// The manager as messages name it.
    pub(crate) fn shown(&self) -> String {
        let mut out = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            out.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        if self.operation == Operation::Update {
            out.push_str(" using ");
            out.push_str(&self.api_version);
        }
        out
    }
}

/// Most entries that are read; an object with more is treated as having none.
const MAX_ENTRIES: usize = 1_000;

/// Reads `metadata.managedFields`. `trusted`: this crate wrote the sets.
///
/// # Errors
/// What is wrong with the first entry that is malformed, in upstream's words.
pub(crate) fn decode(entries: Vec<Value>, trusted: bool) -> Result<Vec<Entry>, String> {
    if entries.len() > MAX_ENTRIES {
        return Err(format!("there are more than {MAX_ENTRIES} managed fields entries"));
    }
    let mut out: Vec<Entry> = Vec::with_capacity(entries.len() + 1);
    for (i, entry) in entries.into_iter().enumerate() {
        let Value::Object(mut entry) = entry else {
            return Err(format!("managed fields entry {i} is not an object"));
        };
        let mut text = |name: &str| match entry.remove(name) {
            Some(Value::String(text)) => text,
            _ => String::new(),
        };
        let operation = match text("operation").as_str() {
            "Apply" => Operation::Apply,
            "Update" => Operation::Update,
            _ => return Err("operation must be `Apply` or `Update`".to_owned()),
        };
        let (api_version, manager, subresource) = (text("apiVersion"), text("manager"), text("subresource"));
        if api_version.is_empty() {
            return Err("apiVersion must not be empty".to_owned());
        }
        match text("fieldsType").as_str() {
            "FieldsV1" => {}
            "" => return Err(format!("missing fieldsType in managed fields entry {i}")),
            other => {
                let other = goprint::quote(other);
                return Err(format!("invalid fieldsType {other} in managed fields entry {i}"));
            }
        }
        let time = Some(text("time")).filter(|t| !t.is_empty());
        let fields = match entry.remove("fieldsV1") {
            Some(Value::Object(fields)) if trusted => Set::trusted(fields),
            None | Some(Value::Null) => Set::new(),
            Some(fields) => Set::parse(&fields).map_err(|e| format!("error decoding set: {e}"))?,
        };
        let entry = Entry { manager, operation, api_version, subresource, time, fields };
        // Of two entries of one manager the later one counts.
        match out.iter_mut().find(|e| e.same_manager(&entry)) {
            Some(same) => *same = entry,
            None => out.push(entry),
        }
    }
    Ok(out)
}

/// Writes entries in upstream's order; `None` for none.
pub(crate) fn encode(mut entries: Vec<Entry>) -> Option<Value> {
    if entries.is_empty() {
        return None;
    }
    entries.sort_by(|a, b| {
        a.operation
            .cmp(&b.operation)
            .then_with(|| a.time.cmp(&b.time))
            .then_with(|| a.manager.cmp(&b.manager))
            .then_with(|| a.api_version.cmp(&b.api_version))
            .then_with(|| a.subresource.cmp(&b.subresource))
    });
    let one = |entry: Entry| {
        let operation = if entry.operation == Operation::Apply { "Apply" } else { "Update" };
        let mut out = Map::new();
        out.insert("apiVersion".to_owned(), Value::String(entry.api_version));
        out.insert("fieldsType".to_owned(), Value::from("FieldsV1"));
        out.insert("fieldsV1".to_owned(), entry.fields.into_value());
        // Go leaves an empty name out.
        if !entry.manager.is_empty() {
            out.insert("manager".to_owned(), Value::String(entry.manager));
        }
        out.insert("operation".to_owned(), Value::from(operation));
        if !entry.subresource.is_empty() {
            out.insert("subresource".to_owned(), Value::String(entry.subresource));
        }
        if let Some(time) = entry.time {
            out.insert("time".to_owned(), Value::String(time));
        }
        Value::Object(out)
    };
    Some(Value::Array(entries.into_iter().map(one).collect()))
}

/// Most managers that came by updates; upstream keeps as many.
const MAX_UPDATE_MANAGERS: usize = 10;
/// Who owns the fields of update managers that became too many.
const ANCIENT: &str = "ancient-changes";

/// Folds the oldest update managers of each version into one until no more than ten are left.
pub(crate) fn cap(entries: &mut Vec<Entry>) {
    let mut updaters: Vec<usize> =
        (0..entries.len()).filter(|&i| entries[i].operation == Operation::Update).collect();
    let mut count = updaters.len();
    if count <= MAX_UPDATE_MANAGERS {
        return;
    }
    let order = |i: &usize| {
        let e = &entries[*i];
        (e.time.clone(), e.manager.clone(), e.api_version.clone(), e.subresource.clone())
    };
    updaters.sort_by_cached_key(order);
    // By version: the first entry seen, which turns into the bucket once there is a second.
    let mut first: Vec<(String, usize)> = Vec::new();
    let mut folded = vec![false; entries.len()];
    for i in updaters {
        if count <= MAX_UPDATE_MANAGERS {
            break;
        }
        let version = entries[i].api_version.clone();
        let Some(&(_, first_at)) = first.iter().find(|(v, _)| *v == version) else {
            first.push((version, i));
            continue;
        };
        let bucket = entries.iter().position(|e| {
            e.manager == ANCIENT
                && e.operation == Operation::Update
                && e.api_version == version
                && e.subresource.is_empty()
        });
        let at = match bucket {
            Some(at) if !folded[at] => at,
            _ => {
                entries[first_at].manager = ANCIENT.to_owned();
                entries[first_at].subresource.clear();
                first_at
            }
        };
        if at == i {
            continue;
        }
        let fields = std::mem::take(&mut entries[i].fields);
        let time = entries[i].time.clone();
        entries[at].fields.union(&fields);
        entries[at].time = time;
        folded[i] = true;
        count -= 1;
    }
    let mut at = 0;
    entries.retain(|_| {
        at += 1;
        !folded[at - 1]
    });
}
