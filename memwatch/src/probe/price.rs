//! What a hit of a probe costs on this machine. Exceptions are several times as dear under one hypervisor as under
//! another, above all those of instructions that the kernel steps through; so it is measured on functions of our own.

use std::{arch::naked_asm, fmt, thread, time::Duration};

use anyhow::{Context as _, Result, bail};

use super::{
    links::LinkPoint,
    load::KernelSide,
    placer::{Cost, Placement},
    preflight::{self, ReturnProbes},
};

/// Nanoseconds that a hit costs the thread that makes it, without what the program behind the probe does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prices {
    emulated: u64,
    stepped: u64,
    /// A no-op that the kernel has replaced by a call of its own; no exception.
    optimised: u64,
    /// A return probe on top of an entry probe.
    on_return: u64,
}

impl Default for Prices {
    /// Measured in a virtual machine with Linux 6.18, for where they cannot be measured.
    fn default() -> Self {
        Self {
            emulated: 510,
            stepped: 5_000,
            optimised: 250,
            on_return: 270,
        }
    }
}

impl Prices {
    /// Of one call of a function with a probe.
    pub const fn of(&self, placement: &Placement, with_return: bool) -> u64 {
        let entry = match placement.cost {
            Cost::Emulated => self.emulated,
            Cost::Nop5Optimised => self.optimised,
            Cost::SingleStepped => self.stepped,
        };
        entry + if with_return { self.on_return } else { 0 }
    }

    /// Calls functions of our own with probes and without. Return probes are left alone where they could kill us.
    pub fn measure(
        kernel: &KernelSide,
        return_probes: ReturnProbes,
        cpu_time: impl Fn() -> Duration,
    ) -> Result<Self> {
        let plain = time(&cpu_time, emulated);
        let point = |function: extern "C" fn(), has_return| {
            let offset = preflight::file_offset(function as *const () as u64)?;
            anyhow::Ok(LinkPoint {
                offset,
                cookie: preflight::IDLE_COOKIE,
                has_return,
            })
        };
        let points = [
            point(emulated, false)?,
            point(stepped, false)?,
            point(returning, return_probes == ReturnProbes::Safe)?,
        ];
        let links = preflight::attach_idle(kernel, &points, std::process::id())
            .context("cannot probe functions of our own")?;
        let more = |function| time(&cpu_time, function).saturating_sub(plain);
        let (emulated, stepped, returning) = (more(emulated), more(stepped), more(returning));
        // The kernel takes its time, and nobody needs to wait; without a thread it is done here.
        let _ = thread::Builder::new().spawn(move || drop(links));
        if emulated == 0 || stepped == 0 {
            bail!("probes on functions of our own were not hit");
        }
        let typical = Self::default();
        Ok(Self {
            emulated,
            stepped,
            optimised: typical.optimised.min(emulated),
            on_return: match return_probes {
                ReturnProbes::Safe => returning.saturating_sub(emulated),
                ReturnProbes::KillFiltered => typical.on_return,
            },
        })
    }
}

/// What `doctor` says.
impl fmt::Display for Prices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let us = |ns: u64| ns as f64 / 1e3;
        write!(
            f,
            "{:.1} µs a hit, {:.1} µs where the kernel steps through the instruction, {:.1} µs more for a return",
            us(self.emulated),
            us(self.stepped),
            us(self.on_return)
        )
    }
}

/// Calls in a row, and how often these: the quickest row counts, as others are disturbed.
const CALLS: u32 = 100;
const ROWS: usize = 3;

/// Nanoseconds of a call.
fn time(cpu_time: impl Fn() -> Duration, function: extern "C" fn()) -> u64 {
    let row = || {
        let began = cpu_time();
        for _ in 0..CALLS {
            function();
        }
        (cpu_time().saturating_sub(began) / CALLS).as_nanos() as u64
    };
    (0..ROWS).map(|_| row()).min().unwrap_or(0)
}

/// The kernel emulates how it begins.
#[unsafe(naked)]
extern "C" fn emulated() {
    naked_asm!("push rbx", "pop rbx", "ret")
}

/// The same, for a return probe.
#[unsafe(naked)]
extern "C" fn returning() {
    naked_asm!("push rbp", "pop rbp", "ret")
}

/// The kernel steps through how it begins.
#[unsafe(naked)]
extern "C" fn stepped() {
    naked_asm!("mov eax, edi", "ret")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instruction_that_is_stepped_through_costs_more_than_one_that_is_emulated() {
        let prices = Prices::default();
        let of = |cost| {
            let placement = Placement {
                offset_from_entry: 0,
                instruction: String::new(),
                cost,
                fallback: None,
            };
            (prices.of(&placement, false), prices.of(&placement, true))
        };
        assert_eq!(of(Cost::Emulated), (510, 780));
        assert_eq!(of(Cost::SingleStepped), (5_000, 5_270));
        assert_eq!(of(Cost::Nop5Optimised), (250, 520));
    }

    #[test]
    fn the_quickest_row_counts() {
        let reads = std::cell::Cell::new(0);
        // A row takes 5 µs, 1 µs and 7 µs.
        let at_us = [0, 5, 10, 11, 20, 27];
        let clock = || {
            let read = reads.replace(reads.get() + 1);
            Duration::from_micros(at_us[read])
        };
        assert_eq!(time(clock, emulated), 10);
    }
}
