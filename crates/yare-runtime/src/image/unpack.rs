//! Layers: a tar stream becomes a directory that overlayfs can use.
