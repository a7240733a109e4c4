//! Sets of completion indexes, as a Job's status spells them: `1,3-5,7`.

use std::{collections::BTreeMap, fmt};

/// A set of completion indexes. It is kept as intervals, first index to last, that do not touch: a Job may
/// have two thousand million completions, and its status says `0-1999999999` in a few bytes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Indexes(BTreeMap<i32, i32>);

impl Indexes {
    /// Reads a set; indexes of `completions` and above are left out.
    pub fn parse(text: &str, completions: i32) -> Self {
        let mut set = Self::default();
        for interval in text.split(',').filter(|i| !i.is_empty()) {
            let (first, last) = interval.split_once('-').unwrap_or((interval, interval));
            let (Ok(first), Ok(last)) = (first.parse::<i32>(), last.parse::<i32>()) else { continue };
            set.add(first.max(0), last.min(completions.saturating_sub(1)));
        }
        set
    }

    /// Adds `first..=last`, merging it with the intervals that it meets.
    fn add(&mut self, mut first: i32, mut last: i32) {
        if first > last {
            return;
        }
        while let Some((&f, &l)) = self.0.range(..=last.saturating_add(1)).next_back()
            && l >= first.saturating_sub(1)
        {
            self.0.remove(&f);
            (first, last) = (first.min(f), last.max(l));
        }
        self.0.insert(first, last);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.iter().map(|interval| count(*interval.0, *interval.1)).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether an index is in the set.
    pub fn has(&self, index: i32) -> bool {
        self.0.range(..=index).next_back().is_some_and(|(_, last)| *last >= index)
    }

    /// How many indexes both have.
    pub fn common(&self, other: &Self) -> usize {
        let (mut left, mut right) = (self.0.iter().peekable(), other.0.iter().peekable());
        let mut common = 0;
        while let (Some(&(a, b)), Some(&(c, d))) = (left.peek(), right.peek()) {
            common += count(*a.max(c), *b.min(d));
            // The one that ends first meets nothing more.
            if b < d {
                left.next()
            } else {
                right.next()
            };
        }
        common
    }

    /// Adds indexes.
    pub fn extend(&mut self, indexes: impl IntoIterator<Item = i32>) {
        for index in indexes {
            self.add(index, index);
        }
    }
}

/// How many indexes `first..=last` are.
fn count(first: i32, last: i32) -> usize {
    usize::try_from(i64::from(last) - i64::from(first) + 1).unwrap_or(0)
}

impl fmt::Display for Indexes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (&first, &last) in &self.0 {
            write!(f, "{separator}{first}")?;
            match count(first, last) {
                1 => {}
                2 => write!(f, ",{last}")?,
                _ => write!(f, "-{last}")?,
            }
            separator = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings() {
        for (text, completions, expected, len) in [
            ("", 5, "", 0),
            ("1,3-5,7", 10, "1,3-5,7", 5),
            ("1,2", 5, "1,2", 2),
            ("1,2,3", 5, "1-3", 3),
            ("0-9", 5, "0-4", 5),
            ("x,2", 5, "2", 1),
            ("5-3,2", 9, "2", 1),
            ("4-6,0-1,1-4", 9, "0-6", 7),
            ("0-2147483647", i32::MAX, "0-2147483646", 2_147_483_647),
        ] {
            let set = Indexes::parse(text, completions);
            assert_eq!((&*set.to_string(), set.len()), (expected, len), "{text}");
        }
    }

    #[test]
    fn sets() {
        let (a, b) = (Indexes::parse("0-3,6,8-9", 20), Indexes::parse("2-6,9-12", 20));
        assert_eq!((a.common(&b), b.common(&a)), (4, 4));
        assert_eq!((0..20).filter(|i| a.has(*i)).count(), a.len());
        let mut all = a;
        all.extend([7, 5, 4, 4]);
        assert_eq!(all.to_string(), "0-9");
    }
}
