//! Selectors, compiled once for all that use them.

use std::{collections::HashMap, sync::Arc};

use yare_kinds::devices::Selector;
use yare_schema::features::Gates;

/// Selectors that are kept. Clusters have a handful.
const KEPT: usize = 256;

/// A selector, or why it is none.
pub type Compiled = Result<Selector, String>;

/// Compiled selectors by their text.
#[derive(Debug, Default)]
pub struct Programs {
    gates: Gates,
    compiled: HashMap<Box<str>, Arc<Compiled>>,
}

impl Programs {
    /// None yet; the features decide what expressions may use.
    pub fn new(gates: Gates) -> Self {
        Self { gates, compiled: HashMap::new() }
    }

    /// The program of an expression.
    pub fn get(&mut self, expression: &str) -> Arc<Compiled> {
        if let Some(program) = self.compiled.get(expression) {
            return program.clone();
        }
        // Who still uses one keeps it.
        if self.compiled.len() >= KEPT {
            self.compiled.clear();
        }
        let program = Arc::new(Selector::new(expression, &self.gates));
        self.compiled.insert(expression.into(), program.clone());
        program
    }
}
