//! A client by hand against the server's side.

use tokio::io::DuplexStream;

use super::*;

/// A client's end of a connection.
struct Client {
    io: DuplexStream,
    deflater: Deflater,
    inflater: Inflater,
}

impl Client {
    async fn send(&mut self, head: [u8; 4], flags: u8, payload: &[u8]) {
        let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
        let frame = [&head[..], &[flags], &length[1..], payload].concat();
        self.io.write_all(&frame).await.expect("written");
    }

    async fn open(&mut self, stream: u32, headers: &[(&str, &str)]) {
        let block = self.deflater.write(headers).expect("a block");
        let payload = [&stream.to_be_bytes()[..], &[0; 6], &block].concat();
        self.send(control_head(SYN_STREAM), 0, &payload).await;
    }

    /// The head's first four bytes, the flags and the payload of the next frame.
    async fn next(&mut self) -> ([u8; 4], u8, Vec<u8>) {
        let mut head = [0; 8];
        self.io.read_exact(&mut head).await.expect("a frame");
        let length = u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize;
        let mut payload = vec![0; length];
        self.io.read_exact(&mut payload).await.expect("a payload");
        ([head[0], head[1], head[2], head[3]], head[4], payload)
    }

    async fn reply(&mut self) -> u32 {
        let (head, _, payload) = self.next().await;
        assert_eq!(head, control_head(SYN_REPLY));
        let headers = self.inflater.read(&payload[4..]).expect("a block");
        assert_eq!(headers, []);
        number(&payload).expect("a number")
    }
}

fn pair() -> (
    Client,
    mpsc::Receiver<Stream>,
    tokio::task::JoinHandle<io::Result<()>>,
) {
    let (io, server) = tokio::io::duplex(1 << 16);
    let (connection, streams) = accept(server).expect("a connection");
    let client = Client {
        io,
        deflater: Deflater::new().expect("a dictionary"),
        inflater: Inflater::default(),
    };
    (client, streams, tokio::spawn(connection.run()))
}

#[tokio::test]
async fn streams_carry_data_both_ways_and_end_each_way() {
    let (mut client, mut streams, running) = pair();
    client
        .open(1, &[("streamtype", "data"), ("port", "80")])
        .await;
    client.open(3, &[("streamtype", "error")]).await;
    assert_eq!((client.reply().await, client.reply().await), (1, 3));
    let mut data = streams.recv().await.expect("a stream");
    assert_eq!((data.header("port"), data.header("other")), ("80", ""));
    let error = streams.recv().await.expect("a stream");
    assert_eq!(error.header("streamtype"), "error");
    client.send(1_u32.to_be_bytes(), 0, b"question").await;
    client.send(1_u32.to_be_bytes(), FIN, &[]).await;
    assert_eq!(data.input.recv().await.as_deref(), Some(&b"question"[..]));
    assert_eq!(data.input.recv().await, None);
    data.output.send(b"answer").await.expect("sent");
    data.output.finish().await.expect("ended");
    assert_eq!(
        client.next().await,
        (1_u32.to_be_bytes(), 0, b"answer".to_vec())
    );
    assert_eq!(client.next().await, (1_u32.to_be_bytes(), FIN, Vec::new()));
    drop(client);
    running.await.expect("no panic").expect("a plain end");
    error.output.reset().await;
}

#[tokio::test]
async fn pings_come_back_and_resets_end_a_stream() {
    let (mut client, mut streams, _running) = pair();
    client.send(control_head(PING), 0, &[0, 0, 0, 7]).await;
    assert_eq!(
        client.next().await,
        (control_head(PING), 0, vec![0, 0, 0, 7])
    );
    client.open(1, &[]).await;
    client.reply().await;
    let mut stream = streams.recv().await.expect("a stream");
    client
        .send(control_head(RST_STREAM), 0, &[0, 0, 0, 1, 0, 0, 0, 5])
        .await;
    stream.output.reset().await;
    assert_eq!(stream.input.recv().await, None);
    stream.output.send(b"too late").await.expect_err("reset");
    // Its number is not taken a second time while it is in use, but may be after a reset.
    client.open(3, &[]).await;
    client.reply().await;
    client.open(3, &[]).await;
    let (head, _, payload) = client.next().await;
    assert_eq!(
        (head, payload),
        (control_head(RST_STREAM), vec![0, 0, 0, 3, 0, 0, 0, 3])
    );
}

#[tokio::test]
async fn what_is_no_spdy_ends_the_connection() {
    let cut_off = [0x80, 3, 0, 1, 0, 0, 0, 2, 0, 0];
    let too_long = [0, 0, 0, 1, 0, 0xff, 0xff, 0xff];
    let other_version = [0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1];
    for bytes in [&cut_off[..], &too_long, &other_version] {
        let (mut client, _streams, running) = pair();
        client.io.write_all(bytes).await.expect("written");
        running.await.expect("no panic").expect_err("refused");
    }
}
