//! What a container said before it ended: its termination message, or the end of its log.
#![forbid(unsafe_code)]

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::Path,
};

use super::worker::Worker;
use crate::runtime::bundle::Exit;

/// As Kubernetes limits them.
const LONGEST_MESSAGE: u64 = 4096;
const LONGEST_TAIL: u64 = 2048;
const MOST_LINES: usize = 80;

impl Worker {
    /// status.containerStatuses[].state.terminated.message.
    pub(super) fn last_words(&self, container: &str, id: &str, exit: &Exit) -> Option<String> {
        let spec = self.pod.spec.as_ref()?;
        let mut all = spec
            .containers
            .iter()
            .chain(spec.init_containers.iter().flatten());
        let policy = all
            .find(|own| own.name == container)?
            .termination_message_policy
            .as_deref();
        let path = self.dir.bundle(id).termination_message();
        let said = read(&path, SeekFrom::Start(0), LONGEST_MESSAGE).unwrap_or_else(|error| {
            tracing::warn!(container, %error, "cannot read a termination message");
            String::new()
        });
        if !said.is_empty() {
            return Some(said);
        }
        if policy != Some("FallbackToLogsOnError") || exit.code == 0 {
            return None;
        }
        let attempt = self
            .record
            .containers
            .get(container)?
            .attempts
            .saturating_sub(1);
        match tail(&self.log_path(container, attempt)) {
            Ok(text) if !text.is_empty() => Some(text),
            Ok(_) => None,
            Err(error) => {
                tracing::warn!(container, %error, "cannot read the end of a log");
                None
            }
        }
    }
}

fn read(path: &Path, from: SeekFrom, limit: u64) -> io::Result<String> {
    let mut file = File::open(path)?;
    file.seek(from)?;
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The last lines of a log, without the prefix that each has.
fn tail(path: &Path) -> io::Result<String> {
    let length = File::open(path)?.metadata()?.len();
    // Prefixes take space as well: read more than is wanted.
    let from = length.saturating_sub(LONGEST_TAIL * 4);
    let text = read(path, SeekFrom::Start(from), LONGEST_TAIL * 4)?;
    let whole = if from == 0 {
        text.as_str()
    } else {
        text.split_once('\n').map_or("", |(_, rest)| rest)
    };
    let lines: Vec<&str> = whole
        .lines()
        .filter_map(|line| line.splitn(4, ' ').nth(3))
        .collect();
    let mut said = String::new();
    for line in lines.iter().skip(lines.len().saturating_sub(MOST_LINES)) {
        said.push_str(line);
        said.push('\n');
    }
    let excess = said
        .len()
        .saturating_sub(usize::try_from(LONGEST_TAIL).unwrap_or(usize::MAX));
    let start = (excess..said.len())
        .find(|&index| said.is_char_boundary(index))
        .unwrap_or(0);
    Ok(said[start..].to_owned())
}
