//! Zeroed memory in 2 MiB pages, which read half as fast again as 4 KiB ones, and fetching ahead.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// Size of a huge page.
pub(crate) const HUGE_PAGE: usize = 2 << 20;
/// Alignment of small regions: one cache line.
const LINE: usize = 64;

/// Starts fetching the cache line at `place`, which will be read; any address is allowed.
#[inline(always)]
pub(crate) fn fetch_to_read(place: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint that never faults, in the baseline of the architecture.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(place.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// The same for a line that will be written.
#[inline(always)]
pub(crate) fn fetch_to_write(place: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as above.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_ET0>(place.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// Owned, zero-initialised bytes at a fixed address.
#[derive(Debug)]
pub(crate) struct Region {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: a region is plain owned memory.
unsafe impl Send for Region {}
// SAFETY: a region is plain owned memory.
unsafe impl Sync for Region {}

impl Region {
    /// `bytes` zeroed bytes; from one huge page upwards they start on a huge page boundary and the
    /// system is asked to back them with huge pages. Pages become resident when first written.
    pub(crate) fn zeroed(bytes: usize) -> Self {
        let align = if bytes >= HUGE_PAGE { HUGE_PAGE } else { LINE };
        let Ok(layout) = Layout::from_size_align(bytes.max(LINE), align) else {
            panic!("a region of {bytes} bytes cannot exist");
        };
        let start = if align == HUGE_PAGE {
            map(layout.size())
        } else {
            // SAFETY: the layout's size is not zero.
            NonNull::new(unsafe { alloc_zeroed(layout) })
        };
        let Some(start) = start else { handle_alloc_error(layout) };
        Self { start, layout }
    }

    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    pub(crate) fn len(&self) -> usize {
        self.layout.size()
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if self.layout.align() == HUGE_PAGE {
            unmap(self.start, self.layout.size());
        } else {
            // SAFETY: allocated with this layout in `zeroed` and freed once.
            unsafe { dealloc(self.start.as_ptr(), self.layout) }
        }
    }
}

/// Maps zeroed memory on a huge page boundary; `None` when the system has no more.
///
/// The allocator would write the zeroes itself, before the advice could take effect.
fn map(bytes: usize) -> Option<NonNull<u8>> {
    let mapped_bytes = bytes.checked_add(HUGE_PAGE)?;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANON;
    // SAFETY: a new anonymous mapping at an address that the system chooses.
    let base = unsafe { libc::mmap(std::ptr::null_mut(), mapped_bytes, protection, flags, -1, 0) };
    if base == libc::MAP_FAILED {
        return None;
    }
    let base = base.cast::<u8>();
    let before = base.align_offset(HUGE_PAGE);
    let start = NonNull::new(base.wrapping_add(before))?;
    let kept = bytes.next_multiple_of(4096);
    if before > 0 {
        // SAFETY: the part of our own mapping in front of the aligned start; nothing uses it.
        unsafe { libc::munmap(base.cast(), before) };
    }
    let end = start.as_ptr().wrapping_add(kept);
    // SAFETY: the part of our own mapping behind the kept bytes; nothing uses it. It is not empty:
    // `before` is less than a huge page.
    unsafe { libc::munmap(end.cast(), mapped_bytes - before - kept) };
    #[cfg(target_os = "linux")]
    // SAFETY: our own mapping, and the advice does not change its contents. It may be refused (a
    // kernel without huge pages); then reading is slower and nothing else changes.
    unsafe {
        libc::madvise(start.as_ptr().cast(), kept, libc::MADV_HUGEPAGE)
    };
    Some(start)
}

fn unmap(start: NonNull<u8>, bytes: usize) {
    // SAFETY: what `map` kept, unmapped once.
    unsafe { libc::munmap(start.as_ptr().cast(), bytes.next_multiple_of(4096)) };
}
