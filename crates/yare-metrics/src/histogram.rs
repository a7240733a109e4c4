//! A histogram of plain numbers, for whoever holds a lock already.

use crate::text::{Labels, Page};

/// Values by upper bounds that whoever owns it knows, at most `N` of them, in the unit of the values. What is
/// above all bounds only counts in the total.
#[derive(Clone, Debug)]
pub struct Histogram<const N: usize> {
    /// Values at or below each bound and above the one before.
    pub buckets: [u64; N],
    /// All values.
    pub count: u64,
    /// Their sum.
    pub sum: f64,
}

impl<const N: usize> Default for Histogram<N> {
    fn default() -> Self {
        Self { buckets: [0; N], count: 0, sum: 0.0 }
    }
}

impl<const N: usize> Histogram<N> {
    /// Counts a value.
    pub fn observe(&mut self, bounds: &[f64], value: f64) {
        self.observe_many(bounds, value, 1);
    }

    /// Counts a value `times` times.
    pub fn observe_many(&mut self, bounds: &[f64], value: f64, times: u64) {
        debug_assert!(bounds.len() <= N, "{} bounds for {N} buckets", bounds.len());
        if let Some(bucket) =
            bounds.iter().position(|bound| value <= *bound).and_then(|at| self.buckets.get_mut(at))
        {
            *bucket += times;
        }
        self.count += times;
        self.sum += value * times as f64;
    }

    /// Adds it to a family.
    pub fn expose(&self, page: &mut Page, name: &str, labels: Labels<'_>, bounds: &[f64]) {
        page.histogram(name, labels, bounds, &self.buckets, self.count, self.sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_fall_into_buckets() {
        let mut histogram = Histogram::<8>::default();
        for value in [0.0, 1.0, 1.5, 200.0] {
            histogram.observe(&[1.0, 2.0, 4.0], value);
        }
        assert_eq!(histogram.buckets, [2, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!((histogram.count, histogram.sum), (4, 202.5));
        let mut page = Page::new();
        histogram.expose(&mut page, "h", &[], &[1.0, 2.0, 4.0]);
        let text = page.finish();
        assert!(text.contains("h_bucket{le=\"4\"} 3\nh_bucket{le=\"+Inf\"} 4\nh_sum 202.5\n"), "{text}");
    }
}
