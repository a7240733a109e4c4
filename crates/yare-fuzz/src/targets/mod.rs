//! The bodies, one file per subject.

pub(crate) mod cel;
pub(crate) mod connections;
pub(crate) mod definitions;
pub(crate) mod encodings;
pub(crate) mod kinds;
pub(crate) mod managed;
pub(crate) mod patches;
pub(crate) mod regexp;
pub(crate) mod selectors;
pub(crate) mod words;
