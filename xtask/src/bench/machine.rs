//! Where the figures come from.

use std::{fs, process::Command};

use crate::shell;

/// One line each: figures mean nothing without them.
pub fn describe() -> Vec<String> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mut lines = vec![format!("CPU: {}", processor(&cpuinfo))];
    lines.extend(first_line("uname", &["-srm"]).map(|kernel| format!("Kernel: {kernel}")));
    lines.extend(first_line("ldd", &["--version"]).map(|libc| format!("libc: {libc}")));
    lines.extend(first_line("bpftrace", &["--version"]));
    lines.extend(
        first_line(
            "dpkg-query",
            &["--show", "--showformat=${Version}", "bpfcc-tools"],
        )
        .map(|version| format!("bcc {version}")),
    );
    lines.extend(
        first_line(
            "git",
            &[
                "-C",
                &shell::workspace().to_string_lossy(),
                "describe",
                "--always",
                "--dirty",
            ],
        )
        .map(|version| format!("memwatch {version}")),
    );
    lines
}

fn first_line(program: &str, arguments: &[&str]) -> Option<String> {
    let text = shell::output(Command::new(program).args(arguments)).ok()?;
    let line = text.lines().next()?.trim();
    (!line.is_empty()).then(|| line.to_owned())
}

fn processor(cpuinfo: &str) -> String {
    let values = |name: &str| {
        let name = name.to_owned();
        cpuinfo.lines().filter_map(move |line| {
            let (key, value) = line.split_once(':')?;
            (key.trim() == name).then(|| value.trim().to_owned())
        })
    };
    let count = values("processor").count();
    let model = values("model name")
        .next()
        .unwrap_or_else(|| "of unknown model".into());
    let guest = values("flags")
        .next()
        .is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor"));
    format!(
        "{count} × {model}{}",
        if guest { ", in a virtual machine" } else { "" }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_counted_and_guests_told() {
        let one = "processor\t: 0\nmodel name\t: Some CPU @ 2GHz\nflags\t\t: fpu hypervisor lm\n\n";
        let two = one.replace(": 0", ": 1");
        assert_eq!(
            processor(&format!("{one}{two}")),
            "2 × Some CPU @ 2GHz, in a virtual machine"
        );
        assert_eq!(processor("processor : 0\nmodel name : X\nflags : fpu"), "1 × X");
    }
}
