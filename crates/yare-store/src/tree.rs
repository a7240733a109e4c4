//! A persistent ordered map: a B+tree of shared nodes. A clone is one reference; a change copies only the
//! nodes on its path, and those only while somebody else holds them. In: values that know their key.
//! Out: lookups, ordered ranges, ranks (how many keys lie before a point) in logarithmic time.

use std::slice;
use std::sync::Arc;

/// Most values in a leaf, most children of an inner node. 32 pointers are four cache lines: a path copy at
/// 100,000 objects is four such nodes.
const MAX: usize = 32;
/// Below this a node is joined with, or filled from, its neighbour.
const MIN: usize = 12;
/// How full bulk loading makes nodes: some room, so that the first inserts do not split everything.
const BULK: usize = 28;

/// A value that carries its own key, so that a leaf is a plain array of values.
pub trait Keyed: Clone {
    /// The key; it must never change.
    fn key(&self) -> &str;
}

#[derive(Clone)]
enum Node<V> {
    Leaf(Vec<V>),
    Inner(Inner<V>),
}

#[derive(Clone)]
struct Inner<V> {
    /// `keys[i]` is above everything in `children[i]` and not above anything in `children[i + 1]`.
    keys: Vec<Arc<str>>,
    children: Vec<Arc<Node<V>>>,
    /// Values below this node.
    len: usize,
}

/// What a split hands to the parent: the new right neighbour and the key that divides.
type Split<V> = (Arc<str>, Arc<Node<V>>);

/// The map. `Clone` is O(1).
pub struct Tree<V> {
    root: Option<Arc<Node<V>>>,
}

impl<V> Clone for Tree<V> {
    fn clone(&self) -> Self {
        Tree { root: self.root.clone() }
    }
}

impl<V> Default for Tree<V> {
    fn default() -> Self {
        Tree { root: None }
    }
}

impl<V: Keyed> Tree<V> {
    /// How many values there are.
    pub fn len(&self) -> usize {
        self.root.as_ref().map_or(0, |n| n.len())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.root.is_none()
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&V> {
        let mut node = self.root.as_deref()?;
        loop {
            match node {
                Node::Inner(inner) => node = &inner.children[inner.child_of(key)],
                Node::Leaf(values) => return search(values, key).ok().map(|i| &values[i]),
            }
        }
    }

    /// Puts a value in, and returns the one it replaces.
    pub fn insert(&mut self, value: V) -> Option<V> {
        let Some(root) = &mut self.root else {
            self.root = Some(Arc::new(Node::Leaf(vec![value])));
            return None;
        };
        let (old, split) = Node::insert(root, value);
        if let Some((key, right)) = split {
            let left = root.clone();
            let len = left.len() + right.len();
            let inner = Inner { keys: vec![key], children: vec![left, right], len };
            self.root = Some(Arc::new(Node::Inner(inner)));
        }
        old
    }

    /// Takes the value of `key` out. A key that is not there copies nothing.
    pub fn remove(&mut self, key: &str) -> Option<V> {
        self.get(key)?;
        let root = self.root.as_mut()?;
        let old = Node::remove(root, key);
        let shrunk = match &**root {
            Node::Leaf(values) if values.is_empty() => Some(None),
            Node::Inner(inner) if inner.children.len() == 1 => Some(Some(inner.children[0].clone())),
            _ => None,
        };
        if let Some(root) = shrunk {
            self.root = root;
        }
        old
    }

    /// Builds a tree from values in strictly ascending key order.
    pub fn from_sorted(values: Vec<V>) -> Self {
        if values.is_empty() {
            return Tree::default();
        }
        let mut level: Vec<Arc<Node<V>>> = even_chunks(values).map(|c| Arc::new(Node::Leaf(c))).collect();
        while level.len() > 1 {
            level = even_chunks(level).map(|c| Arc::new(Node::Inner(Inner::over(c)))).collect();
        }
        Tree { root: level.pop() }
    }

    /// How many keys satisfy `before`, which must be true for a (possibly empty) run of the smallest keys.
    pub fn rank(&self, before: impl Fn(&str) -> bool) -> usize {
        let mut rank = 0;
        let Some(mut node) = self.root.as_deref() else { return 0 };
        loop {
            match node {
                Node::Leaf(values) => return rank + values.partition_point(|v| before(v.key())),
                Node::Inner(inner) => {
                    let i = inner.keys.partition_point(|k| before(k));
                    rank += inner.children[..i].iter().map(|c| c.len()).sum::<usize>();
                    node = &inner.children[i];
                }
            }
        }
    }

    /// The values in key order from the first key that does not satisfy `before` (see [`Tree::rank`]).
    pub fn iter_from(&self, before: impl Fn(&str) -> bool) -> Iter<'_, V> {
        let mut iter = Iter { stack: Vec::new(), leaf: [].iter() };
        let Some(mut node) = self.root.as_deref() else { return iter };
        loop {
            match node {
                Node::Leaf(values) => {
                    iter.leaf = values[values.partition_point(|v| before(v.key()))..].iter();
                    return iter;
                }
                Node::Inner(inner) => {
                    let i = inner.keys.partition_point(|k| before(k));
                    iter.stack.push((inner, i));
                    node = &inner.children[i];
                }
            }
        }
    }

