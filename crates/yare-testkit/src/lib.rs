//! What tests need: whole clusters on this machine, images without a registry, `kubectl`, HTTP.
//!
//! A [`Cluster`] is a real `yare server` in a network namespace of its own, so that clusters run beside each
//! other and leave nothing in the machine's network. A warden process takes everything away when the test
//! ends, also when it is killed, and what stays all the same fails the test.

mod calls;
mod cluster;
pub mod containerd;
pub mod csi;
mod device_plugin;
mod dra_driver;
mod extension;
mod http;
pub mod image;
mod kms;
mod kubectl;
mod leftovers;
mod machine;
mod namespace;
pub mod registry;
mod socket;
mod terminal;
mod token_signer;
mod trace_collector;
mod warden;

pub use calls::{Calls, Report};
pub use cluster::{Cluster, Options, Runtime};
pub use csi::{CsiBehaviour, CsiCall, CsiDriver, CsiFault};
pub use device_plugin::{DeviceAnswer, DeviceBehaviour, DevicePlugin, PluginDevice};
pub use dra_driver::{ClaimedDevice, DraBehaviour, DraDriver};
pub use extension::{Extension, Extra, Seen};
pub use http::{Answer, Https, get};
pub use image::busybox;
pub use kms::{Behaviour, Kms};
pub use kubectl::Running;
pub use machine::Machine;
pub use namespace::Namespace;
pub use terminal::Terminal;
pub use token_signer::{SignerBehaviour, SignerKey, TokenSigner};
pub use trace_collector::{SentSpan, TraceCollector};

/// Tests that must be the same on every runtime: each is a function of the [`Runtime`].
#[macro_export]
macro_rules! on_both {
    ($($test:ident)*) => {
        mod embedded {
            $(#[test] fn $test() { super::$test($crate::Runtime::Embedded); })*
        }
        mod containerd {
            $(#[test] fn $test() { super::$test($crate::Runtime::Containerd); })*
        }
    };
}
