//! Limits that each process has for itself (`setrlimit`), by the names and in the form that Docker and CRI-O have:
//! `nofile=1024:524288`. Kubernetes has no field for them; a container gets the engine's.

use std::str::FromStr;

use nix::errno::Errno;
use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

/// No limit at all.
const UNLIMITED: u64 = libc::RLIM_INFINITY;
/// Open files that a container may have where nobody says: as many as a process gets from the services that usually
/// run containers.
const FILES: u64 = 1_048_576;

/// By name.
const RESOURCES: [(&str, Resource); 15] = [
    ("core", Resource::RLIMIT_CORE),
    ("cpu", Resource::RLIMIT_CPU),
    ("data", Resource::RLIMIT_DATA),
    ("fsize", Resource::RLIMIT_FSIZE),
    ("locks", Resource::RLIMIT_LOCKS),
    ("memlock", Resource::RLIMIT_MEMLOCK),
    ("msgqueue", Resource::RLIMIT_MSGQUEUE),
    ("nice", Resource::RLIMIT_NICE),
    ("nofile", Resource::RLIMIT_NOFILE),
    ("nproc", Resource::RLIMIT_NPROC),
    ("rss", Resource::RLIMIT_RSS),
    ("rtprio", Resource::RLIMIT_RTPRIO),
    ("rttime", Resource::RLIMIT_RTTIME),
    ("sigpending", Resource::RLIMIT_SIGPENDING),
    ("stack", Resource::RLIMIT_STACK),
];

/// One limit, in the unit of its resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    name: String,
    soft: u64,
    hard: u64,
}

impl Ulimit {
    /// What containers get where nobody says.
    pub fn usual() -> Vec<Self> {
        vec![Self { name: "nofile".into(), soft: FILES, hard: FILES }]
    }

    /// The usual ones, and `given` instead of or beside them.
    pub fn with(given: &[Self]) -> Vec<Self> {
        let is_given = |usual: &Self| given.iter().any(|limit| limit.name == usual.name);
        let mut all = Self::usual();
        all.retain(|usual| !is_given(usual));
        all.extend_from_slice(given);
        all
    }

    /// What becomes of it where this process may not raise limits: its name, the hard limit as it is told, and as it
    /// will be. `None`: it is kept to.
    pub(crate) fn clamped(&self) -> Option<(String, u64, u64)> {
        let (_, resource) = RESOURCES.iter().find(|(name, _)| *name == self.name)?;
        let (_, most) = getrlimit(*resource).ok()?;
        (self.hard > most).then(|| (self.name.clone(), self.hard, most))
    }

    /// Limits the calling process, which from then on cannot be what it may not be any more. Who may not raise a
    /// limit keeps what there is.
    pub(crate) fn apply(&self) -> nix::Result<()> {
        let Some((_, resource)) = RESOURCES.iter().find(|(name, _)| *name == self.name) else {
            return Ok(());
        };
        match setrlimit(*resource, self.soft, self.hard) {
            Err(Errno::EPERM) => {
                let (_, most) = getrlimit(*resource)?;
                setrlimit(*resource, self.soft.min(most), self.hard.min(most))
            }
            done => done,
        }
    }
}

impl FromStr for Ulimit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, values) =
            text.split_once('=').ok_or_else(|| format!("invalid ulimit argument: {text}"))?;
        if !RESOURCES.iter().any(|(known, _)| *known == name) {
            return Err(format!("invalid ulimit type: {name}"));
        }
        let number = |text: &str| match text {
            "-1" | "unlimited" => Ok(UNLIMITED),
            _ => text.parse::<u64>().map_err(|error| format!("invalid ulimit value {text:?}: {error}")),
        };
        let (soft, hard) = match values.split_once(':') {
            Some((soft, hard)) => (number(soft)?, number(hard)?),
            None => (number(values)?, number(values)?),
        };
        if soft > hard {
            return Err(format!("ulimit soft limit must be less than or equal to hard limit: {text}"));
        }
        Ok(Self { name: name.to_owned(), soft, hard })
    }
}

/// Lets the calling process have as many open files as it may have at most: each pod costs a node a few, and shells
/// begin with 1024.
pub fn raise_open_files() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!(soft, hard, %error, "the limit of open files stays as it is");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let limit = |name: &str, soft, hard| Ok(Ulimit { name: name.into(), soft, hard });
        for (text, expected) in [
            ("nofile=1024:2048", limit("nofile", 1024, 2048)),
            ("core=0", limit("core", 0, 0)),
            ("memlock=-1:unlimited", limit("memlock", UNLIMITED, UNLIMITED)),
            ("nofile", Err("invalid ulimit argument: nofile")),
            ("files=1", Err("invalid ulimit type: files")),
            ("nofile=many", Err("invalid ulimit value \"many\": invalid digit found in string")),
            ("nofile=1:2:3", Err("invalid ulimit value \"2:3\": invalid digit found in string")),
            ("nofile=-1:5", Err("ulimit soft limit must be less than or equal to hard limit: nofile=-1:5")),
        ] {
            assert_eq!(text.parse::<Ulimit>(), expected.map_err(str::to_owned), "{text}");
        }
        assert!(RESOURCES.is_sorted_by_key(|(name, _)| *name));
    }

    #[test]
    fn what_is_given_goes_first() {
        let of = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<Ulimit>>();
        let files = Ulimit::usual();
        assert_eq!(Ulimit::with(&[]), files);
        assert_eq!(Ulimit::with(&of(&["nofile=5"])), of(&["nofile=5"]));
        assert_eq!(Ulimit::with(&of(&["core=0"])), [files, of(&["core=0"])].concat());
    }
}
