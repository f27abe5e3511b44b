//! Whether the code in a process's memory is still the code in its files. A probe is a changed byte.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::binary::patience;

/// Addresses at which the code that a process runs differs from its files.
pub fn changed_code(pid: u32) -> Vec<u64> {
    let memory = File::open(format!("/proc/{pid}/mem")).expect("root may read its memory");
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("the process is there");
    let mut changed = Vec::new();
    for line in maps.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [range, access, offset, _, _, path] = fields[..] else {
            continue;
        };
        if !access.contains('x') || !path.starts_with('/') {
            continue;
        }
        let (start, end) = range.split_once('-').expect("a range has two ends");
        let hex = |text| u64::from_str_radix(text, 16).expect("an address is a number");
        let (start, end, offset) = (hex(start), hex(end), hex(offset));
        // Named without the leading zeros that low addresses have in the list.
        let file = File::open(format!("/proc/{pid}/map_files/{start:x}-{end:x}"))
            .expect("root may open what is mapped");
        let mut here = vec![0; (end - start) as usize];
        memory
            .read_exact_at(&mut here, start)
            .expect("mapped code can be read");
        let mut there = vec![0; here.len()];
        let length = read_up_to(&file, &mut there, offset); // the file may end within the last page
        // Page by page, as almost all are equal.
        for (page, (ours, theirs)) in here[..length]
            .chunks(4096)
            .zip(there[..length].chunks(4096))
            .enumerate()
        {
            if ours != theirs {
                let differing = ours.iter().zip(theirs).enumerate().filter(|(_, (a, b))| a != b);
                changed.extend(differing.map(|(index, _)| start + (page * 4096 + index) as u64));
            }
        }
    }
    changed
}

fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> usize {
    let mut length = 0;
    while length < buffer.len() {
        match file.read_at(&mut buffer[length..], offset + length as u64) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) => panic!("a mapped file cannot be read: {error}"),
        }
    }
    length
}

/// Fails if a probe stays in the process.
pub fn assert_untouched(pid: u32) {
    let until = Instant::now() + patience();
    loop {
        let changed = changed_code(pid);
        if changed.is_empty() {
            return;
        }
        assert!(
            Instant::now() < until,
            "probes are left in process {pid} at {changed:x?}"
        );
        sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::ptr::null_mut;

    use super::*;

    /// A private mapping of code in which one byte is changed, as a probe changes it.
    #[test]
    fn one_changed_byte_is_found() {
        let file = File::open("/proc/self/exe").expect("we have a program");
        let access = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        // SAFETY: a new private mapping at an address of the kernel's choice; the file is not empty.
        let mapped = unsafe { libc::mmap(null_mut(), 4096, access, libc::MAP_PRIVATE, file.as_raw_fd(), 0) };
        assert_ne!(mapped, libc::MAP_FAILED);
        let place = mapped.cast::<u8>().wrapping_add(123);
        let pid = std::process::id();
        // SAFETY: no arguments, cannot fail.
        if unsafe { libc::geteuid() } != 0 {
            crate::binary::skip("only root may look into /proc/PID/map_files");
            return;
        }
        assert!(!changed_code(pid).contains(&(place as u64)));
        // SAFETY: inside the mapping, which is ours alone and can be written.
        unsafe { *place ^= 0xcc };
        assert!(changed_code(pid).contains(&(place as u64)));
        // SAFETY: nobody else knows of the mapping.
        unsafe { libc::munmap(mapped, 4096) };
    }
}
