//! People at containers: input, output and terminals through a container's shim. Needs root.

mod support;

use std::{os::fd::AsRawFd as _, time::Duration};

use portolan_agent::runtime::terminal::Terminal;
use portolan_wire::frames::{self, Decoder};
use serde_json::json;
use support::{Node, end, first, script};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// A client of a container's shim.
struct Client {
    socket: tokio::net::UnixStream,
    decoder: Decoder,
    shown: String,
}

impl Client {
    async fn attach(node: &Node, uid: &str) -> Client {
        let folder = std::fs::File::open(&node.bundles(uid)[0]).expect("the bundle");
        let path = format!("/proc/self/fd/{}/attach", folder.as_raw_fd());
        Client {
            socket: tokio::net::UnixStream::connect(path)
                .await
                .expect("the shim"),
            decoder: Decoder::default(),
            shown: String::new(),
        }
    }

    async fn send(&mut self, channel: u8, payload: &[u8]) {
        let frame = frames::encode(channel, payload);
        self.socket
            .write_all(&frame)
            .await
            .expect("the shim listens");
    }

    /// Reads on until `text` is shown; `None`: until the end.
    async fn read_to(&mut self, text: Option<&str>) {
        let reading = async {
            let mut chunk = [0; 4096];
            while text.is_none_or(|text| !self.shown.contains(text)) {
                let length = self.socket.read(&mut chunk).await.expect("the shim");
                if length == 0 {
                    assert_eq!(text, None, "shown: {}", self.shown);
                    return;
                }
                self.decoder.push(&chunk[..length]);
                while let Some(frame) = self.decoder.frame().expect("short frames") {
                    self.shown
                        .push_str(&String::from_utf8_lossy(&frame.payload));
                }
            }
        };
        let read = tokio::time::timeout(Duration::from_secs(30), reading).await;
        assert!(read.is_ok(), "never {text:?}: {}", self.shown);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attached_client_types_and_reads_and_its_end_ends_the_input() {
    let node = Node::new().await;
    let mut spec = script("echo up; while read line; do echo got $line; done; echo over; wc -c");
    spec["containers"][0]["stdin"] = json!(true);
    spec["containers"][0]["stdinOnce"] = json!(true);
    let uid = node.run(spec).await;
    node.logged(&uid, "c", "up").await;
    let mut watching = Client::attach(&node, &uid).await;
    let mut typing = Client::attach(&node, &uid).await;
    typing.send(frames::STDIN, b"one\n").await;
    typing.read_to(Some("got one\n")).await;
    watching.read_to(Some("got one\n")).await;
    typing.send(frames::STDIN, b"two\n").await;
    typing.send(frames::CLOSE, &[frames::STDIN]).await;
    typing.read_to(None).await;
    assert_eq!(typing.shown, "got one\ngot two\nover\n0\n");
    node.phase(&uid, "Succeeded").await;
    assert_eq!(node.log(&uid, "c", 0), "up\ngot one\ngot two\nover\n0\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn large_input_and_output_pass_an_attached_client_whole() {
    let node = Node::new().await;
    let mut spec = script("echo up; cat");
    spec["containers"][0]["stdin"] = json!(true);
    spec["containers"][0]["stdinOnce"] = json!(true);
    let uid = node.run(spec).await;
    node.logged(&uid, "c", "up").await;
    let mut client = Client::attach(&node, &uid).await;
    let all = "0123456789abcde\n".repeat(1 << 16);
    let (mut reading, mut writing) = client.socket.into_split();
    let sent = all.clone();
    let sending = tokio::spawn(async move {
        for part in sent.as_bytes().chunks(50_000) {
            let frame = frames::encode(frames::STDIN, part);
            writing.write_all(&frame).await.expect("the shim listens");
        }
        let end = frames::encode(frames::CLOSE, &[frames::STDIN]);
        writing.write_all(&end).await.expect("the shim listens");
        writing
    });
    let mut bytes = Vec::new();
    let read = reading.read_to_end(&mut bytes);
    let read = tokio::time::timeout(Duration::from_secs(30), read).await;
    read.expect("in time").expect("the shim's end");
    drop(sending.await.expect("all is sent"));
    client.decoder.push(&bytes);
    let mut shown = Vec::new();
    while let Some(frame) = client.decoder.frame().expect("short frames") {
        shown.extend(frame.payload);
    }
    assert_eq!(shown.len(), all.len());
    assert!(shown == all.as_bytes(), "nothing is changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn terminal_has_a_size_and_passes_control_characters_on() {
    let node = Node::new().await;
    let mut spec = script(
        "echo up; trap 'echo interrupted; exit 3' INT; while true; do read -t 1 line; stty size; done",
    );
    spec["securityContext"] = json!({ "runAsUser": 1000 });
    spec["containers"][0]["stdin"] = json!(true);
    spec["containers"][0]["tty"] = json!(true);
    let uid = node.run(spec).await;
    node.logged(&uid, "c", "up").await;
    let mut client = Client::attach(&node, &uid).await;
    client
        .send(frames::RESIZE, br#"{"Width":77,"Height":33}"#)
        .await;
    client.send(frames::STDIN, b"\n").await;
    client.read_to(Some("33 77\r\n")).await;
    // What is malformed here was not checked by an agent: it is passed over.
    client.send(frames::RESIZE, b"{").await;
    // A shell that is about to read hears of a signal only when it has read, within a second.
    client.send(frames::STDIN, &[3]).await;
    client.read_to(None).await;
    assert!(client.shown.contains("interrupted"), "{}", client.shown);
    let status = first(&node.phase(&uid, "Failed").await);
    assert_eq!(end(&status), (3, "Error".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_have_their_terminal_also_as_another_user() {
    let node = Node::new().await;
    let mut spec = script("echo up; sleep 1000");
    spec["securityContext"] = json!({ "runAsUser": 1000 });
    let uid = node.run(spec).await;
    node.logged(&uid, "c", "up").await;
    let (terminal, slave) = Terminal::open().expect("a terminal");
    let mut command = std::process::Command::new(&node.config.executable);
    command
        .args(["shim", "exec", "--tty", "--"])
        .arg(&node.bundles(&uid)[0])
        .args(["sh", "-c", "echo to the terminal > /dev/tty; id -u"])
        .stdin(slave.try_clone().expect("a descriptor"))
        .stdout(slave.try_clone().expect("a descriptor"))
        .stderr(slave);
    let mut child = command.spawn().expect("the agent runs");
    drop(command);
    let mut screen = String::new();
    // The end of a terminal whose last user is gone is an error.
    let ended =
        std::io::Read::read_to_string(&mut terminal.duplicate().expect("a side"), &mut screen);
    assert!(ended.is_err(), "{screen}");
    assert!(child.wait().expect("a child").success(), "{screen}");
    assert_eq!(screen, "to the terminal\r\n1000\r\n");
}
