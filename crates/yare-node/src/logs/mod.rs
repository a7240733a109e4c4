//! Container logs on the node: reading, following, rotating files in CRI's format.

pub(crate) mod read;
pub(crate) mod rotate;
pub(crate) mod watch;
