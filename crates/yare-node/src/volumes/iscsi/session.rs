//! Sessions with iSCSI targets, by the machine's `iscsiadm`, and their disks as the kernel shows them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::process::Command;

use crate::volumes::disk::multipath;

/// How long a disk may take to appear after logging in.
const DEVICE_TIMEOUT_S: u32 = 30;
/// How long the device over several paths to a disk may take to appear.
const MULTIPATH_TIMEOUT_S: u32 = 10;
/// Rounds over portals that did not answer.
const ATTEMPTS_MIN: u32 = 2;
const ATTEMPTS_MAX: u32 = 5;
/// Paths that are enough after [`ATTEMPTS_MIN`] rounds.
const PATHS_ENOUGH: usize = 2;
/// `iscsiadm`: there is no such session, no such record, there is one already.
const NO_SESSION: i32 = 2;
const NO_OBJECTS: i32 = 21;
const EXISTS: i32 = 15;

const DISCOVERY_KEYS: [&str; 4] = [
    "discovery.sendtargets.auth.username",
    "discovery.sendtargets.auth.password",
    "discovery.sendtargets.auth.username_in",
    "discovery.sendtargets.auth.password_in",
];
const SESSION_KEYS: [&str; 4] = [
    "node.session.auth.username",
    "node.session.auth.password",
    "node.session.auth.username_in",
    "node.session.auth.password_in",
];

/// A disk of a target.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Disk {
    /// With their ports.
    pub(super) portals: Vec<String>,
    pub(super) iqn: String,
    pub(super) lun: i32,
    /// The interface that is used; a copy of `base` with the initiator's own name, if it has one.
    pub(super) iface: String,
    pub(super) base: String,
    pub(super) initiator: String,
    pub(super) volume: String,
}

/// How a target and the node prove who they are.
#[derive(Default)]
pub(super) struct Chap {
    pub(super) discovery: bool,
    pub(super) session: bool,
    pub(super) secret: BTreeMap<String, String>,
}

/// Where the machine's tools, devices and kernel objects are; tests have others.
#[derive(Debug, Clone)]
pub(super) struct Machine {
    pub(super) tool: OsString,
    pub(super) sys: PathBuf,
    pub(super) dev: PathBuf,
}

impl Default for Machine {
    fn default() -> Self {
        Machine { tool: "iscsiadm".into(), sys: "/sys".into(), dev: "/dev".into() }
    }
}

/// `iscsiadm` failed: what it said, and its exit code.
struct Refused {
    text: String,
    code: Option<i32>,
}

