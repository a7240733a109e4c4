//! Admission policies: rules in CEL that change or refuse writes, as ValidatingAdmissionPolicies,
//! MutatingAdmissionPolicies and their bindings say.
//!
//! Policies are compiled once per change, and found by the plural name of the resource: a request that no policy
//! is about pays for one look into a map. A policy without a binding does nothing and is not even kept.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde_json::Value;
use yare_kinds::{
    expressions::{Compiler, Scope},
    view::View,
};

use super::{
    Attributes,
    expressions::{Conditions, Variables},
    matching::Matcher,
};
use crate::{core::Core, registry::Served};

mod mutating;
mod params;
mod permissions;
mod validating;

use mutating::Mutations;
pub use mutating::{Rounds, mutate, observe};
use params::{ParamKind, ParamRef};
pub use permissions::check as check_permissions;
use validating::Validations;
pub use validating::validate;

/// Kinds of the store whose changes make policies be compiled anew.
pub const KINDS: [&str; 4] =
    [Validations::POLICIES, Validations::BINDINGS, Mutations::POLICIES, Mutations::BINDINGS];

/// Reviews are how authorization works: no policy may stand in their way.
const EXEMPT: [(&str, &str); 6] = [
    ("authentication.k8s.io", "selfsubjectreviews"),
    ("authentication.k8s.io", "tokenreviews"),
    ("authorization.k8s.io", "localsubjectaccessreviews"),
    ("authorization.k8s.io", "selfsubjectaccessreviews"),
    ("authorization.k8s.io", "selfsubjectrulesreviews"),
    ("authorization.k8s.io", "subjectaccessreviews"),
];

/// What policies of one kind do beside choosing their requests.
trait Rules: Sized {
    /// The kind of the policies in the store.
    const POLICIES: &'static str;
    /// The kind of their bindings.
    const BINDINGS: &'static str;
    /// From a specification, with a compiler that knows its variables.
    fn compile(spec: &Value, compiler: &mut Compiler<'_>) -> Self;
}

/// A policy, compiled.
struct Policy<R> {
    name: String,
    /// The request passes where the policy makes a mistake.
    ignores_failures: bool,
    param_kind: Option<ParamKind>,
    matcher: Matcher,
    variables: Variables,
    conditions: Conditions,
    rules: R,
}

impl<R: Rules> Policy<R> {
    fn new(policy: &Value) -> Self {
        let spec = policy.at("spec");
        let scope = Scope::of_policy(spec.has("paramKind"));
        let mut compiler = Compiler::composing();
        let variables = Variables::new(&mut compiler, spec.items("variables"), scope);
        Self {
            name: policy.str_at("metadata.name").to_owned(),
            ignores_failures: spec.str_at("failurePolicy") == "Ignore",
            param_kind: spec.has("paramKind").then(|| ParamKind::new(spec.at("paramKind"))),
            matcher: Matcher::of_resources(spec.at("matchConstraints")),
            conditions: Conditions::new(&mut compiler, spec.items("matchConditions"), scope),
            rules: R::compile(spec, &mut compiler),
            variables,
        }
    }
}

/// A binding: where a policy holds, with which parameters, and what comes of it.
struct Binding {
    name: String,
    policy: String,
    param_ref: Option<ParamRef>,
    matcher: Option<Matcher>,
    actions: Vec<String>,
}

impl Binding {
    fn new(binding: &Value) -> Self {
        let spec = binding.at("spec");
        Self {
            name: binding.str_at("metadata.name").to_owned(),
            policy: spec.str_at("policyName").to_owned(),
            param_ref: spec.has("paramRef").then(|| ParamRef::new(spec.at("paramRef"))),
            matcher: spec.has("matchResources").then(|| Matcher::of_resources(spec.at("matchResources"))),
            actions: spec.strings("validationActions").iter().map(|a| (*a).to_owned()).collect(),
        }
    }
}

/// A policy with its bindings, in order of their names.
struct Bound<R> {
    /// From a file.
    is_fixed: bool,
    policy: Arc<Policy<R>>,
    bindings: Box<[Arc<Binding>]>,
}

/// Objects that have been compiled, by name and with their revision.
type Known<T> = HashMap<Box<str>, (u64, Arc<T>)>;

/// All policies of one kind that are bound: those from files first, each in order of their names.
struct Set<R> {
    /// By plural name of a resource, with those for every resource among them.
    by_plural: HashMap<Box<str>, Vec<Arc<Bound<R>>>>,
    /// Those for every resource.
    anywhere: Vec<Arc<Bound<R>>>,
    policies: Known<Policy<R>>,
    bindings: Known<Binding>,
    /// From files.
    fixed: Vec<Arc<Bound<R>>>,
}

impl<R> Default for Set<R> {
    fn default() -> Self {
        Self {
            by_plural: HashMap::new(),
            anywhere: Vec::new(),
            policies: HashMap::new(),
            bindings: HashMap::new(),
            fixed: Vec::new(),
        }
    }
}

/// Compiles the objects of a kind that changed.
fn refresh<T>(core: &Core, kind: &str, before: &Known<T>, new: impl Fn(&Value) -> T) -> Known<T> {
    let snapshot = core.store().snapshot(kind);
    let mut out = HashMap::with_capacity(snapshot.len());
    for object in snapshot.range(std::ops::Bound::Unbounded, "") {
        let known = before.get(&*object.key).filter(|(revision, _)| *revision == object.revision).cloned();
        let compiled = known.or_else(|| {
            let value: Value = serde_json::from_slice(&object.bytes).ok()?;
            Some((object.revision, Arc::new(new(&value))))
        });
        out.extend(compiled.map(|compiled| (object.key.clone(), compiled)));
    }
    out
}

impl<R: Rules> Set<R> {
    /// Puts policies and bindings from files in the place of those that were there.
    fn fixed(before: &Self, policies: &[Value], bindings: &[Value], core: &Core) -> Self {
        let bindings: Vec<Arc<Binding>> = bindings.iter().map(|b| Arc::new(Binding::new(b))).collect();
        let bound = |policy: &Value| {
            let policy = Arc::new(Policy::new(policy));
            let of = bindings.iter().filter(|binding| binding.policy == policy.name);
            Arc::new(Bound { is_fixed: true, bindings: of.cloned().collect(), policy })
        };
        Self::made(before, policies.iter().map(bound).collect(), core)
    }

