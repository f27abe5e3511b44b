//! Where the data goes: stdout, or a file that appears whole or not at all.

use std::fs::{self, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::pending::Pending;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Destination {
    #[default]
    Stdout,
    File(PathBuf),
}

/// Each tells its cause itself: it stands inside the sentence.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    #[error("cannot write `{}`: {cause}; nothing was changed, choose another file with --output", path.display())]
    Open { path: PathBuf, cause: io::Error },
    #[error("cannot write `{}`: it is a folder; name a file in it with --output", path.display())]
    Folder { path: PathBuf },
    #[error("cannot write `{}`: it is a link to nothing; remove it or name its target", path.display())]
    DanglingLink { path: PathBuf },
    #[error("cannot write `{}`: {cause}; what was there before is unchanged", path.display())]
    Write { path: PathBuf, cause: io::Error },
    #[error("cannot write more to `{}`: {cause}; what was recorded until then is kept", path.display())]
    Append { path: PathBuf, cause: io::Error },
    #[error("cannot write to stdout: {cause}")]
    Stdout { cause: io::Error },
}

/// Whether there is a reader for more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a closed pipe ends the watch"]
pub enum Flow {
    Continue,
    /// The reader of stdout is gone: end with success.
    Stop,
}

/// An open destination. Open it before anything is attached, so that a path that cannot be written is found then.
///
/// Dropped without [`Output::finish`], it leaves a file that was there before as it was, and nothing else.
pub struct Output {
    sink: Sink,
}

enum Sink {
    /// Stdout, or a thing in the file system that is no regular file and must not be replaced (a pipe, `/dev/null`).
    Stream {
        writer: Box<dyn Write + Send>,
        path: Option<PathBuf>,
    },
    File(Pending),
}

impl Output {
    pub fn open(destination: &Destination) -> Result<Self, OutputError> {
        match destination {
            Destination::Stdout => Ok(Self::stream(Box::new(io::stdout()))),
            Destination::File(path) => Self::open_path(path),
        }
    }

    pub fn stream(writer: Box<dyn Write + Send>) -> Self {
        Self {
            sink: Sink::Stream { writer, path: None },
        }
    }

    fn open_path(path: &Path) -> Result<Self, OutputError> {
        let open_error = |cause| OutputError::Open {
            path: path.to_owned(),
            cause,
        };
        match fs::metadata(path) {
            Ok(found) if found.is_dir() => Err(OutputError::Folder {
                path: path.to_owned(),
            }),
            Ok(found) if found.is_file() => {
                // Renaming over a file asks only for rights in its folder; a write-protected file is to stay.
                let old = OpenOptions::new().write(true).open(path).map_err(open_error)?;
                // The link stays a link; what it points to is replaced.
                let target = fs::canonicalize(path).map_err(open_error)?;
                let pending = Pending::create(target).map_err(open_error)?;
                pending.take_over_owner_and_mode(&old);
                Ok(Self {
                    sink: Sink::File(pending),
                })
            }
            Ok(_) => {
                let writer = OpenOptions::new().write(true).open(path).map_err(open_error)?;
                Ok(Self {
                    sink: Sink::Stream {
                        writer: Box::new(writer),
                        path: Some(path.to_owned()),
                    },
                })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Would only fail at the end, when the file gets its name.
                if path.as_os_str().as_encoded_bytes().ends_with(b"/") {
                    return Err(OutputError::Folder {
                        path: path.to_owned(),
                    });
                }
                if fs::symlink_metadata(path).is_ok() {
                    return Err(OutputError::DanglingLink {
                        path: path.to_owned(),
                    });
                }
                let pending = Pending::create(path.to_owned()).map_err(open_error)?;
                Ok(Self {
                    sink: Sink::File(pending),
                })
            }
            Err(error) => Err(open_error(error)),
        }
    }

    /// Writes one block whole: a reader on the other side of a pipe gets each tick when it happens.
    pub fn write(&mut self, block: &str) -> Result<Flow, OutputError> {
        self.write_bytes(block.as_bytes())
    }

    /// Of a file that is shown already, a piece is there whole or not at all.
    pub fn write_bytes(&mut self, bytes: &[u8]) -> Result<Flow, OutputError> {
        match &mut self.sink {
            Sink::Stream { writer, path } => match writer.write_all(bytes).and_then(|()| writer.flush()) {
                Ok(()) => Ok(Flow::Continue),
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Flow::Stop),
                Err(cause) => Err(match path {
                    Some(path) => OutputError::Write {
                        path: path.clone(),
                        cause,
                    },
                    None => OutputError::Stdout { cause },
                }),
            },
            Sink::File(pending) => match pending.write(bytes) {
                Ok(()) => Ok(Flow::Continue),
                Err(cause) => {
                    let path = pending.target().to_owned();
                    Err(if pending.is_shown() {
                        OutputError::Append { path, cause }
                    } else {
                        OutputError::Write { path, cause }
                    })
                }
            },
        }
    }

    /// For documents that are too large to be kept whole before they are written. Once the reader is gone, the rest goes
    /// nowhere.
    pub fn write_with<T>(
        &mut self,
        write: impl FnOnce(&mut dyn Write) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let pieces = Pieces {
            output: self,
            gone: false,
            failed: None,
        };
        let mut buffer = BufWriter::with_capacity(PIECE_BYTES, pieces);
        let done = write(&mut buffer).and_then(|done| {
            buffer.flush()?;
            Ok(done)
        });
        let (pieces, _) = buffer.into_parts();
        match pieces.failed {
            Some(error) => Err(error.into()),
            None => done,
        }
    }

    /// Makes the file appear under its name with what is in it so far; what is written later is added to it.
    pub fn show(&mut self) -> Result<(), OutputError> {
        match &mut self.sink {
            Sink::Stream { .. } => Ok(()),
            Sink::File(pending) => pending.show().map_err(|cause| OutputError::Write {
                path: pending.target().to_owned(),
                cause,
            }),
        }
    }

    /// The file that is or will be there; none for what is no regular file.
    pub fn path(&self) -> Option<&Path> {
        match &self.sink {
            Sink::Stream { .. } => None,
            Sink::File(pending) => Some(pending.target()),
        }
    }

    /// Makes the file appear under its name.
    pub fn finish(self) -> Result<(), OutputError> {
        match self.sink {
            Sink::Stream { .. } => Ok(()),
            Sink::File(mut pending) => {
                let path = pending.target().to_owned();
                pending.show().map_err(|cause| OutputError::Write { path, cause })
            }
        }
    }
}

