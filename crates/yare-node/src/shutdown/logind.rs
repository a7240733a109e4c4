//! What logind is asked and says (<https://www.freedesktop.org/software/systemd/man/latest/org.freedesktop.login1.html>):
//! a shutdown waits while somebody holds a lock of the mode `delay`, but not longer than `InhibitDelayMaxSec`.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::dbus::{Argument, Bus, Descriptor, Method};

const SERVICE: &str = "org.freedesktop.login1";
const PATH: &str = "/org/freedesktop/login1";
const MANAGER: &str = "org.freedesktop.login1.Manager";
/// The file in which the longest delay is set, as upstream names it.
const OVERRIDE: &str = "99-kubelet.conf";
/// How often it is asked whether logind has taken up the new delay, waiting twice as long each time.
const TRIES: u32 = 5;
const FIRST_WAIT: Duration = Duration::from_millis(100);

/// Where logind is.
#[derive(Clone, Debug)]
pub struct Logind {
    /// The system's message bus.
    pub bus: PathBuf,
    /// Where pieces of its configuration are.
    pub configuration: PathBuf,
}

impl Default for Logind {
    fn default() -> Self {
        Self { bus: "/run/dbus/system_bus_socket".into(), configuration: "/etc/systemd/logind.conf.d".into() }
    }
}

/// A connection to logind.
pub(super) struct Session<'a> {
    bus: Bus,
    place: &'a Logind,
}

/// While it is held, a shutdown waits.
pub(super) struct Lock(#[expect(dead_code, reason = "it is closed when dropped")] Descriptor);

fn manager(name: &str) -> Method<'_> {
    Method { destination: SERVICE, path: PATH, interface: MANAGER, name }
}

impl<'a> Session<'a> {
    pub(super) async fn connect(place: &'a Logind) -> io::Result<Self> {
        Ok(Self { bus: Bus::connect(&place.bus).await?, place })
    }

    /// Sees to it that a shutdown can be delayed for so long.
    pub(super) async fn allow(&mut self, wanted: Duration) -> io::Result<()> {
        if self.delay().await? >= wanted {
            return Ok(());
        }
        let text = format!("# Kubelet logind override\n[Login]\nInhibitDelayMaxSec={}\n", wanted.as_secs());
        std::fs::create_dir_all(&self.place.configuration)?;
        std::fs::write(self.place.configuration.join(OVERRIDE), text)?;
        let systemd = Method {
            destination: "org.freedesktop.systemd1",
            path: "/org/freedesktop/systemd1",
            interface: "org.freedesktop.systemd1.Manager",
            name: "KillUnit",
        };
        let hang_up = Argument::Int(1);
        let unit = [Argument::Text("systemd-logind.service"), Argument::Text("all"), hang_up];
        self.bus.call(&systemd, &unit).await?;
        let (mut wait, mut now) = (FIRST_WAIT, Duration::ZERO);
        for _ in 0..TRIES {
            now = self.delay().await?;
            if now >= wanted {
                return Ok(());
            }
            tokio::time::sleep(wait).await;
            wait *= 2;
        }
        Err(io::Error::other(format!(
            "logind's InhibitDelayMaxSec is {} s and does not become {} s (ShutdownGracePeriod)",
            now.as_secs(),
            wanted.as_secs()
        )))
    }

    /// The longest time for which a shutdown is delayed.
    async fn delay(&mut self) -> io::Result<Duration> {
        let get = Method { interface: "org.freedesktop.DBus.Properties", ..manager("Get") };
        let property = [Argument::Text(MANAGER), Argument::Text("InhibitDelayMaxUSec")];
        let answer = self.bus.call(&get, &property).await?;
        answer.number_in_variant().map(Duration::from_micros)
    }

    /// Takes a lock.
    pub(super) async fn inhibit(&mut self) -> io::Result<Lock> {
        let why = "Kubelet needs time to handle node shutdown";
        let words = ["shutdown", "kubelet", why, "delay"].map(Argument::Text);
        self.bus.call(&manager("Inhibit"), &words).await?.descriptor().map(Lock)
    }

    /// Asks to be told of shutdowns.
    pub(super) async fn subscribe(&mut self) -> io::Result<()> {
        let name = "org.freedesktop.DBus";
        let add =
            Method { destination: name, path: "/org/freedesktop/DBus", interface: name, name: "AddMatch" };
        let rule = format!("type='signal',interface='{MANAGER}',member='PrepareForShutdown',path='{PATH}'");
        self.bus.call(&add, &[Argument::Text(&rule)]).await.map(drop)
    }

    /// Waits for word of a shutdown: that it begins, or that it was called off.
    pub(super) async fn news(&mut self) -> io::Result<bool> {
        loop {
            let signal = self.bus.signal().await?;
            if signal.interface == MANAGER && signal.member == "PrepareForShutdown" {
                return signal.boolean();
            }
        }
    }
}
