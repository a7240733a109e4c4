//! Prometheus' text format, written by hand: families of samples with labels.

use std::fmt::{Display, Write as _};

/// Names and values of labels.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

/// A page of metrics under way.
#[derive(Default)]
pub struct Page {
    out: String,
}

impl Page {
    /// An empty page.
    pub fn new() -> Self {
        Self { out: String::with_capacity(64 * 1024) }
    }

    /// Begins a family: `kind` is `counter`, `gauge` or `histogram`. Stability stands first in the help.
    pub fn family(&mut self, name: &str, kind: &str, help: &str) {
        // A help text is one line.
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        let _ = writeln!(self.out, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// One sample of the family.
    pub fn sample(&mut self, name: &str, labels: Labels<'_>, value: impl Display) {
        self.line(name, "", labels, None, value);
    }

    /// One sample of the family as it was at a time, milliseconds since 1970.
    pub fn sample_at(&mut self, name: &str, labels: Labels<'_>, value: impl Display, at_ms: i64) {
        self.line(name, "", labels, None, format_args!("{value} {at_ms}"));
    }

    /// A family of one sample without labels.
    pub fn single(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }

    /// A histogram; `buckets` hold what is above the bound before and not above their own.
    pub fn histogram(
        &mut self,
        name: &str,
        labels: Labels<'_>,
        bounds: &[f64],
        buckets: &[u64],
        count: u64,
        sum: f64,
    ) {
        let mut below = 0;
        for (bound, bucket) in bounds.iter().zip(buckets) {
            below += bucket;
            self.line(name, "_bucket", labels, Some(&bound_text(*bound)), below);
        }
        self.line(name, "_bucket", labels, Some("+Inf"), count);
        self.line(name, "_sum", labels, None, sum);
        self.line(name, "_count", labels, None, count);
    }

    fn line(
        &mut self,
        name: &str,
        suffix: &str,
        labels: Labels<'_>,
        bound: Option<&str>,
        value: impl Display,
    ) {
        self.out.push_str(name);
        self.out.push_str(suffix);
        let bound = bound.map(|b| ("le", b));
        if !labels.is_empty() || bound.is_some() {
            for (at, (label, text)) in labels.iter().copied().chain(bound).enumerate() {
                self.out.push(if at == 0 { '{' } else { ',' });
                self.out.push_str(label);
                self.out.push_str("=\"");
                self.escape(text);
                self.out.push('"');
            }
            self.out.push('}');
        }
        let _ = writeln!(self.out, " {value}");
    }

    fn escape(&mut self, text: &str) {
        for c in text.chars() {
            match c {
                '\\' => self.out.push_str("\\\\"),
                '"' => self.out.push_str("\\\""),
                '\n' => self.out.push_str("\\n"),
                c => self.out.push(c),
            }
        }
    }

    /// The page.
    pub fn finish(self) -> String {
        self.out
    }
}

/// A bound as Go's client writes it, and as queries name it: `0.5`, `262144`, `1e+06`, `1e-08`.
fn bound_text(bound: f64) -> String {
    let scientific = format!("{bound:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return bound.to_string() };
    match exponent.parse::<i32>() {
        Ok(exponent) if !(-4..6).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.abs())
        }
        _ => bound.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_written_as_gos() {
        for (bound, text) in [
            (0.0, "0"),
            (0.5, "0.5"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1.5e-8, "1.5e-08"),
            (60.0, "60"),
            (262_144.0, "262144"),
            (1_000_000.0, "1e+06"),
            (1_048_576.0, "1.048576e+06"),
        ] {
            assert_eq!(bound_text(bound), text);
        }
    }

    #[test]
    fn samples_and_histograms() {
        let mut page = Page::new();
        page.family("a_total", "counter", "[ALPHA] Things.");
        page.sample("a_total", &[("x", "q\"\\\n"), ("y", "")], 3);
        page.histogram("b", &[("x", "1")], &[0.5, 1.0], &[2, 1], 4, 2.25);
        assert_eq!(
            page.finish(),
            "# HELP a_total [ALPHA] Things.\n# TYPE a_total counter\na_total{x=\"q\\\"\\\\\\n\",y=\"\"} 3\n\
             b_bucket{x=\"1\",le=\"0.5\"} 2\nb_bucket{x=\"1\",le=\"1\"} 3\nb_bucket{x=\"1\",le=\"+Inf\"} 4\n\
             b_sum{x=\"1\"} 2.25\nb_count{x=\"1\"} 4\n"
        );
    }
}
