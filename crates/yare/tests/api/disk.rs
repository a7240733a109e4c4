//! A disk that runs full under a server: a small file system in memory, in a mount namespace of its own.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use yare_testkit::{Answer, Https, Namespace};

use crate::{JSON, NAMESPACE, TOKEN, YARE, config_map};

const PATIENCE: Duration = Duration::from_secs(30);

/// A process that keeps a small disk mounted; the kernel takes it away when that ends.
struct Disk {
    holder: Child,
    at: PathBuf,
}

impl Disk {
    fn mount(at: &Path) -> anyhow::Result<Self> {
        fs::create_dir(at)?;
        let script = "mount -t tmpfs -o size=4m none \"$0\" && echo mounted && exec sleep 1000";
        let mut holder = Command::new("unshare")
            .args(["--mount", "sh", "-c", script])
            .arg(at)
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let stdout = holder.stdout.take().context("its output")?;
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line)?;
        let disk = Self { holder, at: at.to_owned() };
        ensure!(line == "mounted\n", "tmpfs cannot be mounted");
        Ok(disk)
    }

    /// A path on the disk, as this process sees it.
    fn path(&self, name: &str) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.holder.id()));
        root.join(self.at.strip_prefix("/").unwrap_or(&self.at)).join(name)
    }

    /// A control plane whose data is on the disk.
    fn server(&self, data: &str, outside: &Path) -> anyhow::Result<Command> {
        let log = File::options().create(true).append(true).open(outside.join("log"))?;
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--target", &self.holder.id().to_string()]).arg(YARE);
        command.args(["server", "--disable-agent", "--token", TOKEN, "--data-dir"]).arg(self.at.join(data));
        command.arg("--write-kubeconfig").arg(outside.join("kubeconfig"));
        command.stdout(Stdio::null()).stderr(log);
        Ok(command)
    }

    /// Writes until nothing fits any more.
    fn fill(&self) -> anyhow::Result<()> {
        let mut file = File::create(self.path("filler"))?;
        for size in [64 << 10, 4096, 1] {
            while file.write_all(&vec![b'x'; size]).is_ok() {}
        }
        Ok(())
    }

    fn free(&self) -> anyhow::Result<()> {
        Ok(fs::remove_file(self.path("filler"))?)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// A server that is killed when the test ends.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(namespace: &Namespace, mut command: Command, disk: &Disk) -> anyhow::Result<(Server, Https)> {
    let mut server = Server(namespace.run(|| command.spawn())??);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let client = || -> anyhow::Result<Https> {
            let ca = fs::read_to_string(disk.path("data/tls/ca.crt"))?;
            let client = Https::new(([127, 0, 0, 1], 6443).into(), &ca, TOKEN)?;
            ensure!(namespace.run(|| client.get("/readyz"))??.code == 200);
            Ok(client)
        };
        match client() {
            Ok(client) => return Ok((server, client)),
            Err(error) => ensure!(Instant::now() < deadline, "not ready: {error:#}"),
        }
        ensure!(server.0.try_wait()?.is_none(), "the server ended");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_full_disk_refuses_writes_and_loses_none() -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    let directory = tempfile::tempdir()?;
    let disk = Disk::mount(&directory.path().join("disk"))?;
    let log = || fs::read_to_string(directory.path().join("log"));
    let (server, client) = start(&namespace, disk.server("data", directory.path())?, &disk)?;
    let create = |name: &str| -> anyhow::Result<Answer> {
        let body = config_map(name, &format!(r#","data":{{"a":"{}"}}"#, "x".repeat(20_000)));
        namespace.run(|| client.send("POST", &format!("{NAMESPACE}configmaps"), JSON, body.as_bytes()))?
    };
    let there = |client: &Https, name: &str| -> anyhow::Result<bool> {
        let answer = namespace.run(|| client.get(&format!("{NAMESPACE}configmaps/{name}")))??;
        ensure!([200, 404].contains(&answer.code), "{answer:?}");
        Ok(answer.code == 200)
    };

    let mut written = Vec::new();
    let mut refused = 0;
    for round in 0..2 {
        // What was filled with zeros ahead takes some more writes.
        disk.fill()?;
        for number in 0..100 {
            let name = format!("full-{round}-{number}");
            let answer = create(&name)?;
            if answer.code == 201 {
                written.push(name);
                continue;
            }
            let status = answer.json()?;
            ensure!(answer.code == 500 && status["reason"] == "InternalError", "{status}");
            let message = status["message"].as_str().unwrap_or_default();
            ensure!(message.contains("the disk is full, free some space on it"), "{message}");
            ensure!(!there(&client, &name)?, "{name} was refused and is there");
            refused += 1;
            if number % 5 == 4 {
                break;
            }
        }
        ensure!(refused > 0, "a full disk takes everything");
        disk.free()?;
        let name = format!("free-{round}");
        ensure!(create(&name)?.code == 201, "the disk has space again");
        written.push(name);
    }
    let text = log()?;
    // Others tell of their own writes. What was freed may not be there at once, so that it is full once more.
    let of_store = || text.lines().filter(|line| line.contains("yare_store"));
    let turns: Vec<bool> = of_store()
        .filter_map(|line| {
            let is_full = line.contains("the disk is full, writes are refused until space is freed on it");
            (is_full || line.contains("there is space again")).then_some(is_full)
        })
        .collect();
    let in_turn = turns.iter().enumerate().all(|(at, is_full)| *is_full == (at % 2 == 0));
    ensure!(in_turn && turns.len() >= 4 && turns.len().is_multiple_of(2), "{text}");
    let reasons = of_store().filter(|line| line.contains("No space left on device")).count();
    ensure!(reasons == turns.len() / 2, "{text}");

    // Started on a full disk, it serves what it has.
    disk.fill()?;
    drop(server);
    let (server, client) = start(&namespace, disk.server("data", directory.path())?, &disk)?;
    for name in &written {
        ensure!(there(&client, name)?, "{name} was acknowledged and is gone");
    }
    drop(server);

    // And one that has nothing yet says what to do.
    fs::write(directory.path().join("log"), "")?;
    let mut command = disk.server("other", directory.path())?;
    let status = namespace.run(|| command.status())??;
    let text = log()?;
    ensure!(!status.success() && text.lines().count() == 1, "{status}: {text}");
    for part in ["is full (free some space on it, or choose another with --data-dir)", "/disk/other"] {
        ensure!(text.contains(part), "no {part:?} in {text}");
    }
    Ok(())
}
