//! The pod network as a CNI plugin (CNI specification 1.1), for a container runtime that makes sandboxes itself.
//!
//! The runtime starts a program for each sandbox and speaks to it by environment, standard input and output. That
//! program is `yare` under another name ([`plugin`]); it passes the question on over a socket that only root may
//! use, and the running server answers it from its pod network ([`server`]). The configuration that leads the runtime
//! here is written by [`install`].
//!
//! | Command | What is done |
//! |---|---|
//! | ADD | an address, a link, routes, ports on the node |
//! | DEL | all of that taken back; nothing there is fine |
//! | CHECK | whether it still is as ADD made it |
//! | GC | what belongs to nobody any more taken back |
//! | STATUS | whether ADD would work now |
//! | VERSION | which versions are spoken |

pub mod install;
pub mod plugin;
pub mod server;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Versions of the specification that are spoken, the oldest first.
pub const VERSIONS: [&str; 6] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.0.1", "1.1.0"];
/// The version of our own configuration: what the oldest supported containerd reads.
pub const OWN_VERSION: &str = "1.0.0";
/// The largest configuration, question or answer.
const MAX_BYTES: u64 = 1 << 20;

/// What the plugin asks the server: one line of JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Ask {
    command: String,
    container: String,
    /// Path of the network namespace; empty where it is gone.
    netns: PathBuf,
    interface: String,
    config: Value,
}

/// What the server answers: one line of JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Answer {
    /// To be printed; null: nothing is.
    Done(Value),
    Failed(Failure),
}

/// An error of CNI.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    code: u32,
    msg: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    details: String,
}

/// Error codes of the specification.
mod code {
    pub(super) const VERSION: u32 = 1;
    pub(super) const ENVIRONMENT: u32 = 4;
    pub(super) const IO: u32 = 5;
    pub(super) const DECODE: u32 = 6;
    pub(super) const NETWORK_CONFIG: u32 = 7;
    pub(super) const LATER: u32 = 11;
    pub(super) const UNAVAILABLE: u32 = 50;
    /// From here on codes are a plugin's own.
    pub(super) const OWN: u32 = 100;
}

impl Failure {
    fn new(code: u32, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: String::new() }
    }

    fn because(code: u32, msg: &str, details: impl std::fmt::Display) -> Self {
        Self { code, msg: msg.into(), details: details.to_string() }
    }
}

/// The configuration's version; one that is not spoken is an error.
fn version(config: &Value) -> Result<&str, Failure> {
    // The specification: absent means the first version, which nobody speaks any more.
    let version = config["cniVersion"].as_str().unwrap_or("0.1.0");
    if !VERSIONS.contains(&version) {
        let msg = "incompatible CNI versions";
        return Err(Failure::because(
            code::VERSION,
            msg,
            format_args!("config is {version:?}, plugin supports {VERSIONS:?}"),
        ));
    }
    Ok(version)
}
