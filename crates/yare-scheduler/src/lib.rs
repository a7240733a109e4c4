//! The scheduler: queue, snapshot, plugins, binding
