//! Between the version an object rests in and the versions it is served in. What differs in more than its
//! `apiVersion` is the resource table's knowledge (`yare_kinds::convert`); custom resources differ in nothing
//! else (a conversion webhook is asked elsewhere).

use serde_json::Value;
use yare_kinds::{convert, table::Resource};

use crate::registry::Stored;

/// How one served version relates to the storage version.
#[derive(Clone, Copy)]
pub enum Convert {
    /// It is the storage version.
    None,
    /// Same shape: only `apiVersion` changes.
    Same,
    /// The row says how.
    Row(&'static Resource, &'static str),
}

/// How `version` of a built-in resource relates to how it is stored.
pub fn of(row: &'static Resource, version: &'static str, stored: &Stored) -> Convert {
    if &*stored.group == row.group && &*stored.version == version {
        Convert::None
    } else {
        Convert::Row(row, version)
    }
}

impl Convert {
    /// Storage version → served version.
    pub fn from_storage(&self, api_version: &str, object: &mut Value) {
        match self {
            Self::None => {}
            Self::Same => rename(object, api_version),
            Self::Row(row, version) => convert::from_storage(row, object, version),
        }
    }

    /// Served version → storage version.
    pub fn to_storage(&self, api_version: &str, object: &mut Value) {
        match self {
            Self::None => {}
            Self::Same => rename(object, api_version),
            Self::Row(row, _) => convert::to_storage(row, object),
        }
    }
}

fn rename(object: &mut Value, api_version: &str) {
    if let Some(map) = object.as_object_mut() {
        map.insert("apiVersion".into(), api_version.into());
    }
}
