//! Admission webhooks: programs outside that may change or refuse writes, as MutatingWebhookConfigurations
//! and ValidatingWebhookConfigurations say.
//!
//! Configurations are compiled once per change into [`Hook`]s; a request that none of them matches pays for
//! looking at their rules, and where there is none, for nothing.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Instant,
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde_json::Value;
use yare_kinds::view::same;

use super::{Attributes, Operation, metrics::Outcome, request};
use crate::{
    audit::Layer,
    core::Core,
    status::{ApiError, ApiResult},
};

mod hook;
mod review;

pub use hook::ByStep;
use hook::{Hook, Invocation};
use review::Refusal;

/// What configures admission.
pub const GROUP: &str = "admissionregistration.k8s.io";
/// Kinds of the store whose changes make webhooks be compiled anew.
pub const KINDS: [&str; 2] = [MUTATING, VALIDATING];
const MUTATING: &str = "admissionregistration.k8s.io/mutatingwebhookconfigurations";
const VALIDATING: &str = "admissionregistration.k8s.io/validatingwebhookconfigurations";

/// Nobody locks himself out: what configures admission is not subject to webhooks that are written through the API.
const EXEMPT: [&str; 6] = [
    "mutatingadmissionpolicies",
    "mutatingadmissionpolicybindings",
    "mutatingwebhookconfigurations",
    "validatingadmissionpolicies",
    "validatingadmissionpolicybindings",
    "validatingwebhookconfigurations",
];

/// All webhooks: those from files first, each in order of their configurations' names.
#[derive(Default)]
struct Compiled {
    mutating: Hooks,
    validating: Hooks,
    /// By kind and name of the configuration: its hooks, which keep their connections.
    known: HashMap<(&'static str, String), Known>,
}

/// Webhooks of one kind.
#[derive(Default)]
struct Hooks {
    all: Vec<Arc<Hook>>,
    /// How many of them are from files.
    fixed: usize,
}

impl Hooks {
    /// Those that may see a request. What configures admission is for those from files alone: nobody but the
    /// operator can lock himself out with them.
    fn about(&self, attributes: &Attributes<'_>) -> &[Arc<Hook>] {
        if is_exempt(attributes) { &self.all[..self.fixed] } else { &self.all }
    }
}

/// A configuration that has been compiled.
struct Known {
    revision: u64,
    hooks: Vec<Arc<Hook>>,
}

/// The webhooks in force.
#[derive(Default)]
pub struct Webhooks {
    compiled: ArcSwap<Compiled>,
    /// From files: those that change objects, and those that may refuse them.
    fixed: Mutex<[Vec<Arc<Hook>>; 2]>,
    /// One compiles at a time, so that none puts older ones in the place of newer ones.
    compiling: Mutex<()>,
}

impl Webhooks {
    /// Puts configurations from files in the place of those that were there.
    pub fn fix(&self, is_mutating: bool, configurations: &[Value], core: &Core) {
        let users = &core.config.admission.webhook_users;
        let hooks = configurations.iter().flat_map(|c| Hook::all_of(c, users, "manifest/")).collect();
        self.fixed.lock()[usize::from(!is_mutating)] = hooks;
        self.compile(core);
    }

    /// Compiles what changed.
    pub fn compile(&self, core: &Core) {
        let _one = self.compiling.lock();
        let before = self.compiled.load();
        let mut after = Compiled::default();
        let [mutating, validating] = self.fixed.lock().clone();
        after.mutating = Hooks { fixed: mutating.len(), all: mutating };
        after.validating = Hooks { fixed: validating.len(), all: validating };
        for (kind, is_mutating) in [(MUTATING, true), (VALIDATING, false)] {
            let snapshot = core.store().snapshot(kind);
            for object in snapshot.range(std::ops::Bound::Unbounded, "") {
                let key = (kind, object.key.to_string());
                let hooks = match before.known.get(&key) {
                    Some(known) if known.revision == object.revision => known.hooks.clone(),
                    _ => serde_json::from_slice(&object.bytes)
                        .map(|value| Hook::all_of(&value, &core.config.admission.webhook_users, ""))
                        .unwrap_or_default(),
                };
                let list = if is_mutating { &mut after.mutating.all } else { &mut after.validating.all };
                list.extend(hooks.iter().cloned());
                after.known.insert(key, Known { revision: object.revision, hooks });
            }
        }
        self.compiled.store(Arc::new(after));
    }
}

/// Whether the request is about what configures admission.
fn is_exempt(attributes: &Attributes<'_>) -> bool {
    let stored = &attributes.served.stored;
    &*stored.group == GROUP && EXEMPT.contains(&&*stored.plural)
}

/// What is remembered from the first round of mutating webhooks for the second, and last.
#[derive(Default)]
pub struct Rounds {
    round: usize,
    /// What the webhooks left behind.
    output: Option<Value>,
    changed: bool,
    /// Hooks that want to see later changes and have been called.
    called: BTreeSet<String>,
    /// Of them, those that a change came after.
    due: BTreeSet<String>,
}

impl Rounds {
    /// Something changed after the hooks that were called.
    fn changed(&mut self) {
        self.due.append(&mut self.called);
    }

