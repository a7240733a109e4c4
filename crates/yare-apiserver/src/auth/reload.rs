//! Files that may change while the server runs: who authenticates, who authorizes, whose certificates are
//! believed. The kernel tells of changes; what is wrong with a new text is logged, and the old one stays.

use std::{
    os::fd::{AsFd, AsRawFd, RawFd},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;
use yare_auth::{
    config::{authentication::AuthenticationConfiguration, authorization::AuthorizationConfiguration},
    jws::Algorithm,
    tls::{self, ClientAuthority},
};

use super::{
    Auth, Authorities, Chain,
    authenticators::oidc::Issuers,
    metrics::{AuthMetrics, Reloads},
};
use crate::core::Core;

/// Files, where there are some.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// `--authentication-config`
    pub authentication: Option<PathBuf>,
    /// `--authorization-config`
    pub authorization: Option<PathBuf>,
    /// `--client-ca-file`, and the certificates (PEM) that are believed beside those in it.
    pub client_authority: Option<(PathBuf, String)>,
    /// Types of authorizers that must stay in the chain.
    pub required: Vec<String>,
}

/// How long new issuers have to answer before they replace the old ones.
const ISSUERS_PATIENCE: Duration = Duration::from_secs(60);
const ISSUERS_STEP: Duration = Duration::from_millis(250);
/// Changes within this time are one.
const SETTLE: Duration = Duration::from_millis(50);

/// Watches the files until the server stops.
pub fn start(core: &Arc<Core>) {
    let files = &core.config.auth.files;
    let authority = files.client_authority.as_ref().map(|(path, _)| path);
    let rows: [(Option<&PathBuf>, Apply, Counted); 3] = [
        (files.authentication.as_ref(), authentication, |m| Some(&m.authentication_file)),
        (files.authorization.as_ref(), authorization, |m| Some(&m.authorization_file)),
        (authority, client_authority, |_| None),
    ];
    for (path, apply, counted) in rows {
        if let Some(path) = path {
            watch(core, path.clone(), apply, counted);
        }
    }
}

type Apply = fn(&Auth, &[u8]) -> Result<Option<Issuers>, String>;
type Counted = fn(&AuthMetrics) -> Option<&Reloads>;

fn authentication(auth: &Auth, text: &[u8]) -> Result<Option<Issuers>, String> {
    let own = auth.signer.as_ref().map(|s| s.issuers().to_vec()).unwrap_or_default();
    let config = AuthenticationConfiguration::parse(text, &own).map_err(|e| e.to_string())?;
    Issuers::start(&config, &Algorithm::ALL).map(Some)
}

fn authorization(auth: &Auth, text: &[u8]) -> Result<Option<Issuers>, String> {
    let config = AuthorizationConfiguration::parse(text, &auth.files.required).map_err(|e| e.to_string())?;
    let chain = Chain::new(&config)?.after(&auth.chain.load());
    auth.chain.store(Arc::new(chain));
    Ok(None)
}

fn client_authority(auth: &Auth, text: &[u8]) -> Result<Option<Issuers>, String> {
    let text = std::str::from_utf8(text).map_err(|e| e.to_string())?;
    tls::check_authority(text)?;
    let beside = auth.files.client_authority.as_ref().map_or("", |(_, beside)| beside);
    let clients = Some(ClientAuthority::new(&format!("{beside}\n{text}")).map_err(|e| e.to_string())?);
    let front_proxy = auth.authorities.load().front_proxy.clone();
    auth.authorities.store(Arc::new(Authorities { clients, front_proxy }));
    Ok(None)
}

fn watch(core: &Arc<Core>, path: PathBuf, apply: Apply, counted: Counted) {
    let core = core.clone();
    let mut last = std::fs::read(&path).ok();
    if let (Some(reloads), Some(text)) = (counted(&core.config.auth.metrics), &last) {
        reloads.loaded(text);
    }
    tokio::spawn(async move {
        let changes = match Changes::of(&path) {
            Ok(changes) => changes,
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "changes of this file will not be seen");
                return;
            }
        };
        loop {
            tokio::select! {
                seen = changes.next() => if seen.is_err() { return },
                () = core.stop.cancelled() => return,
            }
            tokio::time::sleep(SETTLE).await;
            let Ok(text) = std::fs::read(&path) else { continue };
            if last.as_ref() == Some(&text) {
                continue;
            }
            let applied = apply(&core.config.auth, &text);
            if let Some(reloads) = counted(&core.config.auth.metrics) {
                reloads.reloaded(applied.is_ok().then_some(&text), core.now());
            }
            match applied {
                Ok(issuers) => {
                    if let Some(issuers) = issuers {
                        replace(&core, issuers).await;
                    }
                    tracing::info!(file = %path.display(), "reloaded");
                }
                Err(why) => tracing::error!(file = %path.display(), why, "not reloaded"),
            }
            last = Some(text);
        }
    });
}

/// Puts new issuers in place once they answer, or after a while anyway.
async fn replace(core: &Core, issuers: Issuers) {
    let patience = async {
        while !issuers.are_ready() {
            tokio::time::sleep(ISSUERS_STEP).await;
        }
    };
    if tokio::time::timeout(ISSUERS_PATIENCE, patience).await.is_err() {
        tracing::warn!("not all issuers of tokens answer");
    }
    core.config.auth.oidc.replace(issuers);
}

/// Changes in a file's directory: files are mostly replaced, and not written.
struct Changes(AsyncFd<Instance>);

/// What the reactor needs of an inotify instance: its descriptor.
struct Instance(Inotify);

impl AsRawFd for Instance {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl AsFd for Instance {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Changes {
    fn of(path: &Path) -> std::io::Result<Self> {
        let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let flags = AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_CREATE;
        inotify.add_watch(directory, flags)?;
        #[expect(
            deprecated,
            reason = "its successor is an unsafe function; Instance keeps its descriptor open as it asks"
        )]
        let fd = AsyncFd::new(Instance(inotify))?;
        Ok(Self(fd))
    }

    async fn next(&self) -> std::io::Result<()> {
        loop {
            let mut ready = self.0.readable().await?;
            match self.0.get_ref().0.read_events() {
                Ok(events) if !events.is_empty() => return Ok(()),
                Ok(_) => {}
                Err(nix::Error::EAGAIN) => ready.clear_ready(),
                Err(error) => return Err(error.into()),
            }
        }
    }
}
