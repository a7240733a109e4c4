//! Acting in another's name: `Impersonate-*` headers, where the caller may take that identity on.
//!
//! [`MODES`] are tried in order: first those that are confined to one kind of identity and to what is done with
//! it (constrained impersonation, KEP-5284), then the old one, which is not. The first that allows it counts;
//! where none does, the first refusal is the answer. The mode in which a caller succeeded last comes before all others.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{BuildHasher as _, RandomState},
    sync::Arc,
    time::Instant,
};

use http::HeaderMap;
use parking_lot::Mutex;
use yare_auth::{
    Action, User,
    config::authentication::check_extra_key,
    gotext,
    user::{AUTHENTICATED, MASTERS, NODES, UNAUTHENTICATED},
};
use yare_schema::content;

use super::{authorizers, forbidden};
use crate::{
    core::Core,
    metrics::{Filter, seldom},
    path::percent_decode,
    status::{ApiError, ApiResult},
};

const GATE: &str = "ConstrainedImpersonation";
const PREFIX: &str = "impersonate-";
const EXTRA_PREFIX: &str = "impersonate-extra-";
const GROUP: &str = "authentication.k8s.io";
/// From this many groups or extras on, one question for all of them comes before one for each.
const MANY: usize = 4;

/// A way to act in another's name.
struct Mode {
    /// Its name in verbs; empty: the old way.
    name: &'static str,
    /// Whether it is about this identity at all: wanted and caller.
    applies: fn(&User, &User) -> bool,
}

impl Mode {
    /// Its name in metrics.
    fn label(&self) -> &'static str {
        if self.name.is_empty() { "legacy" } else { self.name }
    }
}

/// Decisions in metrics.
const ALLOWED: &str = "allowed";
const DENIED: &str = "denied";

const MODES: &[Mode] = &[
    Mode { name: "associated-node", applies: is_own_node },
    Mode { name: "arbitrary-node", applies: |wanted, _| only_name(wanted) && node(&wanted.name).is_some() },
    Mode {
        name: "serviceaccount",
        applies: |wanted, _| only_name(wanted) && service_account(&wanted.name).is_some(),
    },
    Mode {
        name: "user-info",
        applies: |wanted, _| node(&wanted.name).is_none() && service_account(&wanted.name).is_none(),
    },
    Mode { name: "", applies: |_, _| true },
];

/// Callers whose last mode is remembered.
const REMEMBERED: usize = 10_000;

/// In which of [`MODES`] callers succeeded last: whoever uses one uses it again, and is not asked about the others.
#[derive(Default)]
pub struct LastModes {
    hasher: RandomState,
    /// By the hash of the caller's name: what two names share is an order in which to ask.
    modes: Mutex<HashMap<u64, usize>>,
}

impl LastModes {
    fn of(&self, caller: &User) -> Option<usize> {
        self.modes.lock().get(&self.hasher.hash_one(&caller.name)).copied()
    }

    fn remember(&self, caller: &User, mode: usize) {
        let mut modes = self.modes.lock();
        if modes.len() >= REMEMBERED {
            modes.clear();
        }
        modes.insert(self.hasher.hash_one(&caller.name), mode);
    }
}

fn only_name(user: &User) -> bool {
    user.uid.is_empty() && user.groups.is_empty() && user.extra.is_empty()
}

/// The node whose agent has this user name.
fn node(name: &str) -> Option<&str> {
    let node = name.strip_prefix("system:node:")?;
    content::dns1123_subdomain(node).is_empty().then_some(node)
}

/// Namespace and name of the service account that has this user name.
fn service_account(name: &str) -> Option<(&str, &str)> {
    let (namespace, account) = name.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    let well_formed =
        content::dns1123_label(namespace).is_empty() && content::dns1123_subdomain(account).is_empty();
    well_formed.then_some((namespace, account))
}

/// Whether the caller is a pod's service account and wants to act as the agent of the pod's node.
fn is_own_node(wanted: &User, caller: &User) -> bool {
    let own = caller.extra.get("authentication.kubernetes.io/node-name");
    let own = own.filter(|names| names.len() == 1).and_then(|names| names.first());
    only_name(wanted)
        && service_account(&caller.name).is_some()
        && node(&wanted.name).is_some_and(|node| own.is_some_and(|own| own == node))
}

