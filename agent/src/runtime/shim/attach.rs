//! People who watch a container's output and type its input while it runs: clients of a socket in its bundle, which
//! speak [`portolan_wire::frames`].
#![forbid(unsafe_code)]

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd},
        unix::net::{UnixListener, UnixStream},
    },
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use portolan_wire::frames::{self, Decoder, Frame};

use super::{
    super::{
        bundle::{Bundle, remove_file},
        log::Stream,
        terminal,
    },
    During as _, ShimError,
    console::Console,
};

/// The container waits for a client that is this far behind.
const FAR_BEHIND: usize = 256 * 1024;
/// And no longer for one that has taken nothing for so long.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long clients may take for the rest when the container has ended.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Input that may wait for the container.
const INPUT: usize = 64 * 1024;
const CHUNK: usize = 16 * 1024;

/// Whoever is attached to a container.
pub struct Attached {
    listener: UnixListener,
    clients: Vec<Client>,
    /// What the container has not read yet.
    input: Vec<u8>,
    /// Whether the container is to read an end once it has read all.
    is_closing: bool,
    once: bool,
}

struct Client {
    socket: UnixStream,
    decoder: Decoder,
    outgoing: Vec<u8>,
    /// When it last took something, or had nothing to take.
    moved: Instant,
    gone: bool,
}

impl Attached {
    /// Listens in a container's bundle. `once`: the first client that closes the container's input closes it for good.
    pub fn listen(bundle: &Bundle, once: bool) -> Result<Attached, ShimError> {
        remove_file(&bundle.attach()).during("remove an old socket")?;
        // Through the folder's descriptor: the names of sockets are short.
        let folder = File::open(bundle.path()).during("open the bundle")?;
        let listener = UnixListener::bind(bundle.attach_in(folder.as_raw_fd()));
        let listener = listener.during("listen for clients")?;
        listener
            .set_nonblocking(true)
            .during("listen for clients")?;
        Ok(Attached {
            listener,
            clients: Vec::new(),
            input: Vec::new(),
            is_closing: false,
            once,
        })
    }

    /// Whether the container may print more.
    pub fn has_room(&self) -> bool {
        let mut clients = self.clients.iter();
        clients.all(|client| client.outgoing.len() < FAR_BEHIND)
    }

    /// How long the shim may sleep.
    pub fn timeout(&self) -> PollTimeout {
        if self
            .clients
            .iter()
            .any(|client| !client.outgoing.is_empty())
        {
            PollTimeout::from(1000_u16)
        } else {
            PollTimeout::NONE
        }
    }

    /// What to poll: new clients, the container's input, each client.
    pub fn polled<'a>(&'a self, console: &'a Console) -> Vec<PollFd<'a>> {
        let mut polled = vec![PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
        if let Some(input) = self.hungry(console) {
            polled.push(PollFd::new(input, PollFlags::POLLOUT));
        }
        for client in &self.clients {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::POLLIN, self.input.len() < INPUT);
            flags.set(PollFlags::POLLOUT, !client.outgoing.is_empty());
            // Without either, one that has gone would wake the shim for nothing.
            if !flags.is_empty() {
                polled.push(PollFd::new(client.socket.as_fd(), flags));
            }
        }
        polled
    }

