//! The table of built-in resources and the strategy of each.

pub mod strategy;
pub mod table;
