//! What clients of several ages and languages ask for: OpenAPI in its second version, measurements, warnings; kube-rs; and
//! one who reads nothing.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api as KubeApi, Client};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use super::{LIMIT, cluster};
use crate::api::{Api, Caller, WriteOptions};
use crate::resource::rows::CONFIG_MAPS;

#[tokio::test]
async fn openapi_v2_comes_in_json_or_gnostics_protobuf() {
    let cluster = cluster().await;
    let get = async |accept: &str| {
        let head = format!("GET /openapi/v2 HTTP/1.1\r\nAccept: {accept}");
        cluster.send(true, &head, b"").await
    };
    let (code, _, text) = get("application/json").await;
    let document: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((code, &document["swagger"]), (200, &json!("2.0")));
    for accept in [
        "application/com.github.proto-openapi.spec.v2@v1.0+protobuf",
        "application/com.github.proto-openapi.spec.v2.v1.0+protobuf, application/json",
    ] {
        let (code, head, body) = get(accept).await;
        assert_eq!(code, 200);
        assert!(
            head.contains("proto-openapi.spec.v2.v1.0+protobuf"),
            "{head}"
        );
        // Field 1, "swagger".
        assert!(body.starts_with("\u{a}\u{3}2.0"), "{:?}", &body[..20]);
    }
}

#[tokio::test]
async fn measurements_are_shown_where_there_are_nodes_and_never_written() {
    let cluster = cluster().await;
    let said = cluster.kubectl(&["top", "nodes"]).await;
    assert!(
        said.err.contains("metrics not available yet"),
        "{}",
        said.err
    );
    let path = "/apis/metrics.k8s.io/v1beta1";
    let (code, list) = cluster.ask(&format!("GET {path}/pods"), &Value::Null).await;
    assert_eq!((code, &list["kind"]), (200, &json!("PodMetricsList")));
    let one = format!("GET {path}/namespaces/default/pods/x");
    let (code, status) = cluster.ask(&one, &Value::Null).await;
    assert_eq!((code, &status["reason"]), (404, &json!("NotFound")));
    for line in [
        format!("POST {path}/namespaces/default/pods"),
        format!("GET {path}/nodes?watch=true"),
    ] {
        assert_eq!(cluster.ask(&line, &json!({})).await.0, 405, "{line}");
    }
    let stranger = ["auth", "can-i", "list", "pods.metrics.k8s.io", "--as=x"];
    assert_eq!(cluster.kubectl(&stranger).await.out, "no\n");
}

#[tokio::test]
async fn pods_that_do_not_do_what_they_say_are_warned_of() {
    let cluster = cluster().await;
    let pod = json!({
        "metadata": {"name": "p"},
        "spec": {"containers": [{
            "name": "c", "image": "i", "env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}],
        }]},
    });
    let head = "POST /api/v1/namespaces/default/pods HTTP/1.1\r\nContent-Type: application/json";
    let (code, head, _) = cluster.send(true, head, pod.to_string().as_bytes()).await;
    assert_eq!(code, 201);
    let warning = r#"warning: 299 - "spec.containers[0].env[1]: hides previous definition of \"A\", which may be"#;
    assert!(head.contains(warning), "{head}");
}

