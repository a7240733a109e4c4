//! Each target on damaged documents: a fixed number of them, the same in every run, within a bound on memory.

use std::collections::BTreeSet;

use nix::sys::resource::{Resource, setrlimit};
use yare_fuzz::{
    TARGETS,
    mutate::{Random, mutated},
    target,
};

/// What the process may take for itself. An input that makes more of itself aborts the test.
const ADDRESS_SPACE_BYTES: u64 = 4 << 30;

fn bounded(name: &str) {
    setrlimit(Resource::RLIMIT_AS, ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES).expect("a limit may be lowered");
    let target = target(name).expect("the table has the name");
    let seeds = (target.seeds)();
    assert!(!seeds.is_empty(), "{name} has nothing to begin with");
    for seed in &seeds {
        attempt(name, target.run, seed);
    }
    let mut random = Random::new(36);
    for _ in 0..target.rounds {
        attempt(name, target.run, &mutated(&mut random, &seeds, target.words));
    }
}

/// Runs a body; what broke it is printed as a file for `fuzz/` would hold it.
fn attempt(name: &str, run: fn(&[u8]), bytes: &[u8]) {
    struct Told<'a>(&'a str, &'a [u8]);
    impl Drop for Told<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("{}: broken by b\"{}\"", self.0, self.1.escape_ascii());
            }
        }
    }
    let _told = Told(name, bytes);
    run(bytes);
}

macro_rules! bounded {
    ($($name:ident)*) => {
        const NAMES: &[&str] = &[$(stringify!($name)),*];
        $(#[test] fn $name() { bounded(stringify!($name)); })*
    };
}

bounded! {
    apply authority cbor cel definition field_selector field_sets json json_patch kinds label_selector merge_patch protobuf
    quantity regexp strategic_patch words yaml
}

#[test]
fn every_target_is_run_here_and_in_the_fuzz_folder() {
    let table: BTreeSet<&str> = TARGETS.iter().map(|t| t.name).collect();
    assert_eq!(table.len(), TARGETS.len(), "a name stands twice");
    assert_eq!(table, NAMES.iter().copied().collect());
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz");
    let manifest = std::fs::read_to_string(format!("{folder}/Cargo.toml")).expect("fuzz/ has a manifest");
    let binaries: BTreeSet<&str> =
        manifest.lines().filter_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"')).collect();
    let wanted: BTreeSet<&str> = table.iter().copied().chain(["yare-fuzz-targets"]).collect();
    assert_eq!(binaries, wanted, "fuzz/Cargo.toml");
    for name in table {
        let body =
            std::fs::read_to_string(format!("{folder}/fuzz_targets/{name}.rs")).expect("a file per target");
        assert!(body.contains(&format!("yare_fuzz::run({name:?}, data)")), "fuzz_targets/{name}.rs");
    }
}
