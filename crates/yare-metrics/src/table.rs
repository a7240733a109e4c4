//! Metrics as a table: a row per family, and one place that keeps the numbers of all of them.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use crate::Histogram;
use crate::text::Page;

/// Series of one family that are kept; more are not counted, whoever makes up labels.
const SERIES_MAX: usize = 10_000;
/// Bounds that a histogram may have.
pub const BOUNDS_MAX: usize = 28;

/// What a family's numbers are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// They only grow.
    Counter,
    /// They are as they are now.
    Gauge,
    /// Values by upper bounds, at most [`BOUNDS_MAX`].
    Histogram(&'static [f64]),
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram(_) => "histogram",
        }
    }
}

/// A row.
#[derive(Debug)]
pub struct Family {
    /// Upstream's name.
    pub name: &'static str,
    /// What its numbers are.
    pub kind: Kind,
    /// Names of its labels, in alphabetical order; the values are given in the same order.
    pub labels: &'static [&'static str],
    /// What it says, its stability first.
    pub help: &'static str,
    /// Whether it is there before there is anything to count, as upstream's families without labels are.
    pub always: bool,
}

impl Family {
    /// A row without labels, which begins at zero.
    pub const fn plain(name: &'static str, kind: Kind, help: &'static str) -> Self {
        Family { name, kind, labels: &[], help, always: true }
    }

    /// A row with labels.
    pub const fn labelled(
        name: &'static str,
        kind: Kind,
        labels: &'static [&'static str],
        help: &'static str,
    ) -> Self {
        Family { name, kind, labels, help, always: false }
    }

    /// A row of a table in which those without labels begin at zero.
    pub const fn row(
        name: &'static str,
        kind: Kind,
        labels: &'static [&'static str],
        help: &'static str,
    ) -> Self {
        Family { name, kind, labels, help, always: labels.is_empty() }
    }

    /// Begins the family on a page.
    pub fn begin(&self, page: &mut Page) {
        page.family(self.name, self.kind.word(), self.help);
    }
}

#[derive(Debug)]
enum Cell {
    Number(f64),
    Histogram(Box<Histogram<BOUNDS_MAX>>),
}

type Series = BTreeMap<Box<[Box<str>]>, Cell>;

/// The numbers of a table's families.
#[derive(Debug, Default)]
pub struct Counts {
    families: Mutex<BTreeMap<&'static str, Series>>,
}

fn key(family: &Family, values: &[&str]) -> Box<[Box<str>]> {
    debug_assert_eq!(family.labels.len(), values.len(), "{}", family.name);
    values.iter().map(|v| Box::from(*v)).collect()
}

impl Counts {
    fn with(&self, family: &'static Family, values: &[&str], change: impl FnOnce(&mut Cell)) {
        let mut families = self.families.lock();
        let series = families.entry(family.name).or_default();
        let key = key(family, values);
        if series.len() >= SERIES_MAX && !series.contains_key(&key) {
            return;
        }
        change(series.entry(key).or_insert_with(|| match family.kind {
            Kind::Histogram(_) => Cell::Histogram(Box::default()),
            _ => Cell::Number(0.0),
        }));
    }

    /// Adds to a counter or a gauge. Adding nothing makes the series appear.
    pub fn add(&self, family: &'static Family, values: &[&str], by: f64) {
        self.with(family, values, |cell| match cell {
            Cell::Number(number) => *number += by,
            Cell::Histogram(_) => debug_assert!(false, "{} is a histogram", family.name),
        });
    }

    /// Counts one.
    pub fn count(&self, family: &'static Family, values: &[&str]) {
        self.add(family, values, 1.0);
    }

    /// Sets a gauge.
    pub fn set(&self, family: &'static Family, values: &[&str], to: f64) {
        self.with(family, values, |cell| match cell {
            Cell::Number(number) => *number = to,
            Cell::Histogram(_) => debug_assert!(false, "{} is a histogram", family.name),
        });
    }

    /// Counts a value of a histogram.
    pub fn observe(&self, family: &'static Family, values: &[&str], value: f64) {
        self.with(family, values, |cell| match (cell, family.kind) {
            (Cell::Histogram(histogram), Kind::Histogram(bounds)) => histogram.observe(bounds, value),
            _ => debug_assert!(false, "{} is no histogram", family.name),
        });
    }

