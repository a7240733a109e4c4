//! Every field of `KubeletConfiguration` (kubelet.config.k8s.io/v1beta1), one row each.
//!
//! **To make a field work**: change its row's role to [`Acts`], read it where it is needed as
//! `kubelet.config.settings().<field>` ([`super::settings`] has every field already, typed), and, where a value
//! can be wrong beyond its form, add the check to [`super::validate`]. Default, flag, strictness and `/configz`
//! follow from the row.
//!
//! A row: path in the document, form, upstream's default (YAML; empty: absent), upstream's flag (empty: none),
//! role. A default that is not upstream's says so.

use super::form::Form::{self, *};

/// What comes of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It does what upstream documents.
    Acts,
    /// A value other than the default is accepted and changes nothing, for this reason: it is warned about.
    Moot(&'static str),
    /// A value other than the default is refused, for this reason: to ignore it would break a promise.
    Refused(&'static str),
}

use Role::{Acts, Moot, Refused};

/// A field.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// `authentication.webhook.cacheTTL`
    pub field: &'static str,
    /// What values look like.
    pub form: Form,
    /// YAML; empty: there is none.
    pub default: &'static str,
    /// Without dashes; empty: the field has no flag.
    pub flag: &'static str,
    /// What comes of it.
    pub role: Role,
}

const fn row(field: &'static str, form: Form, default: &'static str, flag: &'static str, role: Role) -> Row {
    Row { field, form, default, flag, role }
}

const CGROUPS: &str = "Yare lays out its control groups itself";
const PACKETS: &str = "services and pods are connected by nftables and routes, without iptables";
const RUST: &str = "there is no Go runtime to profile";
const KLOG: &str = "what is logged is chosen by YARE_LOG";
const UNLIMITED: &str = "the API server's flow control decides how fast a node may ask";