    fn hungry<'a>(&self, console: &'a Console) -> Option<BorrowedFd<'a>> {
        let input = console.input.as_ref()?;
        (!self.input.is_empty()).then(|| input.as_fd())
    }

    /// Does whatever can be done without waiting.
    pub fn advance(&mut self, console: &mut Console) {
        self.accept();
        for number in 0..self.clients.len() {
            self.listen_to(number, console);
        }
        self.feed(console);
        self.send();
    }

    fn accept(&mut self) {
        while let Ok((socket, _)) = self.listener.accept() {
            if let Err(error) = socket.set_nonblocking(true) {
                eprintln!("shim: cannot take a client: {error}");
                continue;
            }
            self.clients.push(Client {
                socket,
                decoder: Decoder::default(),
                outgoing: Vec::new(),
                moved: Instant::now(),
                gone: false,
            });
        }
    }

    fn listen_to(&mut self, number: usize, console: &Console) {
        let mut chunk = [0; CHUNK];
        while self.input.len() < INPUT {
            let client = &mut self.clients[number];
            match client.socket.read(&mut chunk) {
                Ok(0) => client.gone = true,
                Ok(length) => client.decoder.push(&chunk[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => client.gone = true,
            }
            loop {
                match self.clients[number].decoder.frame() {
                    Ok(Some(frame)) => self.take(&frame, console),
                    Ok(None) => break,
                    Err(_) => self.clients[number].gone = true,
                }
                if self.clients[number].gone {
                    return;
                }
            }
            if self.clients[number].gone {
                return;
            }
        }
    }

    fn take(&mut self, frame: &Frame, console: &Console) {
        match frame.channel {
            frames::STDIN if console.input.is_some() && !self.is_closing => {
                self.input.extend_from_slice(&frame.payload);
            }
            frames::CLOSE if frame.payload == [frames::STDIN] => self.is_closing |= self.once,
            frames::RESIZE => {
                // The agent has refused what is malformed.
                if let (Some(screen), Ok((columns, rows))) =
                    (&console.terminal, terminal::size(&frame.payload))
                    && let Err(error) = screen.resize(columns, rows)
                {
                    eprintln!("shim: cannot resize the terminal: {error}");
                }
            }
            _ => {}
        }
    }

    /// Gives the container what it is to read.
    fn feed(&mut self, console: &mut Console) {
        while let Some(input) = console.input.as_mut().filter(|_| !self.input.is_empty()) {
            match input.write(&self.input) {
                Ok(length) => drop(self.input.drain(..length)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    eprintln!("shim: cannot feed the container: {error}");
                    self.input.clear();
                }
            }
        }
        if self.is_closing && self.input.is_empty() && console.terminal.is_none() {
            console.input = None;
        }
    }

    /// What the container has printed.
    pub fn show(&mut self, stream: Stream, bytes: &[u8]) {
        let channel = match stream {
            Stream::Stdout => frames::STDOUT,
            Stream::Stderr => frames::STDERR,
        };
        for client in &mut self.clients {
            if client.outgoing.is_empty() {
                client.moved = Instant::now();
            }
            client
                .outgoing
                .extend_from_slice(&frames::encode(channel, bytes));
        }
        self.send();
    }

    fn send(&mut self) {
        for client in &mut self.clients {
            client.send();
        }
        self.clients.retain(|client| !client.gone);
    }

    /// Gives clients the rest of what they have not taken yet.
    pub fn finish(mut self) {
        let deadline = Instant::now() + LAST_WORDS;
        loop {
            self.send();
            self.clients.retain(|client| !client.outgoing.is_empty());
            let left = deadline.saturating_duration_since(Instant::now());
            if self.clients.is_empty() || left.is_zero() {
                return;
            }
            let each = self.clients.iter();
            let mut polled: Vec<PollFd<'_>> = each
                .map(|client| PollFd::new(client.socket.as_fd(), PollFlags::POLLOUT))
                .collect();
            let millis = u16::try_from(left.as_millis()).unwrap_or(u16::MAX);
            if let Err(error) = poll(&mut polled, PollTimeout::from(millis)) {
                eprintln!("shim: cannot wait for clients: {error}");
                return;
            }
        }
    }
}

impl Client {
    fn send(&mut self) {
        while !self.outgoing.is_empty() && !self.gone {
            match self.socket.write(&self.outgoing) {
                Ok(length) => {
                    self.outgoing.drain(..length);
                    self.moved = Instant::now();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.gone = self.moved.elapsed() > PATIENCE;
                    return;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.gone = true,
            }
        }
    }
}
