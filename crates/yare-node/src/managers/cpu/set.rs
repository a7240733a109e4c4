//! Sets of processors, as `0-3,7`.

use std::collections::BTreeSet;
use std::fmt;

/// Processors above this are no processors.
const CPU_MAX: u32 = 1 << 16;

/// A set of processors.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CpuSet(BTreeSet<u32>);

impl CpuSet {
    /// Of these.
    pub fn of(cpus: impl IntoIterator<Item = u32>) -> Self {
        CpuSet(cpus.into_iter().collect())
    }

    /// Reads Linux' list format. An empty text is an empty set.
    pub fn parse(text: &str) -> Result<Self, String> {
        let number = |word: &str| {
            let n: u32 = word.trim().parse().map_err(|e| format!("{word:?} in cpu list {text:?}: {e}"))?;
            if n > CPU_MAX { Err(format!("{n} in cpu list {text:?} is too large")) } else { Ok(n) }
        };
        let mut set = BTreeSet::new();
        for part in text.split(',').filter(|_| !text.is_empty()) {
            match part.split_once('-') {
                None => {
                    set.insert(number(part)?);
                }
                Some((first, last)) => {
                    let (first, last) = (number(first)?, number(last)?);
                    if first > last {
                        return Err(format!("invalid range {part:?} ({first} > {last})"));
                    }
                    set.extend(first..=last);
                }
            }
        }
        Ok(CpuSet(set))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().copied()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn contains(&self, cpu: u32) -> bool {
        self.0.contains(&cpu)
    }

    pub(crate) fn union(&self, other: &Self) -> Self {
        CpuSet(self.0.union(&other.0).copied().collect())
    }

    pub(crate) fn difference(&self, other: &Self) -> Self {
        CpuSet(self.0.difference(&other.0).copied().collect())
    }

    pub(crate) fn intersection(&self, other: &Self) -> Self {
        CpuSet(self.0.intersection(&other.0).copied().collect())
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.iter().peekable();
        let mut first = true;
        while let Some(start) = rest.next() {
            let mut end = start;
            while let Some(next) = rest.next_if(|n| *n == end + 1) {
                end = next;
            }
            if !std::mem::take(&mut first) {
                f.write_str(",")?;
            }
            match end - start {
                0 => write!(f, "{start}")?,
                _ => write!(f, "{start}-{end}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_round_trip() {
        for (text, want) in [
            ("", Ok("")),
            ("5", Ok("5")),
            ("1-2", Ok("1-2")),
            ("3,1,2,9", Ok("1-3,9")),
            ("0-3,2-5", Ok("0-5")),
            ("3-1", Err("invalid range")),
            ("a", Err("cpu list")),
            ("1,", Err("cpu list")),
            ("0-4000000000", Err("too large")),
        ] {
            match (CpuSet::parse(text).map(|s| s.to_string()), want) {
                (Ok(got), Ok(want)) => assert_eq!(got, want, "{text}"),
                (Err(got), Err(want)) => assert!(got.contains(want), "{text}: {got}"),
                (got, want) => panic!("{text}: {got:?} {want:?}"),
            }
        }
    }
}
