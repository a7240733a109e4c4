//! Sets of NUMA nodes.

/// A set of NUMA nodes, 0 to 63. Nodes beyond are never in one, as upstream has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Mask(u64);

impl Mask {
    /// Of these nodes.
    pub(crate) fn of(nodes: impl IntoIterator<Item = u32>) -> Self {
        Mask(nodes.into_iter().filter(|n| *n < 64).fold(0, |bits, n| bits | 1 << n))
    }

    /// How many nodes.
    pub(crate) fn count(self) -> usize {
        self.0.count_ones() as usize
    }

    /// None at all.
    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether a node is in it.
    pub(crate) fn contains(self, node: u32) -> bool {
        node < 64 && self.0 >> node & 1 == 1
    }

    /// Nodes that are in both.
    pub(crate) fn and(self, other: Self) -> Self {
        Mask(self.0 & other.0)
    }

    /// Whether all of another one is in it.
    pub(crate) fn covers(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The order of preference: fewer nodes, then lower ones.
    pub(crate) fn width(self) -> (usize, u64) {
        (self.count(), self.0)
    }

    /// Its nodes, ascending.
    pub(crate) fn nodes(self) -> impl Iterator<Item = u32> {
        (0..64).filter(move |n| self.contains(*n))
    }
}

/// Every set of these nodes but the empty one: the smaller first, and of one size in the order of the list. At most
/// 16 nodes are looked at: beyond, their number has no use and no end.
pub(crate) fn combinations(nodes: &[u32]) -> Vec<Mask> {
    let nodes = &nodes[..nodes.len().min(16)];
    let mut all = Vec::new();
    for size in 1..=nodes.len() {
        extend(nodes, size, Mask::default(), &mut all);
    }
    all
}

fn extend(nodes: &[u32], missing: usize, taken: Mask, all: &mut Vec<Mask>) {
    if missing == 0 {
        return all.push(taken);
    }
    for (i, node) in nodes.iter().enumerate() {
        extend(&nodes[i + 1..], missing - 1, Mask(taken.0 | Mask::of([*node]).0), all);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn combinations_grow() {
        let sets: Vec<Vec<u32>> = combinations(&[0, 1, 3]).into_iter().map(|m| m.nodes().collect()).collect();
        let want: [&[u32]; 7] = [&[0], &[1], &[3], &[0, 1], &[0, 3], &[1, 3], &[0, 1, 3]];
        assert_eq!(sets, want);
    }

    #[test]
    fn narrower_is_fewer_then_lower() {
        for (less, more) in
            [(vec![5], vec![0, 1]), (vec![0], vec![1]), (vec![0, 3], vec![1, 2, 3]), (vec![2], vec![3])]
        {
            assert!(Mask::of(less.clone()).width() < Mask::of(more.clone()).width(), "{less:?} {more:?}");
        }
        assert!(Mask::of([1, 2, 70]).covers(Mask::of([2])));
        assert!(!Mask::of([1]).covers(Mask::of([2])));
    }
}
