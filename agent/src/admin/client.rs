//! The command line's end of the admin socket.

use std::{
    io::{self, BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;

use super::{Request, Response, socket_path};

/// Long enough for a million flows.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AdminClientError {
    /// Nobody listens.
    #[error("no agent is running on {state_dir}", state_dir = .0.display())]
    NotRunning(PathBuf),
    /// The socket is not for the caller.
    #[error("only root may talk to the agent on {state_dir}", state_dir = .0.display())]
    NotPermitted(PathBuf),
    /// The connection broke.
    #[error("talk to the agent on {state_dir}", state_dir = .state_dir.display())]
    Broken {
        /// The agent's state directory.
        state_dir: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The agent could not answer.
    #[error("the agent answers: {0}")]
    Refused(String),
}

/// Asks a running agent.
pub fn ask(state_dir: &Path, request: Request) -> Result<Value, AdminClientError> {
    let broken = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            AdminClientError::NotRunning(state_dir.to_owned())
        }
        io::ErrorKind::PermissionDenied => AdminClientError::NotPermitted(state_dir.to_owned()),
        _ => AdminClientError::Broken {
            state_dir: state_dir.to_owned(),
            source,
        },
    };
    match exchange(&socket_path(state_dir), request).map_err(broken)? {
        Response::Ok(value) => Ok(value),
        Response::Error(message) => Err(AdminClientError::Refused(message)),
    }
}

fn exchange(path: &Path, request: Request) -> io::Result<Response> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut text = serde_json::to_vec(&request)?;
    text.push(b'\n');
    stream.write_all(&text)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    if answer.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_str(&answer)?)
}
