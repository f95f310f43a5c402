//! The command line's end of the admin socket.

use std::{
    io::{self, BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use portolan_dataplane::report::Filter;
use serde_json::Value;

use super::{Line, Request, Response, socket_path};

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
    let mut answers = converse(state_dir, &Line::Ask(request))?;
    answers.set_timeout(Some(TIMEOUT))?;
    answers.next()
}

/// Has a running agent watch packets; calls `each` with every report until that says "no more".
pub fn follow(
    state_dir: &Path,
    watch: Filter,
    mut each: impl FnMut(Value) -> bool,
) -> Result<(), AdminClientError> {
    let mut answers = converse(state_dir, &Line::Watch { watch })?;
    // The first says that it has begun, or why not.
    answers.next()?;
    while each(answers.next()?) {}
    Ok(())
}

/// A connection to an agent that has been asked something.
struct Answers<'a> {
    state_dir: &'a Path,
    stream: BufReader<UnixStream>,
}

impl Answers<'_> {
    fn set_timeout(&self, timeout: Option<Duration>) -> Result<(), AdminClientError> {
        let set = self.stream.get_ref().set_read_timeout(timeout);
        set.map_err(|source| broken(self.state_dir, source))
    }

    fn next(&mut self) -> Result<Value, AdminClientError> {
        let response = self
            .read()
            .map_err(|source| broken(self.state_dir, source))?;
        match response {
            Response::Ok(value) => Ok(value),
            Response::Error(message) => Err(AdminClientError::Refused(message)),
        }
    }

    fn read(&mut self) -> io::Result<Response> {
        let mut answer = String::new();
        self.stream.read_line(&mut answer)?;
        if answer.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_str(&answer)?)
    }
}

fn converse<'a>(state_dir: &'a Path, line: &Line) -> Result<Answers<'a>, AdminClientError> {
    let say = || -> io::Result<UnixStream> {
        let mut stream = UnixStream::connect(socket_path(state_dir))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        stream.write_all(&text)?;
        Ok(stream)
    };
    let stream = say().map_err(|source| broken(state_dir, source))?;
    Ok(Answers {
        state_dir,
        stream: BufReader::new(stream),
    })
}

fn broken(state_dir: &Path, source: io::Error) -> AdminClientError {
    match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            AdminClientError::NotRunning(state_dir.to_owned())
        }
        io::ErrorKind::PermissionDenied => AdminClientError::NotPermitted(state_dir.to_owned()),
        _ => AdminClientError::Broken {
            state_dir: state_dir.to_owned(),
            source,
        },
    }
}
