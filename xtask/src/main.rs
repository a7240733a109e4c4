//! Developer commands: `cargo xtask help`.
//!
//! Each command is one variant below and one module; nothing here ships in the `yare` binary.

#![allow(clippy::print_stdout, reason = "its answer goes to the terminal")]

mod schema;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "xtask", about = "Developer commands of Yare")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Writes the schema tables (crates/yare-schema/tables) from Debian's golang-k8s-*-dev packages.
    Schema {
        /// Directory of unpacked packages (with usr/share/gocode in it); absent: fetch them with apt and pip.
        #[arg(long)]
        packages: Option<PathBuf>,
        /// Where to fetch to; absent: target/schema-packages.
        #[arg(long)]
        scratch: Option<PathBuf>,
        /// Where to write; absent: crates/yare-schema/tables.
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Fetches the packages, regenerates the tables and compares, and round-trips upstream's golden fixtures.
    SchemaCheck {
        /// Directory of unpacked packages; absent: fetch them with apt and pip.
        #[arg(long)]
        packages: Option<PathBuf>,
        /// Where to fetch to; absent: target/schema-packages.
        #[arg(long)]
        scratch: Option<PathBuf>,
    },
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Schema { packages, scratch, out } => schema::generate(packages, scratch, out),
        Command::SchemaCheck { packages, scratch } => schema::check(packages, scratch),
    }
}