/// A caller who acts in another's name.
#[derive(Debug)]
pub struct Impersonated {
    /// The identity taken on.
    pub user: Arc<User>,
    /// The verb that allowed it; empty for the old way.
    pub constraint: String,
}

/// Whether the headers ask for another identity.
pub fn is_wanted(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| name.as_str().starts_with(PREFIX))
}

/// The identity that headers ask for, where the caller may take it on to do `action`. The headers are taken
/// off: nothing behind this should know the difference.
pub async fn run(
    core: &Core,
    caller: &User,
    headers: &mut HeaderMap,
    action: &Action<'_>,
) -> ApiResult<Option<Impersonated>> {
    let Some(wanted) = wanted(headers)? else { return Ok(None) };
    while let Some(name) = headers.keys().find(|n| is_own_header(n.as_str())).cloned() {
        headers.remove(name);
    }
    let constrained = core.config.gates.is_on(GATE);
    let began = Instant::now();
    let taken = take_on(core, caller, &wanted, action, constrained).await;
    let took = began.elapsed();
    let filter = if constrained { Filter::ConstrainedImpersonation } else { Filter::Impersonation };
    core.metrics.filters.passed(filter, took);
    let labels = match &taken {
        Ok((_, mode)) => [ALLOWED, mode.label()],
        Err(_) => [DENIED, ""],
    };
    core.metrics.seldom.count(&seldom::IMPERSONATIONS, &labels);
    core.metrics.seldom.observe(&seldom::IMPERSONATIONS_TOOK, &labels, took.as_secs_f64());
    taken.map(|(user, mode)| {
        let constraint =
            if mode.name.is_empty() { String::new() } else { format!("impersonate:{}", mode.name) };
        Some(Impersonated { user: Arc::new(user), constraint })
    })
}