    /// Whether any webhook changed the object.
    pub fn has_changes(&self) -> bool {
        self.changed
    }
}

/// Lets mutating webhooks change the object (of the storage version). Whether plugins and webhooks should see it
/// once more.
pub async fn mutate(
    attributes: &Attributes<'_>,
    object: &mut Value,
    old: Option<&Value>,
    rounds: &mut Rounds,
) -> ApiResult<bool> {
    let compiled = attributes.admission().webhooks.compiled.load_full();
    let hooks = compiled.mutating.about(attributes);
    if hooks.is_empty() {
        return Ok(false);
    }
    request::fill(attributes, object);
    let again = rounds.round > 0;
    if again && rounds.output.as_ref().is_some_and(|output| !same(output, object)) {
        // A plugin changed what the webhooks had left.
        rounds.changed();
    }
    let mut any = false;
    for (place, hook) in hooks.iter().enumerate() {
        let Some(invocation) = Invocation::of(hook, attributes, Some(object), old)? else { continue };
        // The second round is only for hooks of the first.
        if again && !rounds.due.contains(&hook.uid) {
            continue;
        }
        let at = format!("round_{}_index_{place}", rounds.round);
        let changed = call(attributes, &invocation, Some(object), old, &at).await?;
        let is_changed = changed.is_some();
        attributes.call.annotate(
            format!("mutation.webhook.admission.k8s.io/{at}"),
            serde_json::json!({
                "configuration": hook.configuration, "webhook": hook.name, "mutated": is_changed,
            })
            .to_string(),
        );
        if let Some(changed) = changed {
            crate::managed::replace(attributes.call, object, changed);
            rounds.changed();
            any = true;
        }
        if hook.reinvoke {
            rounds.called.insert(hook.uid.clone());
        }
    }
    rounds.changed |= any;
    // A policy may ask for a second round too.
    if any || (!again && !rounds.called.is_empty()) {
        rounds.output = Some(object.clone());
    }
    rounds.round += 1;
    Ok(any && !again)
}

/// Lets mutating webhooks see (but not change) a deletion or a connection.
pub async fn observe(
    attributes: &Attributes<'_>,
    object: Option<&Value>,
    old: Option<&Value>,
) -> ApiResult<()> {
    let compiled = attributes.admission().webhooks.compiled.load_full();
    for (place, hook) in compiled.mutating.about(attributes).iter().enumerate() {
        if let Some(invocation) = Invocation::of(hook, attributes, object, old)? {
            call(attributes, &invocation, object, old, &format!("round_0_index_{place}")).await?;
        }
    }
    Ok(())
}

/// Lets validating webhooks refuse the object, all at once. Of several refusals the first in order counts.
pub async fn validate(
    attributes: &Attributes<'_>,
    object: Option<&Value>,
    old: Option<&Value>,
) -> ApiResult<()> {
    let compiled = attributes.admission().webhooks.compiled.load_full();
    let hooks = compiled.validating.about(attributes);
    if hooks.is_empty() {
        return Ok(());
    }
    let mut matching = Vec::new();
    for hook in hooks {
        matching.extend(Invocation::of(hook, attributes, object, old)?);
    }
    let calls = matching.iter().enumerate().map(|(place, invocation)| async move {
        call(attributes, invocation, object, old, &format!("round_0_index_{place}")).await
    });
    futures::future::join_all(calls).await.into_iter().find_map(Result::err).map_or(Ok(()), Err)
}

/// Calls a webhook and says what came of it to metrics and audit. Gives the object where the webhook changed it.
async fn call(
    attributes: &Attributes<'_>,
    invocation: &Invocation<'_>,
    object: Option<&Value>,
    old: Option<&Value>,
    at: &str,
) -> ApiResult<Option<Value>> {
    let hook = invocation.hook;
    let started = Instant::now();
    let kind = if hook.is_mutating { "admit" } else { "validating" };
    let done = review::run(attributes, invocation, object, old, at).await;
    let outcome = match &done {
        Ok(_) => Outcome::Allowed,
        Err(Refusal::Denied(error)) => Outcome::Denied(error.code),
        Err(Refusal::Failed { code, .. }) if hook.ignores_failures => Outcome::FailedOpen(*code),
        Err(Refusal::Failed { code, .. }) => Outcome::Failed(*code),
        Err(Refusal::Internal(_)) => Outcome::Internal,
    };
    let metrics = &attributes.admission().metrics;
    metrics.webhook(&hook.name, kind, attributes.operation, outcome, started.elapsed());
    attributes.call.exclude(started.elapsed());
    let layer = if hook.is_mutating { Layer::MutatingWebhook } else { Layer::ValidatingWebhook };
    attributes.call.took(layer, started.elapsed());
    match done {
        Ok(changed) => {
            Ok(changed.filter(|_| !matches!(attributes.operation, Operation::Delete | Operation::Connect)))
        }
        Err(Refusal::Denied(error) | Refusal::Internal(error)) => Err(error),
        Err(Refusal::Failed { why, .. }) => {
            let text = format!("failed calling webhook {:?}: {why}", hook.name);
            if !hook.ignores_failures {
                return Err(ApiError::internal(text));
            }
            tracing::warn!(webhook = hook.name, why, "an admission webhook failed and is ignored");
            let kind = if hook.is_mutating { "mutation" } else { "validating" };
            attributes
                .call
                .annotate(format!("failed-open.{kind}.webhook.admission.k8s.io/{at}"), hook.name.clone());
            if attributes.call.time_left().is_zero() {
                return Err(ApiError::timeout("request did not complete within requested timeout"));
            }
            Ok(None)
        }
    }
}
