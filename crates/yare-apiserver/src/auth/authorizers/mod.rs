//! Who decides what a caller may do. [`TABLE`] has one row per mode; a [`Chain`] is the order in which a
//! server asks them. The first that allows or denies decides; `system:masters` may everything before anybody
//! is asked.

mod abac;
mod always;
mod metrics;
mod node;
mod rbac;
pub mod webhook;

use std::sync::Arc;

use futures::future::BoxFuture;
use yare_auth::{
    Action, Decision, User,
    config::authorization::{ABAC, AuthorizationConfiguration, Authorizer, WEBHOOK},
    gotext,
    rbac::Rule,
    user::MASTERS,
};

use self::{metrics::LinkMetrics, webhook::Webhook};
use crate::{auth::Auth, core::Core};

/// What an authorizer says, and what went wrong while it found out (empty: nothing).
type Said = (Decision, String);
type Local = fn(&Auth, &User, &Action<'_>) -> Decision;
type Known = fn(&Webhook, &LinkMetrics, &Core, &User, &Action<'_>) -> Option<Said>;
type Asking =
    for<'a> fn(&'a Webhook, &'a LinkMetrics, &'a Core, &'a User, &'a Action<'a>) -> BoxFuture<'a, Said>;

/// How a row decides.
enum Decides {
    /// By what the server knows.
    Locally(Local),
    /// By asking somebody else, where it does not remember the answer.
    Network(Known, Asking),
}

/// One mode of authorization.
pub struct Row {
    /// Its name in `--authorization-mode`.
    mode: &'static str,
    decides: Decides,
    /// The rules that hold for a user in a namespace, as far as it can list them.
    rules: fn(&Auth, &User, &str) -> Rules,
}

/// Rules that hold for a user.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// The rules.
    pub rules: Vec<Rule>,
    /// Whether there may be more.
    pub incomplete: bool,
    /// What could not be found out, in one line.
    pub error: String,
}

const TABLE: &[Row] = &[
    Row { mode: ABAC, decides: Decides::Locally(abac::decide), rules: abac::rules },
    Row { mode: "AlwaysAllow", decides: Decides::Locally(always::allow), rules: always::all_rules },
    Row { mode: "AlwaysDeny", decides: Decides::Locally(always::deny), rules: always::no_rules },
    Row { mode: "Node", decides: Decides::Locally(node::decide), rules: node::rules },
    Row { mode: "RBAC", decides: Decides::Locally(rbac::decide), rules: rbac::rules },
    Row {
        mode: WEBHOOK,
        decides: Decides::Network(webhook::remembered, webhook::ask),
        rules: webhook::rules,
    },
];

/// One authorizer of a chain.
struct Link {
    row: &'static Row,
    name: String,
    webhook: Option<Webhook>,
    metrics: Arc<LinkMetrics>,
}

/// The authorizers of a server, in order.
pub struct Chain(Vec<Link>);

impl Chain {
    /// Node and RBAC, as servers have it where nothing else is said.
    pub fn usual() -> Self {
        let links = TABLE.iter().filter(|row| matches!(row.mode, "Node" | "RBAC"));
        let link = |row: &'static Row| Link {
            row,
            name: row.mode.to_lowercase(),
            webhook: None,
            metrics: Arc::default(),
        };
        Self(links.map(link).collect())
    }

    /// The chain of a configuration that was checked.
    pub fn new(configuration: &AuthorizationConfiguration) -> Result<Self, String> {
        configuration.authorizers.iter().map(Link::new).collect::<Result<_, _>>().map(Self)
    }

    /// Goes on counting where the chain before it stopped.
    #[must_use]
    pub fn after(mut self, before: &Self) -> Self {
        for link in &mut self.0 {
            let like = |old: &&Link| old.row.mode == link.row.mode && old.name == link.name;
            if let Some(old) = before.0.iter().find(like) {
                link.metrics = old.metrics.clone();
            }
        }
        self
    }
}

impl Link {
    fn new(authorizer: &Authorizer) -> Result<Self, String> {
        let mode = authorizer.r#type.as_str();
        let row = TABLE
            .iter()
            .find(|row| row.mode == mode)
            .ok_or_else(|| format!("the authorization mode {mode} is not supported by this server"))?;
        let webhook = authorizer.webhook.as_ref().map(|w| Webhook::open(&authorizer.name, w)).transpose()?;
        Ok(Self { row, name: authorizer.name.clone(), webhook, metrics: Arc::default() })
    }
}

/// What a chain came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The decision.
    pub decision: Decision,
    /// What went wrong while it was found, in one line.
    pub error: String,
}

impl Outcome {
    /// Whether it was allowed.
    pub fn is_allowed(&self) -> bool {
        matches!(self.decision, Decision::Allow(_))
    }

    /// Why.
    pub fn reason(&self) -> &str {
        let (Decision::Allow(why) | Decision::Deny(why) | Decision::NoOpinion(why)) = &self.decision;
        why
    }
}

/// The way through a chain.
struct Walk {
    chain: Arc<Chain>,
    next: usize,
    reasons: Vec<String>,
    errors: Vec<String>,
}

