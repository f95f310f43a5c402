//! What a pod may ask for around its containers: hooks, sidecars, deadlines, tokens, limits. Needs root.

mod support;

use std::{sync::Arc, time::Duration};

use k8s_openapi::{
    api::core::v1::{Pod, PodStatus},
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};
use portolan_agent::{
    names::{Port, Service},
    pod::PodCommand,
};
use serde_json::{Value, json};
use support::{Node, container, end, first, pod, script};

/// Says so when it is asked to end.
const POLITE: &str =
    "trap 'echo asked >> /box/log; exit 0' TERM; echo up; while true; do sleep 0.05; done";

fn deleted(mut pod: Pod, grace: i64) -> Arc<Pod> {
    pod.metadata.deletion_timestamp = Some(Time(Timestamp::now()));
    pod.metadata.deletion_grace_period_seconds = Some(grace);
    Arc::new(pod)
}

/// A container that sees the pod's volume "box" in /box.
fn boxed(name: &str, text: &str) -> Value {
    let mut one = container(name, text);
    one["volumeMounts"] = json!([{ "name": "box", "mountPath": "/box" }]);
    one
}

fn with_box(mut spec: Value) -> Value {
    spec["volumes"] = json!([{ "name": "box", "emptyDir": {} }]);
    spec
}

