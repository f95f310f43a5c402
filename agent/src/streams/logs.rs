//! Logs: what a container wrote, from its files on disk (see `runtime::log`), and what it still writes.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, BufRead, BufReader},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use http::Response;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Bytes, Frame};
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{Body, Node, Query, Refusal};

/// How often a log that is followed is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// More files than a run ever has.
const MOST_FILES: u32 = 100;
/// Bytes sent at once.
const CHUNK: usize = 32 * 1024;
/// Chunks that wait for a slow reader.
const DEPTH: usize = 4;

/// What is asked of a log.
#[derive(Debug)]
struct Wanted {
    follow: bool,
    timestamps: bool,
    tail: Option<usize>,
    since: Option<Timestamp>,
    limit: Option<u64>,
    /// "stdout" or "stderr" alone.
    stream: Option<String>,
}

/// Answers with a log, or says that there is none.
pub fn answer(
    node: &Arc<Node>,
    (namespace, pod, uid, container): (&str, &str, &str, &str),
    query: &Query,
) -> Result<Response<Body>, Refusal> {
    let plain = |text: &str| !text.is_empty() && !text.starts_with('.');
    if ![namespace, pod, uid, container].into_iter().all(plain) {
        return Err(Refusal::bad_request("a name that is none"));
    }
    let folder = node.config.logs_dir();
    let folder = folder
        .join(format!("{namespace}_{pod}_{uid}"))
        .join(container);
    let runs = runs(&folder).map_err(|error| Refusal::internal(&error))?;
    let run = match (query.flag("previous"), runs.as_slice()) {
        (false, [.., last]) => *last,
        (true, [.., previous, _]) => *previous,
        (true, _) => {
            return Err(Refusal::bad_request(format!(
                "previous terminated container \"{container}\" in pod \"{pod}\" not found"
            )));
        }
        (false, []) => {
            return Err(Refusal::bad_request(format!(
                "container \"{container}\" in pod \"{pod}\" is waiting to start: ContainerCreating"
            )));
        }
    };
    let since = query.get("sinceTime").map(str::parse::<Timestamp>);
    let since = since.transpose();
    let wanted = Wanted {
        follow: query.flag("follow"),
        timestamps: query.flag("timestamps"),
        tail: query
            .number("tailLines")
            .map(|lines| usize::try_from(lines).unwrap_or(usize::MAX)),
        since: since.map_err(|error| Refusal::bad_request(error.to_string()))?,
        limit: query.number("limitBytes"),
        stream: query
            .get("stream")
            .map(str::to_lowercase)
            .filter(|name| name != "all"),
    };
    let (sender, chunks) = mpsc::channel(DEPTH);
    let (node, uid, container) = (Arc::clone(node), uid.to_owned(), container.to_owned());
    tokio::task::spawn_blocking(move || {
        let is_running = || {
            node.pod(&uid).is_some_and(|pod| {
                let mut containers = pod.containers.iter();
                containers
                    .any(|one| one.name == container && u32::try_from(one.restarts) == Ok(run))
            })
        };
        let path = folder.join(format!("{run}.log"));
        let mut out = Out::new(sender, wanted.limit);
        if let Err(error) = send(&path, &wanted, is_running, &mut out)
            && error.kind() != io::ErrorKind::BrokenPipe
        {
            tracing::debug!(%error, log = %path.display(), "a log can't be read");
        }
    });
    let body = StreamBody::new(ReceiverStream::new(chunks));
    Ok(Response::new(body.boxed()))
}

/// The numbers of the runs that have a log, in order.
fn runs(folder: &Path) -> io::Result<Vec<u32>> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut runs = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        runs.extend(
            name.strip_suffix(".log")
                .and_then(|run| run.parse::<u32>().ok()),
        );
    }
    runs.sort_unstable();
    Ok(runs)
}

/// A reader's end: gathers lines into chunks, and says when nobody reads any longer.
struct Out {
    sender: mpsc::Sender<Result<Frame<Bytes>, io::Error>>,
    chunk: Vec<u8>,
    left: Option<u64>,
}

impl Out {
    fn new(sender: mpsc::Sender<Result<Frame<Bytes>, io::Error>>, limit: Option<u64>) -> Self {
        Self {
            sender,
            chunk: Vec::new(),
            left: limit,
        }
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut bytes = bytes;
        if let Some(left) = &mut self.left {
            let most = usize::try_from(*left).unwrap_or(usize::MAX);
            bytes = &bytes[..bytes.len().min(most)];
            *left -= bytes.len() as u64;
        }
        self.chunk.extend_from_slice(bytes);
        if self.left == Some(0) {
            self.flush()?;
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if self.chunk.len() >= CHUNK {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.sender.is_closed() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if self.chunk.is_empty() {
            return Ok(());
        }
        let chunk = Bytes::from(std::mem::take(&mut self.chunk));
        let sent = self.sender.blocking_send(Ok(Frame::data(chunk)));
        sent.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// A line as the log holds it.
struct Line<'a> {
    time: &'a str,
    stream: &'a str,
    whole: bool,
    text: &'a [u8],
}

impl<'a> Line<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut parts = line.splitn(4, |byte| *byte == b' ');
        let mut word = || std::str::from_utf8(parts.next()?).ok();
        let (time, stream, tag) = (word()?, word()?, word()?);
        Some(Self {
            time,
            stream,
            whole: tag == "F",
            text: parts.next()?,
        })
    }

    fn is_wanted(&self, wanted: &Wanted) -> bool {
        let stream = wanted.stream.as_deref();
        let since = wanted.since.is_none_or(|since| {
            let time = self.time.parse::<Timestamp>();
            time.is_ok_and(|time| time >= since)
        });
        since && stream.is_none_or(|stream| stream == self.stream)
    }
}

/// Turns the log's lines into what readers see; a long line comes in parts.
struct Shown {
    timestamps: bool,
    inside: bool,
}

impl Shown {
    fn show(&mut self, line: &Line<'_>, into: &mut Vec<u8>) {
        if self.timestamps && !self.inside {
            into.extend_from_slice(line.time.as_bytes());
            into.push(b' ');
        }
        into.extend_from_slice(line.text);
        if line.whole {
            into.push(b'\n');
        }
        self.inside = !line.whole;
    }
}

/// The files of a run, the oldest first.
fn files(path: &Path) -> Vec<PathBuf> {
    let aged = |age: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{age}"));
        PathBuf::from(name)
    };
    let mut files: Vec<PathBuf> = (1..=MOST_FILES)
        .map(aged)
        .take_while(|file| file.exists())
        .collect();
    files.reverse();
    files.push(path.to_owned());
    files
}

