//! Between the version an object rests in and the versions it is served in. What differs in more than its
//! `apiVersion` is the resource table's knowledge (`yare_kinds::convert`); custom resources differ in nothing
//! else unless their definition names a conversion webhook.

use std::sync::Arc;

use serde_json::Value;
use yare_kinds::{convert, table::Resource};

use crate::{crd::Conversion, registry::Stored, status::ApiResult};

/// How one served version relates to the storage version.
#[derive(Clone)]
pub enum Convert {
    /// It is the storage version.
    None,
    /// Same shape: only `apiVersion` changes.
    Same,
    /// The row says how.
    Row(&'static Resource, &'static str),
    /// A webhook knows.
    Webhook(Arc<Conversion>),
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
    /// Storage version → served version. Only a webhook can fail.
    pub fn from_storage(&self, api_version: &str, object: &mut Value) -> ApiResult<()> {
        match self {
            Self::None => {}
            Self::Same => rename(object, api_version),
            Self::Row(row, version) => convert::from_storage(row, object, version),
            Self::Webhook(webhook) => webhook.convert(object, api_version)?,
        }
        Ok(())
    }

    /// Served version → storage version. Only a webhook can fail.
    pub fn to_storage(&self, api_version: &str, object: &mut Value) -> ApiResult<()> {
        match self {
            Self::None => {}
            Self::Same => rename(object, api_version),
            Self::Row(row, _) => convert::to_storage(row, object),
            Self::Webhook(webhook) => webhook.convert(object, api_version)?,
        }
        Ok(())
    }
}

fn rename(object: &mut Value, api_version: &str) {
    if let Some(map) = object.as_object_mut() {
        map.insert("apiVersion".into(), api_version.into());
    }
}
