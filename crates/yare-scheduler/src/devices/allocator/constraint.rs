//! Constraints of a claim while devices are tried: attributes that must be alike, or must all differ.

use yare_kinds::devices::Attribute;

use crate::devices::{requests::Constraint, types::Device};

/// A constraint and the values of the devices that were chosen.
#[derive(Debug)]
pub struct Held<'a> {
    constraint: &'a Constraint,
    values: Vec<&'a Attribute>,
}

impl<'a> Held<'a> {
    /// Nothing is chosen yet.
    pub fn new(constraint: &'a Constraint) -> Self {
        Self { constraint, values: Vec::new() }
    }

    /// Whether it is about devices of this request, of this name as an alternative.
    fn concerns(&self, request: &str, alternative: &str) -> bool {
        let named = &self.constraint.requests;
        named.is_empty() || named.iter().any(|n| **n == *request || **n == *alternative)
    }

    /// Adds a device. `false`: it cannot be beside those that are there, and nothing was changed.
    pub fn add(&mut self, request: &str, alternative: &str, device: &'a Device) -> bool {
        if !self.concerns(request, alternative) {
            return true;
        }
        let Some(value) = device.attribute(&self.constraint.attribute) else { return false };
        // What is not known can only stand alone.
        let may_join = self.values.is_empty()
            || *value != Attribute::Unknown
                && match self.constraint.distinct {
                    true => !self.values.contains(&value),
                    false => self.values[0] == value,
                };
        if may_join {
            self.values.push(value);
        }
        may_join
    }

    /// Takes back the device that was added last.
    pub fn remove(&mut self, request: &str, alternative: &str) {
        if self.concerns(request, alternative) {
            self.values.pop();
        }
    }
}
