//! The log of a container on disk, in the format that kubelets and log collectors share (CRI):
//! `2026-01-31T12:00:00.000000001Z stdout F a whole line`, with `P` for a part of a longer one.
#![forbid(unsafe_code)]

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use jiff::Timestamp;

use super::bundle::LogConfig;

/// A line longer than this is written in parts.
const LONGEST_LINE: usize = 16 * 1024;

/// Which of the two outputs of a container a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// Writes both outputs of one container into one file, and puts the file aside when it is full.
pub struct ContainerLog {
    config: LogConfig,
    file: File,
    size: u64,
    /// The unfinished line of stdout and of stderr.
    unfinished: [Vec<u8>; 2],
    /// Bytes that could not be written since the last success.
    lost: u64,
}

impl ContainerLog {
    /// Opens the log, to append to it.
    pub fn open(config: LogConfig) -> io::Result<ContainerLog> {
        if let Some(folder) = config.path.parent() {
            fs::create_dir_all(folder)?;
        }
        let file = open_append(&config.path)?;
        let size = file.metadata()?.len();
        Ok(ContainerLog {
            config,
            file,
            size,
            unfinished: [Vec::new(), Vec::new()],
            lost: 0,
        })
    }

    /// Takes what the container wrote. A full disk costs lines, never the container's progress.
    pub fn take(&mut self, stream: Stream, bytes: &[u8], now: Timestamp) {
        let mut text = Vec::with_capacity(bytes.len() + 64);
        let unfinished = &mut self.unfinished[stream as usize];
        for part in bytes.split_inclusive(|&byte| byte == b'\n') {
            unfinished.extend_from_slice(part);
            while unfinished.len() > LONGEST_LINE {
                let rest = unfinished.split_off(LONGEST_LINE);
                let longest = std::mem::replace(unfinished, rest);
                format_line(&mut text, stream, 'P', &longest, now);
            }
            if unfinished.last() == Some(&b'\n') {
                unfinished.pop();
                format_line(&mut text, stream, 'F', unfinished, now);
                unfinished.clear();
            }
        }
        self.append(&text);
    }

    /// Writes the last line, which no newline ended.
    pub fn finish(mut self, now: Timestamp) {
        let mut text = Vec::new();
        for stream in [Stream::Stdout, Stream::Stderr] {
            let line = std::mem::take(&mut self.unfinished[stream as usize]);
            if !line.is_empty() {
                format_line(&mut text, stream, 'P', &line, now);
            }
        }
        self.append(&text);
    }

    fn append(&mut self, text: &[u8]) {
        if text.is_empty() {
            return;
        }
        if self.size > 0 && self.size + text.len() as u64 > self.config.max_bytes {
            match rotate(&self.config) {
                Ok(file) => {
                    self.file = file;
                    self.size = 0;
                }
                Err(error) => eprintln!("cannot rotate {}: {error}", self.config.path.display()),
            }
        }
        match self.file.write_all(text) {
            Ok(()) => {
                self.size += text.len() as u64;
                if std::mem::take(&mut self.lost) > 0 {
                    eprintln!("{}: writing again", self.config.path.display());
                }
            }
            Err(error) => {
                if self.lost == 0 {
                    eprintln!("cannot write {}: {error}", self.config.path.display());
                }
                self.lost += text.len() as u64;
            }
        }
    }
}

fn open_append(path: &Path) -> io::Result<File> {
    File::options().create(true).append(true).open(path)
}

/// Shifts every file by one, loses the oldest, and opens a new one.
fn rotate(config: &LogConfig) -> io::Result<File> {
    for age in (1..config.max_files).rev() {
        let newer = aged(&config.path, age - 1);
        match fs::rename(&newer, aged(&config.path, age)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    if config.max_files <= 1 {
        fs::remove_file(&config.path)?;
    }
    open_append(&config.path)
}

/// The name of a file that was put aside `age` files ago.
fn aged(path: &Path, age: u32) -> PathBuf {
    if age == 0 {
        return path.to_owned();
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{age}"));
    PathBuf::from(name)
}

fn format_line(text: &mut Vec<u8>, stream: Stream, tag: char, line: &[u8], now: Timestamp) {
    text.extend_from_slice(format!("{now:.9} {} {tag} ", stream.name()).as_bytes());
    text.extend_from_slice(line);
    text.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-01-31T12:00:00.000000005Z";

    fn log(folder: &Path, max_bytes: u64, max_files: u32) -> ContainerLog {
        ContainerLog::open(LogConfig {
            path: folder.join("0.log"),
            max_bytes,
            max_files,
        })
        .expect("a log in a temporary folder")
    }

    fn now() -> Timestamp {
        NOW.parse().expect("a valid timestamp")
    }

    #[test]
    fn lines_of_both_streams_are_kept_apart() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut log = log(folder.path(), 1 << 20, 2);
        log.take(Stream::Stdout, b"one\ntw", now());
        log.take(Stream::Stderr, b"oops\n", now());
        log.take(Stream::Stdout, b"o\n\nend", now());
        log.finish(now());
        let text = fs::read_to_string(folder.path().join("0.log")).expect("the log");
        let expected = format!(
            "{NOW} stdout F one\n{NOW} stderr F oops\n{NOW} stdout F two\n{NOW} stdout F \n{NOW} stdout P end\n"
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn long_lines_are_written_in_parts() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut log = log(folder.path(), 1 << 20, 2);
        let mut line = vec![b'x'; LONGEST_LINE + 10];
        line.push(b'\n');
        log.take(Stream::Stdout, &line, now());
        let text = fs::read_to_string(folder.path().join("0.log")).expect("the log");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[0].contains(" stdout P xxx"));
        assert_eq!(lines[1], format!("{NOW} stdout F xxxxxxxxxx"));
    }

    #[test]
    fn full_files_are_put_aside_and_the_oldest_is_lost() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut log = log(folder.path(), 60, 3);
        for number in 0..5 {
            log.take(Stream::Stdout, format!("line {number}\n").as_bytes(), now());
        }
        let read = |name: &str| fs::read_to_string(folder.path().join(name));
        assert!(read("0.log").expect("the newest").contains("line 4"));
        assert!(read("0.log.1").expect("the one before").contains("line 3"));
        assert!(read("0.log.2").expect("the oldest").contains("line 2"));
        assert!(read("0.log.3").is_err());
    }
}