/// The identity as the first mode that allows it gives it.
async fn take_on(
    core: &Core,
    caller: &User,
    wanted: &User,
    action: &Action<'_>,
    constrained: bool,
) -> ApiResult<(User, &'static Mode)> {
    let mut refused = None;
    let last = core.impersonation.of(caller).filter(|_| constrained);
    let others = (0..MODES.len()).filter(|place| Some(*place) != last);
    for place in last.into_iter().chain(others) {
        let mode = &MODES[place];
        if !(constrained || mode.name.is_empty()) || !(mode.applies)(wanted, caller) {
            continue;
        }
        match (Attempt { core, caller, mode }).run(wanted, action).await {
            Ok(user) => {
                if constrained && last != Some(place) {
                    core.impersonation.remember(caller, place);
                }
                return Ok((user, mode));
            }
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    Err(refused.unwrap_or_else(|| ApiError::internal("all impersonation modes failed")))
}

fn is_own_header(name: &str) -> bool {
    name.strip_prefix(PREFIX)
        .is_some_and(|rest| matches!(rest, "user" | "uid" | "group") || rest.starts_with("extra-"))
}

/// The identity that headers ask for.
fn wanted(headers: &HeaderMap) -> ApiResult<Option<User>> {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let groups: Vec<String> = headers
        .get_all("impersonate-group")
        .iter()
        .filter_map(|v| v.to_str().ok())
        .map(str::to_owned)
        .collect();
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in headers {
        if let (Some(key), Ok(value)) = (name.as_str().strip_prefix(EXTRA_PREFIX), value.to_str()) {
            extra.entry(percent_decode(key, false).into_owned()).or_default().push(value.to_owned());
        }
    }
    let user = User { name: text("impersonate-user"), uid: text("impersonate-uid"), groups, extra };
    if !user.name.is_empty() {
        return Ok(Some(user));
    }
    if only_name(&user) {
        return Ok(None);
    }
    Err(ApiError::bad_request(format!("requested {} without impersonating a user name", go_syntax(&user))))
}

/// A user as Go writes the value.
fn go_syntax(user: &User) -> String {
    let strings = |list: &[String]| {
        let quoted: Vec<String> = list.iter().map(|s| gotext::quote(s)).collect();
        if list.is_empty() { "[]string(nil)".into() } else { format!("[]string{{{}}}", quoted.join(", ")) }
    };
    let extra: Vec<String> =
        user.extra.iter().map(|(k, v)| format!("{}:{}", gotext::quote(k), strings(v))).collect();
    let extra = if extra.is_empty() {
        "map[string][]string(nil)".to_owned()
    } else {
        format!("map[string][]string{{{}}}", extra.join(", "))
    };
    format!(
        "&user.DefaultInfo{{Name:{:?}, UID:{:?}, Groups:{}, Extra:{extra}}}",
        user.name,
        user.uid,
        strings(&user.groups)
    )
}

/// An attempt in one mode.
struct Attempt<'a> {
    core: &'a Core,
    caller: &'a User,
    mode: &'a Mode,
}

impl Attempt<'_> {
    fn is_constrained(&self) -> bool {
        !self.mode.name.is_empty()
    }

    async fn run(&self, wanted: &User, action: &Action<'_>) -> ApiResult<User> {
        if self.is_constrained() {
            let verb = format!("impersonate-on:{}:{}", self.mode.name, action.verb);
            self.may(&Action { verb: &verb, ..*action }).await?;
        }
        let mut user = wanted.clone();
        self.check_name(wanted, &mut user).await?;
        if !wanted.uid.is_empty() {
            self.may_take("uids", GROUP, &wanted.uid).await?;
        }
        self.check_groups(wanted).await?;
        self.check_extra(wanted).await?;
        let is_anonymous = user.name == "system:anonymous";
        let everybody = if is_anonymous { UNAUTHENTICATED } else { AUTHENTICATED };
        // Who asks for the group of the others gets just that.
        let is_said = user.in_group(everybody) || (!is_anonymous && user.in_group(UNAUTHENTICATED));
        if !is_said {
            user.groups.push(everybody.into());
        }
        Ok(user)
    }

    async fn may(&self, action: &Action<'_>) -> ApiResult<()> {
        // An associated node is the caller's own: which one it is must not matter to the authorizer.
        let stripped;
        let caller = if self.mode.name == "associated-node" {
            let keys = self.caller.extra.keys().cloned().collect();
            let key = "authentication.kubernetes.io/associated-node-keys".to_owned();
            stripped = User { extra: BTreeMap::from([(key, keys)]), ..self.caller.clone() };
            &stripped
        } else {
            self.caller
        };
        let began = Instant::now();
        let outcome = authorizers::decide(self.core, caller, action).await;
        let labels = [if outcome.is_allowed() { ALLOWED } else { DENIED }, self.mode.label()];
        let (counts, took_s) = (&self.core.metrics.seldom, began.elapsed().as_secs_f64());
        counts.count(&seldom::IMPERSONATION_CHECKS, &labels);
        counts.observe(&seldom::IMPERSONATION_CHECKS_TOOK, &labels, took_s);
        if outcome.is_allowed() {
            return Ok(());
        }
        let why = match (outcome.error.as_str(), outcome.reason()) {
            ("", reason) => reason.to_owned(),
            (error, "") => error.to_owned(),
            (error, reason) => format!("{error}: {reason}"),
        };
        Err(forbidden(self.caller, action, &why))
    }

    fn verb(&self) -> String {
        if self.is_constrained() { format!("impersonate:{}", self.mode.name) } else { "impersonate".into() }
    }

    async fn may_take(&self, resource: &str, group: &str, name: &str) -> ApiResult<()> {
        self.may(&Action { verb: &self.verb(), group, version: "v1", resource, name, ..Action::default() })
            .await
    }

    /// The group of users and groups: core in the old way.
    fn group(&self) -> &'static str {
        if self.is_constrained() { GROUP } else { "" }
    }

    async fn check_name(&self, wanted: &User, user: &mut User) -> ApiResult<()> {
        if let Some(node) = node(&wanted.name).filter(|_| self.is_constrained()) {
            user.groups = vec![NODES.into()];
            let name = if self.mode.name == "associated-node" { "*" } else { node };
            return self.may_take("nodes", GROUP, name).await;
        }
        if let Some((namespace, name)) = service_account(&wanted.name) {
            if wanted.groups.is_empty() {
                user.groups =
                    vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")];
            }
            let action = Action {
                verb: &self.verb(),
                group: self.group(),
                version: "v1",
                resource: "serviceaccounts",
                namespace,
                name,
                ..Action::default()
            };
            return self.may(&action).await;
        }
        self.may_take("users", self.group(), &wanted.name).await
    }

    fn refuse(&self, resource: &str, group: &str, name: &str, why: &str) -> ApiError {
        let verb = self.verb();
        let action = Action { verb: &verb, group, version: "v1", resource, name, ..Action::default() };
        forbidden(self.caller, &action, why)
    }

    async fn check_groups(&self, wanted: &User) -> ApiResult<()> {
        let group = self.group();
        if self.is_constrained() {
            if wanted.in_group("") {
                let why = "impersonating the empty string group is not allowed";
                return Err(self.refuse("groups", group, "", why));
            }
            if wanted.in_group(MASTERS) {
                let why = "impersonating the system:masters group is not allowed";
                return Err(self.refuse("groups", group, MASTERS, why));
            }
            if wanted.groups.len() >= MANY && self.may_take("groups", group, "*").await.is_ok() {
                return Ok(());
            }
        }
        for name in &wanted.groups {
            self.may_take("groups", group, name).await?;
        }
        Ok(())
    }

    async fn check_extra(&self, wanted: &User) -> ApiResult<()> {
        let verb = self.verb();
        let action = |subresource, name| {
            let (verb, resource) = (verb.as_str(), "userextras");
            Action { verb, group: GROUP, version: "v1", resource, subresource, name, ..Action::default() }
        };
        if self.is_constrained() && !wanted.extra.is_empty() {
            if let Err(why) = check_extra(&wanted.extra) {
                return Err(self.refuse("userextras", GROUP, "", &why));
            }
            let many = wanted.extra.len().max(wanted.extra.values().map(Vec::len).sum());
            if many >= MANY && self.may(&action("*", "*")).await.is_ok() {
                return Ok(());
            }
        }
        for (key, values) in &wanted.extra {
            for value in values {
                self.may(&action(key, value)).await?;
            }
        }
        Ok(())
    }
}

