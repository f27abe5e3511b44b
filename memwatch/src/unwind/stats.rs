//! What a table holds and what was left out of it, by reason.

/// Why unwind information did not make it into a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(usize)]
pub enum Dropped {
    /// The CFA is an expression of a form that is not known.
    CfaExpression,
    /// The CFA's offset does not fit.
    CfaOffset,
    /// The caller's stack pointer is not the CFA: code that switches stacks or registers.
    StackPointer,
    /// The return address is where a rule cannot say.
    ReturnAddress,
    /// The rule is kept, but rbp is lost from here on.
    FramePointer,
    /// More distinct rules than [`memwatch_common::unwind::MAX_RULES`].
    Rules,
    /// The rest of a function after an instruction that is not valid.
    Program,
    /// A function's or a group's entry that could not be read; when it is in the middle of the section, what
    /// follows it is lost too.
    Entry,
    /// An entry for addresses that hold no code, or for none: what the linker discarded.
    NoCode,
    /// An entry for addresses that another one has already.
    Overlap,
    /// Past the limits on rows, pages or work.
    Limit,
}

impl Dropped {
    pub const ALL: [Self; 11] = [
        Self::CfaExpression,
        Self::CfaOffset,
        Self::StackPointer,
        Self::ReturnAddress,
        Self::FramePointer,
        Self::Rules,
        Self::Program,
        Self::Entry,
        Self::NoCode,
        Self::Overlap,
        Self::Limit,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::CfaExpression => "cfa expression",
            Self::CfaOffset => "cfa offset",
            Self::StackPointer => "stack pointer",
            Self::ReturnAddress => "return address",
            Self::FramePointer => "frame pointer",
            Self::Rules => "rules",
            Self::Program => "program",
            Self::Entry => "entry",
            Self::NoCode => "no code",
            Self::Overlap => "overlap",
            Self::Limit => "limit",
        }
    }
}

/// How often, and for how many bytes of code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DroppedCount {
    pub count: u64,
    /// 0 where the size of the code is not known.
    pub bytes: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableStats {
    /// Entries (mostly: functions) that were read.
    pub functions: u64,
    /// Rows of the unwind information as its compiler meant it.
    pub source_rows: u64,
    /// Bytes of code in the file.
    pub code_bytes: u64,
    /// Bytes of code that have a rule which can be followed.
    pub covered_bytes: u64,
    dropped: [DroppedCount; Dropped::ALL.len()],
}

impl TableStats {
    pub fn dropped(&self, reason: Dropped) -> DroppedCount {
        self.dropped[reason as usize]
    }

    pub(super) fn drop_bytes(&mut self, reason: Dropped, bytes: u64) {
        let slot = &mut self.dropped[reason as usize];
        slot.count += 1;
        slot.bytes = slot.bytes.saturating_add(bytes);
    }
}
