//! Writes whole lines to a standard stream, or to a file that is rotated by size.
//!
//! Why not the crate `file-rotate` (0.8.0): it panics when a rotated file was removed by somebody else
//! (`assert!(old_path.exists())`) or a directory cannot be made, and it swallows lines without an error while its file
//! cannot be opened. A log that may lose lines only by the count cannot stand on that.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Enough for some hundred lines per system call.
const BUFFER: usize = 64 * 1024;

/// Takes lines, writes them in blocks. After an error it goes on with the next line, on a line of its own.
#[derive(Debug)]
pub(super) struct Lines {
    out: File,
    /// Whole lines, each with its newline.
    buffer: Vec<u8>,
    /// How many lines the kernel has taken.
    written: u64,
    /// Whether what was written last is half a line that could not be taken back.
    torn: bool,
    /// `None` for what is not ours to rotate or to cut: standard streams, devices, pipes.
    rotation: Option<Rotation>,
}

#[derive(Debug)]
struct Rotation {
    path: PathBuf,
    max_size: u64,
    /// How many rotated files are kept, as `path.1` (the newest) to `path.<keep>`.
    keep: u32,
    /// The size of the file, without what is in the buffer.
    size: u64,
}

/// How many lines were lost, and why.
#[derive(Debug)]
pub(super) struct Lost {
    pub(super) lines: u64,
    pub(super) cause: io::Error,
}

impl Lines {
    /// To a standard stream. The descriptor is written to directly: the buffer of [`io::Stdout`] would keep what an
    /// error left in it, and no longer say which lines are out.
    pub(super) fn stream(stream: &impl AsFd) -> io::Result<Self> {
        let out = File::from(stream.as_fd().try_clone_to_owned()?);
        Ok(Self { out, buffer: Vec::with_capacity(BUFFER), written: 0, torn: false, rotation: None })
    }

    /// To a file, which is appended to if it is there. Its directory has to be there.
    pub(super) fn rotated(path: &Path, max_size: u64, keep: u32) -> io::Result<Self> {
        let out = open(path)?;
        let metadata = out.metadata()?;
        let size = metadata.len();
        // A process that was killed may have left half a line.
        let mut last = [b'\n'];
        if metadata.is_file() && size > 0 {
            out.read_exact_at(&mut last, size - 1)?;
        }
        let rotation = metadata.is_file().then(|| Rotation { path: path.to_owned(), max_size, keep, size });
        Ok(Self { out, buffer: Vec::with_capacity(BUFFER), written: 0, torn: last != *b"\n", rotation })
    }

    /// How many lines the kernel has taken since the start, in the order in which they were pushed.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// Takes a line, without its newline.
    pub(super) fn push(&mut self, line: &[u8]) -> Result<(), Lost> {
        self.make_room(line.len() + 1).map_err(|lost| Lost { lines: lost.lines + 1, ..lost })?;
        self.buffer.extend_from_slice(line);
        self.buffer.push(b'\n');
        Ok(())
    }

    /// Writes what is in the buffer. What cannot be written is lost, not tried again: lines that are still to come are
    /// worth as much, and the buffer has a bound.
    pub(super) fn flush(&mut self) -> Result<(), Lost> {
        let mut written = 0;
        let result = self.write_buffer(&mut written);
        let (out, rest) = self.buffer.split_at(written);
        let half = out.len() - out.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let count = |bytes: &[u8]| bytes.iter().map(|byte| u64::from(*byte == b'\n')).sum::<u64>();
        let lines = count(rest);
        self.written += count(out);
        if let Some(rotation) = &mut self.rotation {
            rotation.size += written as u64;
        }
        if half > 0 {
            self.take_back(half as u64);
        }
        self.buffer.clear();
        result.map_err(|cause| Lost { lines, cause })
    }

