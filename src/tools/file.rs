//! A file that is only appended to, within a bound, and never a reason to fail.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Why a file of a tool cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// No directory is given.
    #[error("tools.directory is empty, and tools.perf needs one")]
    NoDirectory,
    /// It cannot be made.
    #[error("cannot create {path}: {error} (tools.directory must let this user create files)", path = path.display())]
    Create {
        /// Which.
        path: PathBuf,
        /// Of the system.
        error: io::Error,
    },
    /// Something else has its name.
    #[error("{path} exists and is no file of this user: remove it, or set tools.directory", path = path.display())]
    Foreign {
        /// Which.
        path: PathBuf,
    },
    /// It cannot be mapped as perf asks for.
    #[error("cannot map {path} executable: {error} (is tools.directory on a file system mounted noexec?)",
            path = path.display())]
    Map {
        /// Which.
        path: PathBuf,
        /// Of the system.
        error: io::Error,
    },
}

/// What became of what was to be written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Written {
    /// Into which file; `None` if none is asked for.
    pub path: Option<PathBuf>,
    /// Bytes in it.
    pub bytes: u64,
    /// Pieces that did not fit the bound.
    pub left_out: u64,
    /// Pieces that could not be written.
    pub failed: u64,
}

/// Pieces come whole or not at all.
pub(super) struct BoundedFile {
    path: PathBuf,
    max_bytes: u64,
    state: Mutex<State>,
}

struct State {
    file: File,
    bytes: u64,
    left_out: u64,
    failed: u64,
    is_finished: bool,
}

impl BoundedFile {
    /// Makes the file, which must be new. One of this user that has its name is of a process that had this one's number:
    /// it goes.
    pub(super) fn create(directory: &Path, name: &str, max_bytes: u64) -> Result<Self, FileError> {
        if directory.as_os_str().is_empty() {
            return Err(FileError::NoDirectory);
        }
        let path = directory.join(name);
        let file = match create_new(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                remove_own(&path)?;
                create_new(&path)
            }
            created => created,
        };
        let file = file.map_err(|error| FileError::Create { path: path.clone(), error })?;
        let state = State { file, bytes: 0, left_out: 0, failed: 0, is_finished: false };
        Ok(Self { path, max_bytes, state: Mutex::new(state) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Appends a piece, whole. What cannot be is counted, and the first time logged.
    pub(super) fn append(&self, piece: &[u8]) {
        let mut state = self.state();
        if state.is_finished || piece.is_empty() {
            return;
        }
        if state.bytes + piece.len() as u64 > self.max_bytes {
            state.left_out += 1;
            let is_first = state.left_out == 1;
            drop(state);
            if is_first {
                let (path, max_bytes) = (self.path.display(), self.max_bytes);
                tracing::warn!(%path, max_bytes, "tools.file_max_bytes is reached: what profilers are told is cut short");
            }
            return;
        }
        let Err(error) = state.write(piece) else { return };
        state.failed += 1;
        let is_first = state.failed == 1;
        drop(state);
        if is_first {
            tracing::warn!(path = %self.path.display(), %error, "what profilers are told cannot be written");
        }
    }

    /// The file itself, for the start.
    pub(super) fn with_file<T>(&self, with: impl FnOnce(&File) -> T) -> T {
        with(&self.state().file)
    }

    /// Appends the last piece, bound or not, and ends. A file in which then are no more than `empty_bytes` says nothing:
    /// it goes.
    pub(super) fn finish(&self, last: &[u8], empty_bytes: u64) -> Written {
        let mut state = self.state();
        if !state.is_finished {
            state.is_finished = true;
            if state.bytes <= empty_bytes {
                // A refusal leaves a file that says nothing.
                let _ = fs::remove_file(&self.path);
            } else if state.write(last).is_err() {
                state.failed += 1;
            }
        }
        Written { path: Some(self.path.clone()), bytes: state.bytes, left_out: state.left_out, failed: state.failed }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Lengths are written after what they are of: a panic leaves them as they were.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn write(&mut self, piece: &[u8]) -> io::Result<()> {
        let written = self.file.write_all(piece);
        if written.is_ok() {
            self.bytes += piece.len() as u64;
        } else {
            // Half a piece would spoil what comes after it. If it cannot be cut off, nothing can be helped.
            let _ = self.file.set_len(self.bytes);
        }
        written
    }
}

/// Readable too, as its first page is mapped by one of those who use it.
fn create_new(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).append(true).create_new(true).mode(0o600).custom_flags(libc::O_NOFOLLOW).open(path)
}

fn remove_own(path: &Path) -> Result<(), FileError> {
    let error = |error| FileError::Create { path: path.to_owned(), error };
    let there = fs::symlink_metadata(path).map_err(error)?;
    if !there.is_file() || there.uid() != nix::unistd::geteuid().as_raw() {
        return Err(FileError::Foreign { path: path.to_owned() });
    }
    fs::remove_file(path).map_err(error)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn read(file: &BoundedFile) -> String {
        fs::read_to_string(file.path()).unwrap()
    }

    #[test]
    fn a_piece_that_does_not_fit_is_left_out_whole_and_counted_and_a_smaller_one_still_comes() {
        let directory = tempfile::tempdir().unwrap();
        let file = BoundedFile::create(directory.path(), "a", 8).unwrap();
        file.append(b"12345\n");
        file.append(b"678\n");
        file.append(b"9\n");
        assert_eq!(read(&file), "12345\n9\n");
        let written = file.finish(b"", 0);
        assert_eq!((written.bytes, written.left_out, written.failed), (8, 1, 0));
        file.append(b"");
        assert_eq!(fs::metadata(file.path()).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn an_error_of_writing_is_counted_and_nothing_else_happens() {
        let full = OpenOptions::new().append(true).open("/dev/full").unwrap();
        let state = State { file: full, bytes: 0, left_out: 0, failed: 0, is_finished: false };
        let file = BoundedFile { path: "/dev/full".into(), max_bytes: 100, state: Mutex::new(state) };
        file.append(b"1");
        file.append(b"2");
        let state = file.state();
        assert_eq!((state.bytes, state.failed), (0, 2));
    }

    #[test]
    fn a_file_that_an_earlier_process_of_this_number_left_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("a"), "old").unwrap();
        let file = BoundedFile::create(directory.path(), "a", 8).unwrap();
        file.append(b"new");
        assert_eq!(read(&file), "new");
    }

    #[test]
    fn a_link_that_somebody_laid_is_refused_and_what_it_leads_to_stays() {
        let directory = tempfile::tempdir().unwrap();
        let precious = directory.path().join("precious");
        fs::write(&precious, "precious").unwrap();
        symlink(&precious, directory.path().join("a")).unwrap();
        let error = BoundedFile::create(directory.path(), "a", 8).err().unwrap();
        assert!(matches!(error, FileError::Foreign { .. }), "{error}");
        assert_eq!(fs::read_to_string(precious).unwrap(), "precious");
    }

    #[test]
    fn a_file_that_says_nothing_is_gone_in_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let file = BoundedFile::create(directory.path(), "a", 8).unwrap();
        file.finish(b"", 0);
        assert!(!file.path().exists());
        let missing = BoundedFile::create(&directory.path().join("missing"), "a", 8).err().unwrap();
        assert!(missing.to_string().contains("missing/a"), "{missing}");
    }
}
