//! The server's side of WebSockets (RFC 6455), as far as Kubernetes' clients use them: binary messages, pings, the end.

use std::io;

use axum::body::Body;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderMap, HeaderName, HeaderValue, Response, header};
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf,
};
use tokio::sync::Mutex;

use super::{switching, text};

/// Which protocol is spoken inside.
pub const PROTOCOL: HeaderName = header::SEC_WEBSOCKET_PROTOCOL;
/// What every server appends to the key.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Bytes of one message.
const LONGEST: u64 = 1 << 20;

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
/// The last frame of a message.
const FINAL: u8 = 0x80;
/// Bytes of a tunnel that wait for who reads them.
const TUNNEL: usize = 64 * 1024;
/// "Normal closure".
const NORMAL: u16 = 1000;

/// The key of a request for a WebSocket, if it is one.
pub fn key(headers: &HeaderMap) -> Option<&str> {
    let key = text(headers, header::SEC_WEBSOCKET_KEY);
    let asked = text(headers, header::UPGRADE).eq_ignore_ascii_case("websocket");
    (asked && !key.is_empty()).then_some(key)
}

/// 101 for a key.
pub fn accepted(key: &str) -> Response<Body> {
    let mut response = switching("websocket");
    let proof = HeaderValue::from_str(&proof(key)).expect("base64 can stand in a header");
    let headers = response.headers_mut();
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, proof);
    response
}

fn proof(key: &str) -> String {
    // No secret depends on it: the RFC says SHA-1.
    let algorithm = &ring::digest::SHA1_FOR_LEGACY_USE_ONLY;
    let digest = ring::digest::digest(algorithm, format!("{key}{GUID}").as_bytes());
    BASE64_STANDARD.encode(digest)
}

/// Both sides of a connection.
pub fn split<C: AsyncRead + AsyncWrite>(
    connection: C,
) -> (Reader<ReadHalf<C>>, Writer<WriteHalf<C>>) {
    let (reading, writing) = tokio::io::split(connection);
    (Reader::new(reading), Writer::new(writing))
}

/// Carries a stream of bytes in messages; both must be polled, the future ends with either side.
pub fn tunnel<C: AsyncRead + AsyncWrite>(
    connection: C,
) -> (impl Future<Output = io::Result<()>>, DuplexStream) {
    let (inner, outer) = tokio::io::duplex(TUNNEL);
    let carry = async move {
        let (mut reading, writing) = split(connection);
        let (mut from_inner, mut to_inner) = tokio::io::split(outer);
        let inward = async {
            while let Some(message) = reading.next().await? {
                match message {
                    Message::Data(data) => to_inner.write_all(&data).await?,
                    Message::Ping(payload) => writing.pong(&payload).await?,
                }
            }
            to_inner.shutdown().await
        };
        let outward = async {
            let mut chunk = vec![0; TUNNEL];
            loop {
                let length = from_inner.read(&mut chunk).await?;
                if length == 0 {
                    return writing.close().await;
                }
                writing.data(&chunk[..length]).await?;
            }
        };
        tokio::select! {
            done = inward => done,
            done = outward => done,
        }
    };
    (carry, inner)
}

/// What a client sends.
#[derive(Debug, PartialEq, Eq)]
pub enum Message {
    /// A message.
    Data(Vec<u8>),
    /// A question whether we live.
    Ping(Vec<u8>),
}

/// Reads messages.
pub struct Reader<R> {
    from: R,
    /// The frames so far of a message that is not whole.
    begun: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    /// Of a connection.
    pub fn new(from: R) -> Self {
        Self {
            from,
            begun: Vec::new(),
        }
    }

    /// The next message; `None` at the end.
    pub async fn next(&mut self) -> io::Result<Option<Message>> {
        loop {
            let Ok(first) = self.from.read_u8().await else {
                return Ok(None);
            };
            let payload = self.payload().await?;
            match first & 0x0f {
                TEXT | BINARY | CONTINUATION => {
                    self.begun.extend_from_slice(&payload);
                    if self.begun.len() as u64 > LONGEST {
                        return Err(too_long());
                    }
                    if first & FINAL != 0 {
                        return Ok(Some(Message::Data(std::mem::take(&mut self.begun))));
                    }
                }
                PING => return Ok(Some(Message::Ping(payload))),
                PONG => {}
                CLOSE => return Ok(None),
                _ => return Err(io::Error::from(io::ErrorKind::InvalidData)),
            }
        }
    }

