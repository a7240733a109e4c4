//! Golden transcripts of `kubectl`: shell lines and what they print, one file per subject.
//!
//! A file is prose, with a session in every line that is indented by two spaces:
//!
//! ```text
//! Objects are shown as tables.
//!
//!   $ kubectl get namespace default
//!   NAME      STATUS   AGE
//!   default   Active   <age>
//!   $ soon kubectl get pod a -o name    (again and again, until it prints what follows)
//!   pod/a
//!   $ kubectl create -f - <<END         (lines with > belong to the command)
//!   > apiVersion: v1
//!   > END
//!   error: …
//!   [1]                                 (its exit code, where that is not 0)
//!   $ since 1.36 kubectl kuberc view    (passed over with an older kubectl)
//! ```
//!
//! What no two runs share stands as `<age>`, `<uid>` and so on; `normal.rs` has the table. `YARE_TRANSCRIPTS=update`
//! writes what was printed into the files. Transcripts show what is the server's: flags such as `-o yaml`,
//! `--no-headers` and `-o name` keep them the same for every version of kubectl.

mod format;
mod normal;

use std::{collections::BTreeSet, path::PathBuf, process::Command};

use anyhow::{Context as _, ensure};
use yare_testkit::{Cluster, Options};

use format::{Line, Step};

const YARE: &str = env!("CARGO_BIN_EXE_yare");

/// A test per file: its name, and what it needs.
macro_rules! transcripts {
    ($($name:ident: $needs:ident,)*) => {
        $(#[test]
        fn $name() {
            play(stringify!($name), $needs());
        })*

        const FILES: &[&str] = &[$(stringify!($name)),*];
    };
}

transcripts! {
    access: control_plane,
    apply: control_plane,
    change: control_plane,
    cluster: control_plane,
    create: control_plane,
    get: control_plane,
    local: control_plane,
    nodes: control_plane,
    pods: containers,
    proxy: containers,
    rollout: control_plane,
    stored: encrypted,
    workloads: containers,
}

/// What `kubectl` can do, as of 1.36: each word, or pair of words, is in some transcript.
const SUBCOMMANDS: &str = "
    alpha; annotate; api-resources; api-versions; apply; apply edit-last-applied; apply set-last-applied;
    apply view-last-applied; attach; auth can-i; auth reconcile; auth whoami; autoscale; certificate approve;
    certificate deny; cluster-info; cluster-info dump; completion bash;
    completion fish; completion powershell; completion zsh; config current-context;
    config delete-cluster; config delete-context; config delete-user; config get-clusters; config get-contexts;
    config get-users; config rename-context; config set; config set-cluster; config set-context;
    config set-credentials; config unset; config use-context; config view; cordon; cp; create;
    create clusterrole; create clusterrolebinding; create configmap; create cronjob; create deployment;
    create ingress; create job; create namespace; create poddisruptionbudget; create priorityclass; create quota;
    create role; create rolebinding; create secret docker-registry; create secret generic; create secret tls;
    create service clusterip; create service externalname; create service loadbalancer; create service nodeport;
    create serviceaccount; create token; debug; delete; describe; diff; drain; edit; events; exec; explain;
    expose; get; kuberc set; kuberc view; kustomize; label; logs; options; patch; plugin list; port-forward; proxy; replace;
    rollout history; rollout pause; rollout restart; rollout resume; rollout status; rollout undo; run; scale;
    set env; set image; set resources; set selector; set serviceaccount; set subject; taint; top node; top pod;
    uncordon; version; wait";

fn control_plane() -> Options {
    Options::control_plane()
}

fn encrypted() -> Options {
    let file = directory().join("encryption.yaml").display().to_string();
    let args = ["--feature-gates=CBORServingAndStorage=true", "--encryption-provider-config", &file];
    Options { control_plane_only: true, ..Options::with(&args) }
}

fn containers() -> Options {
    Options::default()
}

fn directory() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests/transcripts"].iter().collect()
}

