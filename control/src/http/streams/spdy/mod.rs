//! The server's side of SPDY/3.1, as far as Kubernetes' clients use it: streams that the client opens, data both ways,
//! pings, resets. (They neither push nor keep to windows, so neither is done here; what bounds them is TCP.)

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex as Lock, PoisonError};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, ReadHalf};
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;

mod headers;

use headers::{Deflater, Headers, Inflater};

/// What the Upgrade header says.
pub const PROTOCOL: &str = "SPDY/3.1";

/// Bytes of a frame that is read, and of one that is written.
const LONGEST: usize = 1 << 20;
const CHUNK: usize = 32 * 1024;
/// Streams of a connection that are open at a time.
const STREAMS: usize = 1000;
/// Pieces of data, and new streams, that wait for who takes them.
const DEPTH: usize = 16;

const VERSION: u16 = 3;
const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const HEADERS: u16 = 8;
/// The sender says no more on this stream.
const FIN: u8 = 1;
/// "The stream is not processed": there are too many.
const REFUSED: u32 = 3;

/// A stream that the client has opened.
pub struct Stream {
    headers: Headers,
    /// What the client says; ends when it says no more.
    pub input: mpsc::Receiver<Bytes>,
    /// What it is told.
    pub output: Output,
}

impl Stream {
    /// A header of the stream's beginning; "" where it is missing.
    pub fn header(&self, name: &str) -> &str {
        let mut named = self.headers.iter().filter(|(found, _)| found == name);
        named.next().map_or("", |(_, value)| value)
    }
}

/// The server's half of a stream.
#[derive(Clone)]
pub struct Output {
    stream: u32,
    shared: Arc<Shared>,
    /// Cancelled when the client wants no more of it.
    reset: CancellationToken,
}

impl Output {
    /// Says something.
    pub async fn send(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let (chunk, rest) = bytes.split_at(bytes.len().min(CHUNK));
            bytes = rest;
            if self.reset.is_cancelled() {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            self.shared.data(self.stream, 0, chunk).await?;
        }
        Ok(())
    }

    /// Says no more.
    pub async fn finish(&self) -> io::Result<()> {
        if self.reset.is_cancelled() {
            return Ok(());
        }
        self.shared.data(self.stream, FIN, &[]).await?;
        self.shared
            .half_closed(self.stream, |open| &mut open.output);
        Ok(())
    }

    /// Completes when the client has thrown the stream away.
    pub async fn reset(&self) {
        self.reset.cancelled().await;
    }
}

/// A stream that is open, to whoever reads from the client.
struct Open {
    /// Where its data go, until the client says no more.
    input: Option<mpsc::Sender<Bytes>>,
    /// There as long as we may say more.
    output: Option<()>,
    reset: CancellationToken,
}

/// What all streams of a connection share.
struct Shared {
    writing: Mutex<Writing>,
    streams: Lock<HashMap<u32, Open>>,
}

struct Writing {
    to: Box<dyn AsyncWrite + Send + Unpin>,
    deflater: Deflater,
}

impl Shared {
    async fn data(&self, stream: u32, flags: u8, bytes: &[u8]) -> io::Result<()> {
        let mut writing = self.writing.lock().await;
        writing.frame(stream.to_be_bytes(), flags, bytes).await
    }

    async fn control(&self, kind: u16, payload: &[u8]) -> io::Result<()> {
        let mut writing = self.writing.lock().await;
        writing.frame(control_head(kind), 0, payload).await
    }

    /// The order of the frames must be that in which their headers were compressed.
    async fn reply(&self, stream: u32) -> io::Result<()> {
        let mut writing = self.writing.lock().await;
        let block = writing.deflater.write(&[])?;
        let payload = [&stream.to_be_bytes()[..], &block].concat();
        writing.frame(control_head(SYN_REPLY), 0, &payload).await
    }

