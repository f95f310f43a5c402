//! Bad input: each gets its clear error where a user looks, and nothing half-made stays.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::life::Stage;

/// What kubectl is given, and what Kubernetes answers: (name, arguments, input, words of the answer).
type Row = (
    &'static str,
    &'static [&'static str],
    &'static str,
    &'static [&'static str],
);

const APPLY: &[&str] = &["apply", "-f", "-"];
const CREATE: &[&str] = &["create", "-f", "-"];

const ROWS: &[Row] = &[
    (
        "an unknown field, found by validation",
        APPLY,
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: bad}, dta: {a: b}}",
        &["unknown field \"dta\""],
    ),
    (
        "a wrong type",
        APPLY,
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: bad}, data: [a]}",
        &["ConfigMap", "data"],
    ),
    (
        "a name that is none",
        APPLY,
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: Bad_Name}}",
        &[
            "The ConfigMap \"Bad_Name\" is invalid",
            "metadata.name: Invalid value: \"Bad_Name\"",
            "RFC 1123",
        ],
    ),
    (
        "several faults, all of them told",
        CREATE,
        "{apiVersion: apps/v1, kind: Deployment, metadata: {name: bad}, spec: {replicas: -1, selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: c}}, spec: {containers: [{name: x, image: \"y:1\"}]}}}}",
        &[
            "The Deployment \"bad\" is invalid",
            "spec.replicas: Invalid value: -1",
            "`selector` does not match template `labels`",
        ],
    ),
    (
        "a pod without containers",
        CREATE,
        "{apiVersion: v1, kind: Pod, metadata: {name: bad}, spec: {containers: []}}",
        &[
            "The Pod \"bad\" is invalid",
            "spec.containers: Required value",
        ],
    ),
    (
        "a taken node port",
        CREATE,
        "{apiVersion: v1, kind: Service, metadata: {name: bad}, spec: {type: NodePort, selector: {a: b}, ports: [{port: 80, nodePort: 30080}]}}",
        &[
            "The Service \"bad\" is invalid",
            "spec.ports[0].nodePort: Invalid value: 30080: provided port is already allocated",
        ],
    ),
    (
        "a node port out of range",
        CREATE,
        "{apiVersion: v1, kind: Service, metadata: {name: bad}, spec: {type: NodePort, selector: {a: b}, ports: [{port: 80, nodePort: 80}]}}",
        &[
            "spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range. The range of valid ports is 30000-32767",
        ],
    ),
    (
        "a port that is none",
        CREATE,
        "{apiVersion: v1, kind: Service, metadata: {name: bad}, spec: {selector: {a: b}, ports: [{port: 70000}]}}",
        &["spec.ports[0].port: Invalid value: 70000: must be between 1 and 65535, inclusive"],
    ),
    (
        "an object that exists",
        CREATE,
        "{apiVersion: v1, kind: Namespace, metadata: {name: default}}",
        &[
            "Error from server (AlreadyExists)",
            "namespaces \"default\" already exists",
        ],
    ),
    (
        "an old resourceVersion",
        &["replace", "-f", "-"],
        "{apiVersion: v1, kind: Namespace, metadata: {name: default, resourceVersion: \"1\"}}",
        &[
            "Error from server (Conflict)",
            "the object has been modified; please apply your changes to the latest version and try again",
        ],
    ),
    (
        "an object that does not exist",
        &["get", "pod", "nobody"],
        "",
        &["Error from server (NotFound): pods \"nobody\" not found"],
    ),
    (
        "a namespace that does not exist",
        CREATE,
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: bad, namespace: nowhere}}",
        &["namespaces \"nowhere\" not found"],
    ),
    (
        "a kind that does not exist",
        // Validation would ask for OpenAPI v2 about a kind that v3 does not know, and there is none.
        &["create", "--validate=false", "-f", "-"],
        "{apiVersion: v1, kind: Ship, metadata: {name: bad}}",
        &["no matches for kind \"Ship\" in version \"v1\""],
    ),
    (
        "a selector that is changed",
        APPLY,
        "{apiVersion: apps/v1, kind: Deployment, metadata: {name: web}, spec: {selector: {matchLabels: {app: other}}, template: {metadata: {labels: {app: other}}, spec: {containers: [{name: web, image: \"y:1\"}]}}}}",
        &["spec.selector: Invalid value", "field is immutable"],
    ),
];

