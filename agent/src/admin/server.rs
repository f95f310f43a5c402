//! The agent's end of the admin socket.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use portolan_dataplane::report::Filter;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
};

use super::{Line, Request, Response, socket_path};

/// No request is longer.
const LONGEST_REQUEST: u64 = 64 << 10;

/// Why an agent can't listen.
#[derive(Debug, thiserror::Error)]
#[error("listen on {path}", path = .path.display())]
pub struct AdminServerError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Where answers come from.
#[async_trait]
pub trait Answers: Send + Sync + 'static {
    /// Answers a request, or says why not.
    async fn answer(&self, request: Request) -> Result<Value, String>;

    /// Watches packets until the receiver is dropped, or says why not.
    async fn watch(&self, filter: Filter) -> Result<mpsc::Receiver<Value>, String>;
}

/// A bound admin socket. The file goes when it is dropped.
pub struct AdminServer {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for AdminServer {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(%error, path = %self.path.display(), "the socket is left behind");
        }
    }
}

impl AdminServer {
    /// Listens in a state directory, in place of the socket that an agent left which was killed. The caller holds the
    /// directory's lock, so that no living agent has it.
    pub fn bind(state_dir: &Path) -> Result<Self, AdminServerError> {
        let path = socket_path(state_dir);
        let draft = path.with_extension("sock.new");
        let bind = || -> io::Result<UnixListener> {
            match fs::remove_file(&draft) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let listener = UnixListener::bind(&draft)?;
            // It is nobody else's before it has its name.
            fs::set_permissions(&draft, Permissions::from_mode(0o600))?;
            fs::rename(&draft, &path)?;
            Ok(listener)
        };
        match bind() {
            Ok(listener) => Ok(Self { listener, path }),
            Err(source) => Err(AdminServerError { path, source }),
        }
    }

    /// Serves for ever.
    pub async fn run(self, answers: Arc<dyn Answers>) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let answers = answers.clone();
                    tokio::spawn(async move {
                        if let Err(error) = serve(stream, &*answers).await {
                            tracing::debug!(%error, "an admin connection broke");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "can't accept an admin connection");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
    }
}

async fn serve(stream: UnixStream, answers: &dyn Answers) -> io::Result<()> {
    let (reading, mut writing) = stream.into_split();
    let mut reader = BufReader::new(reading);
    loop {
        let mut line = Vec::new();
        (&mut reader)
            .take(LONGEST_REQUEST)
            .read_until(b'\n', &mut line)
            .await?;
        if line.is_empty() {
            return Ok(());
        }
        let is_whole = line.ends_with(b"\n");
        let outcome = match serde_json::from_slice::<Line>(&line) {
            Ok(Line::Ask(request)) => answers.answer(request).await,
            Ok(Line::Watch { watch }) => match answers.watch(watch).await {
                Ok(reports) => return pass_on(reports, &mut reader, &mut writing).await,
                Err(message) => Err(message),
            },
            Err(error) => Err(format!("not a request: {error}")),
        };
        respond(&mut writing, outcome).await?;
        if !is_whole {
            return Ok(());
        }
    }
}

async fn respond(writing: &mut OwnedWriteHalf, outcome: Result<Value, String>) -> io::Result<()> {
    let response = match outcome {
        Ok(value) => Response::Ok(value),
        Err(message) => Response::Error(message),
    };
    let mut text = serde_json::to_vec(&response)?;
    text.push(b'\n');
    writing.write_all(&text).await
}

/// Writes reports until there are no more, or the other end says or closes something.
async fn pass_on(
    mut reports: mpsc::Receiver<Value>,
    reader: &mut BufReader<OwnedReadHalf>,
    writing: &mut OwnedWriteHalf,
) -> io::Result<()> {
    respond(writing, Ok(Value::Null)).await?;
    loop {
        tokio::select! {
            report = reports.recv() => match report {
                Some(report) => respond(writing, Ok(report)).await?,
                None => return Ok(()),
            },
            said = reader.fill_buf() => return said.map(drop),
        }
    }
}
