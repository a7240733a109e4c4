//! Pods and pod templates: what Deployments, Jobs and all other workloads share with pods.
//!
//! [`defaults`] sets defaults, [`spec`] validates (with one module per subject), [`switched`] knows the rules that gates switch, [`update`] says what may
//! change, [`resources`] adds requests up and finds the QoS class, [`warnings`] tells clients what works but should not be.

pub mod affinity;
pub mod annotations;
pub mod containers;
pub mod defaults;
pub mod env;
pub mod handlers;
mod image;
pub mod overlaps;
pub mod resize;
pub mod resources;
pub mod security;
pub mod spec;
pub mod status;
pub mod switched;
pub mod update;
pub mod volumes;
pub mod warnings;
