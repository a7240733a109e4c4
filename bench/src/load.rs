//! Equal requests from several clients at once, and what they took.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use crate::{client::Connection, process::Process, table::quantile};

/// What a number of equal requests took.
pub struct Took {
    /// Requests per second.
    pub per_s: f64,
    /// CPU of the server for each.
    pub cpu_ms_each: f64,
    /// Half of them took no longer.
    pub p50_ms: f64,
    /// All but a hundredth took no longer.
    pub p99_ms: f64,
}

/// Every client does its share of `count` pieces of work, one after the other; how long each took.
pub async fn share<F, Fut>(clients: &[Connection], count: usize, work: F) -> anyhow::Result<Vec<f64>>
where
    F: Fn(Connection, usize) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = anyhow::Result<()>> + Send,
{
    let next = Arc::new(AtomicUsize::new(0));
    let room = count / clients.len().max(1) + 1;
    let tasks: Vec<_> = clients
        .iter()
        .map(|connection| {
            let (connection, next, work) = (connection.clone(), next.clone(), work.clone());
            tokio::spawn(async move {
                let mut took_ms = Vec::with_capacity(room);
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return anyhow::Ok(took_ms);
                    }
                    let start = Instant::now();
                    work(connection.clone(), number).await?;
                    took_ms.push(start.elapsed().as_secs_f64() * 1e3);
                }
            })
        })
        .collect();
    let mut took_ms = Vec::with_capacity(count);
    for task in tasks {
        took_ms.extend(task.await??);
    }
    Ok(took_ms)
}

/// The same, with what it cost the server.
pub async fn run<F, Fut>(
    process: &Process,
    clients: &[Connection],
    count: usize,
    request: F,
) -> anyhow::Result<Took>
where
    F: Fn(Connection, usize) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = anyhow::Result<()>> + Send,
{
    let (start, cpu) = (Instant::now(), process.cpu_s()?);
    let mut took_ms = share(clients, count, request).await?;
    let (elapsed, cpu) = (start.elapsed().as_secs_f64(), process.cpu_s()? - cpu);
    took_ms.sort_by(f64::total_cmp);
    Ok(Took {
        per_s: count as f64 / elapsed,
        cpu_ms_each: cpu * 1e3 / count as f64,
        p50_ms: quantile(&took_ms, 0.5),
        p99_ms: quantile(&took_ms, 0.99),
    })
}
