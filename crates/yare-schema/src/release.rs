//! What a program of Kubernetes says of itself: the version that it speaks, and the machine that it was built for.

/// The version of Kubernetes whose API this is.
pub const KUBERNETES_VERSION: &str = "v1.36.0";

/// The architecture that this program runs on, by Go's name, which is that of images and of `kubernetes.io/arch`.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "x86" => "386",
        "aarch64" => "arm64",
        "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
        other => other,
    }
}
