//! A command that memwatch starts itself: held before its first instruction until the probes are in place.

use std::{
    ffi::OsString,
    fs,
    io::{self, Read as _, Write as _},
    os::{fd::AsRawFd as _, unix::process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command},
};

use anyhow::{Context as _, Result, anyhow};

use crate::{
    cli::error::{ExitCode, Failure, ResultExt as _},
    pipe,
};

#[derive(Debug)]
pub struct HeldCommand {
    name: OsString,
    pid: u32,
    gate: fs::File,
    libraries: Vec<PathBuf>,
    spawned: std::thread::JoinHandle<io::Result<Child>>,
}

impl HeldCommand {
    pub fn spawn(arguments: &[OsString]) -> Result<Self> {
        let (name, rest) = arguments.split_first().context("no command was given")?;
        let program = find(name).ok_or_else(|| {
            Failure::new(
                ExitCode::NoTarget,
                anyhow!("there is no program {} to start", Path::new(name).display()),
            )
            .hint("give its path, or a name that is in PATH")
        })?;
        let libraries = libraries(&program, 0);
        let (pid_read, pid_write) = pipe::pipe()?;
        let (gate_read, gate_write) = pipe::pipe()?;
        let mut command = Command::new(&program);
        command.arg0(name).args(rest);
        let (own_gate, report) = (gate_write.as_raw_fd(), pid_write.as_raw_fd());
        let gate = gate_read.as_raw_fd();
        // SAFETY: only async-signal-safe system calls on descriptors that the child has inherited.
        unsafe {
            command.pre_exec(move || {
                let pid = libc::getpid().to_ne_bytes();
                libc::close(own_gate);
                libc::write(report, pid.as_ptr().cast(), pid.len());
                let mut byte = 0_u8;
                // Ends without a byte when memwatch is gone: then the command does not start.
                if libc::read(gate, (&raw mut byte).cast(), 1) == 1 {
                    Ok(())
                } else {
                    Err(io::Error::from_raw_os_error(libc::ECANCELED))
                }
            });
        }
        // `spawn` comes back only when the child has begun its program, so it waits in a thread of its own.
        let spawned = std::thread::Builder::new()
            .name("command".to_owned())
            .spawn(move || {
                let child = command.spawn();
                drop((gate_read, pid_write));
                child
            })?;
        let mut pid = [0; 4];
        fs::File::from(pid_read)
            .read_exact(&mut pid)
            .with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Self {
            name: name.clone(),
            pid: u32::from_ne_bytes(pid),
            gate: gate_write.into(),
            libraries,
            spawned,
        })
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The program and the libraries that it will begin with.
    pub fn libraries(&self) -> &[PathBuf] {
        &self.libraries
    }

    /// Lets the program begin.
    pub fn release(mut self) -> Result<()> {
        self.gate
            .write_all(b"g")
            .context("the command ended before it began")?;
        let spawned = self
            .spawned
            .join()
            .map_err(|_| anyhow!("the thread that starts the command ended unexpectedly"))?;
        let mut child = spawned
            .with_context(|| format!("cannot start {}", Path::new(&self.name).display()))
            .or_exit(ExitCode::NoTarget)?;
        // Its end must be taken notice of, or it stays a zombie.
        std::thread::Builder::new()
            .name("reaper".to_owned())
            .spawn(move || child.wait())?;
        Ok(())
    }
}

/// The program as the shell would find it.
fn find(name: &OsString) -> Option<PathBuf> {
    let name = Path::new(name);
    if name.components().count() > 1 {
        return name.is_file().then(|| name.to_path_buf());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// The files that will be mapped at the start: asked of the program's own loader, which lists them without
/// running the program. A script's interpreter is asked instead.
fn libraries(program: &Path, depth: usize) -> Vec<PathBuf> {
    let program = fs::canonicalize(program).unwrap_or_else(|_| program.to_path_buf());
    let Ok(bytes) = fs::read(&program) else {
        return vec![program];
    };
    if let Some(interpreter) = script_interpreter(&bytes).filter(|_| depth < 4) {
        return find(&interpreter.into())
            .map(|path| libraries(&path, depth + 1))
            .unwrap_or_default();
    }
    let mut files = vec![program.clone()];
    if let Some(loader) = elf_interpreter(&bytes)
        && let Ok(output) = Command::new(&loader).arg("--list").arg(&program).output()
    {
        files.extend(listed(&String::from_utf8_lossy(&output.stdout)));
        files.push(loader);
    }
    files
        .iter()
        .filter_map(|file| fs::canonicalize(file).ok())
        .collect()
}

/// `name => /path (0x…)` lines.
fn listed(text: &str) -> Vec<PathBuf> {
    let path = |line: &str| {
        let line = line.rsplit_once(" (").map_or(line, |(path, _)| path);
        let path = line.rsplit_once("=> ").map_or(line, |(_, path)| path).trim();
        path.starts_with('/').then(|| PathBuf::from(path))
    };
    text.lines().filter_map(path).collect()
}

/// The interpreter of `#!/usr/bin/env name` or `#!/path`.
fn script_interpreter(bytes: &[u8]) -> Option<String> {
    let line = bytes.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let line = String::from_utf8_lossy(&line[..line.len().min(4096)]).into_owned();
    let mut words = line.split_whitespace();
    let first = words.next()?;
    if first.ends_with("/env") {
        words.find(|word| !word.starts_with('-')).map(str::to_owned)
    } else {
        Some(first.to_owned())
    }
}

fn elf_interpreter(bytes: &[u8]) -> Option<PathBuf> {
    crate::probe::symbols::ModuleSymbols::parse(bytes)
        .ok()?
        .interpreter
        .map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loaders_list_is_read() {
        let text = "\tlinux-vdso.so.1 (0x00007ffc)\n\tlibc.so.6 => /lib/libc.so.6 (0x00007f1)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f2)\n\tlibx.so => not found\n";
        assert_eq!(
            listed(text),
            ["/lib/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from)
        );
    }

    #[test]
    fn scripts_name_their_interpreter() {
        assert_eq!(
            script_interpreter(b"#!/bin/sh -e\necho"),
            Some("/bin/sh".to_owned())
        );
        assert_eq!(
            script_interpreter(b"#!/usr/bin/env -S python3 -u\n"),
            Some("python3".to_owned())
        );
        assert_eq!(script_interpreter(b"\x7fELF"), None);
        assert_eq!(script_interpreter(b"#!"), None);
    }

    #[test]
    fn a_dynamic_program_begins_with_its_libraries() {
        let files = libraries(Path::new("/bin/sh"), 0);
        assert!(files.len() >= 2, "{files:?}");
        assert!(
            files.iter().any(|file| file.to_string_lossy().contains("libc")),
            "{files:?}"
        );
    }
}