    async fn payload(&mut self) -> io::Result<Vec<u8>> {
        let second = self.from.read_u8().await?;
        let length = match second & 0x7f {
            126 => u64::from(self.from.read_u16().await?),
            127 => self.from.read_u64().await?,
            short => u64::from(short),
        };
        if length > LONGEST {
            return Err(too_long());
        }
        // Clients must mask what they send.
        if second & 0x80 == 0 {
            return Err(io::Error::from(io::ErrorKind::InvalidData));
        }
        let mut mask = [0; 4];
        self.from.read_exact(&mut mask).await?;
        let mut payload = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        self.from.read_exact(&mut payload).await?;
        for (byte, mask) in payload.iter_mut().zip(mask.iter().cycle()) {
            *byte ^= mask;
        }
        Ok(payload)
    }
}

fn too_long() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a message is too long")
}

/// Writes messages.
pub struct Writer<W>(Mutex<W>);

impl<W: AsyncWrite + Unpin> Writer<W> {
    /// To a connection.
    pub fn new(to: W) -> Self {
        Self(Mutex::new(to))
    }

    async fn frame(&self, kind: u8, payload: &[u8]) -> io::Result<()> {
        let mut frame = Vec::with_capacity(payload.len() + 10);
        frame.push(FINAL | kind);
        match payload.len() {
            short @ ..126 => frame.push(u8::try_from(short).unwrap_or(0)),
            length => {
                if let Ok(length) = u16::try_from(length) {
                    frame.push(126);
                    frame.extend_from_slice(&length.to_be_bytes());
                } else {
                    frame.push(127);
                    frame.extend_from_slice(&(length as u64).to_be_bytes());
                }
            }
        }
        frame.extend_from_slice(payload);
        let mut to = self.0.lock().await;
        to.write_all(&frame).await?;
        to.flush().await
    }

    /// Sends a message.
    pub async fn data(&self, payload: &[u8]) -> io::Result<()> {
        self.frame(BINARY, payload).await
    }

    /// Answers a ping.
    pub async fn pong(&self, payload: &[u8]) -> io::Result<()> {
        self.frame(PONG, payload).await
    }

    /// Ends the connection.
    pub async fn close(&self) -> io::Result<()> {
        self.frame(CLOSE, &NORMAL.to_be_bytes()).await?;
        self.0.lock().await.shutdown().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proof_is_the_rfcs() {
        assert_eq!(
            proof("dGhlIHNhbXBsZSBub25jZQ=="),
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
    }

    #[tokio::test]
    async fn messages_are_unmasked_and_put_together() {
        // "Hello" of RFC 6455, 5.7, as one frame; then as two with a ping in between.
        let whole = [
            0x82, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58,
        ];
        let parts = [
            &[0x02, 0x82, 0, 0, 0, 0, b'H', b'e'][..],
            &[0x89, 0x81, 0, 0, 0, 0, b'?'],
            &[0x80, 0x83, 0, 0, 0, 0, b'l', b'l', b'o'],
            &[0x88, 0x80, 0, 0, 0, 0],
        ];
        let bytes = [&whole[..], &parts.concat()].concat();
        let mut reader = Reader::new(bytes.as_slice());
        let hello = || Some(Message::Data(b"Hello".to_vec()));
        assert_eq!(reader.next().await.expect("fine"), hello());
        let ping = Some(Message::Ping(b"?".to_vec()));
        assert_eq!(reader.next().await.expect("fine"), ping);
        assert_eq!(reader.next().await.expect("fine"), hello());
        assert_eq!(reader.next().await.expect("fine"), None);
    }

    #[tokio::test]
    async fn unmasked_and_endless_messages_are_refused() {
        let unmasked = [0x82, 0x01, b'x'];
        let endless = [0x82, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0];
        for bytes in [&unmasked[..], &endless] {
            Reader::new(bytes).next().await.expect_err("refused");
        }
    }

    #[tokio::test]
    async fn long_messages_have_long_lengths() {
        for (length, head) in [
            (5, vec![0x82, 5]),
            (300, vec![0x82, 126, 1, 44]),
            (70_000, vec![0x82, 127, 0, 0, 0, 0, 0, 1, 17, 112]),
        ] {
            let mut written = Vec::new();
            Writer::new(&mut written)
                .data(&vec![7; length])
                .await
                .expect("written");
            assert_eq!(written[..head.len()], head);
            assert_eq!(written.len(), head.len() + length);
        }
    }
}
