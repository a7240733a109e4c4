//! Dynamic resource allocation: what the scheduler knows of devices, and which of them claims get.

pub mod allocator;
pub mod bind;
pub mod claim;
pub mod extended;
pub mod programs;
pub mod requests;
pub mod rules;
pub mod slices;
pub mod state;
pub mod taken;
pub mod types;