/// Plays a file on a cluster of its own.
fn play(name: &str, options: Options) {
    let path = directory().join(format!("{name}.txt"));
    let text = std::fs::read_to_string(&path).expect("the transcript");
    let is_update = std::env::var("YARE_TRANSCRIPTS").is_ok_and(|v| v == "update");
    let has_node = !options.control_plane_only;
    Cluster::test(YARE, options, |cluster| {
        if has_node {
            cluster.import_busybox("yare.test/busybox:1")?;
        }
        let minor = minor(cluster)?;
        let mut lines = format::parse(&text);
        let mut wrong = Vec::new();
        for line in &mut lines {
            let Line::Step(step) = line else { continue };
            if step.since.is_some_and(|since| minor < since) {
                continue;
            }
            let printed = run(cluster, step, is_update)?;
            if printed == step.output {
                continue;
            }
            if is_update {
                step.output = printed;
            } else {
                wrong.push(format!("{}\nmust print\n{}but prints\n{printed}", step.command, step.output));
            }
        }
        if is_update {
            std::fs::write(&path, format::render(&lines))?;
        }
        ensure!(wrong.is_empty(), "{}:\n{}", path.display(), wrong.join("\n"));
        Ok(())
    });
}

/// Which kubectl there is: the minor version of its 1.
fn minor(cluster: &Cluster) -> anyhow::Result<u32> {
    let text = cluster.kubectl(&["version", "--client", "-o", "json"])?;
    let minor = text.split_once("\"minor\":").map(|(_, rest)| rest.trim_start_matches([' ', '"']));
    let digits = minor.and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next());
    digits.unwrap_or_default().parse().with_context(|| format!("no minor version in {text}"))
}

/// Runs one command line; what it prints, normal, with its exit code.
fn run(cluster: &Cluster, step: &Step, is_update: bool) -> anyhow::Result<String> {
    let once = || {
        let kubectl = cluster.kubectl_path().parent().context("a directory")?.display().to_string();
        let path = format!("{kubectl}:{}", std::env::var("PATH").unwrap_or_default());
        // Whatever hangs is the failure to report.
        let mut command: Command = cluster.command("timeout");
        command.args(["60", "bash", "-c", &format!("exec 2>&1\n{}", step.command)]).env("PATH", path);
        let output = cluster.run(&mut command)?;
        let mut text = normal::normal(&String::from_utf8_lossy(&output.stdout), cluster);
        if !output.status.success() {
            text.push_str(&format!("[{}]\n", output.status.code().unwrap_or(-1)));
        }
        anyhow::Ok(text)
    };
    if !step.is_soon {
        return once();
    }
    let mut last = String::new();
    let found = cluster.eventually(std::time::Duration::from_secs(if is_update { 5 } else { 30 }), || {
        last = once()?;
        ensure!(last == step.output);
        Ok(())
    });
    match found {
        Err(_) if last.is_empty() => once(),
        _ => Ok(last),
    }
}

#[test]
fn every_file_is_played_and_every_subcommand_shown() {
    let mut found = BTreeSet::new();
    let mut commands = String::new();
    for entry in std::fs::read_dir(directory()).expect("the directory") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|e| e != "txt") {
            continue;
        }
        found.insert(path.file_stem().expect("a name").to_string_lossy().into_owned());
        for line in format::parse(&std::fs::read_to_string(&path).expect("a transcript")) {
            if let Line::Step(step) = line {
                commands.push_str(&step.command);
                commands.push('\n');
            }
        }
    }
    let listed: BTreeSet<String> = FILES.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(found, listed);
    let missing: Vec<&str> = SUBCOMMANDS
        .split(';')
        .map(str::trim)
        .filter(|words| {
            // Kubectl's own order of words, whatever lies around them.
            !commands.contains(&format!("kubectl {}", words.split_whitespace().collect::<Vec<_>>().join(" ")))
        })
        .collect();
    assert!(missing.is_empty(), "no transcript has {missing:?}");
}
