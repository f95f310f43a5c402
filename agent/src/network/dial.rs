//! Connections from inside of a pod's network.

#![forbid(unsafe_code)]

use std::{io, net::TcpStream, path::Path};

use super::{NetworkError, netns};

/// Connects to a port of localhost in the namespace held at `netns`, or in the node's own. The socket does not block.
pub fn localhost(netns: Option<&Path>, port: u16) -> Result<TcpStream, NetworkError> {
    let dial = || {
        let connected = TcpStream::connect(("127.0.0.1", port))
            .or_else(|error| TcpStream::connect(("::1", port)).map_err(|_| error));
        connected
            .and_then(|stream| stream.set_nonblocking(true).map(|()| stream))
            .map_err(NetworkError::new::<io::Error>(
                "connect to",
                format!("localhost:{port}"),
            ))
    };
    match netns {
        Some(netns) => netns::within(netns, dial),
        None => dial(),
    }
}