impl Machine {
    async fn iscsiadm(&self, args: &[&str]) -> Result<String, Refused> {
        let output = Command::new(&self.tool)
            .args(args)
            .stdin(std::process::Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            // As Go says it, which people search for.
            .map_err(|e| Refused {
                text: match e.kind() {
                    std::io::ErrorKind::NotFound => {
                        "exec: \"iscsiadm\": executable file not found in $PATH".to_owned()
                    }
                    _ => format!("exec: \"iscsiadm\": {e}"),
                },
                code: None,
            })?;
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        match output.status.code() {
            Some(0) => Ok(text),
            code => Err(Refused { text: format!("{text} ({})", output.status), code }),
        }
    }

    /// Logs in at all portals and waits for the disk; its device.
    pub(super) async fn attach(&self, disk: &Disk, chap: &Chap) -> Result<PathBuf, String> {
        let shown =
            self.iscsiadm(&["-m", "iface", "-I", &disk.base, "-o", "show"]).await.map_err(|e| e.text)?;
        let transport = transport(&shown);
        if !disk.initiator.is_empty() {
            self.clone_iface(disk, &shown).await?;
        }
        let mut paths: BTreeMap<&str, PathBuf> = BTreeMap::new();
        let mut last = String::new();
        for round in 1..=ATTEMPTS_MAX {
            for portal in &disk.portals {
                if paths.contains_key(portal.as_str()) {
                    continue;
                }
                match self.path(disk, chap, portal, transport.as_deref()).await {
                    Ok(path) => drop(paths.insert(portal, path)),
                    Err(error) => last = error,
                }
            }
            if paths.is_empty() {
                if !disk.initiator.is_empty() {
                    let _ = self.iscsiadm(&["-m", "iface", "-I", &disk.iface, "-o", "delete"]).await;
                }
                return Err(format!("failed to get any path for iscsi disk, last err seen:\n{last}"));
            }
            if paths.len() == disk.portals.len() || (paths.len() >= PATHS_ENOUGH && round >= ATTEMPTS_MIN) {
                break;
            }
        }
        let wait = if disk.portals.len() > 1 { MULTIPATH_TIMEOUT_S } else { 1 };
        for second in 0..wait {
            if let Some(mapped) = paths.values().find_map(|path| multipath(&self.sys, path)) {
                return Ok(mapped);
            }
            if second + 1 < wait {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
        paths.into_values().next().ok_or_else(|| "no path".to_owned())
    }

    /// The disk by way of one portal.
    async fn path(
        &self,
        disk: &Disk,
        chap: &Chap,
        portal: &str,
        transport: Option<&str>,
    ) -> Result<PathBuf, String> {
        if !self.hosts(&disk.iqn).contains_key(portal) {
            self.log_in(disk, chap, portal).await?;
        }
        let Some(host) = self.hosts(&disk.iqn).get(portal).copied() else {
            return Err(format!("iscsi: there is no session with {portal} after logging in"));
        };
        // This one disk, and none that the node has nothing to do with.
        let scan = self.sys.join(format!("class/scsi_host/host{host}/scan"));
        std::fs::write(&scan, format!("0 0 {}", disk.lun))
            .map_err(|e| format!("write {}: {e}", scan.display()))?;
        let transport = transport.ok_or_else(|| format!("could not parse iface file for {}", disk.iface))?;
        let address = portal.replace(['[', ']'], "");
        let tail = format!("ip-{address}-iscsi-{}-lun-{}", disk.iqn, disk.lun);
        let directory = self.dev.join("disk/by-path");
        for second in 0..DEVICE_TIMEOUT_S {
            let found = if transport == "tcp" {
                Some(directory.join(&tail)).filter(|path| path.exists())
            } else {
                // By way of a card whose place is not known.
                std::fs::read_dir(&directory).into_iter().flatten().flatten().map(|e| e.path()).find(|p| {
                    p.file_name()
                        .and_then(|n| n.to_str())
                        .is_some_and(|n| n.starts_with("pci-") && n.ends_with(&format!("-{tail}")))
                })
            };
            if let Some(path) = found {
                return Ok(path);
            }
            if second + 1 < DEVICE_TIMEOUT_S {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
        let path = directory.join(&tail);
        Err(format!("Timed out waiting for device at path {} after {DEVICE_TIMEOUT_S}s", path.display()))
    }

    async fn log_in(&self, disk: &Disk, chap: &Chap, portal: &str) -> Result<(), String> {
        let (iface, iqn) = (disk.iface.as_str(), disk.iqn.as_str());
        let discovery = ["-m", "discoverydb", "-t", "sendtargets", "-p", portal, "-I", iface];
        let node = ["-m", "node", "-p", portal, "-T", iqn, "-I", iface];
        let with = |base: &[&'_ str], more: &[&'_ str]| -> Vec<String> {
            base.iter().chain(more).map(|s| (*s).to_owned()).collect()
        };
        let call = async |args: Vec<String>| {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            self.iscsiadm(&args).await
        };
        // There may be one already.
        let _ = call(with(&discovery, &["-o", "new"])).await;
        if chap.discovery {
            let method = ["-o", "update", "-n", "discovery.sendtargets.auth.authmethod", "-v", "CHAP"];
            call(with(&discovery, &method))
                .await
                .map_err(|e| format!("iscsi: failed to update discoverydb with CHAP, output: {}", e.text))?;
            for key in DISCOVERY_KEYS {
                let Some(value) = chap.secret.get(key).filter(|v| !v.is_empty()) else { continue };
                // What it says stays out of the error: it may hold the value.
                call(with(&discovery, &["-o", "update", "-n", key, "-v", value]))
                    .await
                    .map_err(|_| format!("iscsi: failed to update discoverydb key {key:?}"))?;
            }
        }
        if let Err(error) = call(with(&discovery, &["--discover"])).await {
            let _ = call(with(&discovery, &["-o", "delete"])).await;
            return Err(format!("iscsi: failed to sendtargets to portal {portal} output: {}", error.text));
        }
        // No disks but the one that is asked for; older tools do not know this.
        let _ = call(with(&node, &["-o", "update", "-n", "node.session.scan", "-v", "manual"])).await;
        if chap.session {
            let method = ["-o", "update", "-n", "node.session.auth.authmethod", "-v", "CHAP"];
            call(with(&node, &method))
                .await
                .map_err(|e| format!("iscsi: failed to update node with CHAP, output: {}", e.text))?;
            for key in SESSION_KEYS {
                let Some(value) = chap.secret.get(key).filter(|v| !v.is_empty()) else { continue };
                call(with(&node, &["-o", "update", "-n", key, "-v", value]))
                    .await
                    .map_err(|_| format!("iscsi: failed to update node session key {key:?}"))?;
            }
        }
        if let Err(error) = call(with(&node, &["--login"])).await
            && error.code != Some(EXISTS)
        {
            let _ = call(with(&node, &["-o", "delete"])).await;
            return Err(format!("iscsi: failed to attach disk: Error: {}", error.text));
        }
        // A machine that starts without its target must not hang.
        let _ = call(with(&node[..6], &["-o", "update", "-n", "node.startup", "-v", "manual"])).await;
        Ok(())
    }

    /// An interface of its own for an initiator with a name of its own.
    async fn clone_iface(&self, disk: &Disk, shown: &str) -> Result<(), String> {
        let mut settings = settings(shown)?;
        settings.insert("iface.initiatorname".to_owned(), disk.initiator.clone());
        match self.iscsiadm(&["-m", "iface", "-I", &disk.iface, "-o", "new"]).await {
            Err(error) if error.code != Some(EXISTS) => {
                return Err(format!("iscsi: failed to create new iface: {}", error.text));
            }
            _ => {}
        }
        for (key, value) in settings {
            let update = ["-m", "iface", "-I", &disk.iface, "-o", "update", "-n", &key, "-v", &value];
            if let Err(error) = self.iscsiadm(&update).await {
                let _ = self.iscsiadm(&["-m", "iface", "-I", &disk.iface, "-o", "delete"]).await;
                return Err(format!("iscsi: failed to update iface records: {}", error.text));
            }
        }
        Ok(())
    }

    /// Takes the disk off the machine, and logs out unless others use the target.
    pub(super) async fn detach(&self, disk: &Disk, busy: bool) -> Result<(), String> {
        let devices = self.devices(disk);
        let mapped: std::collections::BTreeSet<PathBuf> =
            devices.iter().filter_map(|name| multipath(&self.sys, &self.dev.join(name))).collect();
        for device in mapped {
            let flushed = Command::new("multipath").arg("-f").arg(&device).output().await;
            if let Err(error) = flushed {
                tracing::warn!(%error, device = %device.display(), "flushing a multipath device");
            }
        }
        for name in devices {
            let delete = self.sys.join("block").join(&name).join("device/delete");
            if let Err(error) = std::fs::write(&delete, "1") {
                tracing::debug!(%error, device = name, "deleting a disk of a target");
            }
        }
        if busy {
            return Ok(());
        }
        let gone = |outcome: Result<String, Refused>| match outcome {
            Err(e) if !matches!(e.code, Some(NO_SESSION | NO_OBJECTS)) => Err(e.text),
            _ => Ok(()),
        };
        for portal in &disk.portals {
            let node = ["-m", "node", "-p", portal.as_str(), "-T", &disk.iqn];
            let iface = ["-I", disk.iface.as_str()];
            gone(self.iscsiadm(&[&node[..], &["--logout"], &iface].concat()).await)?;
            gone(self.iscsiadm(&[&node[..], &["-o", "delete"], &iface].concat()).await)?;
        }
        if !disk.initiator.is_empty() {
            gone(self.iscsiadm(&["-m", "iface", "-I", &disk.iface, "-o", "delete"]).await)?;
        }
        Ok(())
    }

    /// The sessions with a target: their hosts' numbers, and their directories.
    fn sessions(&self, iqn: &str) -> Vec<(u32, PathBuf)> {
        let mut found = Vec::new();
        for host in names(&self.sys.join("class/iscsi_host"), "host") {
            let Some(number) = host.strip_prefix("host").and_then(|n| n.parse().ok()) else { continue };
            let device = self.sys.join("class/iscsi_host").join(&host).join("device");
            for session in names(&device, "session") {
                let path = device.join(&session);
                let target = path.join("iscsi_session").join(&session).join("targetname");
                if text(&target) == iqn {
                    found.push((number, path));
                }
            }
        }
        found
    }

    /// The hosts of sessions with a target, by portal.
    fn hosts(&self, iqn: &str) -> BTreeMap<String, u32> {
        let mut hosts = BTreeMap::new();
        for (number, session) in self.sessions(iqn) {
            for connection in names(&session, "connection") {
                let path = session.join(&connection).join("iscsi_connection").join(&connection);
                for (address, port) in [("address", "port"), ("persistent_address", "persistent_port")] {
                    let (address, port) = (text(&path.join(address)), text(&path.join(port)));
                    if !address.is_empty() {
                        hosts.insert(join(&address, &port), number);
                    }
                }
            }
        }
        hosts
    }

    /// The kernel's names of a disk (`sda`), one for each session.
    fn devices(&self, disk: &Disk) -> Vec<String> {
        let block = |(host, session): (u32, PathBuf)| {
            let path = session.join(format!("target{host}:0:0/{host}:0:0:{}/block", disk.lun));
            names(&path, "").into_iter().next()
        };
        self.sessions(&disk.iqn).into_iter().filter_map(block).collect()
    }
}

fn names(directory: &Path, prefix: &str) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().into_string().ok()).filter(|n| n.starts_with(prefix)).collect()
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).map(|t| t.trim().to_owned()).unwrap_or_default()
}

fn join(address: &str, port: &str) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

/// A portal with its port.
pub(super) fn portal(text: &str) -> String {
    if text.contains(':') { text.to_owned() } else { format!("{text}:3260") }
}

/// The transport in an interface's record.
fn transport(shown: &str) -> Option<String> {
    let name = shown.lines().find_map(|l| l.strip_prefix("iface.transport_name = "))?.trim();
    Some(if name == "<empty>" { "tcp".to_owned() } else { name.to_owned() })
}

/// An interface's settings, without those that are empty and its name, which cannot change.
fn settings(shown: &str) -> Result<BTreeMap<String, String>, String> {
    let mut all = BTreeMap::new();
    for line in shown.lines().filter(|l| l.starts_with("iface.") && !l.contains("<empty>")) {
        let Some((key, value)) = line.split_once(" = ") else {
            return Err(format!("error: invalid iface setting: {line}"));
        };
        if key != "iface.iscsi_ifacename" {
            all.insert(key.trim().to_owned(), value.trim().to_owned());
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const SHOWN: &str = "# BEGIN RECORD 2.1\niface.iscsi_ifacename = default\niface.transport_name = tcp\niface.net_ifacename = <empty>\niface.mtu = 0\n# END RECORD\n";

    #[test]
    fn records_are_read() {
        assert_eq!(transport(SHOWN).as_deref(), Some("tcp"));
        assert_eq!(transport("iface.transport_name = <empty>\n").as_deref(), Some("tcp"));
        assert_eq!(transport(""), None);
        let all = settings(SHOWN).unwrap();
        assert_eq!(all.keys().collect::<Vec<_>>(), ["iface.mtu", "iface.transport_name"]);
        assert!(settings("iface.broken\n").is_err());
        assert_eq!((portal("10.0.0.1"), portal("10.0.0.1:1")), ("10.0.0.1:3260".into(), "10.0.0.1:1".into()));
        assert_eq!(join("fd00::1", "3260"), "[fd00::1]:3260");
    }

    /// A machine whose `iscsiadm` makes and removes what the kernel would show.
    fn machine(root: &Path) -> Machine {
        let script = r#"#!/bin/sh
root=$(dirname "$0")
echo "$*" >>"$root/calls"
session="$root/sys/class/iscsi_host/host3/device/session1"
case "$*" in
*"-m iface"*"-o show"*) printf 'iface.iscsi_ifacename = default\niface.transport_name = tcp\n' ;;
*"-T iqn.bad"*"--login"*) echo "no such target"; exit 19 ;;
*"--login"*)
  mkdir -p "$session/iscsi_session/session1" "$session/connection1:0/iscsi_connection/connection1:0"
  mkdir -p "$session/target3:0:0/3:0:0:2/block/sdz" "$root/sys/class/scsi_host/host3" "$root/sys/block/sdz/device"
  echo iqn.good >"$session/iscsi_session/session1/targetname"
  cd "$session/connection1:0/iscsi_connection/connection1:0"
  echo 10.0.0.1 >address; echo 3260 >port; echo 10.0.0.1 >persistent_address; echo 3260 >persistent_port
  mkdir -p "$root/dev/disk/by-path"
  : >"$root/dev/sdz"
  ln -sf ../../sdz "$root/dev/disk/by-path/ip-10.0.0.1:3260-iscsi-iqn.good-lun-2"
  ;;
*"--logout"*) rm -r "$session"; exit 0 ;;
*"-o delete"*) exit 21 ;;
esac
"#;
        let tool = root.join("iscsiadm");
        std::fs::write(&tool, script).unwrap();
        std::fs::set_permissions(&tool, std::fs::Permissions::from_mode(0o755)).unwrap();
        Machine { tool: tool.into(), sys: root.join("sys"), dev: root.join("dev") }
    }

    fn disk(iqn: &str) -> Disk {
        Disk {
            portals: vec!["10.0.0.1:3260".into()],
            iqn: iqn.into(),
            lun: 2,
            iface: "default".into(),
            base: "default".into(),
            ..Disk::default()
        }
    }

    #[tokio::test]
    async fn disks_come_and_go_with_sessions() {
        let dir = tempfile::tempdir().unwrap();
        let machine = machine(dir.path());
        let calls = || std::fs::read_to_string(dir.path().join("calls")).unwrap();
        let chap = Chap {
            session: true,
            secret: [("node.session.auth.password".to_owned(), "word".to_owned())].into(),
            ..Chap::default()
        };
        let device = machine.attach(&disk("iqn.good"), &chap).await.unwrap();
        assert_eq!(device, dir.path().join("dev/disk/by-path/ip-10.0.0.1:3260-iscsi-iqn.good-lun-2"));
        assert_eq!(
            std::fs::read_to_string(dir.path().join("sys/class/scsi_host/host3/scan")).unwrap(),
            "0 0 2"
        );
        assert!(calls().contains("-o update -n node.session.auth.password -v word"));
        assert!(calls().contains("-o update -n node.startup -v manual"));
        // A session that is there is used again.
        let before = calls().matches("--login").count();
        machine.attach(&disk("iqn.good"), &chap).await.unwrap();
        assert_eq!(calls().matches("--login").count(), before);
        // Others need it.
        machine.detach(&disk("iqn.good"), true).await.unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join("sys/block/sdz/device/delete")).unwrap(), "1");
        assert!(!calls().contains("--logout"));
        machine.detach(&disk("iqn.good"), false).await.unwrap();
        assert!(calls().contains("--logout -I default"));
        assert!(machine.hosts("iqn.good").is_empty());

        let error = machine.attach(&disk("iqn.bad"), &Chap::default()).await.unwrap_err();
        assert!(error.starts_with("failed to get any path for iscsi disk, last err seen:\niscsi: failed to attach disk: Error: no such target"), "{error}");
        let without = Machine { tool: dir.path().join("absent").into(), ..machine };
        let error = without.attach(&disk("iqn.good"), &chap).await.unwrap_err();
        assert_eq!(error, "exec: \"iscsiadm\": executable file not found in $PATH");
    }
}