/// The fields, in upstream's order.
#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    row("enableServer", Bool, "true", "enable-server", Acts),
    row("staticPodPath", Text, "", "pod-manifest-path", Acts),
    row("podLogsDir", Text, "/var/log/pods", "", Refused("pods' logs are in `pods` below --log-dir")),
    row("syncFrequency", Duration, "1m", "sync-frequency", Moot("pods are looked at when something happens to them")),
    row("fileCheckFrequency", Duration, "20s", "file-check-frequency", Acts),
    row("httpCheckFrequency", Duration, "20s", "http-check-frequency", Acts),
    row("staticPodURL", Text, "", "manifest-url", Acts),
    row("staticPodURLHeader", Headers, "", "manifest-url-header", Acts),
    row("address", Text, "0.0.0.0", "address", Acts),
    row("port", Int32, "10250", "port", Acts),
    row("readOnlyPort", Int32, "", "read-only-port", Acts),
    row("tlsCertFile", Text, "", "tls-cert-file", Acts),
    row("tlsPrivateKeyFile", Text, "", "tls-private-key-file", Acts),
    row("tlsCipherSuites", Texts, "", "tls-cipher-suites", Acts),
    row("tlsCurvePreferences", Int32s, "", "", Acts),
    row("tlsMinVersion", Text, "", "tls-min-version", Acts),
    row("rotateCertificates", Bool, "", "rotate-certificates", Acts),
    row("serverTLSBootstrap", Bool, "", "rotate-server-certificates", Acts),
    row("authentication.x509.clientCAFile", Text, "", "client-ca-file", Acts),
    row("authentication.webhook.enabled", Bool, "true", "authentication-token-webhook", Acts),
    row("authentication.webhook.cacheTTL", Duration, "2m", "authentication-token-webhook-cache-ttl", Acts),
    row("authentication.anonymous.enabled", Bool, "false", "anonymous-auth", Acts),
    row("authorization.mode", Text, "Webhook", "authorization-mode", Acts),
    row("authorization.webhook.cacheAuthorizedTTL", Duration, "5m", "authorization-webhook-cache-authorized-ttl", Acts),
    row("authorization.webhook.cacheUnauthorizedTTL", Duration, "30s", "authorization-webhook-cache-unauthorized-ttl", Acts),
    row("registryPullQPS", OptInt32, "5", "registry-qps", Acts),
    row("registryBurst", Int32, "10", "registry-burst", Acts),
    row("imagePullCredentialsVerificationPolicy", Text, "NeverVerifyPreloadedImages", "", Acts),
    row("preloadedImagesVerificationAllowlist", Texts, "", "", Acts),
    row("eventRecordQPS", OptInt32, "50", "event-qps", Moot("events are limited per object")),
    row("eventBurst", Int32, "100", "event-burst", Moot("events are limited per object")),
    row("enableDebuggingHandlers", Bool, "true", "enable-debugging-handlers", Acts),
    row("enableContentionProfiling", Bool, "", "contention-profiling", Moot(RUST)),
    row("healthzPort", OptInt32, "10248", "healthz-port", Acts),
    row("healthzBindAddress", Text, "127.0.0.1", "healthz-bind-address", Acts),
    row("oomScoreAdj", OptInt32, "-999", "oom-score-adj", Moot("one process is the node and often the control plane: its score stays as it was started")),
    row("clusterDomain", Text, "", "cluster-domain", Acts),
    row("clusterDNS", Texts, "", "cluster-dns", Acts),
    row("streamingConnectionIdleTimeout", Duration, "4h", "streaming-connection-idle-timeout", Moot("a stream lives as long as its connection")),
    row("nodeStatusUpdateFrequency", Duration, "10s", "node-status-update-frequency", Acts),
    // Where nodeStatusUpdateFrequency is given, that is the default.
    row("nodeStatusReportFrequency", Duration, "5m", "", Acts),
    row("nodeLeaseDurationSeconds", Int32, "40", "", Acts),
    row("imageMinimumGCAge", Duration, "2m", "minimum-image-ttl-duration", Acts),
    row("imageMaximumGCAge", Duration, "", "", Acts),
    row("imageGCHighThresholdPercent", OptInt32, "85", "image-gc-high-threshold", Acts),
    row("imageGCLowThresholdPercent", OptInt32, "80", "image-gc-low-threshold", Acts),
    row("volumeStatsAggPeriod", Duration, "1m", "volume-stats-agg-period", Acts),
    row("kubeletCgroups", Text, "", "kubelet-cgroups", Refused(CGROUPS)),
    row("systemCgroups", Text, "", "system-cgroups", Refused(CGROUPS)),
    row("cgroupRoot", Text, "", "cgroup-root", Acts),
    row("cgroupsPerQOS", Bool, "true", "cgroups-per-qos", Acts),
    row("cgroupDriver", Text, "cgroupfs", "cgroup-driver", Acts),
    row("cpuManagerPolicy", Text, "none", "cpu-manager-policy", Acts),
    row("singleProcessOOMKill", Bool, "", "", Acts),
    row("cpuManagerPolicyOptions", TextMap, "", "cpu-manager-policy-options", Acts),
    row("cpuManagerReconcilePeriod", Duration, "10s", "cpu-manager-reconcile-period", Acts),
    row("memoryManagerPolicy", Text, "None", "memory-manager-policy", Acts),
    row("topologyManagerPolicy", Text, "none", "topology-manager-policy", Acts),
    row("topologyManagerScope", Text, "container", "topology-manager-scope", Acts),
    row("topologyManagerPolicyOptions", TextMap, "", "topology-manager-policy-options", Acts),
    row("qosReserved", TextMap, "", "qos-reserved", Refused("no memory is set aside by class of service")),
    row("runtimeRequestTimeout", Duration, "2m", "runtime-request-timeout", Acts),
    row("hairpinMode", Text, "promiscuous-bridge", "hairpin-mode", Moot(PACKETS)),
    row("maxPods", Int32, "110", "max-pods", Acts),
    row("podCIDR", Text, "", "pod-cidr", Moot("the range of pods comes from the node's object")),
    row("podPidsLimit", OptInt64, "-1", "pod-max-pids", Acts),
    row("resolvConf", OptText, "/etc/resolv.conf", "resolv-conf", Acts),
    row("runOnce", Bool, "", "runonce", Acts),
    row("cpuCFSQuota", Bool, "true", "cpu-cfs-quota", Acts),
    row("cpuCFSQuotaPeriod", OptDuration, "100ms", "cpu-cfs-quota-period", Acts),
    row("nodeStatusMaxImages", OptInt32, "50", "node-status-max-images", Acts),
    row("maxOpenFiles", Int64, "1000000", "max-open-files", Moot("the limit is the one the process was started with")),
    row("contentType", Text, "application/vnd.kubernetes.protobuf", "kube-api-content-type", Moot("a node speaks JSON with the API server")),
    row("kubeAPIQPS", OptInt32, "50", "kube-api-qps", Moot(UNLIMITED)),
    row("kubeAPIBurst", Int32, "100", "kube-api-burst", Moot(UNLIMITED)),
    // false where maxParallelImagePulls is more than 1.
    row("serializeImagePulls", Bool, "true", "serialize-image-pulls", Acts),
    row("maxParallelImagePulls", OptInt32, "", "", Acts),
    row("evictionHard", TextMap, "", "eviction-hard", Acts),
    row("evictionSoft", TextMap, "", "eviction-soft", Acts),
    row("evictionSoftGracePeriod", TextMap, "", "eviction-soft-grace-period", Acts),
    row("evictionPressureTransitionPeriod", Duration, "5m", "eviction-pressure-transition-period", Acts),
    row("evictionMaxPodGracePeriod", Int32, "", "eviction-max-pod-grace-period", Acts),
    row("evictionMinimumReclaim", TextMap, "", "eviction-minimum-reclaim", Acts),
    row("mergeDefaultEvictionSettings", Bool, "false", "", Acts),
    row("podsPerCore", Int32, "", "pods-per-core", Acts),
    row("enableControllerAttachDetach", Bool, "true", "enable-controller-attach-detach", Refused("volumes are attached by the controller")),
    // Where it is false, upstream sets the tunables; here they are left as they are.
    row("protectKernelDefaults", Bool, "", "protect-kernel-defaults", Acts),
    row("makeIPTablesUtilChains", Bool, "true", "make-iptables-util-chains", Moot(PACKETS)),
    row("iptablesMasqueradeBit", OptInt32, "14", "iptables-masquerade-bit", Moot(PACKETS)),
    row("iptablesDropBit", OptInt32, "15", "iptables-drop-bit", Moot(PACKETS)),
    row("featureGates", Gates, "", "feature-gates", Acts),
    // Upstream: true. A laptop has swap; pods get none of it unless memorySwap says so.
    row("failSwapOn", Bool, "false", "fail-swap-on", Acts),
    row("memorySwap.swapBehavior", Text, "", "", Acts),
    row("containerLogMaxSize", Text, "10Mi", "container-log-max-size", Acts),
    row("containerLogMaxFiles", OptInt32, "5", "container-log-max-files", Acts),
    row("containerLogMaxWorkers", OptInt32, "1", "", Acts),
    row("containerLogMonitorInterval", OptDuration, "10s", "", Acts),
    row("configMapAndSecretChangeDetectionStrategy", Text, "Watch", "", Moot("referenced objects are always watched")),
    row("systemReserved", TextMap, "", "system-reserved", Acts),
    row("kubeReserved", TextMap, "", "kube-reserved", Acts),
    row("reservedSystemCPUs", Text, "", "reserved-cpus", Acts),
    row("showHiddenMetricsForVersion", Text, "", "show-hidden-metrics-for-version", Moot("no metric is hidden")),
    row("systemReservedCgroup", Text, "", "system-reserved-cgroup", Acts),
    row("kubeReservedCgroup", Text, "", "kube-reserved-cgroup", Acts),
    row("enforceNodeAllocatable", Texts, "[pods]", "enforce-node-allocatable", Acts),
    row("allowedUnsafeSysctls", Texts, "", "allowed-unsafe-sysctls", Acts),
    row("volumePluginDir", Text, "/usr/libexec/kubernetes/kubelet-plugins/volume/exec/", "volume-plugin-dir", Moot("there are no FlexVolume drivers")),
    row("providerID", Text, "", "provider-id", Acts),
    row("kernelMemcgNotification", Bool, "", "kernel-memcg-notification", Moot("the kernel always tells of memory pressure where it can")),
    row("logging.format", Text, "text", "logging-format", Moot(KLOG)),
    row("logging.flushFrequency", Duration, "5s", "log-flush-frequency", Moot(KLOG)),
    row("logging.verbosity", Int32, "", "v", Moot(KLOG)),
    row("logging.vmodule", Free, "", "", Moot(KLOG)),
    row("logging.options", Free, "", "", Moot(KLOG)),
    row("enableSystemLogHandler", Bool, "true", "", Acts),
    row("enableSystemLogQuery", Bool, "", "", Acts),
    row("shutdownGracePeriod", Duration, "", "", Acts),
    row("shutdownGracePeriodCriticalPods", Duration, "", "", Acts),
    row("shutdownGracePeriodByPodPriority", Priorities, "", "", Acts),
    // Where KubeletCrashLoopBackOffMax is on.
    row("crashLoopBackOff.maxContainerRestartPeriod", OptDuration, "5m", "", Acts),
    row("reservedMemory", Reservations, "", "reserved-memory", Acts),
    row("enableProfilingHandler", Bool, "true", "", Moot(RUST)),
    row("enableDebugFlagsHandler", Bool, "true", "", Moot(KLOG)),
    row("seccompDefault", Bool, "false", "seccomp-default", Acts),
    row("memoryThrottlingFactor", OptFloat, "0.9", "", Acts),
    row("memoryReservationPolicy", Text, "None", "", Acts),
    row("registerWithTaints", Taints, "", "register-with-taints", Acts),
    row("registerNode", Bool, "true", "register-node", Acts),
    row("tracing.endpoint", OptText, "", "", Acts),
    row("tracing.samplingRatePerMillion", OptInt32, "", "", Acts),
    row("localStorageCapacityIsolation", Bool, "true", "local-storage-capacity-isolation", Acts),
    // Upstream: containerd's socket. Empty is the embedded runtime.
    row("containerRuntimeEndpoint", Text, "", "container-runtime-endpoint", Refused("it is a flag of yare server and yare agent")),
    row("imageServiceEndpoint", Text, "", "image-service-endpoint", Refused("it is a flag of yare server and yare agent")),
    // Upstream: true. The embedded runtime runs on control groups of both versions.
    row("failCgroupV1", Bool, "false", "fail-cgroupv1", Acts),
    row("userNamespaces.idsPerPod", OptInt64, "", "", Refused("a pod's user namespace has 65536 ids")),
];
