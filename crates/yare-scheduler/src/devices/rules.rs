//! DeviceTaintRules: taints that administrators put on devices, beside those that drivers publish.

use std::{collections::BTreeMap, sync::Arc};

use serde::Deserialize;
use yare_client::{Cached, ViewError};

use super::types::{DeviceId, Taint};

/// All rules, by name.
#[derive(Debug, Default)]
pub struct Rules {
    all: BTreeMap<Box<str>, Rule>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct View {
    spec: Rule,
}

#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Rule {
    device_selector: Option<DeviceSelector>,
    taint: Taint,
}

#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct DeviceSelector {
    driver: Option<Arc<str>>,
    pool: Option<Arc<str>>,
    device: Option<Arc<str>>,
}

impl Rule {
    /// An empty selector means all devices, none means none.
    fn selects(&self, id: &DeviceId) -> bool {
        let fits =
            |wanted: &Option<Arc<str>>, got: &str| wanted.as_deref().is_none_or(|wanted| wanted == got);
        self.device_selector.as_ref().is_some_and(|s| {
            fits(&s.driver, &id.pool.driver) && fits(&s.pool, &id.pool.pool) && fits(&s.device, &id.device)
        })
    }
}

impl Rules {
    /// Takes in a rule; whether anything but its status is new.
    pub(super) fn set(&mut self, object: &Cached) -> Result<bool, ViewError> {
        let View { spec } = object.view()?;
        let new = self.all.get(object.name()) != Some(&spec);
        if new {
            self.all.insert(object.name().into(), spec);
        }
        Ok(new)
    }

    /// Forgets a rule; whether it was known.
    pub(super) fn remove(&mut self, name: &str) -> bool {
        self.all.remove(name).is_some()
    }

    /// The taints that rules put on a device.
    pub fn taints<'r>(&'r self, device: &'r DeviceId) -> impl Iterator<Item = &'r Taint> {
        self.all.values().filter(|rule| rule.selects(device)).map(|rule| &rule.taint)
    }
}
