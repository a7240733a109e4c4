//! When to ask for the next certificate, and the task that does.

use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use yare_auth::pki::Leaf;
use yare_client::Client;

use super::request::{CertificateError, next};
use super::{Held, NODES, Store};
use crate::clock::Seams;

/// How long a request waits for its certificate before another takes its place.
const PATIENCE: Duration = Duration::from_secs(15 * 60);
/// Waits between attempts: the first, how often it doubles, and all after that.
const RETRY_FIRST: Duration = Duration::from_secs(2);
const RETRY_DOUBLINGS: u32 = 4;
const RETRY_LAST: Duration = Duration::from_secs(32);
/// No two requests follow each other faster.
const PAUSE: Duration = Duration::from_secs(1);

/// Whom a certificate is to name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// The user.
    pub common_name: String,
    /// DNS names, sorted.
    pub dns_names: Vec<String>,
    /// Addresses, sorted.
    pub addresses: Vec<IpAddr>,
}

impl Template {
    pub(super) fn alternative_names(&self) -> Vec<String> {
        self.dns_names.iter().cloned().chain(self.addresses.iter().map(ToString::to_string)).collect()
    }

    /// Whether a certificate names all of it. It may name more.
    fn is_met_by(&self, leaf: &Leaf) -> bool {
        leaf.common_name == self.common_name
            && leaf.organizations.iter().any(|o| o == NODES)
            && self.dns_names.iter().all(|name| leaf.dns_names.contains(name))
            && self.addresses.iter().all(|address| leaf.addresses.contains(address))
    }
}

/// When a certificate is due for another: at 70 to 90 % of its life, so that nodes that joined together do not
/// renew together. `random` is in `0.0..1.0`.
fn deadline(leaf: &Leaf, random: f64) -> Timestamp {
    let life_s = leaf.not_after.duration_since(leaf.not_before).as_secs_f64();
    let used = Duration::try_from_secs_f64(life_s * (0.7 + 0.2 * random)).unwrap_or_default();
    crate::clock::after(leaf.not_before, used)
}

/// How long to wait after so many failures.
fn retry(failures: u32, random: f64) -> Duration {
    match failures {
        0..=RETRY_DOUBLINGS => (RETRY_FIRST * 2_u32.pow(failures)).mul_f64(1.0 + 0.1 * random),
        _ => RETRY_LAST,
    }
}

