//! Commands in running containers: started through the shim, as restricted as their container, with what they read and
//! print carried in frames.

use std::{
    io,
    process::{ExitStatus, Stdio},
    sync::Arc,
};

use http::{Request, Response};
use hyper::{body::Incoming, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use portolan_wire::frames::{self, Decoder, Frame};
use serde_json::{Value, json};
use tokio::{
    fs::File,
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf},
    process::{Child, Command},
    sync::mpsc,
    task::JoinSet,
};

use super::{Body, Node, Query, Refusal, switching};
use crate::runtime::{
    bundle::Bundle,
    terminal::{Terminal, size},
};

/// Bytes read at once.
const CHUNK: usize = 32 * 1024;
/// Frames that wait for a slow reader.
const DEPTH: usize = 8;
/// What the shim returns when the command could not be started.
const NOT_STARTED: i32 = 126;

/// What is asked for.
struct Asked {
    command: Vec<String>,
    stdin: bool,
    tty: bool,
}

/// Answers 101 and runs the command, or says why not.
pub fn answer(
    node: &Arc<Node>,
    uid: &str,
    container: &str,
    query: &Query,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Refusal> {
    let asked = Asked {
        command: query.all("command").map(str::to_owned).collect(),
        stdin: query.flag("stdin"),
        tty: query.flag("tty"),
    };
    if asked.command.is_empty() {
        return Err(Refusal::bad_request("you must specify at least 1 command"));
    }
    let bundle = node.running(uid, container)?;
    let upgrade = hyper::upgrade::on(&mut request);
    let node = Arc::clone(node);
    tokio::spawn(async move {
        let Ok(upgraded) = upgrade.await else {
            return;
        };
        if let Err(error) = run(&node, &bundle, &asked, upgraded).await {
            tracing::debug!(%error, "a command's connection broke");
        }
    });
    Ok(switching(frames::PROTOCOL))
}

async fn run(node: &Node, bundle: &Bundle, asked: &Asked, upgraded: Upgraded) -> io::Result<()> {
    let (reading, mut writing) = tokio::io::split(TokioIo::new(upgraded));
    let (sender, mut outgoing) = mpsc::channel::<Vec<u8>>(DEPTH);
    let refusal = tempfile::NamedTempFile::new()?;
    let mut command = Command::new(node.launcher.executable());
    command
        .args(["shim", "exec", "--refusal"])
        .arg(refusal.path());
    if asked.tty {
        command.arg("--tty");
    }
    command
        .arg("--")
        .arg(bundle.path())
        .args(&asked.command)
        .env_clear()
        .current_dir("/")
        .kill_on_drop(true);
    let (mut child, input, mut pumps) = start(command, asked, &sender)?;
    drop(sender);
    let incoming = tokio::spawn(take_input(reading, input));
    let sending = async {
        while let Some(bytes) = outgoing.recv().await {
            writing.write_all(&bytes).await?;
        }
        io::Result::Ok(())
    };
    let status = tokio::select! {
        sent = async { tokio::join!(sending, child.wait()) } => {
            sent.0?;
            sent.1?
        }
        // Nobody listens any longer, or says what can't be understood: dropped, the command is killed.
        gone = gone(incoming) => return match gone {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                end(&mut writing, &misunderstood(&error)).await
            }
            gone => gone,
        },
    };
    while pumps.join_next().await.is_some() {}
    let told = end_of(status, &std::fs::read_to_string(refusal.path())?);
    end(&mut writing, &told).await
}

/// Says how it ended, and ends the connection.
pub async fn end(writing: &mut (impl AsyncWrite + Unpin), status: &Value) -> io::Result<()> {
    let end = frames::encode(frames::ERROR, status.to_string().as_bytes());
    writing.write_all(&end).await?;
    writing.shutdown().await
}

/// What a client is told that breaks the protocol.
pub fn misunderstood(error: &io::Error) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {},
        "status": "Failure", "reason": "BadRequest", "code": 400, "message": error.to_string(),
    })
}

/// Completes when the other end has gone. That it says no more is not yet that.
async fn gone(incoming: tokio::task::JoinHandle<io::Result<()>>) -> io::Result<()> {
    incoming.await.map_err(io::Error::other)?
}

/// Where input and sizes go.
enum Input {
    Pipe(Option<tokio::process::ChildStdin>),
    Terminal {
        terminal: Terminal,
        /// What is typed.
        keyboard: File,
    },
}

type Started = (Child, Input, JoinSet<()>);

