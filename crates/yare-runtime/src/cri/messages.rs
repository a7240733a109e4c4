//! Messages of CRI v1 (`k8s.io/cri-api`, `runtime.v1`): those that are used here, each field with its number.
//!
//! What a kubelet on Linux neither says nor reads is left out; a runtime that sends it is not disturbed. At the end
//! stands the little of containerd's own API that tells when a container ends.

use std::collections::BTreeMap;

use prost::{Enumeration, Message};

pub(super) type Text = BTreeMap<String, String>;

macro_rules! messages {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field:meta])* $member:ident: $kind:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Message)]
        pub(super) struct $name {
            $($(#[$field])* pub(super) $member: $kind,)*
        }
    )*};
}

/// Transport of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enumeration)]
pub(super) enum Protocol {
    Tcp = 0,
    Udp = 1,
    Sctp = 2,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Enumeration)]
pub(super) enum MountPropagation {
    Private = 0,
    HostToContainer = 1,
    Bidirectional = 2,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Enumeration)]
pub(super) enum NamespaceMode {
    Pod = 0,
    Container = 1,
    Node = 2,
    Target = 3,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Enumeration)]
pub(super) enum SupplementalGroupsPolicy {
    Merge = 0,
    Strict = 1,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Enumeration)]
pub(super) enum ProfileType {
    RuntimeDefault = 0,
    Unconfined = 1,
    Localhost = 2,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Enumeration)]
pub(super) enum SandboxState {
    Ready = 0,
    NotReady = 1,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Enumeration)]
pub(super) enum ContainerState {
    Created = 0,
    Running = 1,
    Exited = 2,
    Unknown = 3,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Enumeration)]
pub(super) enum EventType {
    Created = 0,
    Started = 1,
    Stopped = 2,
    Deleted = 3,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Enumeration)]
pub(super) enum CgroupDriver {
    Systemd = 0,
    Cgroupfs = 1,
}

