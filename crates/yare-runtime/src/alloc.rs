//! The memory allocator of a program that is both a server and, as `shim`, a small process per pod.
//!
//! A server is served best by an allocator that keeps what was freed at hand. A shim is asked something now and
//! then, needs a large buffer for a moment, and sleeps: kept memory would be ten times what it uses, for every
//! pod. There the C library's allocator, which gives large blocks back at once, is the better one.
//!
//! Which one it is must be known before the first allocation, and never change: so the first one reads the
//! command line, without allocating.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU8, Ordering};

const UNKNOWN: u8 = 0;
const SHIM: u8 = 1;
const OTHER: u8 = 2;

static MODE: AtomicU8 = AtomicU8::new(UNKNOWN);

/// `A`, but the C library's allocator where the program's first argument is `shim`.
pub struct NotInShims<A>(pub A);

fn is_shim() -> bool {
    match MODE.load(Ordering::Relaxed) {
        UNKNOWN => {
            // The runtime allocates before `main`, when there is one thread.
            let shim = second_is_shim(&command_line());
            MODE.store(if shim { SHIM } else { OTHER }, Ordering::Relaxed);
            shim
        }
        mode => mode == SHIM,
    }
}

/// The beginning of this process's command line: arguments that end in zeros.
fn command_line() -> [u8; 4096] {
    let mut bytes = [0; 4096];
    // SAFETY: the path ends in a zero, the buffer is as long as is said, and the descriptor is closed by nobody
    // else. Neither call allocates.
    unsafe {
        let fd = libc::open(c"/proc/self/cmdline".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
        if fd >= 0 {
            libc::read(fd, bytes.as_mut_ptr().cast(), bytes.len() - 1);
            libc::close(fd);
        }
    }
    bytes
}

fn second_is_shim(command_line: &[u8]) -> bool {
    command_line.split(|b| *b == 0).nth(1) == Some(b"shim")
}

// SAFETY: all calls of one process go to the same allocator.
unsafe impl<A: GlobalAlloc> GlobalAlloc for NotInShims<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promised.
        unsafe { if is_shim() { System.alloc(layout) } else { self.0.alloc(layout) } }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promised.
        unsafe { if is_shim() { System.alloc_zeroed(layout) } else { self.0.alloc_zeroed(layout) } }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as the caller promised, and `at` comes from this allocator.
        unsafe { if is_shim() { System.dealloc(at, layout) } else { self.0.dealloc(at, layout) } }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as the caller promised, and `at` comes from this allocator.
        unsafe { if is_shim() { System.realloc(at, layout, size) } else { self.0.realloc(at, layout, size) } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_argument_decides() {
        for (command_line, shim) in [
            (&b"/usr/bin/yare\0shim\0--cgroup\0x\0"[..], true),
            (b"yare\0shim\0\0\0", true),
            (b"yare\0server\0shim\0", false),
            (b"yare\0shims\0", false),
            (b"shim\0", false),
            (b"", false),
        ] {
            assert_eq!(second_is_shim(command_line), shim, "{}", command_line.escape_ascii());
        }
        assert!(!second_is_shim(&command_line()), "tests are no shim");
        assert!(command_line()[0] != 0);
    }
}
