//! What aya needs to know to read the shared types out of maps.

use crate::{
    Config, Event, LiveKey, LiveValue, ProcessState, SiteKey, SiteTotals, Stack, python, size_at, unwind,
};

macro_rules! pod {
    ($($t:ty),+) => { $(
        // SAFETY: flat repr(C), integers only, no implicit padding (sizes are asserted beside each type).
        unsafe impl aya::Pod for $t {}
    )+ };
}

pod!(
    Config,
    Event,
    LiveKey,
    LiveValue,
    ProcessState,
    SiteKey,
    SiteTotals,
    Stack
);
pod!(
    unwind::KnownPage,
    unwind::PageKey,
    unwind::RowBlock,
    unwind::Rule,
    unwind::Space
);
pod!(
    python::CodeCopy,
    python::CodeKey,
    python::PythonLayout,
    python::OpenedPool,
    python::PoolCaller,
    python::PythonProcess,
    python::PythonStack,
    size_at::SizeWords
);
