//! Keeping the process small.

use std::ops::Range;

/// Pages of code and constants that come when one is touched: 4.
const NARROW_BYTES: usize = 16 * 1024;

/// Fixes the allocator's thresholds: one arena, large blocks always mapped by themselves and given
/// back when freed. Call it first in `main`; it is for programs that must stay small, not for
/// every user of the library.
pub(crate) fn tune_allocator() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets numbers inside the allocator.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 * 1024);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 64 * 1024);
        libc::mallopt(libc::M_TOP_PAD, 16 * 1024);
    }
}

/// A page of code or constants that is touched brings those around it, within 64 KiB and within its
/// mapping: mostly what nobody needs. Pieces that differ in a property are mappings of their own, so
/// that at most [`NARROW_BYTES`] come; the property is whether a core dump has them, which need not.
/// Measured: 2.0 MB became 1.2 for a daemon that has just started.
pub(crate) fn narrow_mappings() {
    each_clean_range(&mut |start, end| {
        let mut at = start.next_multiple_of(2 * NARROW_BYTES);
        // Bounded by the object's length.
        while at < end {
            let bytes = NARROW_BYTES.min(end - at);
            // SAFETY: changes what a core dump of this process has, and no memory.
            unsafe { libc::madvise(at as *mut libc::c_void, bytes, libc::MADV_DONTDUMP) };
            at += 2 * NARROW_BYTES;
        }
    });
}

/// Gives back what start-up needed and running does not: free heap, and the pages of code and
/// constants, which are clean copies of files and come back when used.
pub(crate) fn release_startup_pages() {
    #[cfg(target_env = "gnu")]
    // SAFETY: returns free heap to the system.
    unsafe {
        libc::malloc_trim(0);
    }
    each_clean_range(&mut |start, end| {
        // SAFETY: the range is mapped from the object's file, privately and never written, so
        // dropping its pages loses nothing: they are read again from the file.
        unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) };
    });
}

/// The size of a page: 4 KiB on x86-64, as the kernel was built on aarch64 (4, 16 or 64 KiB).
pub(crate) fn page_bytes() -> usize {
    // SAFETY: no memory is passed.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
}

/// The whole pages of this program and its libraries that are never written.
fn each_clean_range(mut each: &mut dyn FnMut(usize, usize)) {
    let data = (&raw mut each).cast::<libc::c_void>();
    // SAFETY: the callback gets a pointer to `each`, which outlives the call, and reads what else it
    // is given for as long as it is given.
    unsafe { libc::dl_iterate_phdr(Some(visit_object), data) };
}

unsafe extern "C" fn visit_object(
    info: *mut libc::dl_phdr_info,
    _size: libc::size_t,
    data: *mut libc::c_void,
) -> libc::c_int {
    // SAFETY: `each_clean_range` passes a pointer to such a reference, which nobody else uses now.
    let each = unsafe { &mut *data.cast::<&mut dyn FnMut(usize, usize)>() };
    // SAFETY: dl_iterate_phdr passes a valid record with `dlpi_phnum` headers.
    let (base, headers) = unsafe {
        let info = &*info;
        if info.dlpi_phdr.is_null() {
            return 0;
        }
        (
            info.dlpi_addr as usize,
            std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)),
        )
    };
    let page_bytes = page_bytes();
    for header in headers {
        // A segment that may be written holds relocated data, which exists nowhere else.
        if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_W != 0 {
            continue;
        }
        let start = base + header.p_vaddr as usize;
        let whole = whole_pages(start, start + header.p_memsz as usize, page_bytes);
        if !whole.is_empty() {
            each(whole.start, whole.end);
        }
    }
    0
}

/// The pages of a segment of a program. Only whole ones at its end: the last may be shared with the next segment, and
/// what the kernel is asked to do with a part of a page it does with all of it.
fn whole_pages(start: usize, end: usize, page_bytes: usize) -> Range<usize> {
    start & !(page_bytes - 1)..end & !(page_bytes - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_the_next_segment_shares_is_left_alone() {
        assert_eq!(whole_pages(0x5000, 0x9123, 0x1000), 0x5000..0x9000);
        assert_eq!(whole_pages(0x5000, 0x9123, 0x4000), 0x4000..0x8000);
        assert!(whole_pages(0x5000, 0x9123, 0x1_0000).is_empty());
        assert!(page_bytes().is_power_of_two());
    }

    #[test]
    fn the_program_runs_on_after_giving_pages_back() {
        narrow_mappings();
        for _ in 0..3 {
            release_startup_pages();
            assert_eq!("still".repeat(2), "stillstill");
        }
    }
}