/// What a walk came to without the network.
enum Walked {
    Done(Outcome),
    /// The link at `next` has to ask.
    Ask(Walk),
}

impl Walk {
    fn take_in(&mut self, (decision, error): Said) -> Option<Outcome> {
        if let Some(link) = self.chain.0.get(self.next) {
            link.metrics.decided(&decision);
        }
        self.next += 1;
        match decision {
            Decision::NoOpinion(reason) => {
                if !reason.is_empty() {
                    self.reasons.push(reason);
                }
                if !error.is_empty() {
                    self.errors.push(error);
                }
                None
            }
            decided => Some(Outcome { decision: decided, error }),
        }
    }

    /// As far as it goes without the network. Before it ends in a refusal or in a question to somebody else, what
    /// is known here is brought up to date.
    fn local(mut self, core: &Core, user: &User, action: &Action<'_>) -> Walked {
        let (next, reasons, errors) = (self.next, self.reasons.len(), self.errors.len());
        let feeds = &core.config.auth.feeds;
        let known = feeds.told();
        let mut outcome = self.along(core, user, action);
        if !outcome.as_ref().is_some_and(Outcome::is_allowed) && feeds.catch_up(core, known) {
            self.next = next;
            self.reasons.truncate(reasons);
            self.errors.truncate(errors);
            outcome = self.along(core, user, action);
        }
        outcome.map_or_else(|| Walked::Ask(self), Walked::Done)
    }

    /// `None`: the link at `next` has to ask.
    fn along(&mut self, core: &Core, user: &User, action: &Action<'_>) -> Option<Outcome> {
        let chain = self.chain.clone();
        while let Some(link) = chain.0.get(self.next) {
            let said = match (&link.row.decides, &link.webhook) {
                (Decides::Locally(decide), _) => (decide(&core.config.auth, user, action), String::new()),
                (Decides::Network(remembered, _), Some(webhook)) => {
                    remembered(webhook, &link.metrics, core, user, action)?
                }
                (Decides::Network(..), None) => (Decision::NoOpinion(String::new()), String::new()),
            };
            if let Some(outcome) = self.take_in(said) {
                return Some(outcome);
            }
        }
        Some(Outcome {
            decision: Decision::NoOpinion(self.reasons.join("\n")),
            error: gotext::aggregate(&self.errors),
        })
    }

    async fn finish(mut self, core: &Core, user: &User, action: &Action<'_>) -> Outcome {
        loop {
            let chain = self.chain.clone();
            if let Some(link) = chain.0.get(self.next)
                && let (Decides::Network(_, ask), Some(webhook)) = (&link.row.decides, &link.webhook)
            {
                let said = ask(webhook, &link.metrics, core, user, action).await;
                if let Some(outcome) = self.take_in(said) {
                    return outcome;
                }
            }
            match self.local(core, user, action) {
                Walked::Done(outcome) => return outcome,
                Walked::Ask(more) => self = more,
            }
        }
    }
}

fn begin(core: &Core, user: &User, action: &Action<'_>) -> Walked {
    let auth = &core.config.auth;
    if auth.permissive || user.in_group(MASTERS) {
        return Walked::Done(Outcome { decision: Decision::Allow(String::new()), error: String::new() });
    }
    let walk = Walk { chain: auth.chain.load_full(), next: 0, reasons: Vec::new(), errors: Vec::new() };
    walk.local(core, user, action)
}

/// Whether the user may do it.
pub async fn decide(core: &Core, user: &User, action: &Action<'_>) -> Outcome {
    match begin(core, user, action) {
        Walked::Done(outcome) => outcome,
        // Boxed: what asks the network is rare, and its state would be part of every request's.
        Walked::Ask(walk) => Box::pin(walk.finish(core, user, action)).await,
    }
}

/// The same for code that cannot wait, which is only that inside of expressions: where a webhook has to be asked,
/// this thread waits for it and other work moves on to other threads. The server's runtime must have several.
pub fn decide_now(core: &Core, user: &User, action: &Action<'_>) -> Outcome {
    use tokio::runtime::{Handle, RuntimeFlavor};
    let walk = match begin(core, user, action) {
        Walked::Done(outcome) => return outcome,
        Walked::Ask(walk) => walk,
    };
    match Handle::try_current() {
        Ok(handle) if handle.runtime_flavor() == RuntimeFlavor::MultiThread => {
            tokio::task::block_in_place(|| handle.block_on(walk.finish(core, user, action)))
        }
        _ => Outcome {
            decision: Decision::NoOpinion(String::new()),
            error: "an authorization webhook cannot be asked from here".into(),
        },
    }
}

/// The rules that hold for a user in a namespace.
pub fn rules(core: &Core, user: &User, namespace: &str) -> Rules {
    let auth = &core.config.auth;
    if auth.permissive {
        return always::all_rules(auth, user, namespace);
    }
    let mut all = Rules::default();
    let mut errors = Vec::new();
    for link in &auth.chain.load().0 {
        let more = (link.row.rules)(auth, user, namespace);
        all.rules.extend(more.rules);
        all.incomplete |= more.incomplete;
        if !more.error.is_empty() {
            errors.push(more.error);
        }
    }
    all.error = gotext::aggregate(&errors);
    all
}
