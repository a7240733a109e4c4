//! `/statusz` and `/flagz` (KEP-4827, KEP-4828): what a component is and how it was started, as a page for people or
//! as an object of `config.k8s.io`.

use std::fmt::Write as _;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::process::Process;

/// One of the pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Page {
    /// The path behind its slash.
    pub name: &'static str,
    /// The object's kind.
    pub kind: &'static str,
    /// The feature gate.
    pub gate: &'static str,
}

/// What the component is.
pub const STATUSZ: Page = Page { name: "statusz", kind: "Statusz", gate: "ComponentStatusz" };
/// Its flags.
pub const FLAGZ: Page = Page { name: "flagz", kind: "Flagz", gate: "ComponentFlagz" };

/// The group of the objects.
pub const GROUP: &str = "config.k8s.io";
/// The media type of the page for people.
pub const TEXT: &str = "text/plain";
/// Its versions, the newest first.
const VERSIONS: [&str; 2] = ["v1beta1", "v1alpha1"];
/// What stands between a name and its value: another one each time, so that nobody parses the page.
const DELIMITERS: [&str; 4] = [":", ": ", "=", " "];

impl Page {
    /// The version that group, version and kind of a media type ask for, if they are the page's.
    pub fn version(self, kind: &str, group: &str, version: &str) -> Option<&'static str> {
        VERSIONS.into_iter().find(|known| *known == version && group == GROUP && kind == self.kind)
    }

    /// What clients of a version are warned of.
    pub fn warning(self, version: &str) -> Option<String> {
        let name = self.name;
        (version != VERSIONS[0]).then(|| {
            format!("This version of the {name} endpoint is deprecated. Please use a newer version.")
        })
    }

    /// The page for people. `draw` picks what stands between names and values.
    pub fn text(self, component: &str, shown: &Shown<'_>, draw: u8) -> String {
        let between = DELIMITERS[usize::from(draw) % DELIMITERS.len()];
        let mut out = format!(
            "\n{component} {}\nWarning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees and is for debugging purposes only.\n",
            self.name
        );
        match shown {
            Shown::Flags(flags) => {
                for (name, value) in flags {
                    let _ = writeln!(out, "{name}{between}{value}");
                }
            }
            Shown::Status(status) => {
                out.push('\n');
                let up_s = status.up_s;
                let up = format!("{} hr {:02} min {:02} sec", up_s / 3600, up_s / 60 % 60, up_s % 60);
                for (name, value) in [
                    ("Started", &*status.started.strftime("%a %b %e %H:%M:%S UTC %Y").to_string()),
                    ("Up", &up),
                    ("Go version", &status.go_version),
                    ("Binary version", &status.version),
                    ("Emulation version", &status.emulated),
                    ("Paths", &status.paths.join(" ")),
                ] {
                    let _ = writeln!(out, "{name}{between} {value}");
                }
            }
        }
        out
    }

    /// The object in a version.
    pub fn object(self, component: &str, version: &str, shown: &Shown<'_>) -> Value {
        let mut object = json!({
            "kind": self.kind,
            "apiVersion": format!("{GROUP}/{version}"),
            "metadata": {"name": component},
        });
        match shown {
            Shown::Flags(flags) => {
                object["flags"] = flags.iter().map(|(name, value)| (*name, *value)).collect();
            }
            Shown::Status(status) => {
                object["startTime"] = status.started.strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into();
                object["uptimeSeconds"] = status.up_s.into();
                object["goVersion"] = status.go_version.as_str().into();
                object["binaryVersion"] = status.version.as_str().into();
                object["emulationVersion"] = status.emulated.as_str().into();
                object["paths"] = json!(status.paths);
            }
        }
        object
    }
}

/// What is on a page.
pub enum Shown<'a> {
    /// Flags and their values, by name in order.
    Flags(Vec<(&'a str, &'a str)>),
    /// How the component is.
    Status(Status),
}

/// How a component is.
pub struct Status {
    started: Timestamp,
    up_s: i64,
    /// What built it: there is no Go here, but clients want the field.
    go_version: String,
    /// `1.36`
    version: String,
    /// The version that it behaves as.
    emulated: String,
    /// Paths that help to debug.
    paths: Vec<String>,
}

impl Status {
    /// Of this process. `versions`: its own (`1.36`), and the one that it behaves as.
    pub fn now(now: Timestamp, go_version: &str, versions: [&str; 2], paths: Vec<String>) -> Self {
        let started = Timestamp::from_second(Process::read().start_s() as i64).unwrap_or(now);
        let up_s = (now.as_second() - started.as_second()).max(0);
        let [version, emulated] = versions.map(str::to_owned);
        Self { started, up_s, go_version: go_version.to_owned(), version, emulated, paths }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_and_objects() {
        let flags = Shown::Flags(vec![("a", "1"), ("max-pods", "110")]);
        for (draw, line) in
            [(0, "max-pods:110\n"), (1, "max-pods: 110\n"), (6, "max-pods=110\n"), (255, "max-pods 110\n")]
        {
            let text = FLAGZ.text("kubelet", &flags, draw);
            assert!(text.starts_with("\nkubelet flagz\nWarning: ") && text.ends_with(line), "{text}");
        }
        let object = FLAGZ.object("kubelet", "v1beta1", &flags);
        assert_eq!(object["flags"], json!({"a": "1", "max-pods": "110"}));
        let started = "2026-01-02T03:04:05Z".parse().unwrap();
        let status = Status {
            started,
            up_s: 3_723,
            go_version: "none".into(),
            version: "1.36".into(),
            emulated: "1.35".into(),
            paths: vec!["/a".into(), "/b".into()],
        };
        let shown = Shown::Status(status);
        let text = STATUSZ.text("apiserver", &shown, 2);
        assert!(text.ends_with(
            "only.\n\nStarted= Fri Jan  2 03:04:05 UTC 2026\nUp= 1 hr 02 min 03 sec\nGo version= none\nBinary version= 1.36\n\
             Emulation version= 1.35\nPaths= /a /b\n"
        ), "{text}");
        assert_eq!(
            STATUSZ.object("apiserver", "v1alpha1", &shown),
            json!({"kind": "Statusz", "apiVersion": "config.k8s.io/v1alpha1", "metadata": {"name": "apiserver"},
                "startTime": "2026-01-02T03:04:05Z", "uptimeSeconds": 3723, "goVersion": "none",
                "binaryVersion": "1.36", "emulationVersion": "1.35", "paths": ["/a", "/b"]})
        );
        assert_eq!(STATUSZ.version("Statusz", GROUP, "v1beta1"), Some("v1beta1"));
        assert_eq!(STATUSZ.version("Flagz", GROUP, "v1beta1"), None);
        assert!(
            STATUSZ.warning("v1beta1").is_none() && STATUSZ.warning("v1alpha1").unwrap().contains("statusz")
        );
    }
}
