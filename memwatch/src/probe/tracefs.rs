//! Tracepoints are numbered in tracefs, which containers and minimal hosts often have not mounted. memwatch then
//! mounts it where nobody else sees it: in a mount namespace of one short-lived thread.

use std::{io, path::Path, ptr, thread};

use anyhow::{Context as _, Result, anyhow};

const TRACEFS: &str = "/sys/kernel/tracing";

/// Runs `work` where tracefs can be read.
pub fn with<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T> {
    if Path::new(TRACEFS).join("events").exists() || Path::new("/sys/kernel/debug/tracing/events").exists() {
        return Ok(work());
    }
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            mount_for_this_thread()
                .context("tracefs is not mounted at /sys/kernel/tracing and cannot be mounted")?;
            Ok(work())
        });
        thread
            .join()
            .map_err(|_| anyhow!("the thread that mounts tracefs ended unexpectedly"))?
    })
}

fn mount_for_this_thread() -> io::Result<()> {
    let check = |result: libc::c_int| {
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    };
    // SAFETY: plain system calls with constant strings; they concern this thread only, which ends soon.
    unsafe {
        check(libc::unshare(libc::CLONE_NEWNS | libc::CLONE_FS))?;
        check(libc::mount(
            ptr::null(),
            // Not the root, which is no mount of its own in a chroot.
            c"/sys".as_ptr(),
            ptr::null(),
            libc::MS_REC | libc::MS_PRIVATE,
            ptr::null(),
        ))?;
        check(libc::mount(
            c"nodev".as_ptr(),
            c"/sys/kernel/tracing".as_ptr(),
            c"tracefs".as_ptr(),
            libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC,
            ptr::null(),
        ))
    }
}
