//! Keeping the process small.

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

/// Gives back what start-up needed and running does not: free heap, and the pages of code and
/// constants, which are clean copies of files and come back when used.
pub(crate) fn release_startup_pages() {
    #[cfg(target_env = "gnu")]
    // SAFETY: returns free heap to the system.
    unsafe {
        libc::malloc_trim(0);
    }
    // SAFETY: the callback only reads what it is given, for as long as it is given.
    unsafe { libc::dl_iterate_phdr(Some(release_object), std::ptr::null_mut()) };
}

unsafe extern "C" fn release_object(
    info: *mut libc::dl_phdr_info,
    _size: libc::size_t,
    _data: *mut libc::c_void,
) -> libc::c_int {
    // SAFETY: dl_iterate_phdr passes a valid record with `dlpi_phnum` headers.
    let (base, headers) = unsafe {
        let info = &*info;
        if info.dlpi_phdr.is_null() {
            return 0;
        }
        (
            info.dlpi_addr,
            std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)),
        )
    };
    const PAGE: u64 = 4096;
    for header in headers {
        // A segment that may be written holds relocated data, which exists nowhere else.
        if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_W != 0 {
            continue;
        }
        let start = (base + header.p_vaddr) & !(PAGE - 1);
        // Whole pages only: the last may be shared with the next segment.
        let end = (base + header.p_vaddr + header.p_memsz) & !(PAGE - 1);
        if end > start {
            // SAFETY: the range is mapped from the object's file, privately and never written, so
            // dropping its pages loses nothing: they are read again from the file.
            unsafe {
                libc::madvise(
                    start as *mut libc::c_void,
                    (end - start) as usize,
                    libc::MADV_DONTNEED,
                )
            };
        }
    }
    0
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_program_runs_on_after_giving_pages_back() {
        for _ in 0..3 {
            super::release_startup_pages();
            assert_eq!("still".repeat(2), "stillstill");
        }
    }
}
