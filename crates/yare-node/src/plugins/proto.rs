//! `pluginregistration`, version 1: what a plugin and a node say to each other when they meet.

/// Asks a plugin what it is.
pub const GET_INFO: &str = "/pluginregistration.Registration/GetInfo";
/// Tells a plugin how its registration ended.
pub const NOTIFY: &str = "/pluginregistration.Registration/NotifyRegistrationStatus";

/// `InfoRequest`, and `RegistrationStatusResponse`.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Nothing {}

/// `PluginInfo`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct PluginInfo {
    /// `CSIPlugin`, `DRAPlugin`, `DevicePlugin`.
    #[prost(string, tag = "1")]
    pub kind: String,
    /// Its name, unique within its type.
    #[prost(string, tag = "2")]
    pub name: String,
    /// The socket that serves it; empty: the one it registers with.
    #[prost(string, tag = "3")]
    pub endpoint: String,
    /// Versions of its API that it speaks.
    #[prost(string, repeated, tag = "4")]
    pub supported_versions: Vec<String>,
}

/// `RegistrationStatus`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct RegistrationStatus {
    /// Whether the node took it.
    #[prost(bool, tag = "1")]
    pub plugin_registered: bool,
    /// Why not.
    #[prost(string, tag = "2")]
    pub error: String,
}
