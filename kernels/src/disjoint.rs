//! A mutable slice that several workers write at once, each its own part.

use std::marker::PhantomData;
use std::ops::Range;

/// Hands out parts of one borrowed slice to tasks of [`crate::Cpu::for_each`].
pub(crate) struct DisjointMut<'a, T> {
    start: *mut T,
    len: usize,
    owner: PhantomData<&'a mut [T]>,
}

// SAFETY: it only hands out `&mut` parts that `part`'s contract keeps disjoint, so moving it to or
// sharing it with another thread is as sound as sending `&mut T` there.
unsafe impl<T: Send> Send for DisjointMut<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for DisjointMut<'_, T> {}

impl<'a, T> DisjointMut<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), owner: PhantomData }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The elements of `range`, bounds checked.
    ///
    /// # Safety
    /// No other part that is alive at the same time may overlap `range`.
    #[expect(clippy::mut_from_ref, reason = "the caller promises that parts do not overlap")]
    pub(crate) unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "part out of range");
        // SAFETY: in bounds (checked), exclusive (the caller's promise), borrowed for 'a.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }

    /// The place of the element at `index`, bounds checked.
    pub(crate) fn at(&self, index: usize) -> *mut T {
        assert!(index < self.len, "element out of range");
        self.start.wrapping_add(index)
    }
}