    /// All values in key order.
    pub fn iter(&self) -> Iter<'_, V> {
        self.iter_from(|_| false)
    }
}

/// Values in key order.
pub struct Iter<'a, V> {
    /// The way down: each inner node with the child that is being read.
    stack: Vec<(&'a Inner<V>, usize)>,
    leaf: slice::Iter<'a, V>,
}

impl<'a, V> Iterator for Iter<'a, V> {
    type Item = &'a V;

    fn next(&mut self) -> Option<&'a V> {
        loop {
            if let Some(value) = self.leaf.next() {
                return Some(value);
            }
            let (inner, i) = self.stack.last_mut()?;
            *i += 1;
            let Some(child) = inner.children.get(*i) else {
                self.stack.pop();
                continue;
            };
            let mut node = &**child;
            loop {
                match node {
                    Node::Leaf(values) => {
                        self.leaf = values.iter();
                        break;
                    }
                    Node::Inner(inner) => {
                        self.stack.push((inner, 0));
                        node = &inner.children[0];
                    }
                }
            }
        }
    }
}

impl<V> Node<V> {
    fn len(&self) -> usize {
        match self {
            Node::Leaf(values) => values.len(),
            Node::Inner(inner) => inner.len,
        }
    }

    fn width(&self) -> usize {
        match self {
            Node::Leaf(values) => values.len(),
            Node::Inner(inner) => inner.children.len(),
        }
    }
}

impl<V: Keyed> Node<V> {
    fn insert(node: &mut Arc<Self>, value: V) -> (Option<V>, Option<Split<V>>) {
        match Arc::make_mut(node) {
            Node::Leaf(values) => match search(values, value.key()) {
                Ok(i) => (Some(std::mem::replace(&mut values[i], value)), None),
                Err(i) => {
                    // Doubling would leave half of a long-lived array empty.
                    values.reserve_exact(1);
                    values.insert(i, value);
                    (None, split_leaf(values))
                }
            },
            Node::Inner(inner) => {
                let i = inner.child_of(value.key());
                let (old, split) = Node::insert(&mut inner.children[i], value);
                if old.is_none() {
                    inner.len += 1;
                }
                if let Some((key, right)) = split {
                    inner.keys.insert(i, key);
                    inner.children.insert(i + 1, right);
                }
                (old, inner.split())
            }
        }
    }

    fn remove(node: &mut Arc<Self>, key: &str) -> Option<V> {
        match Arc::make_mut(node) {
            Node::Leaf(values) => search(values, key).ok().map(|i| values.remove(i)),
            Node::Inner(inner) => {
                let i = inner.child_of(key);
                let old = Node::remove(&mut inner.children[i], key)?;
                inner.len -= 1;
                if inner.children[i].width() < MIN {
                    inner.join(i.saturating_sub(1));
                }
                Some(old)
            }
        }
    }

    /// The smallest key below this node.
    fn first_key(&self) -> &str {
        let mut node = self;
        loop {
            match node {
                Node::Leaf(values) => return values[0].key(),
                Node::Inner(inner) => node = &inner.children[0],
            }
        }
    }
}

impl<V: Keyed> Inner<V> {
    fn over(children: Vec<Arc<Node<V>>>) -> Self {
        let keys = children[1..].iter().map(|c| Arc::from(c.first_key())).collect();
        let len = children.iter().map(|c| c.len()).sum();
        Inner { keys, children, len }
    }

    fn child_of(&self, key: &str) -> usize {
        self.keys.partition_point(|k| **k <= *key)
    }

    /// Gives the right half away when there are too many children.
    fn split(&mut self) -> Option<Split<V>> {
        if self.children.len() <= MAX {
            return None;
        }
        let middle = self.children.len() / 2;
        let children = self.children.split_off(middle);
        let keys = self.keys.split_off(middle);
        let key = self.keys.pop().expect("there is a key before every child but the first");
        let len = children.iter().map(|c| c.len()).sum();
        self.len -= len;
        Some((key, Arc::new(Node::Inner(Inner { keys, children, len }))))
    }

    /// Joins children `left` and `left + 1`; divides them evenly again when they are too many for one node.
    fn join(&mut self, left: usize) {
        if self.children.len() < 2 {
            return;
        }
        let key = self.keys.remove(left);
        let right = Arc::unwrap_or_clone(self.children.remove(left + 1));
        let split = match (Arc::make_mut(&mut self.children[left]), right) {
            (Node::Leaf(values), Node::Leaf(more)) => {
                values.extend(more);
                split_leaf(values)
            }
            (Node::Inner(inner), Node::Inner(more)) => {
                inner.keys.push(key);
                inner.keys.extend(more.keys);
                inner.children.extend(more.children);
                inner.len += more.len;
                inner.split()
            }
            _ => unreachable!("all leaves of a B+tree are at the same depth"),
        };
        if let Some((key, right)) = split {
            self.keys.insert(left, key);
            self.children.insert(left + 1, right);
        }
    }
}

