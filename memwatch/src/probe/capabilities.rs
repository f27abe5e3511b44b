//! What this kernel can do, asked once.

use anyhow::{Context as _, Result};
use btf_rs::{Btf, Type};
use memwatch_common::{Config, limits};

/// Where the running kernel keeps what the kernel side reads of a task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TaskLayout {
    pub pid: u32,
    pub tgid: u32,
    pub signal: u32,
    pub signal_live: u32,
    pub sas_sp: u32,
    pub sas_size: u32,
    pub mm: u32,
    pub mm_brk: u32,
    pub utask: u32,
    pub utask_returns: u32,
    pub return_stack: u32,
    pub return_address: u32,
    pub return_next: u32,
    pub vma_flags: u32,
    /// The kernel has `bpf_find_vma` (Linux 5.17).
    pub finds_mappings: bool,
    pub fsbase: u32,
    pub exit_code: u32,
    pub signal_oom_mm: u32,
}

pub const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

impl TaskLayout {
    pub fn of_running_kernel() -> Result<Self> {
        let btf = kernel_types().with_context(|| {
            format!(
                "cannot read the kernel's type information at {KERNEL_BTF} (it needs CONFIG_DEBUG_INFO_BTF)"
            )
        })?;
        Ok(Self {
            pid: offset(&btf, "task_struct", "pid")?,
            tgid: offset(&btf, "task_struct", "tgid")?,
            signal: offset(&btf, "task_struct", "signal")?,
            signal_live: offset(&btf, "signal_struct", "live")?,
            sas_sp: offset(&btf, "task_struct", "sas_ss_sp")?,
            sas_size: offset(&btf, "task_struct", "sas_ss_size")?,
            mm: offset(&btf, "task_struct", "mm")?,
            mm_brk: offset(&btf, "mm_struct", "brk")?,
            utask: offset(&btf, "task_struct", "utask")?,
            utask_returns: offset(&btf, "uprobe_task", "return_instances")?,
            return_stack: offset(&btf, "return_instance", "stack")?,
            return_address: offset(&btf, "return_instance", "orig_ret_vaddr")?,
            return_next: offset(&btf, "return_instance", "next")?,
            vma_flags: offset(&btf, "vm_area_struct", "vm_flags")?,
            finds_mappings: is_known(&btf, "bpf_find_vma"),
            fsbase: thread_pointer(&btf)?,
            exit_code: offset(&btf, "task_struct", "exit_code")?,
            signal_oom_mm: offset(&btf, "signal_struct", "oom_mm")?,
        })
    }

    pub fn write_to(self, config: &mut Config) {
        config.task_pid = self.pid;
        config.task_tgid = self.tgid;
        config.task_signal = self.signal;
        config.signal_live = self.signal_live;
        config.task_sas_sp = self.sas_sp;
        config.task_sas_size = self.sas_size;
        config.task_mm = self.mm;
        config.mm_brk = self.mm_brk;
        config.task_utask = self.utask;
        config.utask_returns = self.utask_returns;
        config.return_stack = self.return_stack;
        config.return_address = self.return_address;
        config.return_next = self.return_next;
        config.vma_flags = self.vma_flags;
        config.task_fsbase = self.fsbase;
        config.task_exit_code = self.exit_code;
        config.signal_oom_mm = self.signal_oom_mm;
    }
}

/// Read as a whole first: out of the file itself each of its hundred thousand types would take system calls.
fn kernel_types() -> Result<Btf> {
    Ok(Btf::from_bytes(&std::fs::read(KERNEL_BTF)?)?)
}

/// Whether the kernel has anything of that name: to the library, having nothing is no error.
fn is_known(btf: &Btf, name: &str) -> bool {
    btf.resolve_types_by_name(name)
        .is_ok_and(|types| !types.is_empty())
}

/// Where user space's thread pointer is kept. x86-64; other processors have it elsewhere.
fn thread_pointer(btf: &Btf) -> Result<u32> {
    Ok(offset(btf, "task_struct", "thread")? + offset(btf, "thread_struct", "fsbase")?)
}

/// The byte offset of a member, also inside unnamed structs and unions.
fn offset(btf: &Btf, structure: &str, member: &str) -> Result<u32> {
    for found in btf
        .resolve_types_by_name(structure)
        .with_context(|| format!("the kernel has no {structure}"))?
    {
        if let Some(bits) = member_bits(btf, &found, member) {
            return Ok(bits / 8);
        }
    }
    anyhow::bail!("this kernel's {structure} has no member {member}")
}

fn member_bits(btf: &Btf, structure: &Type, name: &str) -> Option<u32> {
    let (Type::Struct(structure) | Type::Union(structure)) = structure else {
        return None;
    };
    structure.members.iter().find_map(|member| {
        let member_name = btf.resolve_name(member).unwrap_or_default();
        if member_name == name {
            return Some(member.bit_offset());
        }
        if !member_name.is_empty() {
            return None;
        }
        let inner = btf.resolve_chained_type(member).ok()?;
        member_bits(btf, &inner, name).map(|bits| bits + member.bit_offset())
    })
}

/// Major and minor version of the running kernel; 0.0 where it cannot be read.
pub fn kernel_version() -> (u32, u32) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    parse_version(&release).unwrap_or((0, 0))
}

fn parse_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// How many frames the kernel side's walk goes through in one call. Verifiers of older kernels give up on more than a few.
pub fn frames_at_once() -> u32 {
    if kernel_version() >= (6, 12) {
        limits::MAX_FRAMES_AT_ONCE
    } else {
        1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_versions_of_all_distributions() {
        assert_eq!(parse_version("6.18.44-fc-v595"), Some((6, 18)));
        assert_eq!(parse_version("5.15.0-101-generic"), Some((5, 15)));
        assert_eq!(parse_version("6.1.0-18-amd64"), Some((6, 1)));
        assert_eq!(parse_version(""), None);
    }
}