fn check_extra(extra: &BTreeMap<String, Vec<String>>) -> Result<(), String> {
    for (key, values) in extra {
        if key.is_empty() {
            return Err("impersonating the empty string key in extra is not allowed".into());
        }
        check_extra_key(key)
            .map_err(|e| format!("impersonating an invalid key in extra is not allowed: {e}"))?;
        if *key != key.to_lowercase() {
            return Err(format!("impersonating a non-lowercase key in extra is not allowed: {key:?}"));
        }
        if values.iter().any(String::is_empty) {
            return Err("impersonating the empty string value in extra is not allowed".into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities() {
        assert_eq!(node("system:node:a.b"), Some("a.b"));
        assert_eq!(node("system:node:A"), None);
        assert_eq!(node("system:node:"), None);
        assert_eq!(service_account("system:serviceaccount:ns:a.b"), Some(("ns", "a.b")));
        for other in
            ["system:serviceaccount:ns", "system:serviceaccount:n.s:a", "system:serviceaccount:ns:a:b"]
        {
            assert_eq!(service_account(other), None, "{other}");
        }
    }

    #[test]
    fn which_mode_is_about_whom() {
        let named = |name: &str| User { name: name.into(), ..User::default() };
        let mut pod = User::service_account("ns", "sa", "");
        pod.extra.insert("authentication.kubernetes.io/node-name".into(), vec!["n1".into()]);
        let with_group = User { groups: vec!["g".into()], ..named("system:node:n1") };
        for (wanted, expected) in [
            (named("system:node:n1"), vec!["associated-node", "arbitrary-node", ""]),
            (named("system:node:n2"), vec!["arbitrary-node", ""]),
            (named("system:serviceaccount:ns:sa"), vec!["serviceaccount", ""]),
            (named("jane"), vec!["user-info", ""]),
            (with_group, vec![""]),
        ] {
            let modes: Vec<&str> =
                MODES.iter().filter(|m| (m.applies)(&wanted, &pod)).map(|m| m.name).collect();
            assert_eq!(modes, expected, "{}", wanted.name);
        }
    }

    #[test]
    fn headers_without_a_user_are_refused_in_upstreams_words() {
        let mut headers = HeaderMap::new();
        assert_eq!(wanted(&headers).unwrap(), None);
        headers.insert("impersonate-group", "a".parse().unwrap());
        headers.insert("impersonate-extra-x%2fy", "z".parse().unwrap());
        assert_eq!(
            wanted(&headers).unwrap_err().message,
            r#"requested &user.DefaultInfo{Name:"", UID:"", Groups:[]string{"a"}, Extra:map[string][]string{"x/y":[]string{"z"}}} without impersonating a user name"#
        );
    }
}