const PIECE_BYTES: usize = 1 << 16;

/// What [`Output::write_with`] writes to; remembers what went wrong in words for the user.
struct Pieces<'a> {
    output: &'a mut Output,
    gone: bool,
    failed: Option<OutputError>,
}

impl Write for Pieces<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.gone {
            match self.output.write_bytes(bytes) {
                Ok(flow) => self.gone = flow == Flow::Stop,
                Err(error) => {
                    self.failed = Some(error);
                    return Err(io::ErrorKind::Other.into());
                }
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn open(path: &Path) -> Result<Output, OutputError> {
        Output::open(&Destination::File(path.to_owned()))
    }

    struct Closed;
    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_file_appears_only_when_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.json");
        let mut output = open(&path).unwrap();
        assert_eq!(output.write("one\n").unwrap(), Flow::Continue);
        assert_eq!(output.write("two\n").unwrap(), Flow::Continue);
        assert!(!path.exists());
        output.finish().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\ntwo\n");
        assert_eq!(names(folder.path()), ["out.json"]);
    }

    #[test]
    fn a_file_that_is_shown_early_grows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.memwatch");
        fs::write(&path, "before").unwrap();
        let mut output = open(&path).unwrap();
        assert_eq!(output.write_bytes(b"one").unwrap(), Flow::Continue);
        assert_eq!(fs::read(&path).unwrap(), b"before");
        output.show().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"one");
        assert_eq!(output.write_bytes(b" two").unwrap(), Flow::Continue);
        assert_eq!(output.path(), Some(&*fs::canonicalize(&path).unwrap()));
        drop(output);
        assert_eq!(fs::read(&path).unwrap(), b"one two");
        assert_eq!(names(folder.path()), ["out.memwatch"]);
    }

    #[test]
    fn an_existing_file_is_untouched_when_the_watch_fails() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.json");
        fs::write(&path, "before").unwrap();
        let mut output = open(&path).unwrap();
        assert_eq!(output.write("half").unwrap(), Flow::Continue);
        drop(output);
        assert_eq!(fs::read_to_string(&path).unwrap(), "before");
        assert_eq!(names(folder.path()), ["out.json"]);
    }

    #[test]
    fn a_replaced_file_keeps_its_mode_and_a_link_stays_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().join("real");
        let link = folder.path().join("link");
        fs::write(&real, "before").unwrap();
        fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).unwrap();
        symlink("real", &link).unwrap();
        let mut output = open(&link).unwrap();
        assert_eq!(output.write("after").unwrap(), Flow::Continue);
        output.finish().unwrap();
        assert_eq!(fs::read_to_string(&real).unwrap(), "after");
        assert_eq!(fs::metadata(&real).unwrap().permissions().mode() & 0o777, 0o640);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    }

    #[test]
    fn a_path_that_cannot_be_written_is_found_at_once_and_named() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("no/such/out");
        let line = open(&missing).err().unwrap().to_string();
        assert!(
            line.contains("no/such/out") && line.contains("No such file"),
            "{line}"
        );
        assert!(matches!(open(folder.path()), Err(OutputError::Folder { .. })));
        assert!(matches!(
            open(&folder.path().join("new/")),
            Err(OutputError::Folder { .. })
        ));
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(matches!(open(&file.join("below")), Err(OutputError::Open { .. })));
        assert!(matches!(open(Path::new("")), Err(OutputError::Open { .. })));
        let dangling = folder.path().join("dangling");
        symlink("nowhere", &dangling).unwrap();
        assert!(matches!(open(&dangling), Err(OutputError::DanglingLink { .. })));
        assert_eq!(names(folder.path()), ["dangling", "file"]);
    }

    #[test]
    fn a_device_is_written_to_and_never_replaced() {
        let mut output = open(Path::new("/dev/null")).unwrap();
        assert_eq!(output.write("x").unwrap(), Flow::Continue);
        output.finish().unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
    }

    #[test]
    fn a_full_disk_is_an_error_that_names_the_file() {
        let mut output = open(Path::new("/dev/full")).unwrap();
        let line = output.write("x").unwrap_err().to_string();
        assert!(
            line.contains("/dev/full") && line.contains("No space left"),
            "{line}"
        );
    }

    #[test]
    fn a_leftover_of_a_killed_memwatch_is_no_obstacle() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        fs::write(
            folder
                .path()
                .join(format!(".out.{}-0.partial", std::process::id())),
            "old",
        )
        .unwrap();
        let mut output = open(&path).unwrap();
        assert_eq!(output.write("new").unwrap(), Flow::Continue);
        output.finish().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
    }

    #[test]
    fn a_closed_pipe_asks_to_stop_and_is_no_error() {
        let mut output = Output::stream(Box::new(Closed));
        assert_eq!(output.write("x").unwrap(), Flow::Stop);
        output.finish().unwrap();
    }
}