messages! {
    /// An answer that says nothing, and a question that needs no words.
    Nothing {}

    VersionRequest {
        #[prost(string, tag = "1")] version: String,
    }
    VersionResponse {
        #[prost(string, tag = "1")] version: String,
        #[prost(string, tag = "2")] runtime_name: String,
        #[prost(string, tag = "3")] runtime_version: String,
        #[prost(string, tag = "4")] runtime_api_version: String,
    }

    StatusRequest {
        #[prost(bool, tag = "1")] verbose: bool,
    }
    StatusResponse {
        #[prost(message, optional, tag = "1")] status: Option<RuntimeConditions>,
        #[prost(btree_map = "string, string", tag = "2")] info: Text,
        #[prost(message, repeated, tag = "3")] runtime_handlers: Vec<Handler>,
        #[prost(message, optional, tag = "4")] features: Option<Features>,
    }
    RuntimeConditions {
        #[prost(message, repeated, tag = "1")] conditions: Vec<Condition>,
    }
    Condition {
        #[prost(string, tag = "1")] kind: String,
        #[prost(bool, tag = "2")] status: bool,
        #[prost(string, tag = "3")] reason: String,
        #[prost(string, tag = "4")] message: String,
    }
    Handler {
        #[prost(string, tag = "1")] name: String,
        #[prost(message, optional, tag = "2")] features: Option<HandlerFeatures>,
    }
    HandlerFeatures {
        #[prost(bool, tag = "1")] recursive_read_only_mounts: bool,
        #[prost(bool, tag = "2")] user_namespaces: bool,
    }
    Features {
        #[prost(bool, tag = "1")] supplemental_groups_policy: bool,
        #[prost(bool, tag = "2")] user_namespaces_host_network: bool,
    }
    RuntimeConfigResponse {
        #[prost(message, optional, tag = "1")] linux: Option<LinuxRuntimeConfiguration>,
    }
    LinuxRuntimeConfiguration {
        #[prost(enumeration = "CgroupDriver", tag = "1")] cgroup_driver: i32,
    }

    DnsConfig {
        #[prost(string, repeated, tag = "1")] servers: Vec<String>,
        #[prost(string, repeated, tag = "2")] searches: Vec<String>,
        #[prost(string, repeated, tag = "3")] options: Vec<String>,
    }
    PortMapping {
        #[prost(enumeration = "Protocol", tag = "1")] protocol: i32,
        #[prost(int32, tag = "2")] container_port: i32,
        #[prost(int32, tag = "3")] host_port: i32,
        #[prost(string, tag = "4")] host_ip: String,
    }
    IdMapping {
        #[prost(uint32, tag = "1")] host_id: u32,
        #[prost(uint32, tag = "2")] container_id: u32,
        #[prost(uint32, tag = "3")] length: u32,
    }
    UserNamespace {
        #[prost(enumeration = "NamespaceMode", tag = "1")] mode: i32,
        #[prost(message, repeated, tag = "2")] uids: Vec<IdMapping>,
        #[prost(message, repeated, tag = "3")] gids: Vec<IdMapping>,
    }
    NamespaceOption {
        #[prost(enumeration = "NamespaceMode", tag = "1")] network: i32,
        #[prost(enumeration = "NamespaceMode", tag = "2")] pid: i32,
        #[prost(enumeration = "NamespaceMode", tag = "3")] ipc: i32,
        #[prost(string, tag = "4")] target_id: String,
        #[prost(message, optional, tag = "5")] userns_options: Option<UserNamespace>,
    }
    Int64Value {
        #[prost(int64, tag = "1")] value: i64,
    }
    UInt64Value {
        #[prost(uint64, tag = "1")] value: u64,
    }
    SecurityProfile {
        #[prost(enumeration = "ProfileType", tag = "1")] profile_type: i32,
        #[prost(string, tag = "2")] localhost_ref: String,
    }

    SandboxSecurityContext {
        #[prost(message, optional, tag = "1")] namespace_options: Option<NamespaceOption>,
        #[prost(bool, tag = "6")] privileged: bool,
        #[prost(message, optional, tag = "9")] seccomp: Option<SecurityProfile>,
    }
    LinuxSandboxConfig {
        #[prost(string, tag = "1")] cgroup_parent: String,
        #[prost(message, optional, tag = "2")] security_context: Option<SandboxSecurityContext>,
        #[prost(btree_map = "string, string", tag = "3")] sysctls: Text,
        #[prost(message, optional, tag = "5")] resources: Option<LinuxResources>,
    }
    SandboxMetadata {
        #[prost(string, tag = "1")] name: String,
        #[prost(string, tag = "2")] uid: String,
        #[prost(string, tag = "3")] namespace: String,
        #[prost(uint32, tag = "4")] attempt: u32,
    }
    SandboxConfig {
        #[prost(message, optional, tag = "1")] metadata: Option<SandboxMetadata>,
        #[prost(string, tag = "2")] hostname: String,
        #[prost(string, tag = "3")] log_directory: String,
        #[prost(message, optional, tag = "4")] dns_config: Option<DnsConfig>,
        #[prost(message, repeated, tag = "5")] port_mappings: Vec<PortMapping>,
        #[prost(btree_map = "string, string", tag = "6")] labels: Text,
        #[prost(btree_map = "string, string", tag = "7")] annotations: Text,
        #[prost(message, optional, tag = "8")] linux: Option<LinuxSandboxConfig>,
    }
    RunSandboxRequest {
        #[prost(message, optional, tag = "1")] config: Option<SandboxConfig>,
        #[prost(string, tag = "2")] runtime_handler: String,
    }
    /// A sandbox by its id: question and answer alike.
    SandboxId {
        #[prost(string, tag = "1")] id: String,
    }
    PodIp {
        #[prost(string, tag = "1")] ip: String,
    }
    SandboxNetwork {
        #[prost(string, tag = "1")] ip: String,
        #[prost(message, repeated, tag = "2")] additional_ips: Vec<PodIp>,
    }
    Namespaces {
        #[prost(message, optional, tag = "2")] options: Option<NamespaceOption>,
    }
    LinuxSandboxStatus {
        #[prost(message, optional, tag = "1")] namespaces: Option<Namespaces>,
    }
    SandboxStatus {
        #[prost(string, tag = "1")] id: String,
        #[prost(message, optional, tag = "2")] metadata: Option<SandboxMetadata>,
        #[prost(enumeration = "SandboxState", tag = "3")] state: i32,
        #[prost(int64, tag = "4")] created_at: i64,
        #[prost(message, optional, tag = "5")] network: Option<SandboxNetwork>,
        #[prost(message, optional, tag = "6")] linux: Option<LinuxSandboxStatus>,
        #[prost(btree_map = "string, string", tag = "7")] labels: Text,
        #[prost(btree_map = "string, string", tag = "8")] annotations: Text,
        #[prost(string, tag = "9")] runtime_handler: String,
    }
    SandboxStatusResponse {
        #[prost(message, optional, tag = "1")] status: Option<SandboxStatus>,
    }
    SandboxFilter {
        #[prost(string, tag = "1")] id: String,
        #[prost(btree_map = "string, string", tag = "3")] label_selector: Text,
    }
    ListSandboxesRequest {
        #[prost(message, optional, tag = "1")] filter: Option<SandboxFilter>,
    }
    Sandbox {
        #[prost(string, tag = "1")] id: String,
        #[prost(message, optional, tag = "2")] metadata: Option<SandboxMetadata>,
        #[prost(enumeration = "SandboxState", tag = "3")] state: i32,
    }
    ListSandboxesResponse {
        #[prost(message, repeated, tag = "1")] items: Vec<Sandbox>,
    }
    UpdateSandboxRequest {
        #[prost(string, tag = "1")] id: String,
        #[prost(message, optional, tag = "3")] resources: Option<LinuxResources>,
    }

    ImageSpec {
        #[prost(string, tag = "1")] image: String,
        #[prost(btree_map = "string, string", tag = "2")] annotations: Text,
        #[prost(string, tag = "18")] user_specified_image: String,
        #[prost(string, tag = "19")] runtime_handler: String,
        #[prost(string, tag = "20")] image_ref: String,
    }
    KeyValue {
        #[prost(string, tag = "1")] key: String,
        /// `bytes` upstream; a string is the same on the wire.
        #[prost(string, tag = "2")] value: String,
    }
    Mount {
        #[prost(string, tag = "1")] container_path: String,
        #[prost(string, tag = "2")] host_path: String,
        #[prost(bool, tag = "3")] readonly: bool,
        #[prost(bool, tag = "4")] selinux_relabel: bool,
        #[prost(enumeration = "MountPropagation", tag = "5")] propagation: i32,
        #[prost(message, repeated, tag = "6")] uid_mappings: Vec<IdMapping>,
        #[prost(message, repeated, tag = "7")] gid_mappings: Vec<IdMapping>,
        #[prost(bool, tag = "8")] recursive_read_only: bool,
        #[prost(message, optional, tag = "9")] image: Option<ImageSpec>,
        #[prost(string, tag = "10")] image_sub_path: String,
    }
    HugepageLimit {
        #[prost(string, tag = "1")] page_size: String,
        #[prost(uint64, tag = "2")] limit: u64,
    }
    LinuxResources {
        #[prost(int64, tag = "1")] cpu_period: i64,
        #[prost(int64, tag = "2")] cpu_quota: i64,
        #[prost(int64, tag = "3")] cpu_shares: i64,
        #[prost(int64, tag = "4")] memory_limit_in_bytes: i64,
        #[prost(int64, tag = "5")] oom_score_adj: i64,
        #[prost(string, tag = "6")] cpuset_cpus: String,
        #[prost(string, tag = "7")] cpuset_mems: String,
        #[prost(message, repeated, tag = "8")] hugepage_limits: Vec<HugepageLimit>,
        #[prost(btree_map = "string, string", tag = "9")] unified: Text,
        #[prost(int64, tag = "10")] memory_swap_limit_in_bytes: i64,
    }
    Capability {
        #[prost(string, repeated, tag = "1")] add_capabilities: Vec<String>,
        #[prost(string, repeated, tag = "2")] drop_capabilities: Vec<String>,
    }
    ContainerSecurityContext {
        #[prost(message, optional, tag = "1")] capabilities: Option<Capability>,
        #[prost(bool, tag = "2")] privileged: bool,
        #[prost(message, optional, tag = "3")] namespace_options: Option<NamespaceOption>,
        #[prost(message, optional, tag = "5")] run_as_user: Option<Int64Value>,
        #[prost(string, tag = "6")] run_as_username: String,
        #[prost(bool, tag = "7")] readonly_rootfs: bool,
        #[prost(int64, repeated, tag = "8")] supplemental_groups: Vec<i64>,
        /// Of runtimes before `apparmor`.
        #[prost(string, tag = "9")] apparmor_profile: String,
        #[prost(bool, tag = "11")] no_new_privs: bool,
        #[prost(message, optional, tag = "12")] run_as_group: Option<Int64Value>,
        #[prost(string, repeated, tag = "13")] masked_paths: Vec<String>,
        #[prost(string, repeated, tag = "14")] readonly_paths: Vec<String>,
        #[prost(message, optional, tag = "15")] seccomp: Option<SecurityProfile>,
        #[prost(message, optional, tag = "16")] apparmor: Option<SecurityProfile>,
        #[prost(enumeration = "SupplementalGroupsPolicy", tag = "17")] supplemental_groups_policy: i32,
    }
    LinuxContainerConfig {
        #[prost(message, optional, tag = "1")] resources: Option<LinuxResources>,
        #[prost(message, optional, tag = "2")] security_context: Option<ContainerSecurityContext>,
    }
    ContainerMetadata {
        #[prost(string, tag = "1")] name: String,
        #[prost(uint32, tag = "2")] attempt: u32,
    }
    Device {
        #[prost(string, tag = "1")] container_path: String,
        #[prost(string, tag = "2")] host_path: String,
        #[prost(string, tag = "3")] permissions: String,
    }
    CdiDevice {
        #[prost(string, tag = "1")] name: String,
    }
    ContainerConfig {
        #[prost(message, optional, tag = "1")] metadata: Option<ContainerMetadata>,
        #[prost(message, optional, tag = "2")] image: Option<ImageSpec>,
        #[prost(string, repeated, tag = "3")] command: Vec<String>,
        #[prost(string, repeated, tag = "4")] args: Vec<String>,
        #[prost(string, tag = "5")] working_dir: String,
        #[prost(message, repeated, tag = "6")] envs: Vec<KeyValue>,
        #[prost(message, repeated, tag = "7")] mounts: Vec<Mount>,
        #[prost(message, repeated, tag = "8")] devices: Vec<Device>,
        #[prost(btree_map = "string, string", tag = "9")] labels: Text,
        #[prost(btree_map = "string, string", tag = "10")] annotations: Text,
        #[prost(string, tag = "11")] log_path: String,
        #[prost(bool, tag = "12")] stdin: bool,
        #[prost(bool, tag = "13")] stdin_once: bool,
        #[prost(bool, tag = "14")] tty: bool,
        #[prost(message, optional, tag = "15")] linux: Option<LinuxContainerConfig>,
        #[prost(message, repeated, tag = "17")] cdi_devices: Vec<CdiDevice>,
        /// `Signal`: see [`super::map::container`].
        #[prost(int32, tag = "18")] stop_signal: i32,
    }
    CreateContainerRequest {
        #[prost(string, tag = "1")] sandbox_id: String,
        #[prost(message, optional, tag = "2")] config: Option<ContainerConfig>,
        #[prost(message, optional, tag = "3")] sandbox_config: Option<SandboxConfig>,
    }
    /// A container by its id: question and answer alike.
    ContainerId {
        #[prost(string, tag = "1")] id: String,
    }
    StopContainerRequest {
        #[prost(string, tag = "1")] id: String,
        #[prost(int64, tag = "2")] timeout: i64,
    }
    ContainerFilter {
        #[prost(string, tag = "1")] id: String,
        #[prost(string, tag = "3")] sandbox_id: String,
    }
    ListContainersRequest {
        #[prost(message, optional, tag = "1")] filter: Option<ContainerFilter>,
    }
    Container {
        #[prost(string, tag = "1")] id: String,
        #[prost(string, tag = "2")] sandbox_id: String,
        #[prost(message, optional, tag = "3")] metadata: Option<ContainerMetadata>,
        #[prost(message, optional, tag = "4")] image: Option<ImageSpec>,
        #[prost(string, tag = "5")] image_ref: String,
        #[prost(enumeration = "ContainerState", tag = "6")] state: i32,
        #[prost(string, tag = "10")] image_id: String,
    }
    ListContainersResponse {
        #[prost(message, repeated, tag = "1")] containers: Vec<Container>,
    }
    ContainerStatus {
        #[prost(string, tag = "1")] id: String,
        #[prost(message, optional, tag = "2")] metadata: Option<ContainerMetadata>,
        #[prost(enumeration = "ContainerState", tag = "3")] state: i32,
        #[prost(int64, tag = "4")] created_at: i64,
        #[prost(int64, tag = "5")] started_at: i64,
        #[prost(int64, tag = "6")] finished_at: i64,
        #[prost(int32, tag = "7")] exit_code: i32,
        #[prost(message, optional, tag = "8")] image: Option<ImageSpec>,
        #[prost(string, tag = "9")] image_ref: String,
        #[prost(string, tag = "10")] reason: String,
        #[prost(string, tag = "11")] message: String,
        #[prost(btree_map = "string, string", tag = "12")] labels: Text,
        #[prost(btree_map = "string, string", tag = "13")] annotations: Text,
        #[prost(message, repeated, tag = "14")] mounts: Vec<Mount>,
        #[prost(string, tag = "15")] log_path: String,
        #[prost(message, optional, tag = "16")] resources: Option<ContainerResources>,
        #[prost(message, optional, tag = "18")] user: Option<ContainerUser>,
    }
    ContainerStatusResponse {
        #[prost(message, optional, tag = "1")] status: Option<ContainerStatus>,
    }
    ContainerResources {
        #[prost(message, optional, tag = "1")] linux: Option<LinuxResources>,
    }
    ContainerUser {
        #[prost(message, optional, tag = "1")] linux: Option<LinuxUser>,
    }
    LinuxUser {
        #[prost(int64, tag = "1")] uid: i64,
        #[prost(int64, tag = "2")] gid: i64,
        #[prost(int64, repeated, tag = "3")] supplemental_groups: Vec<i64>,
    }
    UpdateContainerRequest {
        #[prost(string, tag = "1")] id: String,
        #[prost(message, optional, tag = "2")] linux: Option<LinuxResources>,
    }

    CheckpointRequest {
        #[prost(string, tag = "1")] id: String,
        #[prost(string, tag = "2")] location: String,
        #[prost(int64, tag = "3")] timeout_s: i64,
    }
    ExecSyncRequest {
        #[prost(string, tag = "1")] id: String,
        #[prost(string, repeated, tag = "2")] cmd: Vec<String>,
        #[prost(int64, tag = "3")] timeout: i64,
    }
    ExecSyncResponse {
        #[prost(bytes = "vec", tag = "1")] stdout: Vec<u8>,
        #[prost(bytes = "vec", tag = "2")] stderr: Vec<u8>,
        #[prost(int32, tag = "3")] exit_code: i32,
    }
    ExecRequest {
        #[prost(string, tag = "1")] id: String,
        #[prost(string, repeated, tag = "2")] cmd: Vec<String>,
        #[prost(bool, tag = "3")] tty: bool,
        #[prost(bool, tag = "4")] stdin: bool,
        #[prost(bool, tag = "5")] stdout: bool,
        #[prost(bool, tag = "6")] stderr: bool,
    }
    AttachRequest {
        #[prost(string, tag = "1")] id: String,
        #[prost(bool, tag = "2")] stdin: bool,
        #[prost(bool, tag = "3")] tty: bool,
        #[prost(bool, tag = "4")] stdout: bool,
        #[prost(bool, tag = "5")] stderr: bool,
    }
    PortForwardRequest {
        #[prost(string, tag = "1")] sandbox: String,
        #[prost(int32, repeated, tag = "2")] port: Vec<i32>,
    }
    /// Where the streams of an exec, attach or port forwarding are.
    StreamingUrl {
        #[prost(string, tag = "1")] url: String,
    }

    ListStatsRequest {}
    ListStatsResponse {
        #[prost(message, repeated, tag = "1")] stats: Vec<ContainerStats>,
    }
    ContainerAttributes {
        #[prost(string, tag = "1")] id: String,
        #[prost(message, optional, tag = "2")] metadata: Option<ContainerMetadata>,
    }
    ContainerStats {
        #[prost(message, optional, tag = "1")] attributes: Option<ContainerAttributes>,
        #[prost(message, optional, tag = "2")] cpu: Option<CpuUsage>,
        #[prost(message, optional, tag = "3")] memory: Option<MemoryUsage>,
        #[prost(message, optional, tag = "4")] writable_layer: Option<FilesystemUsage>,
    }
    CpuUsage {
        #[prost(int64, tag = "1")] timestamp: i64,
        #[prost(message, optional, tag = "2")] usage_core_nano_seconds: Option<UInt64Value>,
    }
    MemoryUsage {
        #[prost(int64, tag = "1")] timestamp: i64,
        #[prost(message, optional, tag = "2")] working_set_bytes: Option<UInt64Value>,
        #[prost(message, optional, tag = "4")] usage_bytes: Option<UInt64Value>,
        #[prost(message, optional, tag = "5")] rss_bytes: Option<UInt64Value>,
        #[prost(message, optional, tag = "6")] page_faults: Option<UInt64Value>,
        #[prost(message, optional, tag = "7")] major_page_faults: Option<UInt64Value>,
    }
    FilesystemId {
        #[prost(string, tag = "1")] mountpoint: String,
    }
    FilesystemUsage {
        #[prost(int64, tag = "1")] timestamp: i64,
        #[prost(message, optional, tag = "2")] fs_id: Option<FilesystemId>,
        #[prost(message, optional, tag = "3")] used_bytes: Option<UInt64Value>,
        #[prost(message, optional, tag = "4")] inodes_used: Option<UInt64Value>,
    }
    ImageFsResponse {
        #[prost(message, repeated, tag = "1")] image_filesystems: Vec<FilesystemUsage>,
    }

    Event {
        #[prost(string, tag = "1")] container_id: String,
        #[prost(enumeration = "EventType", tag = "2")] kind: i32,
        #[prost(message, optional, tag = "4")] sandbox: Option<SandboxStatus>,
        #[prost(message, repeated, tag = "5")] containers: Vec<ContainerStatus>,
    }

    ImageRequest {
        #[prost(message, optional, tag = "1")] image: Option<ImageSpec>,
    }
    Image {
        #[prost(string, tag = "1")] id: String,
        #[prost(string, repeated, tag = "2")] repo_tags: Vec<String>,
        #[prost(string, repeated, tag = "3")] repo_digests: Vec<String>,
        #[prost(uint64, tag = "4")] size: u64,
        #[prost(message, optional, tag = "5")] uid: Option<Int64Value>,
        #[prost(string, tag = "6")] username: String,
        #[prost(bool, tag = "8")] pinned: bool,
    }
    ImageResponse {
        #[prost(message, optional, tag = "1")] image: Option<Image>,
    }
    ListImagesResponse {
        #[prost(message, repeated, tag = "1")] images: Vec<Image>,
    }
    PullImageRequest {
        #[prost(message, optional, tag = "1")] image: Option<ImageSpec>,
        #[prost(message, optional, tag = "2")] auth: Option<AuthConfig>,
    }
    PullImageResponse {
        #[prost(string, tag = "1")] image_ref: String,
    }

    /// containerd: what is to be told of.
    SubscribeRequest {
        #[prost(string, repeated, tag = "1")] filters: Vec<String>,
    }
    /// containerd: something happened.
    Envelope {
        #[prost(string, tag = "2")] namespace: String,
        #[prost(string, tag = "3")] topic: String,
        #[prost(message, optional, tag = "4")] event: Option<Any>,
    }
    Any {
        #[prost(string, tag = "1")] type_url: String,
        #[prost(bytes = "vec", tag = "2")] value: Vec<u8>,
    }
    /// containerd: a process ended. That of the container itself has the container's id.
    TaskExit {
        #[prost(string, tag = "1")] container_id: String,
        #[prost(string, tag = "2")] id: String,
    }
}

/// How to log in to a registry. It writes itself without its secrets.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub(super) struct AuthConfig {
    #[prost(string, tag = "1")]
    pub(super) username: String,
    #[prost(string, tag = "2")]
    pub(super) password: String,
    #[prost(string, tag = "5")]
    pub(super) identity_token: String,
    #[prost(string, tag = "6")]
    pub(super) registry_token: String,
}

impl std::fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthConfig").field("username", &self.username).finish_non_exhaustive()
    }
}
