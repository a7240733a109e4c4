//! What a program of Kubernetes says of itself: the version that it speaks, and the machine that it was built for.

/// Major and minor version of Kubernetes whose API this is, as a literal for `concat!`.
#[macro_export]
macro_rules! kubernetes_minor {
    () => {
        "1.36"
    };
}

/// The version of Kubernetes whose API this is, as a literal for `concat!`.
#[macro_export]
macro_rules! kubernetes_version {
    () => {
        concat!("v", $crate::kubernetes_minor!(), ".0")
    };
}

/// The version of Kubernetes whose API this is.
pub const KUBERNETES_VERSION: &str = kubernetes_version!();

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
