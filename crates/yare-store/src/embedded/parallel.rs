//! A small ordered pipeline for restart: jobs are read one after the other, worked on by several threads, and
//! their results taken in the order of the jobs. Bounded: at most two jobs per worker are under way.

use std::sync::mpsc::sync_channel;
use std::thread;

/// How many workers this machine deserves.
pub(crate) fn workers() -> usize {
    thread::available_parallelism().map_or(1, |n| n.get()).min(8)
}

/// Feeds `jobs` through `work` on `workers` threads into `sink`, in order. Stops at the first error.
pub(crate) fn in_order<J: Send, R: Send, E>(
    workers: usize,
    jobs: impl Iterator<Item = Result<J, E>>,
    work: impl Fn(J) -> R + Sync,
    mut sink: impl FnMut(R) -> Result<(), E>,
) -> Result<(), E> {
    let work = &work;
    thread::scope(|scope| {
        let lanes: Vec<_> = (0..workers)
            .map(|_| {
                let (job_in, job_out) = sync_channel::<J>(2);
                let (result_in, result_out) = sync_channel::<R>(2);
                scope.spawn(move || {
                    for job in job_out {
                        if result_in.send(work(job)).is_err() {
                            break;
                        }
                    }
                });
                (job_in, result_out)
            })
            .collect();
        let (mut sent, mut taken) = (0, 0);
        // A lane is only ever closed by a panic in `work`, which the scope passes on.
        let mut take = |taken: usize| sink(lanes[taken % workers].1.recv().expect("the worker lives"));
        for job in jobs {
            lanes[sent % workers].0.send(job?).expect("the worker lives");
            sent += 1;
            if sent - taken >= 2 * workers {
                take(taken)?;
                taken += 1;
            }
        }
        while taken < sent {
            take(taken)?;
            taken += 1;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_and_errors_stop() {
        for workers in [1, 2, 5] {
            let mut out = Vec::new();
            let jobs = (0..1000u32).map(Ok::<_, ()>);
            let sink = |x| {
                out.push(x);
                Ok(())
            };
            in_order(workers, jobs, |x| x * 2, sink).unwrap();
            assert!(out.iter().copied().eq((0..1000).map(|x| x * 2)));
            let jobs = (0..1000u32).map(|x| if x == 77 { Err(x) } else { Ok(x) });
            assert_eq!(in_order(workers, jobs, |x| x, |_| Ok(())), Err(77));
            let sink = |x| if x == 500 { Err(x) } else { Ok(()) };
            assert_eq!(in_order(workers, (0..1000u32).map(Ok), |x| x, sink), Err(500));
        }
    }
}