    /// Compiles what changed in the store.
    fn after(before: &Self, core: &Core) -> Self {
        Self::made(before, before.fixed.clone(), core)
    }

    fn made(before: &Self, fixed: Vec<Arc<Bound<R>>>, core: &Core) -> Self {
        let policies = refresh(core, R::POLICIES, &before.policies, Policy::new);
        let bindings = refresh(core, R::BINDINGS, &before.bindings, Binding::new);
        let mut by_policy: BTreeMap<&str, Vec<Arc<Binding>>> = BTreeMap::new();
        for (_, binding) in bindings.values() {
            by_policy.entry(&binding.policy).or_default().push(binding.clone());
        }
        let mut out = Self::default();
        for bound in fixed.iter().filter(|bound| !bound.bindings.is_empty()) {
            out.add(bound.clone());
        }
        for (name, mut bindings) in by_policy {
            let Some((_, policy)) = policies.get(name) else { continue };
            bindings.sort_by(|a, b| a.name.cmp(&b.name));
            let (policy, bindings) = (policy.clone(), bindings.into());
            out.add(Arc::new(Bound { is_fixed: false, policy, bindings }));
        }
        (out.policies, out.bindings, out.fixed) = (policies, bindings, fixed);
        out
    }

    fn add(&mut self, bound: Arc<Bound<R>>) {
        match bound.policy.matcher.plurals() {
            Some(plurals) => {
                for plural in plurals {
                    let list = self.by_plural.entry(plural.into()).or_insert_with(|| self.anywhere.clone());
                    list.push(bound.clone());
                }
            }
            None => {
                self.by_plural.values_mut().for_each(|list| list.push(bound.clone()));
                self.anywhere.push(bound);
            }
        }
    }

