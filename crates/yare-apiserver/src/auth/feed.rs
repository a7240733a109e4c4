//! Keeps the authorizers in step with the store: they are told each change of the kinds they decide by.

use std::{collections::HashSet, sync::Arc};

use yare_auth::{node, rbac};
use yare_store::EventKind;

use super::Auth;
use crate::{core::Core, registry::store_kind};

const RBAC: &str = "rbac.authorization.k8s.io";

/// Tells until the server stops. What is in the store already is told before this returns.
pub fn start(core: &Arc<Core>) {
    if core.config.auth.permissive {
        return;
    }
    let rbac = rbac::RESOURCES.into_iter().map(|plural| (RBAC, plural));
    for (group, plural) in rbac.chain(node::RESOURCES) {
        let kind = store_kind(group, plural);
        let apply = move |auth: &Auth, key: &str, object: Option<&[u8]>| {
            if group == RBAC {
                auth.rbac.apply(plural, key, object);
            } else {
                auth.nodes.apply(plural, key, object);
            }
        };
        let mut known = HashSet::new();
        let mut from = take_in(core, &kind, &mut known, &apply);
        let core = core.clone();
        tokio::spawn(async move {
            loop {
                if let Ok(mut watcher) = core.store().watch(&kind, from) {
                    loop {
                        let batch = tokio::select! {
                            batch = watcher.next() => batch,
                            () = core.stop.cancelled() => return,
                        };
                        let Ok(batch) = batch else { break };
                        for event in batch {
                            let key = &event.object.key;
                            if event.kind == EventKind::Put {
                                known.insert(key.clone());
                                apply(&core.config.auth, key, Some(&event.object.bytes));
                            } else {
                                known.remove(key);
                                apply(&core.config.auth, key, None);
                            }
                        }
                    }
                }
                // Fell out of the watch's history: start over from the present state.
                from = take_in(&core, &kind, &mut known, &apply);
            }
        });
    }
}

/// Tells the authorizers all of a kind's present state; gives its revision.
fn take_in(
    core: &Core,
    kind: &str,
    known: &mut HashSet<Box<str>>,
    apply: &impl Fn(&Auth, &str, Option<&[u8]>),
) -> u64 {
    let snapshot = core.store().snapshot(kind);
    for gone in known.iter().filter(|key| snapshot.get(key).is_none()) {
        apply(&core.config.auth, gone, None);
    }
    known.clear();
    for object in snapshot.range(std::ops::Bound::Unbounded, "") {
        known.insert(object.key.clone());
        apply(&core.config.auth, &object.key, Some(&object.bytes));
    }
    snapshot.revision()
}
