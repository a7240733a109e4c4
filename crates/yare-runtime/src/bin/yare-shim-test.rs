//! The smallest program with a `shim` command: what the crate's tests start as their shim spawner.

fn main() {
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() == Some("shim") {
        yare_runtime::shim::main(args);
    }
    std::process::exit(2);
}
