//! The agent's end of the admin socket.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
};

use super::{Request, Response, socket_path};

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
        let response = match serde_json::from_slice::<Request>(&line) {
            Ok(request) => match answers.answer(request).await {
                Ok(value) => Response::Ok(value),
                Err(message) => Response::Error(message),
            },
            Err(error) => Response::Error(format!("not a request: {error}")),
        };
        let mut text = serde_json::to_vec(&response)?;
        text.push(b'\n');
        writing.write_all(&text).await?;
        if !is_whole {
            return Ok(());
        }
    }
}
