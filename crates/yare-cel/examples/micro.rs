//! How long compiling and evaluating take: `cargo run --release -p yare-cel --example micro`.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement, run by hand")]

use std::{hint::black_box, time::Instant};

use serde_json::json;
use yare_cel::{Budget, Decl, Env, Field, Vars, Version};

const EXPRESSIONS: &[&str] = &[
    "self.replicas <= self.maxReplicas",
    "self.name.startsWith('web') && size(self.name) < 64",
    "self.containers.all(c, has(c.image) && c.image.matches('^registry\\\\.example\\\\.com/'))",
    "self.containers.filter(c, c.name != 'x').map(c, c.name).size() == 10",
    "!(self.name in ['a', 'b', 'c']) && self.labels.all(k, self.labels[k] != '')",
    "quantity(self.memory).compareTo(quantity('1Gi')) <= 0",
];

/// Nanoseconds for one, at best of several runs.
fn measure(mut work: impl FnMut()) -> u128 {
    const TIMES: u32 = 2_000;
    (0..5)
        .map(|_| {
            let start = Instant::now();
            (0..TIMES).for_each(|_| work());
            start.elapsed().as_nanos() / u128::from(TIMES)
        })
        .min()
        .unwrap()
}

fn main() {
    let container = Decl::object(
        "Container",
        [("name", Field::optional(Decl::string())), ("image", Field::optional(Decl::string()))],
    );
    let root = Decl::object(
        "Root",
        [
            ("name", Field::optional(Decl::string())),
            ("replicas", Field::optional(Decl::int())),
            ("maxReplicas", Field::optional(Decl::int())),
            ("memory", Field::optional(Decl::string())),
            ("labels", Field::optional(Decl::map(Decl::string()))),
            ("containers", Field::optional(Decl::list(container))),
        ],
    );
    let containers: Vec<_> = (0..10)
        .map(|i| json!({"name": format!("c{i}"), "image": format!("registry.example.com/app:{i}")}))
        .collect();
    let object = json!({
        "name": "web-1", "replicas": 3, "maxReplicas": 5, "memory": "512Mi", "labels": {"app": "web", "tier": "front"},
        "containers": containers,
    });
    let env = Env::kubernetes(Version::new(1, 36)).extend().declare("self", &root).build();
    for text in EXPRESSIONS {
        let compiling = measure(|| {
            black_box(env.compile(text).unwrap().program().unwrap());
        });
        let program = env.compile(text).unwrap().program().unwrap();
        let mut vars = Vars::new();
        vars.bind_json("self", &object, &root);
        let evaluating = measure(|| {
            black_box(program.eval(&vars, &mut Budget::new(1_000_000, 10_000_000)).unwrap());
        });
        println!("{evaluating:>8} ns to evaluate, {compiling:>8} ns to compile: {text}");
    }
}
