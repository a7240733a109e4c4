//! Rows about starting, and about doing nothing.

use std::{path::Path, time::Duration};

use tokio::time::sleep;

use crate::{
    Scale,
    server::Server,
    table::{Table, median, ms},
};

/// What is still going on right after a start is over by then.
const SETTLE: Duration = Duration::from_secs(5);

/// Starts servers several times, then leaves one alone and looks what it costs.
pub async fn measure(binary: &Path, scale: Scale, table: &mut Table) -> anyhow::Result<()> {
    let [mut api, mut node, mut api_again, mut node_again, mut stop] = [const { Vec::new() }; 5];
    for _ in 0..scale.starts {
        let mut server = Server::start(binary, true)?;
        let (mut connection, ready) = server.ready().await?;
        api.push(ms(ready));
        node.push(ms(server.node_ready(&mut connection, "").await?));
        let heartbeat = server.heartbeat(&mut connection).await?;
        stop.push(ms(server.stop().await?));
        server.launch()?;
        let (mut connection, ready) = server.ready().await?;
        api_again.push(ms(ready));
        node_again.push(ms(server.node_ready(&mut connection, &heartbeat).await?));
    }
    table.at_most("start to /readyz, fresh, with keys", median(&mut api), 300.0, "ms");
    table.at_most("start to node Ready, fresh, with keys", median(&mut node), 1000.0, "ms");
    table.at_most("restart to /readyz", median(&mut api_again), 300.0, "ms");
    table.at_most("restart to node Ready", median(&mut node_again), 1000.0, "ms");
    table.note("SIGTERM to end of the process", median(&mut stop), "ms");
    idle(binary, scale, true, "all in one", 64.0, table).await?;
    idle(binary, scale, false, "control plane", 48.0, table).await
}

async fn idle(
    binary: &Path,
    scale: Scale,
    agent: bool,
    what: &str,
    limit_mib: f64,
    table: &mut Table,
) -> anyhow::Result<()> {
    let mut server = Server::start(binary, agent)?;
    let (mut connection, _) = server.ready().await?;
    if agent {
        server.node_ready(&mut connection, "").await?;
    }
    drop(connection);
    sleep(SETTLE).await;
    let process = server.process()?;
    let (cpu, sleeps) = (process.cpu_s()?, process.sleeps()?);
    sleep(Duration::from_secs(scale.idle_s)).await;
    let seconds = scale.idle_s as f64;
    let (cpu, wakeups) = (process.cpu_s()? - cpu, process.wakeups_since(&sleeps)?);
    table.at_most(format!("resident memory idle, {what}"), process.rss_mib()?, limit_mib, "MiB");
    table.note(format!("  of it heap and stacks, {what}"), process.anonymous_mib()?, "MiB");
    table.note(format!("  PSS, {what}"), process.rollup_kib("Pss")? / 1024.0, "MiB");
    table.at_most(format!("CPU idle, {what}"), cpu * 1e3 / seconds, 2.0, "ms/s");
    table.note(format!("  wake-ups of threads, {what}"), wakeups / seconds, "/s");
    Ok(())
}