    /// Forgets the series of a family whose labels are not wanted any more.
    pub fn retain(&self, family: &'static Family, wanted: impl Fn(&[Box<str>]) -> bool) {
        if let Some(series) = self.families.lock().get_mut(family.name) {
            series.retain(|values, _| wanted(values));
        }
    }

    /// What a counter or gauge is at; absent: nothing was counted.
    pub fn value(&self, family: &Family, values: &[&str]) -> Option<f64> {
        match self.families.lock().get(family.name)?.get(&key(family, values))? {
            Cell::Number(number) => Some(*number),
            Cell::Histogram(histogram) => Some(histogram.count as f64),
        }
    }

    /// Writes the families of a table that have numbers or are always there, in the table's order.
    pub fn expose(&self, table: &[&'static Family], page: &mut Page) {
        expose(&[self], table, page);
    }
}

/// [`Counts::expose`] of several, of which each family has its numbers in one.
pub fn expose(parts: &[&Counts], table: &[&'static Family], page: &mut Page) {
    let parts: Vec<_> = parts.iter().map(|counts| counts.families.lock()).collect();
    for family in table {
        let mut found = parts.iter().filter_map(|families| families.get(family.name));
        let Some(series) = found.find(|series| !series.is_empty()) else {
            if family.always {
                family.begin(page);
                match family.kind {
                    Kind::Histogram(bounds) => {
                        Histogram::<BOUNDS_MAX>::default().expose(page, family.name, &[], bounds);
                    }
                    _ => page.sample(family.name, &[], 0.0),
                }
            }
            continue;
        };
        family.begin(page);
        for (values, cell) in series {
            let labels: Vec<(&str, &str)> =
                family.labels.iter().copied().zip(values.iter().map(|v| &**v)).collect();
            match (cell, family.kind) {
                (Cell::Histogram(histogram), Kind::Histogram(bounds)) => {
                    histogram.expose(page, family.name, &labels, bounds);
                }
                (Cell::Number(number), _) => page.sample(family.name, &labels, number),
                // A family has one kind from its first number on.
                (Cell::Histogram(_), _) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static STARTED: Family = Family::labelled("started_total", Kind::Counter, &["kind"], "[ALPHA] Starts.");
    static TOOK: Family = Family::plain("took_seconds", Kind::Histogram(&[0.5, 1.0]), "[ALPHA] Times.");
    static NEVER: Family = Family::labelled("never", Kind::Gauge, &["a"], "[ALPHA] Nothing.");
    static ZERO: Family = Family::plain("zero_total", Kind::Counter, "[ALPHA] Nothing yet.");

    #[test]
    fn rows_with_numbers_are_written() {
        let counts = Counts::default();
        counts.count(&STARTED, &["b"]);
        counts.count(&STARTED, &["a"]);
        counts.count(&STARTED, &["a"]);
        counts.observe(&TOOK, &[], 0.75);
        assert_eq!(counts.value(&STARTED, &["a"]), Some(2.0));
        let mut page = Page::new();
        counts.expose(&[&TOOK, &NEVER, &ZERO, &STARTED], &mut page);
        assert_eq!(
            page.finish(),
            "# HELP took_seconds [ALPHA] Times.\n# TYPE took_seconds histogram\n\
             took_seconds_bucket{le=\"0.5\"} 0\ntook_seconds_bucket{le=\"1\"} 1\ntook_seconds_bucket{le=\"+Inf\"} 1\n\
             took_seconds_sum 0.75\ntook_seconds_count 1\n\
             # HELP zero_total [ALPHA] Nothing yet.\n# TYPE zero_total counter\nzero_total 0\n\
             # HELP started_total [ALPHA] Starts.\n# TYPE started_total counter\n\
             started_total{kind=\"a\"} 2\nstarted_total{kind=\"b\"} 1\n"
        );
        counts.retain(&STARTED, |values| &*values[0] != "a");
        assert_eq!(counts.value(&STARTED, &["a"]), None);
        assert_eq!(counts.value(&STARTED, &["b"]), Some(1.0));
    }

    #[test]
    fn made_up_labels_are_bounded() {
        let counts = Counts::default();
        for i in 0..SERIES_MAX + 10 {
            counts.count(&STARTED, &[&i.to_string()]);
        }
        counts.count(&STARTED, &["0"]);
        assert_eq!(counts.value(&STARTED, &["0"]), Some(2.0));
        assert_eq!(counts.value(&STARTED, &[&SERIES_MAX.to_string()]), None);
    }
}
