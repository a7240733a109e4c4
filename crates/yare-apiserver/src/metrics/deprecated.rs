//! Versions of APIs that are on their way out and that somebody used since the server started.

use std::collections::BTreeSet;

use parking_lot::Mutex;

use super::text::Page;
use crate::registry::{Deprecation, Served};

/// Group, removal, resource, subresource and version.
type Use = [Box<str>; 5];
const LABELS: [&str; 5] = ["group", "removed_release", "resource", "subresource", "version"];

/// All of them.
#[derive(Default)]
pub struct Deprecated(Mutex<BTreeSet<Use>>);

impl Deprecated {
    /// Somebody used a version that is served; names of subresources that are not must have been refused before.
    pub fn used(&self, served: &Served, subresource: &str, deprecation: &Deprecation) {
        let labels: Use = [
            served.group.clone(),
            deprecation.removed.clone(),
            served.plural.clone(),
            subresource.into(),
            served.version.clone(),
        ];
        self.0.lock().insert(labels);
    }

    pub(super) fn expose(&self, page: &mut Page) {
        let name = "apiserver_requested_deprecated_apis";
        page.family(name, "gauge", "[STABLE] Gauge of deprecated APIs that have been requested, broken out by API group, version, resource, subresource, and removed_release.");
        for labels in self.0.lock().iter() {
            let labels: Vec<(&str, &str)> =
                LABELS.into_iter().zip(labels.iter().map(|text| &**text)).collect();
            page.sample(name, &labels, 1);
        }
    }
}
