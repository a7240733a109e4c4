//! Policies: which images a pod has to show that it may have.

use crate::config::Settings;
use crate::images::keyring::without_tag;

/// Which images have to be shown to be a pod's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Policy {
    Never,
    NeverPreloaded,
    /// Names, and beginnings of names.
    NeverListed(Vec<String>, Vec<String>),
    Always,
}

impl Policy {
    /// As the settings say.
    pub(super) fn new(settings: &Settings) -> Self {
        match settings.image_pull_credentials_verification_policy.as_str() {
            "NeverVerify" => Policy::Never,
            "NeverVerifyAllowlistedImages" => {
                let listed = &settings.preloaded_images_verification_allowlist;
                let (starts, names): (Vec<String>, Vec<String>) =
                    listed.iter().cloned().partition(|pattern| pattern.ends_with("/*"));
                let starts = starts.iter().map(|s| s.trim_end_matches('*').to_owned()).collect();
                Policy::NeverListed(names, starts)
            }
            "AlwaysVerify" => Policy::Always,
            _ => Policy::NeverPreloaded,
        }
    }

    /// Whether a pod has to show that it may have the image.
    pub(super) fn must_verify(&self, image: &str, was_pulled_here: bool) -> bool {
        match self {
            Policy::Never => false,
            Policy::NeverPreloaded => was_pulled_here,
            Policy::NeverListed(names, starts) => {
                let name = without_tag(image);
                !names.iter().any(|n| n == name) && !starts.iter().any(|start| name.starts_with(start))
            }
            Policy::Always => true,
        }
    }
}

/// Whether an image's name, or the beginning of names before a last `/*`, is one.
pub(crate) fn check_pattern(pattern: &str) -> Result<(), String> {
    let start = pattern.strip_suffix('*').filter(|start| start.ends_with('/'));
    let text = start.unwrap_or(pattern);
    if pattern != pattern.trim() {
        return Err(format!("leading/trailing spaces are not allowed: {pattern}"));
    }
    if text.is_empty() {
        return Err(format!("the supplied pattern is too short: {pattern}"));
    }
    if text.contains('*') {
        return Err(format!(
            "not a valid wildcard pattern, only patterns ending with '/*' are allowed: {pattern}"
        ));
    }
    match start {
        Some("/") => Err("at least registry hostname is required".to_owned()),
        Some(_) => Ok(()),
        None if yare_runtime::Reference::parse(pattern).is_err() => {
            Err("failed to parse as an image name: invalid reference format".to_owned())
        }
        None if without_tag(pattern) != pattern => {
            Err(format!("neither tag nor digest is accepted in an image reference: {pattern}"))
        }
        None => Ok(()),
    }
}
