//! exec, attach and port-forward by kubectls of several ages: each in the protocol that it speaks (SPDY/3.1, a WebSocket,
//! SPDY in a WebSocket). The agent at the other end only repeats what it hears; real ones answer in the end-to-end tests.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use portolan_wire::frames::{self, Decoder};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::task::AbortOnDropHandle;

use super::{Cluster, LIMIT, Said, cluster};
use crate::pki::server_config;

/// SPDY alone; a WebSocket for commands and SPDY for ports; both in WebSockets.
const MINORS: [u32; 4] = [20, 27, 30, 36];

/// What an agent does with one connection of control's.
async fn repeat(mut stream: TlsStream<TcpStream>) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let switched = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n";
    stream.write_all(switched).await?;
    if head.starts_with("POST /portforward/") {
        let (mut from, mut to) = tokio::io::split(stream);
        tokio::io::copy(&mut from, &mut to).await?;
        return to.shutdown().await;
    }
    let command = head.split(' ').nth(1).unwrap_or_default().to_owned();
    stream
        .write_all(&frames::encode(
            frames::STDOUT,
            format!("{command}\n").as_bytes(),
        ))
        .await?;
    let mut decoder = Decoder::default();
    let mut chunk = vec![0; 4096];
    'input: while command.contains("stdin=true") {
        let length = stream.read(&mut chunk).await?;
        if length == 0 {
            return Ok(());
        }
        decoder.push(&chunk[..length]);
        while let Some(frame) = decoder.frame().map_err(std::io::Error::other)? {
            match frame.channel {
                frames::STDIN => {
                    let said = frames::encode(frames::STDOUT, &frame.payload);
                    stream.write_all(&said).await?;
                }
                frames::CLOSE => break 'input,
                _ => {}
            }
        }
    }
    let end = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "reason": "NonZeroExitCode", "message": "command terminated with non-zero exit code: exit status 3",
        "details": {"causes": [{"reason": "ExitCode", "message": "3"}]},
    });
    stream
        .write_all(&frames::encode(frames::STDERR, b"words\n"))
        .await?;
    stream
        .write_all(&frames::encode(frames::ERROR, end.to_string().as_bytes()))
        .await?;
    stream.shutdown().await
}

/// A node with such an agent, and a pod that runs there.
async fn node_and_pod(cluster: &Cluster) -> AbortOnDropHandle<()> {
    let identity = cluster.authority.server(&["n1".to_owned()]);
    let config = server_config(&cluster.authority, &identity.expect("an identity"));
    let acceptor = TlsAcceptor::from(Arc::new(config.expect("a TLS configuration")));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let agent = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("a connection");
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let stream = acceptor.accept(stream).await.expect("TLS");
                // Whoever forwards a port may hang up at any time.
                if let Err(error) = repeat(stream).await {
                    tracing::debug!(%error, "control has hung up");
                }
            });
        }
    });
    let node = json!({"metadata": {"name": "n1"}});
    let pod = json!({
        "metadata": {"name": "p"},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i", "stdin": true}]},
    });
    let pods = "/api/v1/namespaces/default/pods";
    for (line, object) in [
        ("POST /api/v1/nodes".to_owned(), node),
        (format!("POST {pods}"), pod),
    ] {
        let (code, said) = cluster.ask(&line, &object).await;
        assert_eq!(code, 201, "{said}");
    }
    let place = json!({
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
    });
    let running = json!({
        "phase": "Running",
        "containerStatuses": [{
            "name": "c", "image": "i", "imageID": "", "ready": true, "restartCount": 0,
            "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
        }],
    });
    for (path, status) in [
        ("/api/v1/nodes/n1".to_owned(), place),
        (format!("{pods}/p"), running),
    ] {
        let (_, mut object) = cluster.ask(&format!("GET {path}"), &Value::Null).await;
        object["status"] = status;
        let (code, said) = cluster.ask(&format!("PUT {path}/status"), &object).await;
        assert_eq!(code, 200, "{said}");
    }
    AbortOnDropHandle::new(agent)
}

