//! Landlock, as far as whether it is there (landlock_create_ruleset(2)).

use std::io;

/// The version of the kernel's Landlock.
#[allow(unsafe_code)]
pub fn version() -> io::Result<u32> {
    const CREATE_RULESET_VERSION: libc::c_uint = 1;
    // SAFETY: with this flag the call reads no memory, the pointer must be null and the size zero; it makes nothing.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<libc::c_void>(),
            0usize,
            CREATE_RULESET_VERSION,
        )
    };
    u32::try_from(version).map_err(|_| io::Error::last_os_error())
}
