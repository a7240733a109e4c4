//! The `yare` binary: flags, configuration, wiring, nothing else.

fn main() {}
