//! Which level and version a namespace's labels ask for, in each of the three modes.

use std::fmt;

use yare_schema::field::{FieldError, Path};

use super::Level;

/// Prefix of the labels of a namespace and of the audit annotations of a request.
pub const LABELS: &str = "pod-security.kubernetes.io/";

/// A policy version: of a Kubernetes minor release, or whatever is newest.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Version {
    /// `latest`
    #[default]
    Latest,
    /// `v1.N`
    Minor(u32),
}

impl Version {
    /// The minor release; the newest is beyond all others.
    pub fn minor(self) -> u32 {
        match self {
            Self::Latest => u32::MAX,
            Self::Minor(minor) => minor,
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => f.write_str("latest"),
            Self::Minor(minor) => write!(f, "v1.{minor}"),
        }
    }
}

/// A level of a version; written `baseline:v1.30`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LevelVersion {
    /// How much is allowed.
    pub level: Level,
    /// By which release's rules.
    pub version: Version,
}

impl LevelVersion {
    /// Whether both let in the same pods.
    pub fn is_equivalent(self, other: Self) -> bool {
        self == other || (self.level == Level::Privileged && other.level == Level::Privileged)
    }
}

impl fmt::Display for LevelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.level.as_str(), self.version)
    }
}

/// What holds in a namespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Policy {
    /// Pods that break this are refused.
    pub enforce: LevelVersion,
    /// What breaks this is noted in the audit log.
    pub audit: LevelVersion,
    /// Whoever makes what breaks this is warned.
    pub warn: LevelVersion,
}

/// A level by its name. The error is what should be there.
pub fn parse_level(text: &str) -> Result<Level, String> {
    match text {
        "privileged" => Ok(Level::Privileged),
        "baseline" => Ok(Level::Baseline),
        "restricted" => Ok(Level::Restricted),
        _ => Err("must be one of privileged, baseline, restricted".into()),
    }
}

/// A version as labels have it. The error is what should be there.
pub fn parse_version(text: &str) -> Result<Version, String> {
    if text == "latest" {
        return Ok(Version::Latest);
    }
    let digits = text.strip_prefix("v1.").unwrap_or_default();
    let plain = digits.bytes().all(|b| b.is_ascii_digit()) && (digits.len() == 1 || !digits.starts_with('0'));
    digits
        .parse::<i64>()
        .ok()
        .filter(|_| plain)
        // A release that nobody will live to see has the newest rules.
        .map(|minor| Version::Minor(u32::try_from(minor).unwrap_or(u32::MAX - 1)))
        .ok_or_else(|| "must be \"latest\" or \"v1.x\"".into())
}

impl Policy {
    /// Whether nothing is ever refused, warned of or noted.
    pub fn is_privileged(&self) -> bool {
        [self.enforce, self.audit, self.warn].iter().all(|l| l.level == Level::Privileged)
    }

    /// Whether both mean the same.
    pub fn is_equivalent(&self, other: &Self) -> bool {
        self.enforce.is_equivalent(other.enforce)
            && self.audit.is_equivalent(other.audit)
            && self.warn.is_equivalent(other.warn)
    }

    /// The policy that labels ask for; what they do not say is taken from `defaults`. A label that cannot be
    /// read is an error and, in force, the strictest for `enforce` and nothing for the others.
    pub fn of<'a>(label: impl Fn(&str) -> Option<&'a str>, defaults: &Self) -> (Self, Vec<FieldError>) {
        let mut policy = *defaults;
        let mut errors = Vec::new();
        let mut wrong = |name: &str, value: &str, why: String| {
            let (metadata, key) = (Path::new("metadata"), format!("{LABELS}{name}"));
            let labels = metadata.child("labels");
            errors.push(FieldError::invalid(&labels.key(&key), value, why));
        };
        let mut has_enforce = false;
        let (mut has_warn, mut has_warn_version) = (false, false);
        for mode in ["enforce", "audit", "warn"] {
            let place = match mode {
                "enforce" => &mut policy.enforce,
                "audit" => &mut policy.audit,
                _ => &mut policy.warn,
            };
            if let Some(text) = label(&format!("{LABELS}{mode}")) {
                has_warn |= mode == "warn";
                match parse_level(text) {
                    Ok(level) => {
                        place.level = level;
                        has_enforce |= mode == "enforce";
                    }
                    Err(why) => {
                        place.level = if mode == "enforce" { Level::Restricted } else { Level::Privileged };
                        wrong(mode, text, why);
                    }
                }
            }
            let name = format!("{mode}-version");
            if let Some(text) = label(&format!("{LABELS}{name}")) {
                has_warn_version |= mode == "warn";
                place.version = parse_version(text).unwrap_or_else(|why| {
                    wrong(&name, text, why);
                    Version::Latest
                });
            }
        }
        // Who asks for pods to be refused wants to hear it of their templates too.
        if !has_warn && has_enforce && policy.enforce.level > policy.warn.level {
            policy.warn.level = policy.enforce.level;
            if !has_warn_version {
                policy.warn.version = policy.enforce.version;
            }
        }
        (policy, errors)
    }
}