/// What is written in the pod's volume, followed until it holds `text`.
async fn written(node: &Node, uid: &str, text: &str) -> String {
    let path = node.config.pods_dir().join(uid).join("volumes/box/log");
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    loop {
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        if found.contains(text) {
            return found;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "never {text}: {found}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn uid_of(pod: &Pod) -> String {
    pod.metadata.uid.clone().expect("a uid")
}

#[tokio::test(flavor = "multi_thread")]
async fn post_start_comes_before_running_and_before_the_next_container() {
    let node = Node::new().await;
    let mut one = boxed("one", POLITE);
    let hook = "sleep 0.3; echo hook >> /box/log";
    one["lifecycle"] = json!({ "postStart": { "exec": { "command": ["sh", "-c", hook] } } });
    let two = boxed("two", "echo two >> /box/log; sleep 1000");
    let uid = node
        .run(with_box(
            json!({ "containers": [one, two], "terminationGracePeriodSeconds": 1 }),
        ))
        .await;
    assert_eq!(written(&node, &uid, "two").await, "hook\ntwo\n");
    let status = node.phase(&uid, "Running").await;
    assert!(first(&status).ready);
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_post_start_restarts_the_container() {
    let node = Node::new().await;
    let mut one = boxed("c", POLITE);
    let hook = json!({ "exec": { "command": ["sh", "-c", "echo no; exit 4"] } });
    one["lifecycle"] = json!({ "postStart": hook });
    let uid = node.run(with_box(json!({ "containers": [one] }))).await;
    node.event(
        "FailedPostStartHook",
        "PostStartHook failed: command 'sh -c echo no; exit 4' exited with 4: no",
    )
    .await;
    let seen = node
        .until("a restart", |seen| {
            let status = seen.statuses.get(&uid);
            status.is_some_and(|status| first(status).restart_count >= 1)
        })
        .await;
    assert!(!first(&seen.statuses[&uid]).ready);
}

#[tokio::test(flavor = "multi_thread")]
async fn pre_stop_runs_before_the_signal() {
    let node = Node::new().await;
    let mut one = boxed("c", POLITE);
    let hook = json!({ "exec": { "command": ["sh", "-c", "echo hook >> /box/log; sleep 0.2"] } });
    one["lifecycle"] = json!({ "preStop": hook });
    let mut two = boxed("d", POLITE);
    two["lifecycle"] = json!({ "preStop": { "sleep": { "seconds": 1 } } });
    let pod = pod(with_box(json!({ "containers": [one, two] })));
    let uid = uid_of(&pod);
    node.apply(pod.clone()).await;
    node.logged(&uid, "d", "up").await;
    node.phase(&uid, "Running").await;
    node.command(PodCommand::Apply(deleted(pod, 30))).await;
    let log = written(&node, &uid, "asked").await;
    assert!(log.starts_with("hook\nasked\n"), "{log}");
    let seen = node
        .until("terminated", |seen| seen.terminated.contains(&uid))
        .await;
    let ends = seen.statuses[&uid].container_statuses.clone();
    for status in ends.expect("statuses") {
        assert_eq!(end(&status), (0, "Completed".into()), "{}", status.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pre_stop_that_never_ends_is_cut_off() {
    let node = Node::new().await;
    let mut one = boxed("c", POLITE);
    one["lifecycle"] = json!({ "preStop": { "exec": { "command": ["sleep", "1000"] } } });
    let pod = pod(with_box(json!({ "containers": [one] })));
    let uid = uid_of(&pod);
    node.apply(pod.clone()).await;
    node.logged(&uid, "c", "up").await;
    node.command(PodCommand::Apply(deleted(pod, 1))).await;
    let seen = node
        .until("terminated", |seen| seen.terminated.contains(&uid))
        .await;
    // Asked all the same, and given the time to answer.
    assert_eq!(end(&first(&seen.statuses[&uid])), (0, "Completed".into()));
}

fn sidecar(name: &str, text: &str) -> Value {
    let mut one = boxed(name, text);
    one["restartPolicy"] = json!("Always");
    one
}

fn names_own_end(name: &str) -> String {
    format!(
        "trap 'echo end {name} >> /box/log; exit 0' TERM; echo begin {name} >> /box/log; echo up; while true; do sleep 0.02; done"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn sidecars_begin_first_and_end_last_in_reverse_order() {
    let node = Node::new().await;
    let pod = pod(with_box(json!({
        "initContainers": [sidecar("a", &names_own_end("a")), sidecar("b", &names_own_end("b"))],
        "containers": [boxed("c", &names_own_end("c"))],
    })));
    let uid = uid_of(&pod);
    node.apply(pod.clone()).await;
    assert_eq!(
        written(&node, &uid, "begin c").await,
        "begin a\nbegin b\nbegin c\n"
    );
    node.phase(&uid, "Running").await;
    let path = node.config.pods_dir().join(&uid).join("volumes/box/log");
    // Kept open: the volume goes with the pod.
    let file = std::fs::File::open(path).expect("the volume's file");
    node.command(PodCommand::Apply(deleted(pod, 30))).await;
    node.until("terminated", |seen| seen.terminated.contains(&uid))
        .await;
    let log = std::io::read_to_string(file).expect("the open file");
    assert!(log.ends_with("end c\nend b\nend a\n"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sidecars_end_with_the_work_and_do_not_change_its_verdict() {
    let node = Node::new().await;
    let stubborn = "trap 'exit 9' TERM; echo up; while true; do sleep 0.02; done";
    let uid = node
        .run(with_box(json!({
            "restartPolicy": "Never",
            "initContainers": [sidecar("s", stubborn)],
            "containers": [boxed("c", "echo done")],
        })))
        .await;
    let status = node.phase(&uid, "Succeeded").await;
    let init = status
        .init_container_statuses
        .expect("the sidecar's status");
    assert_eq!(end(&init[0]), (9, "Error".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn pod_is_ended_at_its_deadline() {
    let node = Node::new().await;
    let mut spec = script("trap 'exit 0' TERM; echo up; while true; do sleep 0.05; done");
    spec["activeDeadlineSeconds"] = json!(1);
    spec["restartPolicy"] = json!("Always");
    let uid = node.run(spec).await;
    let status: PodStatus = node.phase(&uid, "Failed").await;
    assert_eq!(status.reason.as_deref(), Some("DeadlineExceeded"));
    let expected = "Pod was active on the node longer than the specified deadline";
    assert_eq!(status.message.as_deref(), Some(expected));
    assert_eq!(end(&first(&status)), (0, "Completed".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn token_of_the_account_comes_in_memory_with_its_neighbours() {
    let node = Node::new().await;
    let map = serde_json::from_value(json!({ "data": { "ca.crt": "PEM" } })).expect("a ConfigMap");
    let maps = &node.references.config_maps;
    maps.lock().expect("no panics").insert("root".into(), map);
    let mut one = container(
        "c",
        "cat /t/token; echo; cat /t/ca.crt /t/namespace; echo; grep ' /t ' /proc/mounts",
    );
    one["volumeMounts"] = json!([{ "name": "t", "mountPath": "/t", "readOnly": true }]);
    let token = json!({ "path": "token", "audience": "vault", "expirationSeconds": 7200 });
    let name = json!({ "path": "namespace", "fieldRef": { "fieldPath": "metadata.namespace" } });
    let uid = node
        .run(json!({
            "restartPolicy": "Never", "serviceAccountName": "robot",
            "volumes": [{ "name": "t", "projected": { "sources": [
                { "serviceAccountToken": token },
                { "configMap": { "name": "root" } },
                { "downwardAPI": { "items": [name] } },
            ] } }],
            "containers": [one],
        }))
        .await;
    node.phase(&uid, "Succeeded").await;
    let log = node.log(&uid, "c", 0);
    let expected = format!("0 of default/robot for \"vault\" and p-{uid}\nPEMdefault\n");
    let rest = log
        .strip_prefix(&expected)
        .unwrap_or_else(|| panic!("{log}"));
    assert!(rest.starts_with("tmpfs /t tmpfs ro,"), "{rest}");
}

#[tokio::test(flavor = "multi_thread")]
async fn fork_bomb_stays_in_its_container() {
    let node = Node::new().await;
    let bomb = "echo up; bomb() { bomb | bomb & }; bomb 2>/dev/null; sleep 1000";
    let uid = node.run(script(bomb)).await;
    node.logged(&uid, "c", "up").await;
    let id = node.bundles(&uid)[0].file_name().expect("an id").to_owned();
    let group = node.config.cgroup_root.join(format!("pod{uid}")).join(id);
    let root = std::path::Path::new("/sys/fs/cgroup");
    let v1 = root.join("pids").join(&group);
    let folder = if v1.exists() { v1 } else { root.join(&group) };
    let limit = std::fs::read_to_string(folder.join("pids.max")).expect("a limit");
    assert_eq!(limit.trim(), "256");
    // Beside it another pod runs to its end.
    let other = node.run(script("echo fine")).await;
    node.phase(&other, "Succeeded").await;
    let pod = node.manager.as_ref().expect("a manager").snapshot();
    assert!(pod.iter().any(|pod| pod.uid == uid), "it runs on");
    node.command(PodCommand::Remove(uid.clone())).await;
    let path = node.config.pods_dir().join(&uid);
    while path.exists() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pod_that_fills_its_volume_beyond_the_limit_is_evicted() {
    let node = Node::new().await;
    let fill = "dd if=/dev/zero of=/box/log bs=1M count=3 2>/dev/null; echo up; sleep 1000";
    let mut spec = json!({ "terminationGracePeriodSeconds": 0, "containers": [boxed("c", fill)] });
    spec["volumes"] = json!([{ "name": "box", "emptyDir": { "sizeLimit": "2Mi" } }]);
    let uid = node.run(spec).await;
    let status = node.phase(&uid, "Failed").await;
    assert_eq!(status.reason.as_deref(), Some("Evicted"));
    let expected = "Usage of EmptyDir volume \"box\" exceeds the limit \"2Mi\". ";
    assert_eq!(status.message.as_deref(), Some(expected));
}

#[tokio::test(flavor = "multi_thread")]
async fn claimed_volume_outlives_its_pods_and_belongs_to_their_group() {
    let node = Node::new().await;
    let folder = node.config.state_dir.join("disk");
    std::fs::create_dir(&folder).expect("a folder");
    let uid_of = |text: &str| {
        let mut spec = script(text);
        spec["securityContext"] = json!({ "runAsUser": 1000, "fsGroup": 2000 });
        spec["volumes"] =
            json!([{ "name": "data", "persistentVolumeClaim": { "claimName": "mine" } }]);
        spec["containers"][0]["volumeMounts"] = json!([{ "name": "data", "mountPath": "/data" }]);
        node.run(spec)
    };
    let first = uid_of("echo kept > /data/x").await;
    node.event("FailedMount", "persistentvolumeclaim \"mine\" is not bound")
        .await;
    let volume = json!({ "spec": { "local": { "path": folder } } });
    let volume = serde_json::from_value(volume).expect("a volume");
    let volumes = &node.references.volumes;
    volumes
        .lock()
        .expect("no panics")
        .insert("mine".into(), volume);
    node.phase(&first, "Succeeded").await;
    node.command(PodCommand::Remove(first.clone())).await;
    let path = node.config.pods_dir().join(&first);
    while path.exists() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let second = uid_of("cat /data/x; stat -c '%g %a' /data").await;
    node.phase(&second, "Succeeded").await;
    assert_eq!(node.log(&second, "c", 0), "kept\n2000 2775\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn services_are_told_by_variables_and_a_name_server() {
    let node = Node::new().await;
    let service = |last: u8, name: &str, port: u16| Service {
        addresses: vec![[10, 96, 0, last].into()],
        ports: vec![Port {
            name: name.into(),
            protocol: "TCP".into(),
            port,
        }],
        ..Service::default()
    };
    {
        let mut names = node.references.names.lock().expect("no panics");
        names.set_service("default", "web", Some(service(7, "http", 80)));
        names.set_service("kube-system", "kube-dns", Some(service(10, "dns", 53)));
    }
    let mut spec =
        script("echo $WEB_SERVICE_HOST:$WEB_SERVICE_PORT_HTTP $URL; cat /etc/resolv.conf");
    spec["containers"][0]["env"] = json!([{ "name": "URL", "value": "$(WEB_PORT)/x" }]);
    let uid = node.run(spec).await;
    node.phase(&uid, "Succeeded").await;
    assert_eq!(
        node.log(&uid, "c", 0),
        "10.96.0.7:80 tcp://10.96.0.7:80/x\nnameserver 10.96.0.10\n\
         search default.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"
    );
}
