//! The keys that verify service-account tokens, as a set that is replaced as a whole.

use crate::jws::PublicKey;

/// A key, and what tokens call it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// The `kid` of tokens that it signed.
    pub id: String,
    /// It.
    pub key: PublicKey,
    /// It only verifies here: the issuer does not publish it.
    pub unpublished: bool,
}

impl Key {
    /// A key under the name that follows from it.
    pub fn new(key: PublicKey) -> Self {
        Self { id: key.id(), key, unpublished: false }
    }
}

/// A set of keys.
#[derive(Debug, Default)]
pub(super) struct Keys {
    /// How many sets came before.
    generation: u64,
    all: Vec<Key>,
    /// What the issuer publishes; where a set has nothing to publish, what the one before had.
    published: Vec<Key>,
}

impl Keys {
    /// The set that comes next.
    pub fn followed_by(&self, all: Vec<Key>) -> Self {
        let mut published: Vec<Key> = all.iter().filter(|key| !key.unpublished).cloned().collect();
        if published.is_empty() {
            published.clone_from(&self.published);
        }
        Self { generation: self.generation + 1, all, published }
    }

    /// Tells this set from the others.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    pub fn all(&self) -> &[Key] {
        &self.all
    }

    /// The keys of that name; without a name any key may be meant.
    pub fn named(&self, id: &str) -> impl Iterator<Item = &Key> {
        self.all.iter().filter(move |key| id.is_empty() || key.id == id)
    }

    pub fn published(&self) -> &[Key] {
        &self.published
    }
}
