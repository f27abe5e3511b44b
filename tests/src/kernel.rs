//! What a process holds in the kernel's BPF subsystem, and whether it is still there.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::binary::patience;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Program,
    Map,
    Link,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Object {
    pub kind: Kind,
    pub id: u32,
}

/// All BPF objects that a process has open.
pub fn objects_of(pid: u32) -> Vec<Object> {
    let mut objects = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))
        .expect("the process is there")
        .flatten()
    {
        let Ok(text) = fs::read_to_string(entry.path()) else {
            continue;
        }; // closed meanwhile
        for line in text.lines() {
            let Some((name, value)) = line.split_once(':') else {
                continue;
            };
            let kind = match name {
                "prog_id" => Kind::Program,
                "map_id" => Kind::Map,
                "link_id" => Kind::Link,
                _ => continue,
            };
            let object = Object {
                kind,
                id: value.trim().parse().expect("an id is a number"),
            };
            if !objects.contains(&object) {
                objects.push(object);
            }
        }
    }
    objects
}

impl Object {
    /// Asks the kernel for the object by its id.
    pub fn exists(self) -> bool {
        let by_id: libc::c_long = match self.kind {
            Kind::Program => 13,
            Kind::Map => 14,
            Kind::Link => 30,
        };
        // union bpf_attr with the id as its first word; the rest zero.
        let mut attributes = [0_u32; 32];
        attributes[0] = self.id;
        let size = size_of_val(&attributes);
        // SAFETY: the kernel reads `size` bytes of an array that lives through the call.
        let handle = unsafe { libc::syscall(libc::SYS_bpf, by_id, attributes.as_mut_ptr(), size) };
        if handle >= 0 {
            // SAFETY: the kernel just gave us this descriptor, nobody else has it.
            unsafe { libc::close(handle as i32) };
            return true;
        }
        let error = std::io::Error::last_os_error();
        assert_eq!(
            error.raw_os_error(),
            Some(libc::ENOENT),
            "asking for {self:?} failed: {error}"
        );
        false
    }
}

/// Fails if one of the objects stays; the kernel frees them a little after the last descriptor is closed.
pub fn assert_gone(objects: &[Object]) {
    let until = Instant::now() + patience();
    let mut left: Vec<Object> = objects.to_vec();
    loop {
        left.retain(|object| object.exists());
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < until, "left in the kernel: {left:?}");
        sleep(Duration::from_millis(20));
    }
}

/// Probes that were made by name stay until they are removed by name; none of them may be ours.
pub fn assert_no_named_probes() {
    for path in [
        "/sys/kernel/tracing/uprobe_events",
        "/sys/kernel/debug/tracing/uprobe_events",
    ] {
        let Ok(text) = fs::read_to_string(path) else {
            continue;
        }; // not mounted here
        let ours: Vec<_> = text.lines().filter(|line| line.contains("memwatch")).collect();
        assert!(ours.is_empty(), "left in {path}: {ours:?}");
    }
}

#[cfg(test)]
mod tests {
    use std::io::Error;

    use super::*;

    #[test]
    fn a_map_is_seen_while_it_is_open() {
        // An array map: type 2, keys and values of 4 bytes, one entry.
        let attributes = [2_u32, 4, 4, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let size = size_of_val(&attributes);
        // SAFETY: BPF_MAP_CREATE reads `size` bytes of an array that lives through the call.
        let map = unsafe { libc::syscall(libc::SYS_bpf, 0, attributes.as_ptr(), size) };
        if map < 0 {
            crate::binary::skip(&format!("a BPF map cannot be made: {}", Error::last_os_error()));
            return;
        }
        let objects = objects_of(std::process::id());
        assert!(
            !objects.is_empty() && objects.iter().all(|object| object.kind == Kind::Map),
            "{objects:?}"
        );
        assert!(objects.iter().all(|object| object.exists()));
        // SAFETY: the descriptor is ours.
        unsafe { libc::close(map as i32) };
        assert_gone(&objects);
    }
}
