//! `yare-bench`: measures a `yare` binary from outside, as a client would, and prints one table.
//!
//! In: the binary. Out: rows of what, measured, target, verdict. It runs in a network namespace of its own
//! (`scripts/bench` makes it), keeps everything in temporary directories, and every loop is bounded in count
//! and time. CPU is that of the server's process, from `/proc`; it is steadier than elapsed time.

mod api;
mod client;
mod clients;
mod crowd;
mod definitions;
mod encoding;
mod images;
mod kinds;
mod load;
mod node;
mod overload;
mod process;
mod runtime;
mod server;
mod start;
mod table;

use std::{path::PathBuf, process::ExitCode};

use clap::Parser as _;
use table::Table;

/// Measures a `yare` binary and prints one table.
#[derive(clap::Parser, Debug)]
#[command(version, about)]
struct Args {
    /// The binary to measure.
    #[arg(long)]
    binary: PathBuf,
    /// A tenth of the work and less: shows that it runs, not how fast.
    #[arg(long)]
    quick: bool,
    /// A Debian root file system as a tar, to be unpacked.
    #[arg(long)]
    rootfs: Option<PathBuf>,
    /// Which parts to run.
    #[arg(long, value_delimiter = ',', default_values_t = PARTS.map(str::to_owned))]
    parts: Vec<String>,
}

const PARTS: [&str; 9] =
    ["start", "api", "clients", "kinds", "definitions", "overload", "node", "images", "crowd"];

/// How much is done.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Fresh starts and restarts, each.
    starts: usize,
    /// How long an idle server is watched.
    idle_s: u64,
    /// Requests one after the other.
    sequential: usize,
    /// Requests by all clients together.
    concurrent: usize,
    /// Pods in the store.
    stored_pods: usize,
    /// Lists of all of them.
    lists: usize,
    /// Watchers.
    watchers: usize,
    /// Updates that each of them sees.
    updates: usize,
    /// Objects of each kind, in each encoding.
    per_kind: usize,
    /// CustomResourceDefinitions that are installed at once.
    definitions: usize,
    /// Pods that really start.
    pods: usize,
    /// Pods that run on one node at once.
    crowd: usize,
    /// Commands in a container, one after the other.
    execs: usize,
    /// How long a server is overloaded.
    overload_s: u64,
    /// How often an image is unpacked.
    imports: usize,
}

const FULL: Scale = Scale {
    starts: 5,
    idle_s: 20,
    sequential: 1000,
    concurrent: 20_000,
    stored_pods: 5000,
    lists: 10,
    watchers: 100,
    updates: 1000,
    per_kind: 320,
    definitions: 1000,
    pods: 50,
    crowd: 500,
    execs: 50,
    overload_s: 20,
    imports: 5,
};

const QUICK: Scale = Scale {
    starts: 1,
    idle_s: 2,
    sequential: 50,
    concurrent: 320,
    stored_pods: 200,
    lists: 2,
    watchers: 10,
    updates: 50,
    per_kind: 32,
    definitions: 50,
    pods: 5,
    crowd: 20,
    execs: 5,
    overload_s: 3,
    imports: 1,
};

fn main() -> ExitCode {
    let args = Args::parse();
    let scale = if args.quick { QUICK } else { FULL };
    let mut table = Table::new();
    let mut failed = false;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let result = runtime.map_err(anyhow::Error::from).map(|runtime| {
        runtime.block_on(async {
            for part in &args.parts {
                let result = match part.as_str() {
                    "start" => start::measure(&args.binary, scale, &mut table).await,
                    "api" => api::measure(&args.binary, scale, &mut table).await,
                    "clients" => clients::measure(&args.binary, scale, &mut table).await,
                    "kinds" => kinds::measure(&args.binary, scale, &mut table).await,
                    "overload" => overload::measure(&args.binary, scale, &mut table).await,
                    "images" => images::measure(args.rootfs.as_deref(), scale, &mut table).await,
                    "definitions" => definitions::measure(&args.binary, scale, &mut table).await,
                    "node" => match node::measure(&args.binary, scale, &mut table).await {
                        Ok(()) => runtime::measure(&args.binary, scale, &mut table).await,
                        failed => failed,
                    },
                    "crowd" => crowd::measure(&args.binary, scale, &mut table).await,
                    _ => Err(anyhow::anyhow!("there are only the parts {}", PARTS.join(", "))),
                };
                if let Err(error) = result {
                    // What was measured before is shown all the same.
                    table::complain(&format!("{part}: {error:#}"));
                    failed = true;
                }
            }
        });
    });
    if let Err(error) = result {
        table::complain(&format!("{error:#}"));
        failed = true;
    }
    table.print();
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
