//! The frames in which an agent and control carry what a command in a container reads and writes, over one upgraded
//! HTTP/1.1 connection: a channel, a length and that many bytes. Channels are those of Kubernetes' remote command protocol
//! (`v5.channel.k8s.io`).

/// What the command reads.
pub const STDIN: u8 = 0;
/// What it prints.
pub const STDOUT: u8 = 1;
/// What it prints of errors.
pub const STDERR: u8 = 2;
/// How it ended: a Status in JSON.
pub const ERROR: u8 = 3;
/// The size of its terminal: `{"Width":80,"Height":24}`.
pub const RESIZE: u8 = 4;
/// The end of the channel that its one byte names.
pub const CLOSE: u8 = 255;

/// The name of the protocol in the Upgrade header.
pub const PROTOCOL: &str = "portolan-frames";

const HEAD: usize = 5;
/// The most bytes of one frame.
pub const LONGEST: usize = 1 << 20;

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// One of the constants of this module.
    pub channel: u8,
    /// What it carries.
    pub payload: Vec<u8>,
}

/// A frame's bytes. The payload is at most [`LONGEST`] bytes long.
pub fn encode(channel: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a frame is short");
    let mut bytes = Vec::with_capacity(HEAD + payload.len());
    bytes.push(channel);
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// A frame that is longer than any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong;

impl std::fmt::Display for TooLong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a frame is longer than {LONGEST} bytes")
    }
}

impl std::error::Error for TooLong {}

/// Takes bytes as they come and gives whole frames.
#[derive(Debug, Default)]
pub struct Decoder(Vec<u8>);

impl Decoder {
    /// Takes bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// The next frame, when it is whole.
    pub fn frame(&mut self) -> Result<Option<Frame>, TooLong> {
        let Some((head, rest)) = self.0.split_at_checked(HEAD) else {
            return Ok(None);
        };
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if length > LONGEST {
            return Err(TooLong);
        }
        let Some(payload) = rest.get(..length) else {
            return Ok(None);
        };
        let frame = Frame {
            channel: head[0],
            payload: payload.to_vec(),
        };
        self.0.drain(..HEAD + length);
        Ok(Some(frame))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_whole_however_they_are_cut() {
        let bytes = [encode(STDOUT, b"hello"), encode(CLOSE, &[STDIN])].concat();
        let mut decoder = Decoder::default();
        let mut frames = Vec::new();
        for byte in bytes {
            decoder.push(&[byte]);
            frames.extend(decoder.frame().expect("short frames"));
        }
        let expected = [(STDOUT, b"hello".to_vec()), (CLOSE, vec![STDIN])];
        let expected = expected.map(|(channel, payload)| Frame { channel, payload });
        assert_eq!(frames, expected);
        decoder.push(&[1, 255, 0, 0, 0]);
        assert_eq!(decoder.frame(), Err(TooLong));
    }
}
