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

/// The same version's minor part.
pub const MINOR: u16 = 36;
/// The oldest version whose behaviour can be had, and that can be said to run beside this server.
pub const OLDEST_MINOR: u16 = 33;

/// As which version of Kubernetes a server behaves: APIs and features that came later are not there (KEP-4330).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Emulation {
    /// The version, as the number behind `1.`.
    pub minor: u16,
    /// The oldest version of other components and servers that the server gets on with; expressions that are written
    /// may only use what it knows.
    pub compatible_minor: u16,
}

impl Emulation {
    /// Nothing is emulated: the server is what it is, and gets on with the version before.
    pub const NONE: Self = Self { minor: MINOR, compatible_minor: MINOR - 1 };

    /// Reads `--emulated-version` and `--min-compatibility-version`: `1.35` or `kube=1.35`; empty where not given.
    ///
    /// # Errors
    /// What is wrong, in upstream's words.
    pub fn parse(emulated: &[String], compatible: &[String]) -> Result<Self, String> {
        let minor = version_of_kube(emulated)?.unwrap_or((1, MINOR));
        let before = minor.1.saturating_sub(1).max(OLDEST_MINOR);
        let compatible = version_of_kube(compatible)?.unwrap_or((1, before));
        let mut errors = Vec::new();
        let range = (1, OLDEST_MINOR)..=(1, MINOR);
        let shown = |(major, minor): (u16, u16)| format!("{major}.{minor}");
        if !range.contains(&minor) {
            let (oldest, newest) = (shown(*range.start()), shown(*range.end()));
            errors.push(format!("emulation version {} is not between [{oldest}, {newest}]", shown(minor)));
        }
        if compatible > minor || compatible < *range.start() {
            errors.push(format!(
                "minCompatibilityVersion version {} is not between [{}, {}]",
                shown(compatible),
                shown(*range.start()),
                shown(minor)
            ));
        }
        match &errors[..] {
            [] => Ok(Self { minor: minor.1, compatible_minor: compatible.1 }),
            [one] => Err(one.clone()),
            _ => Err(format!("[{}]", errors.join(", "))),
        }
    }

    /// Whether the server is to be another version than it is.
    pub fn is_other(self) -> bool {
        self.minor != MINOR
    }
}

impl Default for Emulation {
    fn default() -> Self {
        Self::NONE
    }
}

/// The one version that is given for the component `kube`, which is meant where none is named.
fn version_of_kube(given: &[String]) -> Result<Option<(u16, u16)>, String> {
    let mut found: Option<(u16, u16)> = None;
    for one in given.iter().map(|one| one.trim()).filter(|one| !one.is_empty()) {
        let (component, text) = one.split_once('=').map_or(("kube", one), |(c, v)| (c.trim(), v.trim()));
        let mut parts = text.strip_prefix('v').unwrap_or(text).split('.').map(str::parse::<u16>);
        let version = match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(Ok(major)), Some(Ok(minor)), None | Some(Ok(0)), None) => (major, minor),
            (Some(Ok(_)), Some(Ok(_)), Some(Ok(_)), None) => {
                return Err(format!("patch version not allowed, got: {component}={text}"));
            }
            _ => return Err(format!("could not parse {text:?} as version")),
        };
        if component != "kube" {
            return Err(format!("component not registered: {component}"));
        }
        if let Some((major, minor)) = found {
            return Err(format!(
                "duplicate version flag, kube={major}.{minor} and kube={}.{}",
                version.0, version.1
            ));
        }
        found = Some(version);
    }
    Ok(found)
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_version() {
        assert_eq!(kubernetes_minor!(), format!("1.{MINOR}"));
    }

    #[test]
    fn versions_are_emulated_within_limits() {
        let words = |text: &str| -> Vec<String> {
            text.split(',').filter(|w| !w.is_empty()).map(str::to_owned).collect()
        };
        for (emulated, compatible, expect) in [
            ("", "", Ok((36, 35))),
            ("1.35", "", Ok((35, 34))),
            ("kube=v1.34.0", "", Ok((34, 33))),
            ("1.33", "", Ok((33, 33))),
            ("", "kube=1.34", Ok((36, 34))),
            ("1.35", "1.35", Ok((35, 35))),
            ("1.37", "", Err("emulation version 1.37 is not between [1.33, 1.36]")),
            (
                "1.30",
                "",
                Err(
                    "[emulation version 1.30 is not between [1.33, 1.36], minCompatibilityVersion version 1.33 is not between [1.33, 1.30]]",
                ),
            ),
            ("1.34", "1.35", Err("minCompatibilityVersion version 1.35 is not between [1.33, 1.34]")),
            ("2.0", "", Err("emulation version 2.0 is not between [1.33, 1.36]")),
            ("1.35.1", "", Err("patch version not allowed, got: kube=1.35.1")),
            ("foo", "", Err("could not parse \"foo\" as version")),
            ("1", "", Err("could not parse \"1\" as version")),
            ("kube=1.34,1.33", "", Err("duplicate version flag, kube=1.34 and kube=1.33")),
            ("wardle=1.2", "", Err("component not registered: wardle")),
        ] {
            let expect = expect.map_err(str::to_owned);
            let got = Emulation::parse(&words(emulated), &words(compatible));
            assert_eq!(got.map(|e| (e.minor, e.compatible_minor)), expect, "{emulated:?} {compatible:?}");
        }
    }
}
