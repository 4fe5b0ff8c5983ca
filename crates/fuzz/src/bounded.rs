//! The system's allocator with two limits: on one piece, and on what an input makes live at a time.
//!
//! Why not libFuzzer's own: `-malloc_limit_mb` takes the hooks of a sanitizer, which a stable compiler does not have, and
//! `-rss_limit_mb` sees only room that was touched.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// What an input may make live at a time: the buffers of a stream and of a spool, and some.
pub(crate) const INPUT_BYTES_MAX: usize = 48 << 20;
/// One piece. An input has 64 KiB at most; nothing that it says may ask for more than this at once.
const PIECE_BYTES_MAX: usize = 16 << 20;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static LIMIT: AtomicUsize = AtomicUsize::new(usize::MAX);

/// The allocator. Beyond a limit it ends the process: libFuzzer then keeps the input.
pub struct Bounded;

pub(crate) fn live_bytes() -> usize {
    LIVE.load(Ordering::Relaxed)
}

pub(crate) fn limit(bytes: usize) {
    LIMIT.store(bytes, Ordering::Relaxed);
}

#[allow(clippy::print_stderr, reason = "the last words before the end of the process")]
fn taken(bytes: usize) {
    let (live, limit) = (LIVE.fetch_add(bytes, Ordering::Relaxed) + bytes, LIMIT.load(Ordering::Relaxed));
    if limit != usize::MAX && (bytes > PIECE_BYTES_MAX || live > limit) {
        LIMIT.store(usize::MAX, Ordering::Relaxed);
        eprintln!("an input asks for a piece of {bytes} bytes; {live} bytes are live, {limit} may be");
        // An allocator must not unwind.
        std::process::abort();
    }
}

#[allow(unsafe_code, reason = "an allocator can be made in no other way; every call goes on to the system's")]
// SAFETY: the system's allocator keeps the contract; counting allocates nothing below a limit.
unsafe impl GlobalAlloc for Bounded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        taken(layout.size());
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        taken(layout.size());
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        taken(bytes);
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(pointer, layout, bytes) }
    }
}
