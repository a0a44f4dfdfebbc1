//! The allocator of the whole program, with an upper limit on a single allocation.

use std::alloc::{GlobalAlloc, Layout};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use mimalloc::MiMalloc;

use selfrepair_core::{memory, progress};

use crate::cli::signals;

/// Of ONNX Runtime too (its feature `override` takes the place of `malloc`): activations of a megabyte and more are taken
/// and given back thousands of times a second, by several threads. The system's allocator kept their memory in pieces: a
/// run took 45 % more. `no_thp` does without huge pages: clearing them took the kernel longer than page faults do.
#[global_allocator]
static ALLOCATOR: Guarded = Guarded;

struct Guarded;

/// Bytes of one allocation.
static MOST: AtomicUsize = AtomicUsize::new(usize::MAX);

/// From now on one allocation of more ends the process with an error. The rows of a column lie in one piece, so that a
/// query whose values grow beyond all bounds asks for such a piece, in the middle of the engine, which could only abort.
/// Not for a run: that asks for large pieces and knows what to do without them.
pub fn refuse_more_than(bytes: u64) {
    MOST.store(usize::try_from(bytes).unwrap_or(usize::MAX), Relaxed);
}

fn check(bytes: usize) {
    if bytes > MOST.load(Relaxed) {
        refuse(bytes);
    }
    if !memory::may_take(bytes) {
        refuse_file();
    }
}

/// A library reads a file that says it is very large, which it may not be: see [`memory::with_at_most`].
#[cold]
fn refuse_file() -> ! {
    signals::fail(&format!("error: {}: reading it takes more memory than any file of its kind may", memory::limited()))
}

#[cold]
fn refuse(bytes: usize) -> ! {
    let most = MOST.swap(usize::MAX, Relaxed);
    let [asked, most] = [bytes, most].map(|n| progress::bytes(n as u64));
    signals::fail(&format!(
        "error: the query asks for {asked} of memory at once, and queries may have {most} in all. Ask for shorter texts or \
         lists, or allow more with --memory or runtime.memory"
    ))
}

// SAFETY: every call is handed to mimalloc with what it came with; a call that does not return keeps no promise to break.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Guarded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        unsafe { MiMalloc.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        memory::give_back(layout.size());
        unsafe { MiMalloc.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        unsafe { MiMalloc.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        check(bytes);
        memory::give_back(layout.size());
        unsafe { MiMalloc.realloc(pointer, layout, bytes) }
    }
}
