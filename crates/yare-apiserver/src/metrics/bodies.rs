//! How large the bodies of requests are, by resource and verb.

use std::{
    array,
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
};

use parking_lot::Mutex;
use yare_metrics::Histogram;

use super::text::Page;
use crate::registry::Served;

const BOUNDS: usize = 31;
/// Distinct labels that are kept, whatever custom resources come and go; what comes beyond them is not counted.
const MAX_SERIES: usize = 4096;

/// Upper bounds: 50 kB, and on in steps of 100 kB up to what a request may have.
fn bounds_bytes() -> [f64; BOUNDS] {
    array::from_fn(|at| 50_000.0 + 100_000.0 * at as f64)
}

struct Sizes {
    group: Box<str>,
    resource: Box<str>,
    verb: &'static str,
    bytes: Histogram<BOUNDS>,
}

/// All of them: one lookup by the labels' hash, and no allocation for labels that were seen before.
#[derive(Default)]
pub struct Bodies {
    hasher: RandomState,
    sizes: Mutex<HashMap<u64, Box<Sizes>>>,
}

impl Bodies {
    /// A body was read, of a request with that verb.
    pub fn read(&self, served: &Served, verb: &str, bytes: usize) {
        let verb = match verb {
            "create" => "create",
            "update" => "update",
            "patch" => "patch",
            "delete" => "delete",
            "deletecollection" => "delete_collection",
            _ => return,
        };
        let (group, resource) = (&served.group, &served.plural);
        let hash = self.hasher.hash_one((group, resource, verb));
        let mut all = self.sizes.lock();
        if all.len() >= MAX_SERIES && !all.contains_key(&hash) {
            return;
        }
        let sizes = all.entry(hash).or_insert_with(|| {
            let (group, resource, bytes) = (group.clone(), resource.clone(), Histogram::default());
            Box::new(Sizes { group, resource, verb, bytes })
        });
        sizes.bytes.observe(&bounds_bytes(), bytes as f64);
    }

    pub(super) fn expose(&self, page: &mut Page) {
        let name = "apiserver_request_body_size_bytes";
        page.family(
            name,
            "histogram",
            "[ALPHA] Apiserver request body size in bytes broken out by resource and verb.",
        );
        let all = self.sizes.lock();
        let mut sorted: Vec<&Sizes> = all.values().map(|sizes| &**sizes).collect();
        sorted.sort_by_key(|s| (&s.group, &s.resource, s.verb));
        for Sizes { group, resource, verb, bytes } in sorted {
            let labels = [("group", &**group), ("resource", &**resource), ("verb", *verb)];
            bytes.expose(page, name, &labels, &bounds_bytes());
        }
    }
}
