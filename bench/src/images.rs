//! Rows about images: a Debian root file system, as a layer that is compressed and one that is not, comes in.

use std::{
    fs::File,
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, ensure};
use yare_runtime::ImageStore;

use crate::{
    Scale,
    table::{Table, complain, median},
};

/// Megabytes of files a second, at least.
const RATE: f64 = 300.0;

/// Measures, where there is a root file system.
pub async fn measure(rootfs: Option<&Path>, scale: Scale, table: &mut Table) -> anyhow::Result<()> {
    let Some(rootfs) = rootfs.filter(|path| path.exists()) else {
        complain("no figure of unpacking: there is no Debian root file system; install mmdebstrap");
        return Ok(());
    };
    let directory = tempfile::Builder::new().prefix("yare-bench-").tempdir()?;
    let megabytes = rootfs.metadata()?.len() as f64 / 1e6;
    table.note("Debian root file system, made by mmdebstrap", megabytes, "MB");
    let compressed = directory.path().join("layer.tar.gz");
    let mut gzip = Command::new("gzip");
    gzip.args(["-6", "-c"]).stdin(File::open(rootfs)?).stdout(Stdio::from(File::create(&compressed)?));
    let done = gzip.status().context("gzip")?;
    ensure!(done.success(), "gzip: {done}");
    for (what, layer) in [("as it is", rootfs), ("gzip", &compressed)] {
        let name = format!("debian-{}", what.replace(' ', "-"));
        let archive =
            yare_testkit::image::of_layer(directory.path(), &format!("yare.test/{name}:1"), rootfs, layer)?;
        let mut seconds = Vec::new();
        // Into a new place each time, and nothing is taken away in between: a file system is slow to give out inodes
        // that were just freed.
        for turn in 0..scale.imports {
            let store = ImageStore::open(&directory.path().join(format!("{name}-{turn}")))?;
            let archive = archive.clone();
            let began = Instant::now();
            tokio::task::spawn_blocking(move || store.import(&archive, None)).await??;
            seconds.push(began.elapsed().as_secs_f64());
        }
        table.at_least(
            format!("the same unpacked, {what}, {} times: p50", scale.imports),
            megabytes / median(&mut seconds),
            RATE,
            "MB/s",
        );
        std::fs::remove_file(archive)?;
    }
    Ok(())
}
