//! The admin socket, from both ends.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::Path,
    sync::Arc,
};

use async_trait::async_trait;
use portolan_agent::admin::{
    AdminClientError, AdminServer, Answers, Request, ask, follow, socket_path,
};
use portolan_dataplane::report::Filter;
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// Answers some requests.
struct Canned;

#[async_trait]
impl Answers for Canned {
    async fn answer(&self, request: Request) -> Result<Value, String> {
        match request {
            Request::Drops => Ok(json!([])),
            Request::Status => Ok(json!({"node": "n1"})),
            other => Err(format!("no {other:?} here")),
        }
    }

    async fn watch(&self, filter: Filter) -> Result<mpsc::Receiver<Value>, String> {
        let Some(port) = filter.port else {
            return Err("watched already".to_owned());
        };
        let (sender, receiver) = mpsc::channel(2);
        for report in [port, port + 1] {
            sender.try_send(json!(report)).expect("room for two");
        }
        // The sender stays, as packets may come at any time.
        tokio::spawn(async move { sender.closed().await });
        Ok(receiver)
    }
}

/// Runs blocking client code beside the server.
async fn beside<T: Send + 'static>(
    state: &Path,
    client: impl FnOnce(&Path) -> T + Send + 'static,
) -> T {
    let state = state.to_owned();
    tokio::task::spawn_blocking(move || client(&state))
        .await
        .expect("no panic")
}

#[tokio::test]
async fn questions_are_answered_or_refused_in_words() {
    let state = tempfile::tempdir().expect("a temporary directory");
    let server = AdminServer::bind(state.path()).expect("bound");
    let mode = fs::metadata(socket_path(state.path()))
        .expect("the socket")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let serving = tokio::spawn(server.run(Arc::new(Canned)));
    beside(state.path(), |state| {
        assert_eq!(
            ask(state, Request::Status).expect("an answer")["node"],
            "n1"
        );
        let error = ask(state, Request::Flows).expect_err("refused");
        assert_eq!(error.to_string(), "the agent answers: no Flows here");
    })
    .await;
    serving.abort();
    assert!(serving.await.expect_err("aborted").is_cancelled());
    assert!(!socket_path(state.path()).exists());
}

#[tokio::test]
async fn a_watch_goes_on_until_the_client_has_enough() {
    let state = tempfile::tempdir().expect("a temporary directory");
    let server = AdminServer::bind(state.path()).expect("bound");
    tokio::spawn(server.run(Arc::new(Canned)));
    beside(state.path(), |state| {
        let mut seen = Vec::new();
        let filter = Filter {
            port: Some(7),
            ..Filter::default()
        };
        let each = |report: Value| {
            seen.push(report);
            seen.len() < 2
        };
        follow(state, filter, each).expect("two reports");
        assert_eq!(seen, [json!(7), json!(8)]);
        let error = follow(state, Filter::default(), |_| true).expect_err("refused");
        assert_eq!(error.to_string(), "the agent answers: watched already");
    })
    .await;
}

#[tokio::test]
async fn several_questions_on_one_connection_and_nonsense_between() {
    let state = tempfile::tempdir().expect("a temporary directory");
    let server = AdminServer::bind(state.path()).expect("bound");
    tokio::spawn(server.run(Arc::new(Canned)));
    beside(state.path(), |state| {
        let mut stream = UnixStream::connect(socket_path(state)).expect("connected");
        let mut answers = BufReader::new(stream.try_clone().expect("cloned")).lines();
        let mut exchange = |line: &str| {
            writeln!(stream, "{line}").expect("sent");
            answers.next().expect("an answer").expect("a line")
        };
        assert_eq!(exchange(r#"{"request":"drops"}"#), r#"{"ok":[]}"#);
        assert!(exchange("nonsense").starts_with(r#"{"error":"not a request"#));
        assert_eq!(exchange(r#"{"request":"drops"}"#), r#"{"ok":[]}"#);
    })
    .await;
}

#[tokio::test]
async fn a_killed_agents_socket_is_replaced_and_silence_is_explained() {
    let state = tempfile::tempdir().expect("a temporary directory");
    let nobody = |state: &Path| ask(state, Request::Drops).expect_err("nobody listens");
    let error = beside(state.path(), nobody).await;
    assert!(
        matches!(error, AdminClientError::NotRunning(_)),
        "{error:?}"
    );
    // A socket file without a listener is what a killed agent leaves.
    drop(std::os::unix::net::UnixListener::bind(socket_path(state.path())).expect("bound"));
    let error = beside(state.path(), nobody).await;
    assert_eq!(
        error.to_string(),
        format!("no agent is running on {}", state.path().display())
    );
    let server = AdminServer::bind(state.path()).expect("bound over it");
    tokio::spawn(server.run(Arc::new(Canned)));
    beside(state.path(), |state| {
        ask(state, Request::Drops).expect("an answer")
    })
    .await;
}
