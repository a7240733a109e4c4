//! The type of one version of a definition and its validation rules, compiled when they are first needed: of the
//! definitions that operators bring, most rest, and a compiled one is larger than its text.

use std::{
    sync::{Arc, OnceLock, Weak},
    time::Instant,
};

use serde_json::Value;
use yare_kinds::{
    validations::{Rules, Verdict},
    view::View,
};
use yare_schema::{
    crd,
    model::{Schema, TypeId, TypeRef},
};

use super::DEFINITIONS;
use crate::{core::Core, metrics::timing::USUAL_S};

/// A type that a definition in the store describes.
pub struct CustomType {
    core: Weak<Core>,
    definition: Box<str>,
    version: Box<str>,
    compiled: OnceLock<Compiled>,
}

struct Compiled {
    schema: Arc<Schema>,
    root: TypeId,
    rules: Option<Rules>,
}

impl CustomType {
    /// The type of this version of this definition.
    pub fn new(core: Weak<Core>, definition: &str, version: &str) -> Self {
        Self { core, definition: definition.into(), version: version.into(), compiled: OnceLock::new() }
    }

    /// The type, to walk.
    pub fn at(&self) -> TypeRef<'_> {
        let compiled = self.compiled();
        compiled.schema.at(compiled.root)
    }

    /// Whether the version has `x-kubernetes-validations`.
    pub fn has_rules(&self) -> bool {
        self.compiled().rules.is_some()
    }

    /// What the rules say of an object; nothing where the version has none.
    pub fn judge(&self, object: &Value, old: Option<&Value>) -> Option<Verdict> {
        let rules = self.compiled().rules.as_ref()?;
        let began = Instant::now();
        let verdict = rules.run(object, old.map(|old| (self.at(), old)));
        if let Some(core) = self.core.upgrade() {
            core.metrics.cel.evaluation.observe(&USUAL_S, began.elapsed());
        }
        Some(verdict)
    }

    /// Whether somebody needed it already.
    pub fn is_compiled(&self) -> bool {
        self.compiled.get().is_some()
    }

    /// A definition that has changed since is about to be served anew; until then the new text counts as well.
    fn compiled(&self) -> &Compiled {
        self.compiled.get_or_init(|| {
            let definition = self
                .core
                .upgrade()
                .and_then(|core| core.read(DEFINITIONS, &self.definition))
                .unwrap_or_default();
            let versions = definition.items("spec.versions");
            let version = versions.iter().find(|v| v.str_at("name") == &*self.version);
            let schema = version.map_or(&Value::Null, |v| v.at("schema.openAPIV3Schema"));
            let compiled = crd::load(schema);
            let began = Instant::now();
            let rules = Rules::of(schema);
            if let Some(core) = self.core.upgrade().filter(|_| rules.is_some()) {
                core.metrics.cel.compilation.observe(&USUAL_S, began.elapsed());
            }
            Compiled { schema: compiled.schema, root: compiled.root, rules }
        })
    }
}
