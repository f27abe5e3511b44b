//! The kernel's maps that the walk of a stack reads.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd},
    time::Duration,
};

use anyhow::Result;
use aya_obj::generated::{bpf_cmd, bpf_map_type};
use memwatch_common::unwind::{KnownPage, PageKey, RowBlock, Rule, Space, code_place};

use crate::{
    collect::batch,
    probe::{
        links::{call, zeroed_attr},
        load::KernelSide,
    },
};

/// What the kernel side has of the tables. Apart from what is decided about it, so that tests need no kernel.
pub(super) trait KernelTables {
    fn set_rule(&mut self, number: u32, rule: &Rule) -> io::Result<()>;
    fn set_block(&mut self, number: u32, block: &RowBlock) -> io::Result<()>;
    fn remove_blocks(&mut self, numbers: &[u32]) -> io::Result<()>;
    fn set_page(&mut self, key: PageKey, page: &KnownPage) -> io::Result<()>;
    fn remove_pages(&mut self, keys: &[PageKey]) -> io::Result<()>;
    /// Of every page, how often a row was looked for in it.
    fn looked_up(&self, each: &mut dyn FnMut(&PageKey, u64)) -> io::Result<()>;
    fn set_space(&mut self, instance: u32, space: &Space) -> io::Result<()>;
    fn remove_spaces(&mut self, instances: &[u32]) -> io::Result<()>;
    /// What was looked up in this process's code counts no longer.
    fn set_version(&mut self, instance: u32, version: u32) -> io::Result<()>;
    /// Returns when no walk runs any more that began before. What a walk holds may be given to another as soon as it is
    /// taken out of a map, so nothing is put into a map between taking out and this.
    fn wait_for_walks(&mut self);
}

pub(super) struct Maps {
    rules: OwnedFd,
    rows: OwnedFd,
    pages: OwnedFd,
    spaces: OwnedFd,
    versions: OwnedFd,
    grace: Option<Grace>,
}

impl Maps {
    pub fn new(kernel: &KernelSide) -> Result<Self> {
        Ok(Self {
            rules: kernel.own_map("RULES")?,
            rows: kernel.own_map("ROWS")?,
            pages: kernel.own_map("PAGES")?,
            spaces: kernel.own_map("SPACES")?,
            versions: kernel.own_map("SPACE_VERSIONS")?,
            grace: Grace::new().ok(),
        })
    }
}

impl KernelTables for Maps {
    fn set_rule(&mut self, number: u32, rule: &Rule) -> io::Result<()> {
        batch::set(self.rules.as_fd(), &number, rule)
    }

    fn set_block(&mut self, number: u32, block: &RowBlock) -> io::Result<()> {
        batch::set(self.rows.as_fd(), &number, block)
    }

    fn remove_blocks(&mut self, numbers: &[u32]) -> io::Result<()> {
        batch::delete(self.rows.as_fd(), numbers)
    }

    fn set_page(&mut self, key: PageKey, page: &KnownPage) -> io::Result<()> {
        batch::set(self.pages.as_fd(), &key, page)
    }

    fn remove_pages(&mut self, keys: &[PageKey]) -> io::Result<()> {
        batch::delete(self.pages.as_fd(), keys)
    }

    fn looked_up(&self, each: &mut dyn FnMut(&PageKey, u64)) -> io::Result<()> {
        batch::for_each(self.pages.as_fd(), |key: &PageKey, page: &KnownPage| {
            each(key, page.looked_up);
        })
    }

    fn set_space(&mut self, instance: u32, space: &Space) -> io::Result<()> {
        batch::set(self.spaces.as_fd(), &instance, space)
    }

    fn remove_spaces(&mut self, instances: &[u32]) -> io::Result<()> {
        batch::delete(self.spaces.as_fd(), instances)
    }

    fn set_version(&mut self, instance: u32, version: u32) -> io::Result<()> {
        batch::set(self.versions.as_fd(), &code_place(instance), &version)
    }

    fn wait_for_walks(&mut self) {
        if self.grace.as_ref().is_none_or(|grace| grace.wait().is_err()) {
            // A walk takes microseconds.
            std::thread::sleep(Duration::from_secs(1));
        }
    }
}

/// A map of maps with one entry. Whoever writes to such a map gets the answer when no program runs any more that could
/// have seen the old entry: the kernel promises it (`maybe_wait_bpf_programs`, Linux 4.20).
struct Grace {
    outer: OwnedFd,
    inner: OwnedFd,
}

impl Grace {
    fn new() -> io::Result<Self> {
        let inner = create(bpf_map_type::BPF_MAP_TYPE_ARRAY, None)?;
        let outer = create(bpf_map_type::BPF_MAP_TYPE_ARRAY_OF_MAPS, Some(&inner))?;
        Ok(Self { outer, inner })
    }

    fn wait(&self) -> io::Result<()> {
        batch::set(self.outer.as_fd(), &0_u32, &(self.inner.as_raw_fd() as u32))
    }
}

fn create(kind: bpf_map_type, inner: Option<&OwnedFd>) -> io::Result<OwnedFd> {
    let mut attr = zeroed_attr();
    attr.__bindgen_anon_1.map_type = kind as u32;
    attr.__bindgen_anon_1.key_size = 4;
    attr.__bindgen_anon_1.value_size = 4;
    attr.__bindgen_anon_1.max_entries = 1;
    attr.__bindgen_anon_1.inner_map_fd = inner.map_or(0, |fd| fd.as_raw_fd() as u32);
    let fd = call(bpf_cmd::BPF_MAP_CREATE, &mut attr)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
