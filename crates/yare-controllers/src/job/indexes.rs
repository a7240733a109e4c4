//! Sets of completion indexes, as a Job's status spells them: `1,3-5,7`.

use std::{collections::BTreeSet, fmt};

/// A set of completion indexes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Indexes(BTreeSet<i32>);

impl Indexes {
    /// Reads a set; indexes of `completions` and above are left out.
    pub fn parse(text: &str, completions: i32) -> Self {
        let mut set = BTreeSet::new();
        for interval in text.split(',').filter(|i| !i.is_empty()) {
            let (first, last) = interval.split_once('-').unwrap_or((interval, interval));
            let (Ok(first), Ok(last)) = (first.parse::<i32>(), last.parse::<i32>()) else { continue };
            set.extend(first.max(0)..=last.min(completions - 1));
        }
        Self(set)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether an index is in the set.
    pub fn has(&self, index: i32) -> bool {
        self.0.contains(&index)
    }

    /// How many indexes both have.
    pub fn common(&self, other: &Self) -> usize {
        self.0.intersection(&other.0).count()
    }

    /// Adds indexes.
    pub fn extend(&mut self, indexes: impl IntoIterator<Item = i32>) {
        self.0.extend(indexes);
    }
}

impl fmt::Display for Indexes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.iter().copied().peekable();
        let mut separator = "";
        while let Some(first) = rest.next() {
            let mut last = first;
            while rest.peek() == Some(&(last + 1)) {
                last += 1;
                rest.next();
            }
            write!(f, "{separator}{first}")?;
            match last - first {
                0 => {}
                1 => write!(f, ",{last}")?,
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
        for (text, completions, expected) in [
            ("", 5, ""),
            ("1,3-5,7", 10, "1,3-5,7"),
            ("1,2", 5, "1,2"),
            ("1,2,3", 5, "1-3"),
            ("0-9", 5, "0-4"),
            ("x,2", 5, "2"),
        ] {
            assert_eq!(Indexes::parse(text, completions).to_string(), expected, "{text}");
        }
    }
}
