//! Room for expressions that nest deeply.
//!
//! Parser, checker, estimator and planner walk trees by recursion, 250 levels at most. That fits into any stack
//! when optimized, but not into every small one otherwise. What could be deep is walked on a thread of its own.

use std::thread;

/// Below these, depth is no question.
const SHALLOW_BRACKETS: usize = 24;
const SHORT_BYTES: usize = 1_500;
const STACK_BYTES: usize = 64 << 20;

/// Whether a text could make a deep tree.
pub(crate) fn may_be_deep(source: &str) -> bool {
    if source.len() > SHORT_BYTES {
        return true;
    }
    let mut open = 0_usize;
    source.bytes().any(|byte| {
        match byte {
            // Each alternative nests in the one before it.
            b'(' | b'[' | b'{' | b'?' => open += 1,
            b')' | b']' | b'}' => open = open.saturating_sub(1),
            _ => {}
        }
        open > SHALLOW_BRACKETS
    })
}

/// Runs the work where there is room for it.
pub(crate) fn with_room<T: Send>(deep: bool, work: impl FnOnce() -> T + Send) -> T {
    if !deep {
        return work();
    }
    let mut work = Some(work);
    let result = thread::scope(|scope| {
        let run = || work.take().map(|work| work());
        match thread::Builder::new().name("cel".into()).stack_size(STACK_BYTES).spawn_scoped(scope, run) {
            Ok(thread) => match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            },
            Err(_) => None,
        }
    });
    match (result, work) {
        (Some(result), _) => result,
        // No thread could be had: the caller's stack must do.
        (None, Some(work)) => work(),
        (None, None) => unreachable!("work is either done or still there"),
    }
}
