//! What nobody needs any more: images and containers that have ended.

pub(crate) mod containers;
pub(crate) mod images;