fn search<V: Keyed>(values: &[V], key: &str) -> Result<usize, usize> {
    values.binary_search_by(|v| v.key().cmp(key))
}

fn split_leaf<V: Keyed>(values: &mut Vec<V>) -> Option<Split<V>> {
    if values.len() <= MAX {
        return None;
    }
    let right = values.split_off(values.len() / 2);
    Some((Arc::from(right[0].key()), Arc::new(Node::Leaf(right))))
}

/// Divides into as few chunks of at most [`BULK`] as possible, all of nearly the same size.
fn even_chunks<T>(items: Vec<T>) -> impl Iterator<Item = Vec<T>> {
    let total = items.len();
    let chunks = total.div_ceil(BULK);
    let mut items = items.into_iter();
    (0..chunks).map(move |i| {
        let size = (i + 1) * total / chunks - i * total / chunks;
        items.by_ref().take(size).collect()
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    impl Keyed for (String, u32) {
        fn key(&self) -> &str {
            &self.0
        }
    }

    /// Panics unless the structure is sound: sizes, order, separators, equal depth.
    fn check(node: &Node<(String, u32)>, root: bool, low: Option<&str>, high: Option<&str>) -> usize {
        assert!(node.width() <= MAX);
        match node {
            Node::Leaf(values) => {
                assert!(root || values.len() >= MIN, "leaf of {}", values.len());
                assert!(!values.is_empty());
                assert!(values.windows(2).all(|w| w[0].0 < w[1].0));
                assert!(low.is_none_or(|low| low <= values[0].key()));
                assert!(high.is_none_or(|high| values[values.len() - 1].key() < high));
                1
            }
            Node::Inner(inner) => {
                assert!(inner.children.len() >= if root { 2 } else { MIN });
                assert_eq!(inner.keys.len() + 1, inner.children.len());
                assert_eq!(inner.len, inner.children.iter().map(|c| c.len()).sum::<usize>());
                let mut depths = inner.children.iter().enumerate().map(|(i, c)| {
                    let low = if i == 0 { low } else { Some(&*inner.keys[i - 1]) };
                    check(c, false, low, inner.keys.get(i).map(|k| &**k).or(high))
                });
                let first = depths.next().unwrap();
                assert!(depths.all(|d| d == first));
                first + 1
            }
        }
    }

    fn same(tree: &Tree<(String, u32)>, model: &BTreeMap<String, u32>) {
        if let Some(root) = &tree.root {
            check(root, true, None, None);
        }
        assert_eq!(tree.len(), model.len());
        assert_eq!(tree.is_empty(), model.is_empty());
        assert!(tree.iter().map(|(k, v)| (k, v)).eq(model.iter()));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Random inserts and removes, with snapshots that must never change afterwards.
        #[test]
        fn behaves_like_a_btreemap(
            bulk in 0usize..900,
            ops in prop::collection::vec((0u32..1200, any::<u32>(), 0u8..10), 0..1500),
            removes in 1u8..9,
        ) {
            let mut model: BTreeMap<String, u32> = (0..bulk).map(|i| (format!("{:04}", i * 7 % 1200), 0)).collect();
            let mut tree = Tree::from_sorted(model.clone().into_iter().collect());
            same(&tree, &model);
            let mut snapshots = Vec::new();
            for (i, (key, value, op)) in ops.into_iter().enumerate() {
                let key = format!("{key:04}");
                if op < removes {
                    prop_assert_eq!(tree.remove(&key).map(|v| v.1), model.remove(&key));
                } else {
                    let old = tree.insert((key.clone(), value)).map(|v| v.1);
                    prop_assert_eq!(old, model.insert(key.clone(), value));
                }
                prop_assert_eq!(tree.get(&key).map(|v| v.1), model.get(&key).copied());
                if i % 200 == 0 {
                    snapshots.push((tree.clone(), model.clone()));
                }
            }
            same(&tree, &model);
            for (tree, model) in &snapshots {
                same(tree, model);
            }
            for probe in ["", "0", "0500", "05005", "1199", "9"] {
                prop_assert_eq!(tree.rank(|k| k < probe), model.keys().filter(|k| k.as_str() < probe).count());
                let ours = tree.iter_from(|k| k < probe).map(|v| v.0.as_str());
                prop_assert!(ours.eq(model.keys().map(String::as_str).filter(|k| *k >= probe)));
            }
            for key in model.keys() {
                prop_assert!(tree.remove(key).is_some());
            }
            prop_assert!(tree.is_empty());
        }
    }

    #[test]
    fn an_unshared_tree_is_changed_in_place() {
        let mut tree = Tree::default();
        tree.insert(("a".to_owned(), 1));
        let before = Arc::as_ptr(tree.root.as_ref().unwrap());
        tree.insert(("b".to_owned(), 1));
        assert_eq!(before, Arc::as_ptr(tree.root.as_ref().unwrap()));
        let snapshot = tree.clone();
        tree.insert(("c".to_owned(), 1));
        assert_eq!((snapshot.len(), tree.len()), (2, 3));
    }
}