fn send(
    path: &Path,
    wanted: &Wanted,
    is_running: impl Fn() -> bool,
    out: &mut Out,
) -> io::Result<()> {
    let mut shown = Shown {
        timestamps: wanted.timestamps,
        inside: false,
    };
    let mut kept: VecDeque<Vec<u8>> = VecDeque::new();
    let mut last = None;
    for file in files(path) {
        let mut reader = BufReader::new(File::open(file)?);
        let mut line = Vec::new();
        while read_line(&mut reader, &mut line)? {
            let parsed = Line::parse(&line).filter(|line| line.is_wanted(wanted));
            if let Some(parsed) = parsed {
                let begins = !shown.inside;
                let mut text = Vec::new();
                shown.show(&parsed, &mut text);
                match wanted.tail {
                    None => out.put(&text)?,
                    Some(0) => {}
                    Some(tail) => {
                        match kept.back_mut().filter(|_| !begins) {
                            Some(line) => line.extend_from_slice(&text),
                            None => kept.push_back(text),
                        }
                        if kept.len() > tail {
                            kept.pop_front();
                        }
                    }
                }
            }
            line.clear();
        }
        last = Some((reader, line));
    }
    for line in kept {
        out.put(&line)?;
    }
    match last {
        Some((reader, begun)) if wanted.follow => {
            follow(path, wanted, (reader, begun), (&mut shown, out), is_running)
        }
        _ => out.flush(),
    }
}

/// Reads a line with its end taken off; false: it is not whole yet, and stays in `line`.
fn read_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    reader.read_until(b'\n', line)?;
    Ok(line.pop_if(|byte| *byte == b'\n').is_some())
}

/// Shows what is written until the container ends or nobody reads any longer.
fn follow(
    path: &Path,
    wanted: &Wanted,
    (mut reader, mut line): (BufReader<File>, Vec<u8>),
    (shown, out): (&mut Shown, &mut Out),
    is_running: impl Fn() -> bool,
) -> io::Result<()> {
    loop {
        // Asked before the file is read: what an ended container wrote is all there.
        let running = is_running();
        while read_line(&mut reader, &mut line)? {
            let parsed = Line::parse(&line).filter(|line| line.is_wanted(wanted));
            if let Some(parsed) = parsed {
                let mut text = Vec::new();
                shown.show(&parsed, &mut text);
                out.put(&text)?;
            }
            line.clear();
        }
        out.flush()?;
        let now = std::fs::metadata(path);
        let replaced = now.is_ok_and(|now| {
            let open = reader.get_ref().metadata();
            open.is_ok_and(|open| open.ino() != now.ino())
        });
        if replaced {
            reader = BufReader::new(File::open(path)?);
            continue;
        }
        if !running {
            return Ok(());
        }
        std::thread::sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "2026-01-01T00:00:00Z stdout F one\n2026-01-01T00:00:01Z stdout P tw\n\
                       2026-01-01T00:00:01Z stdout F o\n2026-01-01T00:00:02Z stderr F three\n";

    fn shown(change: impl FnOnce(&mut Wanted)) -> String {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("0.log");
        std::fs::write(&path, LOG).expect("written");
        let mut wanted = Wanted {
            follow: false,
            timestamps: false,
            tail: None,
            since: None,
            limit: None,
            stream: None,
        };
        change(&mut wanted);
        let (sender, mut chunks) = mpsc::channel(100);
        let mut out = Out::new(sender, wanted.limit);
        // A limit ends the reading as a reader's end does.
        send(&path, &wanted, || false, &mut out).ok();
        drop(out);
        let mut text = Vec::new();
        while let Some(chunk) = chunks.blocking_recv() {
            text.extend(chunk.expect("a chunk").into_data().expect("data"));
        }
        String::from_utf8(text).expect("text")
    }

    #[test]
    fn lines_are_shown_as_asked() {
        assert_eq!(shown(|_| {}), "one\ntwo\nthree\n");
        assert_eq!(shown(|wanted| wanted.tail = Some(2)), "two\nthree\n");
        assert_eq!(shown(|wanted| wanted.tail = Some(0)), "");
        assert_eq!(shown(|wanted| wanted.limit = Some(6)), "one\ntw");
        let since = "2026-01-01T00:00:02Z".parse().expect("a time");
        assert_eq!(shown(|wanted| wanted.since = Some(since)), "three\n");
        assert_eq!(
            shown(|wanted| wanted.stream = Some("stderr".to_owned())),
            "three\n"
        );
        let stamped = shown(|wanted| wanted.timestamps = true);
        assert!(stamped.contains("2026-01-01T00:00:01Z two\n"), "{stamped}");
        assert_eq!(shown(|wanted| wanted.follow = true), "one\ntwo\nthree\n");
    }
}
