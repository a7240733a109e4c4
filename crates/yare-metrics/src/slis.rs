//! `/metrics/slis`: the last result of each health check, and how often there was which.

use std::collections::BTreeMap;

use crate::text::Page;

/// Results of health checks, by name and endpoint.
#[derive(Default)]
pub struct Checks(BTreeMap<(&'static str, &'static str), Results>);

#[derive(Default)]
struct Results {
    ok: bool,
    successes: u64,
    errors: u64,
}

impl Checks {
    /// Notes a result.
    pub fn note(&mut self, name: &'static str, endpoint: &'static str, ok: bool) {
        let results = self.0.entry((name, endpoint)).or_default();
        results.ok = ok;
        *(if ok { &mut results.successes } else { &mut results.errors }) += 1;
    }

    /// Adds them to a page.
    pub fn expose(&self, page: &mut Page) {
        let name = "kubernetes_healthcheck";
        page.family(name, "gauge", "[STABLE] This metric records the result of a single healthcheck.");
        for ((check, endpoint), results) in &self.0 {
            page.sample(name, &[("name", check), ("type", endpoint)], u8::from(results.ok));
        }
        let name = "kubernetes_healthchecks_total";
        page.family(name, "counter", "[STABLE] This metric records the results of all healthcheck.");
        for ((check, endpoint), results) in &self.0 {
            for (status, count) in [("error", results.errors), ("success", results.successes)] {
                if count > 0 {
                    page.sample(name, &[("name", check), ("status", status), ("type", endpoint)], count);
                }
            }
        }
    }

    /// The page of nothing else.
    pub fn render(&self) -> String {
        let mut page = Page::new();
        self.expose(&mut page);
        page.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results() {
        let mut checks = Checks::default();
        checks.note("ping", "livez", true);
        checks.note("etcd", "readyz", true);
        checks.note("etcd", "readyz", false);
        let text = checks.render();
        for line in [
            "kubernetes_healthcheck{name=\"ping\",type=\"livez\"} 1",
            "kubernetes_healthcheck{name=\"etcd\",type=\"readyz\"} 0",
            "kubernetes_healthchecks_total{name=\"etcd\",status=\"error\",type=\"readyz\"} 1",
            "kubernetes_healthchecks_total{name=\"etcd\",status=\"success\",type=\"readyz\"} 1",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }
}
