//! A read-only mapping of a weight file whose pages can be given back once they are packed.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::ptr::NonNull;

const PAGE: usize = 4096;

/// A mapped file. The file must not be cut short while it is mapped (reading past the new end
/// kills the process, as with every memory-mapped program).
#[derive(Debug)]
pub struct FileMap {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping is read-only and owned.
unsafe impl Send for FileMap {}
// SAFETY: the mapping is read-only.
unsafe impl Sync for FileMap {}

impl FileMap {
    /// Maps the whole file.
    ///
    /// # Errors
    /// What opening, measuring or mapping the file says.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let bytes = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        if bytes == 0 {
            return Ok(Self { start: NonNull::dangling(), bytes });
        }
        let (protection, flags) = (libc::PROT_READ, libc::MAP_PRIVATE);
        let none = std::ptr::null_mut();
        // SAFETY: a new private read-only mapping at an address that the system chooses.
        let start = unsafe { libc::mmap(none, bytes, protection, flags, file.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(io::Error::last_os_error)?;
        Ok(Self { start, bytes })
    }

    /// The file's contents.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: mapped for as long as `self` lives; empty files have a dangling start and no bytes.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }

    /// Drops the resident pages that lie wholly inside `range` (of [`FileMap::bytes`]); reading
    /// them again is allowed and fetches them from the file.
    pub fn release(&self, range: Range<usize>) {
        let first = range.start.next_multiple_of(PAGE);
        let end = if range.end >= self.bytes { self.bytes } else { range.end / PAGE * PAGE };
        if first < end {
            let start = self.start.as_ptr().wrapping_add(first);
            // SAFETY: inside our own file mapping, which is never written: the pages come back from
            // the file with the same contents.
            unsafe { libc::madvise(start.cast(), end - first, libc::MADV_DONTNEED) };
        }
    }
}

impl Drop for FileMap {
    fn drop(&mut self) {
        if self.bytes > 0 {
            // SAFETY: mapped in `open` with this length, unmapped once.
            unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn released_pages_read_the_same_again() {
        let path = std::env::temp_dir().join(format!("amoe-filemap-{}", std::process::id()));
        let contents: Vec<u8> = (0..3 * PAGE + 5).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &contents).unwrap();
        let map = FileMap::open(&path).unwrap();
        assert_eq!(map.bytes(), contents);
        map.release(1..contents.len());
        assert_eq!(map.bytes(), contents);
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn an_empty_file_maps_to_no_bytes() {
        let path = std::env::temp_dir().join(format!("amoe-filemap-empty-{}", std::process::id()));
        std::fs::write(&path, []).unwrap();
        let map = FileMap::open(&path).unwrap();
        assert!(map.bytes().is_empty());
        map.release(0..0);
        std::fs::remove_file(&path).unwrap();
    }
}
