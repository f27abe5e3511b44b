//! Servers from the distribution, under a small load that is the same over and over.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::binary::patience;
use crate::lines::Lines;
use crate::target::die_with_parent;

pub struct Server {
    child: Child,
    /// Its files, which go with it.
    pub directory: TempDir,
    stop: Arc<AtomicBool>,
    load: Option<JoinHandle<()>>,
}

impl Server {
    pub fn start(command: &mut Command, directory: TempDir) -> Self {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        die_with_parent(command);
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?} cannot be started: {error}"));
        Self {
            child,
            directory,
            stop: Arc::default(),
            load: None,
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Does this again and again, in a thread, until the server is no longer needed.
    pub fn under_load(&mut self, mut work: impl FnMut() + Send + 'static) {
        let stop = Arc::clone(&self.stop);
        self.load = Some(std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                work();
            }
        }));
    }

    /// The only child of the server's process.
    pub fn worker(&self) -> u32 {
        let path = format!("/proc/{0}/task/{0}/children", self.pid());
        wait_for("the server's worker", || {
            fs::read_to_string(&path)
                .ok()?
                .split_whitespace()
                .next()?
                .parse()
                .ok()
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // A shutdown that the server knows of, so that its own children go too.
        // SAFETY: the child was not waited for, so the pid is still its own.
        unsafe { libc::kill(self.child.id() as i32, libc::SIGINT) };
        let until = Instant::now() + Duration::from_secs(10);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < until {
            sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(load) = self.load.take() {
            let _ = load.join();
        }
    }
}

/// A client that says the same to its own server process over and over.
pub struct Session {
    child: Child,
    backend: u32,
    stop: Arc<AtomicBool>,
    load: Option<JoinHandle<()>>,
}

impl Session {
    /// Starts psql, and has it run the queries for ever.
    pub fn start(psql: &mut Command, queries: &'static str) -> Self {
        psql.stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        die_with_parent(psql);
        let mut child = psql
            .spawn()
            .unwrap_or_else(|error| panic!("{psql:?} cannot be started: {error}"));
        let mut input = child.stdin.take().expect("it is piped");
        let lines = Lines::of(child.stdout.take().expect("it is piped"));
        input
            .write_all(b"SELECT pg_backend_pid();\n")
            .expect("psql listens");
        let backend = wait_for("the backend", || lines.next(patience()).ok()?.trim().parse().ok());
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let load = std::thread::spawn(move || {
            // One round at a time: what psql has not answered yet is not asked again.
            while !stopped.load(Ordering::Relaxed) && input.write_all(queries.as_bytes()).is_ok() {
                let _ = input.write_all(b"SELECT 'end of round';\n");
                while lines
                    .next(patience())
                    .is_ok_and(|line| !line.contains("end of round"))
                {}
            }
        });
        Self {
            child,
            backend,
            stop,
            load: Some(load),
        }
    }

    /// The server's process for this client.
    pub const fn backend(&self) -> u32 {
        self.backend
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(load) = self.load.take() {
            let _ = load.join();
        }
    }
}

/// Tries until there is a result.
pub fn wait_for<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + patience();
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        assert!(Instant::now() < until, "{what} did not come up");
        sleep(Duration::from_millis(20));
    }
}

/// A port that nobody listens on.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port can be had");
    listener.local_addr().expect("it has an address").port()
}

/// A connection to a server that may still be starting.
pub fn connect(port: u16) -> TcpStream {
    wait_for("the server", || TcpStream::connect(("127.0.0.1", port)).ok())
}

/// Sends one request and reads until the server closes the connection. A server that is going down ends it early.
pub fn ask_once(port: u16, request: &[u8]) {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else {
        return;
    };
    let mut answer = Vec::new();
    let _ = stream.write_all(request);
    let _ = stream.read_to_end(&mut answer);
}

/// A program of the system: on the path, or in one of these folders.
pub fn program(name: &str, folders: &[&str]) -> Result<PathBuf, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).collect::<Vec<_>>();
    folders
        .iter()
        .map(|folder| Path::new(folder).to_path_buf())
        .chain(on_path)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .ok_or_else(|| format!("{name} is not installed"))
}