/// Returns when other names are wanted: never, once nobody says so any more.
async fn changed(template: &mut watch::Receiver<Option<Template>>) {
    if template.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Keeps one certificate fresh for as long as it runs.
pub struct Rotation {
    /// Where it is kept.
    pub store: Store,
    /// The one there is.
    pub held: Option<Held>,
    /// Whom it is to name; nothing: that is not known yet.
    pub template: watch::Receiver<Option<Template>>,
    /// Who asks; told whether the certificate that is held is good.
    pub client: Box<dyn Fn(bool) -> Client + Send + Sync>,
    /// Clock and chance.
    pub seams: Seams,
    /// Told of each new one.
    pub replaced: Box<dyn Fn(&Held) + Send + Sync>,
}

impl Rotation {
    /// Runs for as long as the node.
    pub async fn run(mut self) {
        loop {
            let template = self.due().await;
            if let Some(held) = self.ask(template).await {
                (self.replaced)(&held);
                self.held = Some(held);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Waits until another certificate is needed; whom it is to name.
    async fn due(&mut self) -> Template {
        let at = self.held.as_ref().map(|held| deadline(&held.leaf, (self.seams.random)()));
        loop {
            let template = self.template.borrow_and_update().clone();
            let is_met = |t: &Template| self.held.as_ref().is_some_and(|held| t.is_met_by(&held.leaf));
            match (template, at) {
                (Some(template), Some(at)) if is_met(&template) => {
                    tokio::select! {
                        () = self.seams.sleep_until(at) => return template,
                        () = changed(&mut self.template) => {}
                    }
                }
                (Some(template), _) => return template,
                (None, _) => changed(&mut self.template).await,
            }
        }
    }

    /// Asks until there is one, or until other names are wanted.
    async fn ask(&mut self, template: Template) -> Option<Held> {
        let mut failures = 0;
        loop {
            let mut news = self.template.clone();
            let asked = tokio::select! {
                asked = self.attempt(&template) => asked,
                Ok(_) = news.wait_for(|wanted| wanted.as_ref() != Some(&template)) => return None,
            };
            match asked {
                Ok(held) => return Some(held),
                Err(error) => {
                    let wait = retry(failures, (self.seams.random)());
                    failures += 1;
                    let signer = self.store.kind().signer();
                    tracing::warn!(%error, signer, wait_s = wait.as_secs(), "the certificate was not renewed");
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }

    async fn attempt(&self, template: &Template) -> Result<Held, CertificateError> {
        let good = self.held.as_ref().is_some_and(|held| held.leaf.is_good_at(self.seams.now()));
        let client = (self.client)(good);
        let held = next(&client, self.store.kind(), template, PATIENCE).await?;
        self.store.keep(&held, self.seams.now()).map_err(CertificateError::Local)?;
        Ok(held)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;
    use tokio::time::Instant;

    use super::*;

    fn leaf(names: &[&str], addresses: &[&str]) -> Leaf {
        Leaf {
            common_name: "system:node:n".into(),
            organizations: vec![NODES.into()],
            dns_names: names.iter().map(|n| (*n).to_owned()).collect(),
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            not_before: Timestamp::from_second(1_000_000).unwrap(),
            not_after: Timestamp::from_second(1_001_000).unwrap(),
        }
    }

    #[test]
    fn most_of_its_life() {
        for (random, at_s) in [(0.0, 1_000_700), (0.5, 1_000_800), (1.0, 1_000_900)] {
            assert_eq!(deadline(&leaf(&[], &[]), random).as_second(), at_s);
        }
        let waits: Vec<u64> = (0..7).map(|n| retry(n, 0.0).as_secs()).collect();
        assert_eq!(waits, [2, 4, 8, 16, 32, 32, 32]);
    }

    #[test]
    fn more_names_are_no_reason() {
        let wanted = |names: &[&str], addresses: &[&str]| {
            let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
            let addresses: Vec<IpAddr> = addresses.iter().map(|a| a.parse().unwrap()).collect();
            super::super::template("n", &names, &addresses)
        };
        let held = leaf(&["n", "m"], &["10.0.0.1", "::1"]);
        for (names, addresses, met) in [
            (&[][..], &[][..], true),
            (&["n"], &["::1"], true),
            (&["n", "m"], &["10.0.0.1"], true),
            (&["o"], &[], false),
            (&[], &["10.0.0.2"], false),
        ] {
            assert_eq!(wanted(names, addresses).is_met_by(&held), met, "{names:?} {addresses:?}");
        }
        let other = Leaf { common_name: "system:node:m".into(), ..held.clone() };
        assert!(!wanted(&[], &[]).is_met_by(&other));
        let other = Leaf { organizations: Vec::new(), ..held };
        assert!(!wanted(&[], &[]).is_met_by(&other));
    }

    /// A wall clock that a test sets, and that tells of it.
    struct Wall {
        offset_s: Arc<Mutex<i64>>,
        stepped: watch::Sender<u64>,
        seams: Seams,
    }

    fn wall() -> Wall {
        let (offset_s, start) = (Arc::new(Mutex::new(0)), Instant::now());
        let (stepped, changes) = watch::channel(0);
        let offset = offset_s.clone();
        let seams = Seams {
            now: Arc::new(move || {
                let passed = i64::try_from(start.elapsed().as_secs()).unwrap();
                Timestamp::from_second(1_000_000 + passed + *offset.lock()).unwrap()
            }),
            random: Arc::new(|| 0.5),
            stepped: changes,
        };
        Wall { offset_s, stepped, seams }
    }

    impl Wall {
        fn step(&self, by_s: i64) {
            *self.offset_s.lock() += by_s;
            self.stepped.send_modify(|n| *n += 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_is_set_moves_the_deadline() {
        for (steps, waits_s) in [(vec![], 800), (vec![(100, 500)], 300), (vec![(10, -200), (20, 100)], 900)] {
            let wall = wall();
            let start = Instant::now();
            let due = wall.seams.sleep_until(deadline(&leaf(&[], &[]), 0.5));
            let set = async {
                for (at_s, by_s) in &steps {
                    tokio::time::sleep_until(start + Duration::from_secs(*at_s)).await;
                    wall.step(*by_s);
                }
            };
            tokio::join!(due, set);
            assert_eq!(start.elapsed().as_secs(), waits_s, "{steps:?}");
        }
    }
}