#[tokio::test]
async fn a_watcher_that_reads_nothing_slows_no_other() {
    const CHANGES: usize = 300;
    let cluster = cluster().await;
    let request = "GET /api/v1/configmaps?watch=1&resourceVersion=0 HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut idle = cluster.connect(true).await;
    idle.write_all(request.as_bytes()).await.expect("sent");
    let mut busy = cluster.connect(true).await;
    busy.write_all(request.as_bytes()).await.expect("sent");
    let mut lines = BufReader::new(busy).lines();
    let head = tokio::time::timeout(LIMIT, lines.next_line()).await;
    assert!(
        head.expect("in time")
            .expect("fine")
            .expect("a head")
            .contains("200")
    );
    // More than what the kernel keeps for one who does not read.
    let data = "x".repeat(60_000);
    let engine = cluster.running.engine.clone();
    let writing = tokio::spawn(async move {
        for number in 0..CHANGES {
            let object = json!({"metadata": {"name": format!("c{number}")}, "data": {"a": data}});
            let (caller, options) = (Caller::system("test"), WriteOptions::default());
            let namespace = Some("default");
            let made = engine.create(&caller, CONFIG_MAPS, namespace, object, &options);
            made.await.expect("made");
        }
    });
    let mut seen = 0;
    while seen < CHANGES {
        let line = tokio::time::timeout(LIMIT, lines.next_line()).await;
        let line = line.expect("in time").expect("no error").expect("goes on");
        let event = serde_json::from_str::<Value>(&line).unwrap_or_default();
        if event["type"] == "ADDED" {
            let name = &event["object"]["metadata"]["name"];
            assert_eq!(name, &json!(format!("c{seen}")), "in order, none lost");
            seen += 1;
        }
    }
    writing.await.expect("all made");
    drop(idle);
}

#[tokio::test]
async fn nodes_are_cordoned_tainted_and_drained() {
    let cluster = cluster().await;
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}});
    cluster.apply(&node.to_string()).await;
    for (arguments, answer) in [
        (&["cordon", "n"][..], "node/n cordoned\n"),
        (&["cordon", "n"], "node/n already cordoned\n"),
        (&["uncordon", "n"], "node/n uncordoned\n"),
        (
            &["taint", "node", "n", "a=b:NoSchedule"],
            "node/n tainted\n",
        ),
        (&["taint", "node", "n", "a-"], "node/n untainted\n"),
        (&["drain", "n"], "node/n cordoned\nnode/n drained\n"),
    ] {
        assert_eq!(cluster.kubectl_ok(arguments).await, answer, "{arguments:?}");
    }
    let table = cluster
        .kubectl_ok(&["get", "node", "n", "--no-headers"])
        .await;
    assert!(table.contains("SchedulingDisabled"), "{table}");
}

#[tokio::test]
async fn kube_rs_lists_watches_patches_and_applies() {
    let cluster = cluster().await;
    let file = Kubeconfig::read_from(cluster.folder.path().join("kubeconfig")).expect("a file");
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(file, &options).await;
    let client = Client::try_from(config.expect("a configuration")).expect("a client");
    let maps: KubeApi<ConfigMap> = KubeApi::namespaced(client, "default");
    let watching = watcher(maps.clone(), watcher::Config::default().streaming_lists());
    let mut events = std::pin::pin!(watching.applied_objects());
    let map = |name: &str, value: &str| -> ConfigMap {
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": value},
        });
        serde_json::from_value(map).expect("a ConfigMap")
    };
    maps.create(&PostParams::default(), &map("m", "1"))
        .await
        .expect("made");
    let change = Patch::Merge(json!({"data": {"a": "2"}}));
    maps.patch("m", &PatchParams::default(), &change)
        .await
        .expect("patched");
    let apply = PatchParams::apply("other");
    let conflict = maps.patch("m", &apply, &Patch::Apply(map("m", "3"))).await;
    let Err(kube::Error::Api(status)) = conflict else {
        panic!("{conflict:?}");
    };
    assert_eq!((status.code, status.reason.as_str()), (409, "Conflict"));
    let forced = maps
        .patch("m", &apply.force(), &Patch::Apply(map("m", "3")))
        .await;
    assert_eq!(forced.expect("forced").data, map("m", "3").data);
    let mut last = None;
    while last != map("m", "3").data {
        let event = tokio::time::timeout(LIMIT, futures::StreamExt::next(&mut events)).await;
        last = event
            .expect("in time")
            .expect("goes on")
            .expect("no error")
            .data;
    }
    maps.delete("m", &DeleteParams::default())
        .await
        .expect("deleted");
    assert_eq!(maps.get_opt("m").await.expect("an answer"), None);
}
