//! How long requests are on each step of their way to their verb.

use std::time::Duration;

use super::{text::Page, timing::Timing};

const BOUNDS_S: [f64; 13] = [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 5.0, 10.0, 15.0, 30.0];
/// What upstream calls the steps.
const NAMES: [&str; 6] = [
    "authentication",
    "audit",
    "impersonation",
    "constrainedimpersonation",
    "priorityandfairness",
    "authorization",
];

/// A step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Filter {
    /// Who sends it.
    Authentication,
    /// Its first event is written down.
    Audit,
    /// In whose name, in the old way.
    Impersonation,
    /// The same, where that may be confined.
    ConstrainedImpersonation,
    /// It waits for its seats.
    PriorityAndFairness,
    /// May it go on.
    Authorization,
}

/// All of them. A step that a request has no need of is not counted.
#[derive(Default)]
pub struct Filters([Timing<13>; NAMES.len()]);

impl Filters {
    /// A request has passed a step.
    pub fn passed(&self, filter: Filter, took: Duration) {
        self.0[filter as usize].observe(&BOUNDS_S, took);
    }

    pub(super) fn expose(&self, page: &mut Page) {
        let name = "apiserver_request_filter_duration_seconds";
        page.family(
            name,
            "histogram",
            "[ALPHA] Request filter latency distribution in seconds, for each filter type",
        );
        for (filter, timing) in NAMES.iter().zip(&self.0) {
            timing.expose(page, name, &[("filter", filter)], &BOUNDS_S);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_have_their_names() {
        let filters = Filters::default();
        for (filter, ms) in [
            (Filter::Authentication, 1),
            (Filter::Audit, 2),
            (Filter::Impersonation, 3),
            (Filter::ConstrainedImpersonation, 4),
            (Filter::PriorityAndFairness, 5),
            (Filter::Authorization, 6),
        ] {
            filters.passed(filter, Duration::from_millis(ms));
        }
        let mut page = Page::new();
        filters.expose(&mut page);
        let page = page.finish();
        for (name, sum) in NAMES.iter().zip(["0.001", "0.002", "0.003", "0.004", "0.005", "0.006"]) {
            let line = format!("apiserver_request_filter_duration_seconds_sum{{filter=\"{name}\"}} {sum}");
            assert!(page.lines().any(|l| l == line), "{line}\n{page}");
        }
    }
}