    fn write_buffer(&mut self, written: &mut usize) -> io::Result<()> {
        self.find_file()?;
        if self.torn && !self.buffer.is_empty() {
            self.out.write_all(b"\n")?;
            self.torn = false;
            if let Some(rotation) = &mut self.rotation {
                rotation.size += 1;
            }
        }
        while let Some(rest) = self.buffer.get(*written..).filter(|rest| !rest.is_empty()) {
            match self.out.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(more) => *written += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Opens the file again if somebody has removed it: what is written into a file without a name is lost to everyone.
    fn find_file(&mut self) -> io::Result<()> {
        if let Some(rotation) = &mut self.rotation
            && !self.buffer.is_empty()
            && self.out.metadata()?.nlink() == 0
        {
            self.out = open(&rotation.path)?;
            (rotation.size, self.torn) = (self.out.metadata()?.len(), false);
        }
        Ok(())
    }

    /// Takes back half a line, which works on a full disk too; where it does not, the next line begins with a newline.
    fn take_back(&mut self, half: u64) {
        self.torn = true;
        if let Some(rotation) = &mut self.rotation
            && self.out.set_len(rotation.size - half).is_ok()
        {
            rotation.size -= half;
            self.torn = false;
        }
    }

    fn make_room(&mut self, line: usize) -> Result<(), Lost> {
        let buffered = self.buffer.len() as u64;
        let exceeds = |rotation: &Rotation| {
            let size = rotation.size + buffered;
            size > 0 && size + line as u64 > rotation.max_size
        };
        let rotate = self.rotation.as_ref().is_some_and(exceeds);
        if rotate || self.buffer.len() + line > BUFFER {
            self.flush()?;
        }
        match &mut self.rotation {
            Some(rotation) if rotate => {
                // If it fails the line is lost: the disk belongs to the pod, and a file without a bound evicts it.
                self.out = rotation.rotate().map_err(|cause| Lost { lines: 0, cause })?;
                self.torn = false;
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

impl Rotation {
    fn rotate(&mut self) -> io::Result<File> {
        // If only the opening failed last time, the file is already out of the way: shift nothing twice.
        if fs::exists(&self.path)? {
            let kept = (1..self.keep).take_while(|n| self.rotated(*n).exists()).count();
            for n in (1..self.keep).take(kept).rev() {
                fs::rename(self.rotated(n), self.rotated(n + 1))?;
            }
            match self.keep {
                0 => fs::remove_file(&self.path)?,
                _ => fs::rename(&self.path, self.rotated(1))?,
            }
        }
        let file = open(&self.path)?;
        self.size = 0;
        Ok(file)
    }

    fn rotated(&self, n: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{n}"));
        name.into()
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).append(true).create(true).mode(0o640).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(directory)
            .expect("directory")
            .map(|entry| entry.expect("entry").file_name().into_string().expect("text"))
            .collect();
        names.sort();
        names
    }

    #[test]
    fn rotates_at_the_size_and_keeps_so_many() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("log");
        let mut lines = Lines::rotated(&path, 10, 2).expect("open");
        for line in ["1111", "2222", "3333", "a line beyond the size", "4444", "5555", "6666"] {
            lines.push(line.as_bytes()).expect(line);
        }
        lines.flush().expect("flush");
        assert_eq!(names(directory.path()), ["log", "log.1", "log.2"]);
        assert_eq!(fs::read_to_string(&path).expect("log"), "6666\n");
        assert_eq!(fs::read_to_string(path.with_extension("1")).expect("log.1"), "4444\n5555\n");
        assert_eq!(fs::read_to_string(path.with_extension("2")).expect("log.2"), "a line beyond the size\n");
    }

    #[test]
    fn survives_what_others_do_to_its_files() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("log");
        let mut lines = Lines::rotated(&path, 5, 3).expect("open");
        for line in ["1111", "2222", "3333"] {
            lines.push(line.as_bytes()).expect(line);
        }
        fs::remove_file(path.with_extension("1")).expect("remove");
        lines.push(b"4444").expect("a gap among the rotated");
        fs::remove_file(&path).expect("remove");
        lines.push(b"5555").expect("nothing to move out of the way");
        fs::remove_dir_all(directory.path()).expect("remove");
        let lost = lines.push(b"6666").expect_err("no directory");
        assert_eq!((lost.lines, lost.cause.kind()), (2, io::ErrorKind::NotFound));
        fs::create_dir(directory.path()).expect("create");
        lines.push(b"7777").expect("and it is back");
        lines.flush().expect("flush");
        assert_eq!(fs::read_to_string(&path).expect("log"), "7777\n");
        fs::remove_file(&path).expect("remove");
        lines.rotation.as_mut().expect("a file").max_size = 100;
        lines.push(b"8888").expect("buffered");
        lines.flush().expect("into a file that has a name");
        assert_eq!(fs::read_to_string(&path).expect("log"), "8888\n");
        assert_eq!(lines.written(), 6);
    }

    #[test]
    fn ends_the_half_line_of_a_killed_process() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("log");
        fs::write(&path, "whole\nha").expect("write");
        let mut lines = Lines::rotated(&path, 100, 1).expect("open");
        lines.push(b"next").expect("push");
        lines.flush().expect("flush");
        assert_eq!(fs::read_to_string(&path).expect("log"), "whole\nha\nnext\n");
    }

    #[test]
    fn a_full_device_loses_lines_by_the_count_and_is_never_rotated() {
        let mut lines = Lines::rotated(Path::new("/dev/full"), 1, 1).expect("open");
        lines.push(b"one").expect("buffered");
        lines.push(b"two").expect("buffered");
        let lost = lines.flush().expect_err("full");
        assert_eq!((lost.lines, lost.cause.kind()), (2, io::ErrorKind::StorageFull));
        lines.push(b"three").expect("buffered");
        assert_eq!(lines.flush().expect_err("still full").lines, 1);
    }

    #[test]
    fn half_a_line_is_taken_back_or_ended() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("log");
        let mut lines = Lines::rotated(&path, 100, 1).expect("open");
        // What a disk that fills up in the middle of a line leaves behind.
        lines.out.write_all(b"whole\nha").expect("write");
        lines.rotation.as_mut().expect("a file").size = 8;
        lines.take_back(2);
        lines.push(b"next").expect("push");
        lines.flush().expect("flush");
        assert_eq!(fs::read_to_string(&path).expect("log"), "whole\nnext\n");

        let mut lines = Lines::stream(&open(&path).expect("open")).expect("stream");
        lines.out.write_all(b"ha").expect("write");
        lines.take_back(2);
        lines.push(b"after").expect("push");
        lines.flush().expect("flush");
        assert_eq!(fs::read_to_string(&path).expect("log"), "whole\nnext\nha\nafter\n");
    }
}
