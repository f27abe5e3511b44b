//! Stacks out of the kernel's map, by their hash.

use std::{
    collections::HashSet,
    os::fd::{AsFd as _, OwnedFd},
};

use anyhow::Result;
use memwatch_common::{Stack, python::PythonStack};

use super::batch;
use crate::{probe::load::KernelSide, symbolize::StackSource};

/// A descriptor of its own, so that names do not borrow the kernel side.
#[derive(Debug)]
pub struct KernelStacks {
    map: OwnedFd,
    python: OwnedFd,
    seen: HashSet<u64>,
}

impl KernelStacks {
    pub fn new(kernel: &KernelSide) -> Result<Self> {
        Ok(Self {
            map: kernel.own_map("STACKS")?,
            python: kernel.own_map("PYTHON_STACKS")?,
            seen: HashSet::new(),
        })
    }

    /// How many stacks were asked for and are there.
    pub fn known(&self) -> u64 {
        self.seen.len() as u64
    }
}

impl StackSource for KernelStacks {
    fn frames(&mut self, stack_hash: u64) -> Option<Stack> {
        let stack = batch::get(self.map.as_fd(), &stack_hash).ok().flatten();
        if stack.is_some() {
            self.seen.insert(stack_hash);
        }
        stack
    }

    fn python_frames(&mut self, hash: u64) -> Option<PythonStack> {
        batch::get(self.python.as_fd(), &hash).ok().flatten()
    }
}
