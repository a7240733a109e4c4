//! The table: rows of what was measured, beside what it should be. Values in, text on standard output.

use std::{
    fs,
    io::{self, Write as _},
    time::Duration,
};

/// What a figure should be.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// Not more.
    AtMost(f64),
    /// Not less.
    AtLeast(f64),
}

struct Row {
    what: String,
    value: f64,
    unit: &'static str,
    target: Option<Target>,
    /// Figures beside the first, with their units.
    more: Vec<(f64, &'static str)>,
}

impl Row {
    fn new(what: impl Into<String>, value: f64, unit: &'static str, target: Option<Target>) -> Self {
        Self { what: what.into(), value, unit, target, more: Vec::new() }
    }

    fn text(&self) -> String {
        let more = self.more.iter().map(|(value, unit)| format!(" / {}", number(*value, unit)));
        number(self.value, self.unit) + &more.collect::<String>()
    }
}

/// All rows, and the machine that they were measured on.
pub struct Table {
    rows: Vec<Row>,
    load_before: String,
}

impl Table {
    /// Empty; remembers how busy the machine is before anything runs.
    pub fn new() -> Self {
        Self { rows: Vec::new(), load_before: load() }
    }

    /// Adds a figure that is compared with nothing.
    pub fn note(&mut self, what: impl Into<String>, value: f64, unit: &'static str) {
        self.add(Row::new(what, value, unit, None));
    }

    /// Adds a figure that must not be above `limit`.
    pub fn at_most(&mut self, what: impl Into<String>, value: f64, limit: f64, unit: &'static str) {
        self.add(Row::new(what, value, unit, Some(Target::AtMost(limit))));
    }

    /// Adds a figure that must not be below `limit`.
    pub fn at_least(&mut self, what: impl Into<String>, value: f64, limit: f64, unit: &'static str) {
        self.add(Row::new(what, value, unit, Some(Target::AtLeast(limit))));
    }

    /// Adds figures that belong together and are compared with nothing.
    pub fn several(&mut self, what: impl Into<String>, values: &[(f64, &'static str)]) {
        if let Some(((value, unit), more)) = values.split_first() {
            self.add(Row { more: more.to_vec(), ..Row::new(what, *value, unit, None) });
        }
    }

    fn add(&mut self, row: Row) {
        // Each figure is shown at once, on the side, for whoever waits for the table.
        complain(&format!("{}: {}", row.what, row.text()));
        self.rows.push(row);
    }

    /// Writes the table to standard output.
    pub fn print(&self) {
        let mut text = format!("{}\nload {} before, {} after\n\n", machine(), self.load_before, load());
        let width = self.rows.iter().map(|r| r.what.chars().count()).max().unwrap_or(0).max(4);
        let room = self.rows.iter().map(|r| r.text().chars().count()).max().unwrap_or(0).max(16);
        text += &format!("{:<width$}  {:>room$}  {:>18}\n", "what", "measured", "target");
        for row in &self.rows {
            let value = row.text();
            let (target, verdict) = match row.target {
                None => (String::new(), ""),
                Some(Target::AtMost(limit)) => {
                    (format!("≤ {}", number(limit, row.unit)), verdict(row.value <= limit))
                }
                Some(Target::AtLeast(limit)) => {
                    (format!("≥ {}", number(limit, row.unit)), verdict(row.value >= limit))
                }
            };
            text += format!("{:<width$}  {value:>room$}  {target:>18}  {verdict}", row.what).trim_end();
            text.push('\n');
        }
        // Nobody reading it is no reason to fail.
        let _ = io::stdout().write_all(text.as_bytes());
    }
}

fn verdict(ok: bool) -> &'static str {
    if ok { "ok" } else { "missed" }
}

/// Three digits that matter, and thousands apart.
fn number(value: f64, unit: &str) -> String {
    let digits = match value.abs() {
        v if v >= 100.0 || v.fract() == 0.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 1.0 => 2,
        _ => 3,
    };
    let plain = format!("{value:.digits$}");
    let (whole, fraction) = plain.split_once('.').map_or((plain.as_str(), None), |(w, f)| (w, Some(f)));
    let mut out = String::new();
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at).is_multiple_of(3) && !out.ends_with('-') {
            out.push(',');
        }
        out.push(digit);
    }
    if let Some(fraction) = fraction {
        out.push('.');
        out += fraction;
    }
    format!("{out} {unit}").trim_end().to_owned()
}

fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("?").to_owned()
}

fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or_default();
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = memory.lines().find_map(|l| l.strip_prefix("MemTotal:")).unwrap_or_default();
    let gib = kib.trim().trim_end_matches(" kB").parse::<f64>().unwrap_or_default() / 1024.0 / 1024.0;
    let model = model.trim_start_matches([' ', '\t', ':']);
    format!("{cores} cores ({model}), {gib:.0} GiB, Linux {}", kernel.trim())
}

/// Writes a line to standard error.
pub fn complain(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// The value below which `part` of the sorted values lie.
pub fn quantile(sorted: &[f64], part: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * part).round() as usize).copied().unwrap_or(f64::NAN)
}

/// Sorts, and answers the median.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    quantile(values, 0.5)
}

/// Milliseconds.
pub fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (0.0, "0 ms"),
            (0.05, "0.050 ms"),
            (1.234, "1.23 ms"),
            (12.34, "12.3 ms"),
            (123.4, "123 ms"),
            (999.9, "1,000 ms"),
            (12_345_678.0, "12,345,678 ms"),
            (-1234.5, "-1,234 ms"),
        ] {
            assert_eq!(number(value, "ms"), text);
        }
    }

    #[test]
    fn quantiles() {
        let mut values = [5.0, 1.0, 3.0, 2.0, 4.0];
        assert_eq!(median(&mut values), 3.0);
        assert_eq!(quantile(&values, 0.99), 5.0);
        assert!(quantile(&[], 0.5).is_nan());
    }
}
