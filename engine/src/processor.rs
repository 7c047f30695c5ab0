//! Whose processor this is, for where its features do not tell how long an instruction takes.

/// Whether Intel made it.
pub(crate) fn is_intel() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        let vendor = std::arch::x86_64::__cpuid(0);
        [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes) == [*b"Genu", *b"ineI", *b"ntel"]
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}