/// Every row fails with Kubernetes' words, and none leaves an object.
pub fn manifests_get_kubernetes_answers(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    let mut faults = Vec::new();
    for (name, arguments, input, expected) in ROWS {
        // kubectl takes what begins with a brace for JSON.
        let answer = cluster.try_kubectl(arguments, &format!("---\n{input}"))?;
        let missing: Vec<_> = expected
            .iter()
            .filter(|words| !answer.stderr.contains(**words))
            .collect();
        if answer.code == Some(0) || !missing.is_empty() {
            faults.push(format!("{name}: {missing:?} is missing in {answer:?}"));
        }
    }
    for kind in ["configmap", "deployment", "pod", "service"] {
        let answer = cluster.try_kubectl(&["get", kind, "bad"], "")?;
        if answer.code == Some(0) {
            faults.push(format!("a bad {kind} is there"));
        }
    }
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

/// Requests that kubectl would not send: codes and reasons.
pub fn raw_requests_get_kubernetes_answers(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    let mut proxy = cluster
        .kubectl_command()
        .args(["proxy", "--port=0"])
        .stdout(Stdio::piped())
        .spawn()
        .context("run kubectl proxy")?;
    let mut line = String::new();
    BufReader::new(
        proxy
            .stdout
            .as_mut()
            .expect("stdout was asked to be a pipe"),
    )
    .read_line(&mut line)
    .context("read where kubectl proxy listens")?;
    let address = line
        .trim()
        .rsplit(' ')
        .next()
        .unwrap_or_default()
        .to_owned();
    let faults = raw_faults(&address);
    proxy.kill().context("end kubectl proxy")?;
    proxy.wait().context("wait for kubectl proxy")?;
    let faults = faults?;
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

/// A request that is wrong, and Kubernetes' answer: (name, request line, media type, body, code, reason).
type RawRow = (
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    u16,
    &'static str,
);

const JSON: &str = "application/json";
const ANOTHER_KIND: &str = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"bad"}}"#;

/// "~" stands for the path of the namespace's config maps.
const RAW_ROWS: &[RawRow] = &[
    (
        "a media type that is none",
        "POST ~",
        "text/plain",
        "x",
        415,
        "UnsupportedMediaType",
    ),
    (
        "a body that is no JSON",
        "POST ~",
        JSON,
        "{",
        400,
        "BadRequest",
    ),
    (
        "another kind's body",
        "POST ~",
        JSON,
        ANOTHER_KIND,
        400,
        "BadRequest",
    ),
    (
        "a patch of an unknown type",
        "PATCH ~/x",
        JSON,
        "{}",
        415,
        "UnsupportedMediaType",
    ),
    (
        "a path that is none",
        "GET /api/v1/ships",
        "",
        "",
        404,
        "NotFound",
    ),
    (
        "a verb that does not fit",
        "POST /api/v1/nodes/n1",
        JSON,
        "{}",
        405,
        "MethodNotAllowed",
    ),
    (
        "a limit that is none",
        "GET ~?limit=x",
        "",
        "",
        400,
        "BadRequest",
    ),
    (
        "a selector that is none",
        "GET ~?labelSelector=%3D%3D",
        "",
        "",
        400,
        "BadRequest",
    ),
    (
        "a continue token that is none",
        "GET ~?limit=1&continue=x",
        "",
        "",
        400,
        "BadRequest",
    ),
];

fn raw_faults(address: &str) -> Result<Vec<String>> {
    let configmaps = "/api/v1/namespaces/default/configmaps";
    let deep = format!("{}1{}", "[".repeat(20_000), "]".repeat(20_000));
    let too_deep = (
        "a body that is too deep",
        "POST ~",
        JSON,
        deep.as_str(),
        400,
        "BadRequest",
    );
    let mut faults = Vec::new();
    for (name, request, media_type, body, code, reason) in
        RAW_ROWS.iter().copied().chain([too_deep])
    {
        let request = request.replace('~', configmaps);
        let (answered, status) =
            send(address, &request, media_type, body).with_context(|| name.to_owned())?;
        if answered != code || status["reason"] != reason || status["kind"] != "Status" {
            faults.push(format!(
                "{name}: expected {code} {reason}, got {answered} {status}"
            ));
        }
    }
    Ok(faults)
}

/// One HTTP request; its code and JSON body.
fn send(address: &str, request: &str, media_type: &str, body: &str) -> Result<(u16, Value)> {
    let mut stream = TcpStream::connect(address).context("connect to kubectl proxy")?;
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .context("bound the wait")?;
    let content_type = if media_type.is_empty() {
        String::new()
    } else {
        format!("content-type: {media_type}\r\n")
    };
    write!(
        stream,
        "{request} HTTP/1.0\r\nhost: localhost\r\n{content_type}content-length: {}\r\n\r\n{body}",
        body.len()
    )
    .context("send the request")?;
    let mut answer = String::new();
    stream
        .read_to_string(&mut answer)
        .context("read the answer")?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("an answer has a head")?;
    let code = head
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .with_context(|| format!("{head} has a code"))?;
    Ok((
        code,
        serde_json::from_str(body).unwrap_or_else(|_| json!(body)),
    ))
}
