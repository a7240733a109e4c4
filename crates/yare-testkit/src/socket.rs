//! A gRPC server on a unix socket with a thread of its own, which tests stop and start again.

use std::{
    path::{Path, PathBuf},
    thread::JoinHandle,
};

use anyhow::Context as _;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;
use yare_grpc::Server;

/// Where a server is, or will be. It is closed when it is dropped.
pub(crate) struct Socket {
    path: PathBuf,
    running: Option<(CancellationToken, JoinHandle<()>)>,
}

impl Socket {
    /// A path at which nobody listens yet.
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_owned(), running: None }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Listens.
    pub fn serve(&mut self, server: Server) -> anyhow::Result<()> {
        self.close();
        let _ = std::fs::remove_file(&self.path);
        let listener = std::os::unix::net::UnixListener::bind(&self.path)
            .with_context(|| format!("listen on {}", self.path.display()))?;
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            // Whatever is under way ends with the runtime.
            runtime.block_on(async {
                let Ok(listener) = UnixListener::from_std(listener) else { return };
                server.serve(listener, stopped.cancelled()).await;
            });
        });
        self.running = Some((stop, thread));
        Ok(())
    }

    /// Breaks all connections, and listens no more.
    pub fn close(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            stop.cancel();
            let _ = thread.join();
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.close();
    }
}