    fn with<T>(&self, act: impl FnOnce(&mut HashMap<u32, Open>) -> T) -> T {
        act(&mut self.streams.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Notes that one side of a stream says no more, and forgets the stream when the other has said so before.
    fn half_closed<T>(&self, stream: u32, side: impl FnOnce(&mut Open) -> &mut Option<T>) {
        self.with(|streams| {
            let Some(open) = streams.get_mut(&stream) else {
                return;
            };
            *side(open) = None;
            if open.input.is_none() && open.output.is_none() {
                streams.remove(&stream);
            }
        });
    }

    /// Hands a stream's data over.
    async fn take(&self, stream: u32, flags: u8, payload: Vec<u8>) {
        let input = self.with(|streams| streams.get(&stream).and_then(|open| open.input.clone()));
        if let Some(input) = input
            && !payload.is_empty()
            && input.send(payload.into()).await.is_err()
        {
            tracing::trace!(stream, "nobody reads what the client says");
        }
        if flags & FIN != 0 {
            self.half_closed(stream, |open| &mut open.input);
        }
    }

    fn reset(&self, stream: u32) {
        if let Some(open) = self.with(|streams| streams.remove(&stream)) {
            open.reset.cancel();
        }
    }
}

fn control_head(kind: u16) -> [u8; 4] {
    let [high, low] = (VERSION | 0x8000).to_be_bytes();
    let [kind_high, kind_low] = kind.to_be_bytes();
    [high, low, kind_high, kind_low]
}

impl Writing {
    async fn frame(&mut self, head: [u8; 4], flags: u8, payload: &[u8]) -> io::Result<()> {
        let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
        let [_, length @ ..] = length.to_be_bytes();
        let mut frame = Vec::with_capacity(8 + payload.len());
        frame.extend_from_slice(&head);
        frame.push(flags);
        frame.extend_from_slice(&length);
        frame.extend_from_slice(payload);
        self.to.write_all(&frame).await?;
        self.to.flush().await
    }
}

/// A connection over which a client opens streams.
pub struct Connection<R> {
    from: BufReader<R>,
    inflater: Inflater,
    shared: Arc<Shared>,
    opened: mpsc::Sender<Stream>,
}

/// Takes a connection over: [`Connection::run`] must be polled for its streams to go on.
pub fn accept<C>(connection: C) -> io::Result<(Connection<ReadHalf<C>>, mpsc::Receiver<Stream>)>
where
    C: AsyncRead + AsyncWrite + Send + 'static,
{
    let (from, to) = tokio::io::split(connection);
    let (opened, streams) = mpsc::channel(DEPTH);
    let writing = Writing {
        to: Box::new(to),
        deflater: Deflater::new()?,
    };
    let shared = Shared {
        writing: Mutex::new(writing),
        streams: Lock::default(),
    };
    let connection = Connection {
        from: BufReader::new(from),
        inflater: Inflater::default(),
        shared: Arc::new(shared),
        opened,
    };
    Ok((connection, streams))
}

impl<R: AsyncRead + Unpin> Connection<R> {
    /// Reads until the client goes; then all its streams end.
    pub async fn run(mut self) -> io::Result<()> {
        let ended = self.read().await;
        for (_, open) in self.shared.with(std::mem::take) {
            open.reset.cancel();
        }
        ended
    }

    async fn read(&mut self) -> io::Result<()> {
        loop {
            let mut head = [0; 8];
            match self.from.read_exact(&mut head).await {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                read => read?,
            };
            let flags = head[4];
            let length = u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize;
            if length > LONGEST {
                return Err(invalid("a frame is too long"));
            }
            let mut payload = vec![0; length];
            self.from.read_exact(&mut payload).await?;
            let first = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
            if first >> 31 == 0 {
                self.shared.take(first, flags, payload).await;
                continue;
            }
            if first >> 16 & 0x7fff != u32::from(VERSION) {
                return Err(invalid("another version of SPDY"));
            }
            self.control(u16::from_be_bytes([head[2], head[3]]), flags, &payload)
                .await?;
        }
    }

    async fn control(&mut self, kind: u16, flags: u8, payload: &[u8]) -> io::Result<()> {
        match kind {
            SYN_STREAM => self.open(flags, payload).await,
            RST_STREAM => {
                self.shared.reset(number(payload)?);
                Ok(())
            }
            // Odd ones are the client's own, and come back as they are.
            PING if number(payload)? % 2 == 1 => self.shared.control(PING, payload).await,
            HEADERS => {
                // Not needed, but what follows is compressed with their help.
                let block = payload.get(4..).ok_or_else(cut_off)?;
                self.inflater.read(block).map(drop)
            }
            // Settings and windows say nothing to us; after GOAWAY the client hangs up by itself.
            _ => Ok(()),
        }
    }

    async fn open(&mut self, flags: u8, payload: &[u8]) -> io::Result<()> {
        let stream = number(payload)?;
        let headers = self.inflater.read(payload.get(10..).ok_or_else(cut_off)?)?;
        let (sender, input) = mpsc::channel(DEPTH);
        let reset = CancellationToken::new();
        let open = Open {
            input: (flags & FIN == 0).then_some(sender),
            output: Some(()),
            reset: reset.clone(),
        };
        let has_room = self.shared.with(|streams| {
            let has_room = streams.len() < STREAMS && !streams.contains_key(&stream);
            if has_room {
                streams.insert(stream, open);
            }
            has_room
        });
        if !has_room {
            let refusal = [stream.to_be_bytes(), REFUSED.to_be_bytes()].concat();
            return self.shared.control(RST_STREAM, &refusal).await;
        }
        self.shared.reply(stream).await?;
        let output = Output {
            stream,
            shared: self.shared.clone(),
            reset,
        };
        let opened = Stream {
            headers,
            input,
            output,
        };
        // Nobody takes streams any longer: the connection is about to end.
        self.opened
            .send(opened)
            .await
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

fn number(payload: &[u8]) -> io::Result<u32> {
    let first = payload.first_chunk::<4>().ok_or_else(cut_off)?;
    Ok(u32::from_be_bytes(*first) & 0x7fff_ffff)
}

fn cut_off() -> io::Error {
    invalid("a frame is cut off")
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests;
