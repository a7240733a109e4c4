//! Measures how long the kernel takes to learn of a changed endpoint, with many services loaded.
//!
//! `cargo run --release --example endpoint_change [SERVICES] [ENDPOINTS]` (root; it makes a network namespace
//! of its own). One measured change is what the proxy does for it: decode the EndpointSlice, plan, and set.
#![allow(clippy::print_stdout, reason = "its output")]

use std::time::{Duration, Instant};

use serde_json::json;
use yare_net::proxy::{Config, EndpointSlice, Plan, Rules, Service, Tracked};

fn slice(service: usize, endpoints: usize, generation: usize) -> Vec<u8> {
    let ip = |i: usize| {
        let host = (service * endpoints + i + generation * 7) % 65_000;
        format!("10.42.{}.{}", host / 256, host % 256)
    };
    let endpoints: Vec<_> = (0..endpoints)
        .map(|i| json!({"addresses": [ip(i)], "nodeName": "n1", "conditions": {"ready": true}}))
        .collect();
    json!({"addressType": "IPv4", "endpoints": endpoints,
        "ports": [{"name": "p", "protocol": "TCP", "port": 8080}]})
    .to_string()
    .into_bytes()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1).map(|a| a.parse::<usize>());
    let services = arguments.next().transpose()?.unwrap_or(1000);
    let endpoints = arguments.next().transpose()?.unwrap_or(3);
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
    let mut rules = Rules::new(Config {
        node_name: "n1".into(),
        cluster_cidrs: vec!["10.42.0.0/16".parse()?],
        service_cidrs: vec!["10.43.0.0/16".parse()?],
        tracked: Tracked::default(),
    })?;
    let definition = |i: usize| -> Result<Service, serde_json::Error> {
        serde_json::from_value(json!({"spec": {"type": "ClusterIP",
            "clusterIPs": [format!("10.43.{}.{}", i / 250, i % 250 + 1)],
            "ports": [{"name": "p", "protocol": "TCP", "port": 80}]}}))
    };
    let mut plans: Vec<Plan> = Vec::new();
    let start = Instant::now();
    for i in 0..services {
        let slice: EndpointSlice = serde_json::from_slice(&slice(i, endpoints, 0))?;
        let plan = rules.plan(&definition(i)?, &[slice]);
        rules.apply(None, Some(&plan))?;
        plans.push(plan);
    }
    println!("{services} services of {endpoints} endpoints set one by one in {:?}", start.elapsed());
    let mut times: Vec<Duration> = Vec::new();
    for change in 0..1000 {
        let i = change * 7919 % services;
        let (service, bytes) = (definition(i)?, slice(i, endpoints, change + 1));
        let start = Instant::now();
        let slice: EndpointSlice = serde_json::from_slice(&bytes)?;
        let plan = rules.plan(&service, &[slice]);
        rules.apply(Some(&plans[i]), Some(&plan))?;
        times.push(start.elapsed());
        plans[i] = plan;
    }
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    println!("a change of all endpoints of one: p50 {:?}, p99 {:?}, worst {:?}", at(0.5), at(0.99), at(1.0));
    Ok(())
}
