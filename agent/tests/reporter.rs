//! The writer of pods' statuses against an API that a test plays.

use std::{sync::Arc, time::Duration};

use http::{Request, Response, StatusCode};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::client::Body;
use portolan_agent::{
    cluster::{Reporter, ReporterInput},
    pod::PodRef,
};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

const PATIENCE: Duration = Duration::from_secs(10);

/// A request as it came, and where its answer goes.
struct Call {
    method: String,
    path: String,
    body: Value,
    answer: oneshot::Sender<(StatusCode, Value)>,
}

impl Call {
    fn answer(self, code: u16, body: Value) {
        let code = StatusCode::from_u16(code).expect("a status code");
        self.answer.send((code, body)).expect("the reporter waits");
    }

    fn accept(self) {
        let stored = json!({"metadata": {"name": "web"}, "status": self.body["status"].clone()});
        self.answer(200, stored);
    }

    fn fail(self, code: u16) {
        let status = json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code,
            "message": "no", "reason": "Test",
        });
        self.answer(code, status);
    }
}

/// The API's end.
struct Api {
    calls: mpsc::Receiver<Call>,
}

impl Api {
    async fn next(&mut self) -> Call {
        let call = tokio::time::timeout(PATIENCE, self.calls.recv()).await;
        call.expect("a request in time").expect("the reporter runs")
    }

    async fn is_quiet_for(&mut self, span: Duration) {
        if let Ok(Some(call)) = tokio::time::timeout(span, self.calls.recv()).await {
            panic!("{} {}", call.method, call.path);
        }
    }
}

fn start() -> (mpsc::Sender<ReporterInput>, Api) {
    let (sender, calls) = mpsc::channel(16);
    let service = tower::service_fn(move |request: Request<Body>| {
        let sender = sender.clone();
        async move {
            let method = request.method().to_string();
            let path = request.uri().path().to_owned();
            let body = request.into_body().collect_bytes().await?;
            let (answer, answered) = oneshot::channel();
            let call = Call {
                method,
                path,
                body: serde_json::from_slice(&body).unwrap_or_default(),
                answer,
            };
            sender.send(call).await.map_err(|error| error.to_string())?;
            let (code, body) = answered.await?;
            let body = Body::from(serde_json::to_vec(&body)?);
            let response = Response::builder().status(code).body(body)?;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(response)
        }
    });
    let client = kube::Client::new(service, "default");
    let (inputs, receiver) = mpsc::channel(16);
    tokio::spawn(Reporter::new(client).run(receiver));
    (inputs, Api { calls })
}

fn pod() -> PodRef {
    PodRef {
        namespace: "default".to_owned(),
        name: "web".to_owned(),
        uid: "u1".to_owned(),
    }
}

fn status(phase: &str, ready: &str) -> PodStatus {
    serde_json::from_value(json!({
        "phase": phase, "conditions": [{"type": "Ready", "status": ready}],
    }))
    .expect("a status")
}

fn observed(status: PodStatus) -> ReporterInput {
    let mut pod = Pod::default();
    pod.metadata.name = Some("web".to_owned());
    pod.metadata.namespace = Some("default".to_owned());
    pod.metadata.uid = Some("u1".to_owned());
    pod.status = Some(status);
    ReporterInput::Observed(Arc::new(pod))
}

async fn tell(inputs: &mpsc::Sender<ReporterInput>, phase: &str) {
    let input = ReporterInput::Status(pod(), Box::new(status(phase, "True")));
    inputs.send(input).await.expect("the reporter runs");
}

#[tokio::test]
async fn the_newest_status_wins_and_survives_an_absent_control_plane() {
    let (inputs, mut api) = start();
    tell(&inputs, "Pending").await;
    let first = api.next().await;
    assert_eq!(
        (first.method.as_str(), first.path.as_str()),
        ("PATCH", "/api/v1/namespaces/default/pods/web/status")
    );
    assert_eq!(first.body["metadata"]["uid"], "u1");
    for phase in ["A", "B", "Running"] {
        tell(&inputs, phase).await;
    }
    first.fail(503);
    let second = api.next().await;
    assert_eq!(second.body["status"]["phase"], "Running");
    second.accept();
    api.is_quiet_for(Duration::from_millis(300)).await;
}

#[tokio::test]
async fn a_status_that_control_overwrote_is_written_again() {
    let (inputs, mut api) = start();
    tell(&inputs, "Running").await;
    api.next().await.accept();
    inputs
        .send(observed(status("Running", "True")))
        .await
        .expect("sent");
    api.is_quiet_for(Duration::from_millis(200)).await;
    inputs
        .send(observed(status("Running", "False")))
        .await
        .expect("sent");
    let objection = api.next().await;
    assert_eq!(objection.body["status"]["conditions"][0]["status"], "True");
    objection.accept();
}

#[tokio::test]
async fn an_objection_that_has_become_moot_is_not_made() {
    let (inputs, mut api) = start();
    tell(&inputs, "Running").await;
    api.next().await.accept();
    inputs
        .send(observed(status("Running", "False")))
        .await
        .expect("sent");
    inputs
        .send(observed(status("Running", "True")))
        .await
        .expect("sent");
    api.is_quiet_for(Duration::from_millis(1500)).await;
}

#[tokio::test]
async fn an_ended_pod_is_deleted_by_uid_after_its_last_status() {
    let (inputs, mut api) = start();
    tell(&inputs, "Succeeded").await;
    inputs
        .send(ReporterInput::Terminated(pod()))
        .await
        .expect("sent");
    api.next().await.accept();
    let deletion = api.next().await;
    assert_eq!(
        (deletion.method.as_str(), deletion.path.as_str()),
        ("DELETE", "/api/v1/namespaces/default/pods/web")
    );
    assert_eq!(deletion.body["gracePeriodSeconds"], 0);
    assert_eq!(deletion.body["preconditions"]["uid"], "u1");
    deletion.fail(500);
    let again = api.next().await;
    assert_eq!(again.method, "DELETE");
    again.fail(404);
    api.is_quiet_for(Duration::from_millis(300)).await;
}

#[tokio::test]
async fn a_successor_of_the_same_name_is_left_alone() {
    let (inputs, mut api) = start();
    tell(&inputs, "Running").await;
    api.next().await.fail(409);
    api.is_quiet_for(Duration::from_millis(500)).await;
}

#[tokio::test]
async fn a_status_that_the_api_never_accepts_is_not_repeated() {
    let (inputs, mut api) = start();
    tell(&inputs, "Nonsense").await;
    api.next().await.fail(422);
    api.is_quiet_for(Duration::from_millis(500)).await;
    tell(&inputs, "Running").await;
    api.next().await.accept();
}
