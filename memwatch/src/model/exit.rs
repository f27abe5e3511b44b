//! How a process ended.

use memwatch_common::Event;
use memwatch_common::event::{EXIT_OUT_OF_MEMORY, EXIT_STATUS};
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Exit {
    /// What it returned; null when a signal ended it.
    pub code: Option<u32>,
    pub signal: Option<u32>,
    /// The kernel killed it because memory had run out, of its control group or of the machine.
    pub out_of_memory: bool,
}

impl Exit {
    /// None when the kernel side could not tell.
    pub const fn of(event: &Event) -> Option<Self> {
        if event.flags & EXIT_STATUS == 0 {
            return None;
        }
        let status = event.a as u32;
        let signal = status & 0x7f;
        Some(Self {
            code: if signal == 0 {
                Some(status >> 8 & 0xff)
            } else {
                None
            },
            signal: if signal == 0 { None } else { Some(signal) },
            // One that was chosen may still have ended by itself.
            out_of_memory: event.flags & EXIT_OUT_OF_MEMORY != 0 && signal == KILL,
        })
    }

    /// `was killed for want of memory`
    pub fn words(&self) -> String {
        match (self.out_of_memory, self.signal, self.code) {
            (true, ..) => "was killed for want of memory".to_owned(),
            (false, Some(signal), _) => match name(signal) {
                Some(name) => format!("was killed by {name}"),
                None => format!("was killed by signal {signal}"),
            },
            (false, None, Some(0) | None) => "has ended".to_owned(),
            (false, None, Some(code)) => format!("has ended with exit code {code}"),
        }
    }
}

const KILL: u32 = libc::SIGKILL as u32;

/// Of the signals that end processes.
const fn name(signal: u32) -> Option<&'static str> {
    Some(match signal.cast_signed() {
        libc::SIGHUP => "SIGHUP",
        libc::SIGINT => "SIGINT",
        libc::SIGQUIT => "SIGQUIT",
        libc::SIGILL => "SIGILL",
        libc::SIGTRAP => "SIGTRAP",
        libc::SIGABRT => "SIGABRT",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGKILL => "SIGKILL",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGPIPE => "SIGPIPE",
        libc::SIGALRM => "SIGALRM",
        libc::SIGTERM => "SIGTERM",
        libc::SIGSYS => "SIGSYS",
        libc::SIGXCPU => "SIGXCPU",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_of_wait_has_its_words() {
        let words = |flags, status| {
            let event = Event {
                flags,
                a: status,
                ..Event::ZERO
            };
            Exit::of(&event).map(|exit| exit.words())
        };
        assert_eq!(words(0, 9), None);
        let oom = EXIT_STATUS | EXIT_OUT_OF_MEMORY;
        for (flags, status, expected) in [
            (EXIT_STATUS, 0, "has ended"),
            (EXIT_STATUS, 3 << 8, "has ended with exit code 3"),
            (EXIT_STATUS, 9, "was killed by SIGKILL"),
            (EXIT_STATUS, 0x8b, "was killed by SIGSEGV"),
            (EXIT_STATUS, 40, "was killed by signal 40"),
            (oom, 9, "was killed for want of memory"),
            (oom, 1 << 8, "has ended with exit code 1"),
        ] {
            assert_eq!(words(flags, status).as_deref(), Some(expected));
        }
    }
}
