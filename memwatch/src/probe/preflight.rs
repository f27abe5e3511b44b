//! Proof, on a child of our own, that return probes do not kill on this kernel.
//!
//! Linux 6.11 made the return of a probed function go through a system call of its own; a seccomp filter that
//! kills on unknown calls then kills the target. 6.14 lets that call pass, and back-ports vary, so the version
//! says nothing: it has to be tried.

use std::{fs, io, os::fd::AsRawFd as _, path::Path};

use anyhow::{Context as _, Result, bail};
use memwatch_common::{Cookie, Domain, Function};

use super::{
    links::{LinkPoint, Links, Method, UprobePrograms, c_path},
    load::KernelSide,
};

/// What the canary showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReturnProbes {
    Safe,
    /// A process with a strict seccomp filter is killed by them.
    KillFiltered,
}

/// Puts a return probe on a child that has a strict seccomp filter, and sees whether it lives.
pub fn return_probes(kernel: &KernelSide) -> Result<ReturnProbes> {
    let (read, write) = crate::pipe::pipe()?;
    // SAFETY: the child only makes system calls and ends in `_exit`.
    let pid = match unsafe { libc::fork() } {
        -1 => {
            return Err(io::Error::last_os_error()).context("cannot start a process to try return probes on");
        }
        0 => canary_child(read.as_raw_fd()),
        pid => pid,
    };
    drop(read);
    let probed = probe_canary(kernel, pid as u32);
    // The child goes on when it is probed; when that failed it is let go without a verdict.
    let went = io::Write::write_all(&mut fs::File::from(write), b"g");
    let status = wait(pid)?;
    let _links = probed.context("cannot try return probes on a process of our own")?;
    went.context("the process to try return probes on ended early")?;
    if libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0 {
        return Ok(ReturnProbes::Safe);
    }
    if libc::WIFSIGNALED(status) {
        return Ok(ReturnProbes::KillFiltered);
    }
    bail!("the process to try return probes on ended with status {status:#x}")
}

/// For probes whose program does nothing.
pub(super) const IDLE_COOKIE: u64 = Cookie::new(Function::Malloc, Domain::Native, 0, 0, u32::MAX, 0).0;

fn probe_canary(kernel: &KernelSide, pid: u32) -> Result<Links> {
    let point = LinkPoint {
        offset: file_offset(canary as *const () as u64)?,
        cookie: IDLE_COOKIE,
        has_return: true,
    };
    attach_idle(kernel, &[point], pid)
}

/// Probes functions of our own in one process; nothing is done where they are hit.
pub(super) fn attach_idle(kernel: &KernelSide, points: &[LinkPoint], pid: u32) -> Result<Links> {
    let path = fs::read_link("/proc/self/exe").context("cannot find memwatch's own file")?;
    let path = if path.exists() {
        path
    } else {
        Path::new("/proc/self/exe").to_path_buf()
    };
    // A session's entry leaves the return out while the gate is closed, so ours get the empty program.
    let empty;
    let programs = if kernel.programs.method == Method::Session {
        empty = UprobePrograms::load_empty(super::load::OBJECT, &kernel.ebpf)?;
        &empty
    } else {
        &kernel.programs
    };
    programs.attach(&c_path(&path)?, points, Some(pid))
}

/// What the child calls with a return probe on it.
#[inline(never)]
extern "C" fn canary(value: u64) -> u64 {
    std::hint::black_box(value.wrapping_mul(3))
}

/// Sets up the filter, waits to be probed, calls the function, ends.
fn canary_child(gate: libc::c_int) -> ! {
    let filter = strict_filter();
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_ptr().cast_mut(),
    };
    let mut byte = 0_u8;
    // SAFETY: plain system calls on live memory, in a process of one thread.
    unsafe {
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
            || libc::prctl(
                libc::PR_SET_SECCOMP,
                libc::SECCOMP_MODE_FILTER,
                &raw const program,
                0,
                0,
            ) != 0
        {
            libc::_exit(2);
        }
        if libc::read(gate, (&raw mut byte).cast(), 1) != 1 {
            libc::_exit(3);
        }
        let value = canary(std::hint::black_box(u64::from(byte)));
        libc::_exit(i32::from(value != u64::from(byte) * 3));
    }
}

/// Kills on every system call but read and exit.
fn strict_filter() -> [libc::sock_filter; 6] {
    const LOAD_NUMBER: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let op = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    [
        op(LOAD_NUMBER, 0, 0, 0),
        op(JUMP_EQUAL, 3, 0, libc::SYS_read as u32),
        op(JUMP_EQUAL, 2, 0, libc::SYS_exit_group as u32),
        op(JUMP_EQUAL, 1, 0, libc::SYS_exit as u32),
        op(RETURN, 0, 0, libc::SECCOMP_RET_KILL_PROCESS),
        op(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
}

/// Where an address of this process stands in its file.
pub(super) fn file_offset(address: u64) -> Result<u64> {
    let maps = fs::read("/proc/self/maps").context("cannot read /proc/self/maps")?;
    let maps = crate::target::maps::parse(&maps)?;
    let mapping = maps
        .iter()
        .find(|mapping| (mapping.start..mapping.end).contains(&address));
    let mapping = mapping.context("memwatch's own code is not in its mappings")?;
    Ok(address - mapping.start + mapping.offset)
}

fn wait(pid: libc::pid_t) -> Result<libc::c_int> {
    let mut status = 0;
    loop {
        // SAFETY: pid is our child.
        if unsafe { libc::waitpid(pid, &raw mut status, 0) } == pid {
            return Ok(status);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error).context("cannot wait for the process to try return probes on");
        }
    }
}
