//! The table of built-in resources and the strategy of each: defaults, validation, update rules, columns.
//!
//! [`table::RESOURCES`] is the list; [`strategy::Strategy`] is what a kind does beyond its shape;
//! [`printers`] and [`selectors`] are what clients see and ask; [`meta`] and [`names`] are the rules that all
//! kinds share; [`view`] is how all of it reads JSON. No I/O, no async.

pub mod check;
pub mod conditions;
pub mod convert;
pub mod cron;
pub mod devices;
pub mod expressions;
pub mod gated;
mod looks;
pub mod meta;
pub mod names;
pub mod net;
pub mod pod;
pub mod podsecurity;
pub mod printers;
pub mod quota;
pub mod reset;
pub mod selectors;
pub mod shown;
pub mod storage_versions;
pub mod strategy;
pub mod table;
pub mod validations;
pub mod view;