fn start(
    mut command: Command,
    asked: &Asked,
    sender: &mpsc::Sender<Vec<u8>>,
) -> io::Result<Started> {
    let mut pumps = JoinSet::new();
    if asked.tty {
        let (terminal, slave) = Terminal::open()?;
        command
            .stdin(slave.try_clone()?)
            .stdout(slave.try_clone()?)
            .stderr(slave);
        let child = command.spawn()?;
        // The command's own copies hold the terminal open, these would for ever.
        drop(command);
        let screen = File::from_std(terminal.duplicate()?);
        pumps.spawn(pump(frames::STDOUT, screen, sender.clone()));
        let keyboard = File::from_std(terminal.duplicate()?);
        return Ok((child, Input::Terminal { terminal, keyboard }, pumps));
    }
    let stdin = if asked.stdin {
        Stdio::piped()
    } else {
        Stdio::null()
    };
    command
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn()?;
    if let Some(stdout) = child.stdout.take() {
        pumps.spawn(pump(frames::STDOUT, stdout, sender.clone()));
    }
    if let Some(stderr) = child.stderr.take() {
        pumps.spawn(pump(frames::STDERR, stderr, sender.clone()));
    }
    let input = Input::Pipe(child.stdin.take());
    Ok((child, input, pumps))
}

/// Sends what a command prints.
async fn pump(channel: u8, mut from: impl AsyncRead + Unpin, to: mpsc::Sender<Vec<u8>>) {
    let mut chunk = vec![0; CHUNK];
    loop {
        match from.read(&mut chunk).await {
            Ok(0) => return,
            Ok(length) => {
                let frame = frames::encode(channel, &chunk[..length]);
                if to.send(frame).await.is_err() {
                    return;
                }
            }
            // A terminal whose last user is gone says so with an error.
            Err(error) => {
                tracing::debug!(%error, "a command's output has ended");
                return;
            }
        }
    }
}

/// Gives the command what it is to read, until the connection ends.
async fn take_input(mut from: ReadHalf<TokioIo<Upgraded>>, mut input: Input) -> io::Result<()> {
    let mut decoder = Decoder::default();
    let mut chunk = vec![0; CHUNK];
    loop {
        let length = from.read(&mut chunk).await?;
        if length == 0 {
            return Ok(());
        }
        decoder.push(&chunk[..length]);
        let broken = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        while let Some(frame) = decoder.frame().map_err(broken)? {
            input.take(frame).await?;
        }
    }
}

impl Input {
    async fn take(&mut self, frame: Frame) -> io::Result<()> {
        let Frame { channel, payload } = frame;
        match (channel, self) {
            (frames::STDIN, Self::Pipe(Some(stdin))) => feed(stdin, &payload).await,
            (frames::STDIN, Self::Terminal { keyboard, .. }) => feed(keyboard, &payload).await,
            (frames::CLOSE, Self::Pipe(stdin)) if payload == [frames::STDIN] => {
                *stdin = None;
                Ok(())
            }
            (frames::RESIZE, Self::Terminal { terminal, .. }) => {
                let (columns, rows) = size(&payload)?;
                terminal.resize(columns, rows)
            }
            _ => Ok(()),
        }
    }
}

/// A command that reads no more misses nothing.
async fn feed(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    let written = match to.write_all(bytes).await {
        Ok(()) => to.flush().await,
        failed => failed,
    };
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// How a command ended, as a Status.
fn end_of(status: ExitStatus, refusal: &str) -> Value {
    let code = status.code().unwrap_or(255);
    if code == NOT_STARTED && !refusal.is_empty() {
        return json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {},
            "status": "Failure", "reason": "InternalError", "code": 500,
            "message": format!("Internal error occurred: error executing command in container: {refusal}"),
        });
    }
    if code == 0 {
        return json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"});
    }
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {},
        "status": "Failure", "reason": "NonZeroExitCode",
        "message": format!("command terminated with non-zero exit code: exit status {code}"),
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn ends_are_told_as_kubernetes_tells_them() {
        let end = |code: i32, refusal: &str| end_of(ExitStatus::from_raw(code << 8), refusal);
        assert_eq!(end(0, "")["status"], "Success");
        assert_eq!(end(3, "")["details"]["causes"][0]["message"], "3");
        assert_eq!(end(126, "")["reason"], "NonZeroExitCode");
        let refused = end(126, "exec: \"x\": executable file not found in $PATH");
        assert_eq!(refused["reason"], "InternalError");
    }
}