struct Kubectl<'a> {
    cluster: &'a Cluster,
    minor: u32,
}

impl Kubectl<'_> {
    fn command(&self, arguments: &[&str]) -> tokio::process::Command {
        let name = format!("../target/tools/kubectls/kubectl-1.{}", self.minor);
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
        let mut command = tokio::process::Command::new(program);
        command
            .args(arguments)
            .env("KUBECONFIG", self.cluster.folder.path().join("kubeconfig"))
            .env("HOME", self.cluster.folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    async fn run(&self, arguments: &[&str], input: &[u8]) -> (Option<i32>, Said) {
        let mut child = self
            .command(arguments)
            .spawn()
            .expect("this test needs several kubectls: `cargo xtask setup` fetches them");
        let mut stdin = child.stdin.take().expect("a pipe");
        let input = input.to_vec();
        let typing = tokio::spawn(async move { stdin.write_all(&input).await });
        let output = tokio::time::timeout(LIMIT, child.wait_with_output()).await;
        let output = output.expect("in time").expect("kubectl runs");
        typing.await.expect("no panic").expect("kubectl reads");
        let said = Said {
            ok: output.status.success(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        };
        (output.status.code(), said)
    }

    async fn runs_commands(&self) {
        let minor = self.minor;
        let (code, said) = self.run(&["exec", "p", "--", "a b", "c"], b"").await;
        assert_eq!(code, Some(3), "1.{minor}: {}{}", said.out, said.err);
        assert!(said.out.contains("command=a%20b&command=c"), "{}", said.out);
        assert!(said.err.starts_with("words\n"), "1.{minor}: {}", said.err);
        let long = "0123456789".repeat(30_000);
        let (code, said) = self
            .run(&["exec", "-i", "p", "--", "x"], long.as_bytes())
            .await;
        assert_eq!(code, Some(3), "1.{minor}: {}", said.err);
        let back = said.out.split_once('\n').map(|(_, back)| back);
        assert!(back == Some(&long), "1.{minor}: {} bytes", said.out.len());
        let (_, said) = self.run(&["attach", "-i", "p"], b"hello\n").await;
        assert!(said.out.starts_with("/attach/"), "1.{minor}: {}", said.out);
        assert!(said.out.ends_with("\nhello\n"), "1.{minor}: {}", said.out);
    }

    async fn forwards_ports(&self) {
        let minor = self.minor;
        let arguments = ["port-forward", "--address=127.0.0.1", "pod/p", ":80"];
        let mut child = self.command(&arguments).spawn().expect("kubectl");
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let line = tokio::time::timeout(LIMIT, lines.next_line()).await;
        let line = line.expect("in time").expect("no error").expect("a line");
        let address = line
            .split(' ')
            .nth(2)
            .expect("Forwarding from ADDRESS -> PORT");
        let long = "0123456789".repeat(30_000);
        let mut waiting = TcpStream::connect(address).await.expect("a connection");
        for text in [&long, "short"] {
            let mut stream = TcpStream::connect(address).await.expect("a connection");
            let back = async {
                stream.write_all(text.as_bytes()).await.expect("written");
                let mut back = vec![0; text.len()];
                stream.read_exact(&mut back).await.expect("it comes back");
                back
            };
            let back = tokio::time::timeout(LIMIT, back).await.expect("in time");
            assert!(back == text.as_bytes(), "1.{minor}");
        }
        waiting.write_all(b"late").await.expect("written");
        let mut back = [0; 4];
        let read = tokio::time::timeout(LIMIT, waiting.read_exact(&mut back)).await;
        read.expect("in time").expect("it comes back");
        assert_eq!(&back, b"late", "1.{minor}");
        child.kill().await.expect("it runs");
    }
}

#[tokio::test]
async fn every_kubectls_streams_reach_the_agent() {
    let cluster = cluster().await;
    let _agent = node_and_pod(&cluster).await;
    for minor in MINORS {
        let kubectl = Kubectl {
            cluster: &cluster,
            minor,
        };
        kubectl.runs_commands().await;
        kubectl.forwards_ports().await;
    }
}
