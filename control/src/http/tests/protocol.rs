//! What no well-behaved client sends, and what clients other than kubectl ask for.

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use super::{LIMIT, cluster};

#[tokio::test]
async fn health_and_version_need_no_credentials() {
    let cluster = cluster().await;
    let check = cluster.health.check("controllers");
    let get = async |path: &str| {
        cluster
            .send(false, &format!("GET {path} HTTP/1.1"), b"")
            .await
    };
    assert_eq!(get("/livez").await.0, 200);
    let (code, _, body) = get("/readyz?verbose").await;
    assert_eq!(code, 500);
    assert!(body.contains("[-]controllers failed"), "{body}");
    check.pass();
    assert_eq!(get("/readyz").await.2, "ok");
    let version: Value = serde_json::from_str(&get("/version").await.2).expect("JSON");
    assert_eq!(version["major"], "1");
    let (code, _, body) = get("/api/v1/pods").await;
    assert_eq!(code, 403);
    assert!(body.contains("system:anonymous"), "{body}");
}

#[tokio::test]
async fn bodies_that_are_not_read_are_refused() {
    let cluster = cluster().await;
    let path = "POST /api/v1/namespaces/default/configmaps HTTP/1.1\r\nContent-Type:";
    let post = async |kind: &str, body: &[u8]| {
        let (code, _, answer) = cluster.send(true, &format!("{path} {kind}"), body).await;
        let status: Value = serde_json::from_str(&answer).expect("a Status");
        assert_eq!(status["kind"], "Status");
        (code, status["reason"].as_str().unwrap_or("").to_owned())
    };
    let refused = |code: u16, reason: &str| (code, reason.to_owned());
    let media = refused(415, "UnsupportedMediaType");
    assert_eq!(post("text/plain", b"x").await, media);
    let bad = refused(400, "BadRequest");
    assert_eq!(
        post("application/vnd.kubernetes.protobuf", b"k8s\0\x09").await,
        bad
    );
    assert_eq!(post("application/json", b"{").await, bad);
    assert_eq!(post("application/json", b"[]").await, bad);
    assert_eq!(post("application/json", &b"[".repeat(200_000)).await, bad);
    assert_eq!(post("application/yaml", b"a: [").await, bad);
    let large = vec![b'x'; 4 * 1024 * 1024];
    let too_large = refused(413, "RequestEntityTooLarge");
    assert_eq!(post("application/json", &large).await, too_large);
    let yaml = b"metadata:\n  name: plain\ndata:\n  a: b\n";
    let (code, _, _) = cluster
        .send(true, &format!("{path} application/yaml"), yaml)
        .await;
    assert_eq!(code, 201);
}

#[tokio::test]
async fn codes_are_kubernetes() {
    let cluster = cluster().await;
    let pods = "/api/v1/namespaces/default/pods";
    for (line, body, code, message) in [
        (
            format!("GET {pods}/x"),
            Value::Null,
            404,
            "pods \"x\" not found",
        ),
        (
            "GET /api/v1/nothings".to_owned(),
            Value::Null,
            404,
            "the server could not find the requested resource",
        ),
        (
            "PUT /api/v1/pods".to_owned(),
            json!({}),
            405,
            "the server does not allow this method on the requested resource",
        ),
        (
            format!("POST {pods}"),
            json!({"kind": "Pod", "apiVersion": "v2"}),
            400,
            "the API version in the data (v2) does not match the expected API version (v1)",
        ),
        (
            format!("POST {pods}"),
            json!({"metadata": {"name": "x", "namespace": "other"}}),
            400,
            "the namespace of the provided object does not match the namespace sent on the request",
        ),
        (
            format!("POST {pods}?dryRun=Maybe"),
            json!({}),
            422,
            "CreateOptions.meta.k8s.io \"\" is invalid: dryRun: Unsupported value: \"Maybe\": supported values: \"All\"",
        ),
        (
            format!("GET {pods}?fieldSelector=spec.foo%3Dx"),
            Value::Null,
            400,
            "field label not supported: spec.foo",
        ),
        (
            format!("GET {pods}?resourceVersion=x"),
            Value::Null,
            400,
            "Invalid value: \"x\": strconv.ParseUint: parsing \"x\": invalid syntax",
        ),
    ] {
        let (found, status) = cluster.ask(&line, &body).await;
        assert_eq!(
            (found, &status["message"]),
            (code, &json!(message)),
            "{line}"
        );
    }
}

#[tokio::test]
async fn clients_that_want_metadata_or_tables_get_them() {
    let cluster = cluster().await;
    let get = async |path: &str, accept: &str| {
        let head = format!("GET {path} HTTP/1.1\r\nAccept: {accept}");
        let (code, _, body) = cluster.send(true, &head, b"").await;
        let value: Value = serde_json::from_str(&body).expect("JSON");
        (code, value)
    };
    let partial = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
    let (_, list) = get("/api/v1/namespaces", partial).await;
    assert_eq!(list["kind"], "PartialObjectMetadataList");
    assert_eq!(list["items"][0]["kind"], "PartialObjectMetadata");
    assert_eq!(list["items"][0].get("spec"), None);
    let table = "application/json;as=Table;g=meta.k8s.io;v=v1";
    let (_, found) = get("/api/v1/namespaces/default?includeObject=None", table).await;
    assert_eq!(
        (&found["kind"], &found["rows"][0]["cells"][1]),
        (&json!("Table"), &json!("Active"))
    );
    let protobuf = "application/vnd.kubernetes.protobuf";
    assert_eq!(get("/api/v1/namespaces", protobuf).await.0, 406);
}

#[tokio::test]
async fn a_watch_list_ends_its_beginning_with_a_bookmark() {
    let cluster = cluster().await;
    let mut stream = cluster.connect(true).await;
    let query =
        "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let request = format!("GET /api/v1/namespaces?{query} HTTP/1.1\r\nHost: x\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut lines = BufReader::new(stream).lines();
    let mut kinds = Vec::new();
    while kinds.len() < 2 {
        let line = tokio::time::timeout(LIMIT, lines.next_line())
            .await
            .expect("in time");
        let line = line.expect("no error").expect("goes on");
        if let Ok(event) = serde_json::from_str::<Value>(&line)
            && let Some(kind) = event["type"].as_str()
        {
            kinds.push(kind.to_owned());
            if kind == "BOOKMARK" {
                let marks = &event["object"]["metadata"]["annotations"];
                assert_eq!(marks["k8s.io/initial-events-end"], "true");
            }
        }
    }
    assert_eq!(kinds, ["ADDED", "BOOKMARK"]);
}

#[tokio::test]
async fn unknown_fields_warn_or_fail() {
    let cluster = cluster().await;
    let body = br#"{"metadata": {"name": "w"}, "dta": {}, "data": {"a": "1", "a": "2"}}"#;
    let post = async |query: &str| {
        let path = "/api/v1/namespaces/default/configmaps";
        let head = format!("POST {path}?{query} HTTP/1.1\r\nContent-Type: application/json");
        cluster.send(true, &head, body).await
    };
    let (code, _, answer) = post("fieldValidation=Strict").await;
    assert_eq!(code, 400);
    let status: Value = serde_json::from_str(&answer).expect("a Status");
    assert_eq!(
        status["message"],
        "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: duplicate field \
         \"data.a\", unknown field \"dta\""
    );
    let (code, head, _) = post("fieldValidation=Warn").await;
    assert_eq!(code, 201);
    assert!(
        head.contains(r#"warning: 299 - "unknown field \"dta\"""#),
        "{head}"
    );
}