    /// The policies that may be about a resource.
    fn about(&self, served: &Served) -> &[Arc<Bound<R>>] {
        self.by_plural.get(&*served.plural).unwrap_or(&self.anywhere)
    }
}

/// The policies in force.
#[derive(Default)]
pub struct Policies {
    validating: ArcSwap<Set<Validations>>,
    mutating: ArcSwap<Set<Mutations>>,
    params: params::Cache,
    /// One compiles at a time, so that none puts older ones in the place of newer ones.
    compiling: Mutex<()>,
}

impl Policies {
    /// Compiles what changed.
    pub fn compile(&self, core: &Core) {
        let _one = self.compiling.lock();
        self.validating.store(Arc::new(Set::after(&self.validating.load(), core)));
        self.mutating.store(Arc::new(Set::after(&self.mutating.load(), core)));
    }

    /// Puts policies and bindings from files in the place of those that were there.
    pub fn fix(&self, is_mutating: bool, policies: &[Value], bindings: &[Value], core: &Core) {
        let _one = self.compiling.lock();
        if is_mutating {
            self.mutating.store(Arc::new(Set::fixed(&self.mutating.load(), policies, bindings, core)));
        } else {
            self.validating.store(Arc::new(Set::fixed(&self.validating.load(), policies, bindings, core)));
        }
    }

    /// Whether any validating policy may be about the request.
    pub fn may_refuse(&self, attributes: &Attributes<'_>) -> bool {
        !self.validating.load().about(attributes.served).is_empty()
    }

    /// Whether any mutating policy may be about the request.
    pub fn may_change(&self, attributes: &Attributes<'_>) -> bool {
        !self.mutating.load().about(attributes.served).is_empty()
    }
}

/// Whether no policy may see the request.
fn is_exempt(attributes: &Attributes<'_>) -> bool {
    EXEMPT.iter().any(|(group, plural)| attributes.is(group, plural))
}

/// Whether the request is about policies themselves, which only those from files may see: nobody but the operator can
/// lock himself out with them.
fn is_for_files(attributes: &Attributes<'_>) -> bool {
    let kind = &*attributes.served.stored.kind_key;
    KINDS.contains(&kind)
}

/// A policy that is about a request, by one of its bindings, with one parameter object.
struct Invocation<'c, R> {
    policy: &'c Policy<R>,
    binding: &'c Binding,
    served: Arc<Served>,
    /// `None`: the policy has no parameters, or the binding gives none.
    params: Option<Arc<Value>>,
}

/// A policy or binding that makes no sense for a request.
struct Fault<'c, R> {
    policy: &'c Policy<R>,
    binding: Option<&'c Binding>,
    why: String,
}

/// What of `list` is about a request.
fn select<'c, R>(
    list: &'c [Arc<Bound<R>>],
    attributes: &Attributes<'_>,
    object: Option<&Value>,
    old: Option<&Value>,
    mut found: impl FnMut(Result<Invocation<'c, R>, Fault<'c, R>>),
) {
    let only_fixed = is_for_files(attributes);
    for bound in list.iter().filter(|bound| bound.is_fixed || !only_fixed) {
        let policy = &*bound.policy;
        let misconfigured =
            |why: String| Fault { policy, binding: None, why: format!("failed to configure policy: {why}") };
        let served = match policy.matcher.matches(attributes, object, old) {
            Ok(Some(served)) => served,
            Ok(None) => continue,
            Err(error) => {
                found(Err(misconfigured(error.message)));
                continue;
            }
        };
        let kind = match policy.param_kind.as_ref().map(|kind| kind.find(&attributes.call.core)).transpose() {
            Ok(kind) => kind,
            Err(why) => {
                found(Err(misconfigured(why)));
                continue;
            }
        };
        for binding in &bound.bindings {
            let matches = match &binding.matcher {
                None => Ok(true),
                Some(matcher) => matcher.matches(attributes, object, old).map(|served| served.is_some()),
            };
            let params = match matches {
                Ok(false) => continue,
                Ok(true) => match (&kind, &binding.param_ref) {
                    (Some(kind), Some(reference)) => reference.collect(kind, attributes),
                    _ => Ok(vec![None]),
                },
                Err(error) => Err(error.message),
            };
            match params {
                Ok(all) => all.into_iter().for_each(|params| {
                    found(Ok(Invocation { policy, binding, served: served.clone(), params }));
                }),
                Err(why) => found(Err(Fault {
                    policy,
                    binding: Some(binding),
                    why: format!("failed to configure binding: {why}"),
                })),
            }
        }
    }
}
