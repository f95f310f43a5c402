//! Pods over time: restarts, back-off, errors that users make, graceful ends, and agents that come and go. Needs root.

mod support;

use std::{path::Path, sync::Arc, time::Duration};

use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use portolan_agent::pod::PodCommand;
use serde_json::json;
use support::{Node, container, end, first, pod, script, waiting_reason};

#[tokio::test(flavor = "multi_thread")]
async fn crashing_container_restarts_at_once_and_then_backs_off() {
    let node = Node::new().await;
    let mut spec = script("echo run; exit 1");
    spec["restartPolicy"] = json!("Always");
    let uid = node.run(spec).await;
    let status = node.waiting(&uid, "CrashLoopBackOff").await;
    assert_eq!(status.restart_count, 1, "the first restart does not wait");
    let message = status
        .state
        .clone()
        .and_then(|state| state.waiting)
        .and_then(|waiting| waiting.message);
    let expected = format!("back-off 10s restarting failed container=c pod=p-{uid}_default({uid})");
    assert_eq!(message, Some(expected));
    let last = status
        .last_state
        .and_then(|state| state.terminated)
        .expect("a last state");
    assert_eq!((last.exit_code, last.reason.as_deref()), (1, Some("Error")));
    assert_eq!(node.log(&uid, "c", 1), "run\n");
    node.event("BackOff", "Back-off restarting failed container c in pod")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn completed_container_restarts_only_under_always() {
    let node = Node::new().await;
    let mut spec = script("exit 0");
    spec["restartPolicy"] = json!("OnFailure");
    let uid = node.run(spec).await;
    let status = node.phase(&uid, "Succeeded").await;
    assert_eq!(first(&status).restart_count, 0);
    let ready = status
        .conditions
        .expect("conditions")
        .into_iter()
        .find(|own| own.type_ == "Ready")
        .expect("Ready");
    assert_eq!(
        (ready.status.as_str(), ready.reason.as_deref()),
        ("False", Some("PodCompleted"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_command_is_a_start_error_in_known_words() {
    let node = Node::new().await;
    let one =
        |command: &str| json!([{ "name": "c", "image": support::IMAGE, "command": [command] }]);
    for (command, expected) in [
        ("nope", "exec: \"nope\": executable file not found in $PATH"),
        (
            "/bin/nope",
            "exec: \"/bin/nope\": stat /bin/nope: no such file or directory",
        ),
        ("/etc/plain", "exec: \"/etc/plain\": permission denied"),
    ] {
        let uid = node
            .run(json!({ "restartPolicy": "Never", "containers": one(command) }))
            .await;
        let status = first(&node.phase(&uid, "Failed").await);
        assert_eq!(end(&status), (128, "StartError".into()));
        let message = status
            .state
            .and_then(|state| state.terminated)
            .and_then(|end| end.message)
            .unwrap_or_default();
        assert!(message.ends_with(expected), "{message}");
        node.event("Failed", expected).await;
        // Nothing half-made stays.
        node.cleared(&uid).await;
    }
    let uid = node
        .run(json!({ "restartPolicy": "Always", "containers": one("nope") }))
        .await;
    let status = node.waiting(&uid, "CrashLoopBackOff").await;
    let last = status
        .last_state
        .and_then(|state| state.terminated)
        .expect("a last state");
    assert_eq!(
        (last.exit_code, last.reason.as_deref()),
        (128, Some("StartError"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn image_errors_are_told_in_the_status() {
    let node = Node::new().await;
    let run = |image: &str, policy: &str| json!({ "containers": [{ "name": "c", "image": image, "imagePullPolicy": policy }] });
    let uid = node.run(run("Not A Name", "IfNotPresent")).await;
    node.waiting(&uid, "InvalidImageName").await;
    let uid = node.run(run("test/absent:1", "Never")).await;
    let status = node.waiting(&uid, "ErrImageNeverPull").await;
    let message = status
        .state
        .and_then(|state| state.waiting)
        .and_then(|waiting| waiting.message);
    let expected = "Container image \"test/absent:1\" is not present with pull policy of Never";
    assert_eq!(message.as_deref(), Some(expected));
    // A port that nobody listens on.
    let uid = node.run(run("127.0.0.1:1/x:1", "IfNotPresent")).await;
    node.waiting(&uid, "ErrImagePull").await;
    node.waiting(&uid, "ImagePullBackOff").await;
    node.event("BackOff", "Back-off pulling image \"127.0.0.1:1/x:1\"")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_reference_is_a_config_error_until_it_comes() {
    let node = Node::new().await;
    let mut spec = script("echo $K");
    spec["containers"][0]["env"] =
        json!([{ "name": "K", "valueFrom": { "configMapKeyRef": { "name": "cm", "key": "k" } } }]);
    let uid = node.run(spec).await;
    let status = node.waiting(&uid, "CreateContainerConfigError").await;
    let message = status
        .state
        .and_then(|state| state.waiting)
        .and_then(|waiting| waiting.message);
    assert_eq!(message.as_deref(), Some("configmap \"cm\" not found"));
    let map = serde_json::from_value(json!({ "data": { "k": "came" } })).expect("a ConfigMap");
    node.references
        .config_maps
        .lock()
        .expect("no panics")
        .insert("cm".into(), map);
    node.phase(&uid, "Succeeded").await;
    assert_eq!(node.log(&uid, "c", 0), "came\n");
}

fn deleted(mut pod: Pod, grace: i64) -> Arc<Pod> {
    pod.metadata.deletion_timestamp = Some(Time(Timestamp::now()));
    pod.metadata.deletion_grace_period_seconds = Some(grace);
    Arc::new(pod)
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_pod_ends_gracefully_and_leaves_nothing() {
    let node = Node::new().await;
    let pod = pod(script(
        "trap 'printf bye > /dev/termination-log; exit 0' TERM; echo up; while true; do sleep 0.05; done",
    ));
    let uid = pod.metadata.uid.clone().expect("a uid");
    node.apply(pod.clone()).await;
    node.logged(&uid, "c", "up").await;
    node.command(PodCommand::Apply(deleted(pod.clone(), 30)))
        .await;
    let seen = node
        .until("terminated", |seen| seen.terminated.contains(&uid))
        .await;
    let status = first(&seen.statuses[&uid]);
    assert_eq!(end(&status), (0, "Completed".into()));
    let message = status
        .state
        .and_then(|state| state.terminated)
        .and_then(|end| end.message);
    assert_eq!(message.as_deref(), Some("bye"));
    assert!(!node.config.pods_dir().join(&uid).exists());
    assert_eq!(node.log(&uid, "c", 0), "", "logs go with their pod");
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").expect("control groups") {
        let group = hierarchy
            .expect("an entry")
            .path()
            .join(&node.config.cgroup_root)
            .join(format!("pod{uid}"));
        assert!(!group.exists(), "{}", group.display());
    }
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("mounts");
    assert!(!mounts.contains(&uid), "{mounts}");
    // Told again by an agent that was down meanwhile: answered again.
    node.command(PodCommand::Apply(deleted(pod, 30))).await;
    node.until("terminated again", |seen| {
        seen.terminated.iter().filter(|own| **own == uid).count() == 2
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn container_that_ignores_sigterm_is_killed_after_the_grace_period() {
    let node = Node::new().await;
    let pod = pod(script(
        "trap '' TERM; echo up; while true; do sleep 0.05; done",
    ));
    let uid = pod.metadata.uid.clone().expect("a uid");
    node.apply(pod.clone()).await;
    node.logged(&uid, "c", "up").await;
    let begun = std::time::Instant::now();
    node.command(PodCommand::Apply(deleted(pod, 1))).await;
    let seen = node
        .until("terminated", |seen| seen.terminated.contains(&uid))
        .await;
    assert_eq!(end(&first(&seen.statuses[&uid])), (137, "Error".into()));
    let took = begun.elapsed();
    assert!(
        took >= Duration::from_secs(1) && took < Duration::from_secs(4),
        "{took:?}"
    );
    node.event("Killing", "Stopping container c").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_a_sync_does_not_name_go() {
    let node = Node::new().await;
    let (kept, gone) = (
        pod(script("echo up; sleep 1000")),
        pod(script("echo up; sleep 1000")),
    );
    let uid = |pod: &Pod| pod.metadata.uid.clone().expect("a uid");
    for pod in [&kept, &gone] {
        node.apply(pod.clone()).await;
        node.logged(&uid(pod), "c", "up").await;
    }
    node.command(PodCommand::Sync(vec![Arc::new(kept.clone())]))
        .await;
    let path = node.config.pods_dir().join(uid(&gone));
    while path.exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(node.bundles(&uid(&kept)).len(), 1);
}

fn pid_of(node: &Node, uid: &str) -> i32 {
    let snapshot = node.manager.as_ref().expect("a manager").snapshot();
    let pod = snapshot.iter().find(|pod| pod.uid == uid).expect("the pod");
    pod.containers.first().expect("a running container").pid
}

#[tokio::test(flavor = "multi_thread")]
async fn new_agent_adopts_everything_and_restarts_nothing() {
    let mut node = Node::new().await;
    let mut uids = Vec::new();
    for _ in 0..5 {
        let mut spec = script("echo up; while sleep 0.1; do echo on; done");
        spec["restartPolicy"] = json!("Always");
        let uid = node.run(spec).await;
        node.logged(&uid, "c", "up").await;
        node.phase(&uid, "Running").await;
        uids.push(uid);
    }
    let ended = node.run(script("echo up; sleep 1; exit 4")).await;
    node.logged(&ended, "c", "up").await;
    let pids: Vec<i32> = uids.iter().map(|uid| pid_of(&node, uid)).collect();
    node.stop().await;
    // One ends while nobody looks.
    tokio::time::sleep(Duration::from_millis(1300)).await;
    node.start().await;
    let adoption = node.manager.as_ref().expect("a manager").adoption();
    assert_eq!(adoption.containers, 5);
    assert!(
        adoption.elapsed < Duration::from_secs(1),
        "{:?}",
        adoption.elapsed
    );
    for (uid, pid) in uids.iter().zip(pids) {
        let status = node.phase(uid, "Running").await;
        assert_eq!(first(&status).restart_count, 0);
        assert_eq!(pid_of(&node, uid), pid);
    }
    let status = node.phase(&ended, "Failed").await;
    assert_eq!(end(&first(&status)), (4, "Error".into()));
    // Its end is still seen, also by the new agent.
    let pid = pid_of(&node, &uids[0]);
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid),
        nix::sys::signal::Signal::SIGKILL,
    )
    .expect("it runs");
    node.until("a restart", |seen| {
        seen.statuses.get(&uids[0]).is_some_and(|status| {
            let own = first(status);
            own.restart_count == 1 && own.ready
        })
    })
    .await;
}

fn shim_of(bundle: &Path) -> i32 {
    let text = std::fs::read_to_string(bundle.join("shim.pid")).expect("a shim");
    let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    i32::try_from(value["pid"].as_i64().expect("a pid")).expect("a pid")
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_shim_is_replaced_and_the_exit_code_is_not_lost() {
    let node = Node::new().await;
    let uid = node
        .run(script(
            "trap 'echo bye; exit 5' TERM; echo up; while true; do echo on; sleep 0.02; done",
        ))
        .await;
    node.logged(&uid, "c", "up").await;
    // It may have written that before anybody has been told of it.
    node.phase(&uid, "Running").await;
    let pid = pid_of(&node, &uid);
    let bundle = node.bundles(&uid)[0].clone();
    let shim = shim_of(&bundle);
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(shim),
        nix::sys::signal::Signal::SIGKILL,
    )
    .expect("it runs");
    while shim_of(&bundle) == shim {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid),
        nix::sys::signal::Signal::SIGTERM,
    )
    .expect("it runs");
    let status = first(&node.phase(&uid, "Failed").await);
    // Its parent is gone, and kernels before 6.15 tell nobody else.
    let expected = if support::kernel() >= (6, 15) {
        (5, "Error".into())
    } else {
        (137, "ContainerStatusUnknown".into())
    };
    assert_eq!(end(&status), expected);
    support::note(match expected.0 {
        5 => "feature orphans native",
        _ => "feature orphans absent",
    });
    // The new shim writes the log on.
    node.logged(&uid, "c", "bye").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shim_killed_while_no_agent_runs_is_replaced_too() {
    let mut node = Node::new().await;
    let uid = node
        .run(script("echo up; while sleep 0.02; do echo on; done"))
        .await;
    node.logged(&uid, "c", "up").await;
    node.phase(&uid, "Running").await;
    let bundle = node.bundles(&uid)[0].clone();
    node.stop().await;
    let shim = shim_of(&bundle);
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(shim),
        nix::sys::signal::Signal::SIGKILL,
    )
    .expect("it runs");
    node.start().await;
    assert_eq!(
        node.manager
            .as_ref()
            .expect("a manager")
            .adoption()
            .containers,
        1
    );
    while shim_of(&bundle) == shim {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let status = node.phase(&uid, "Running").await;
    assert_eq!(first(&status).restart_count, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_follows_the_probe() {
    let node = Node::new().await;
    let mut one = container("c", "echo up; while true; do sleep 0.1; done");
    one["readinessProbe"] = json!({ "exec": { "command": ["test", "-e", "/tmp/ready"] }, "periodSeconds": 1, "timeoutSeconds": 5 });
    let uid = node.run(json!({ "containers": [one] })).await;
    let status = node.phase(&uid, "Running").await;
    assert!(!first(&status).ready);
    let ready = |status: &k8s_openapi::api::core::v1::PodStatus| {
        status
            .conditions
            .iter()
            .flatten()
            .any(|own| own.type_ == "Ready" && own.status == "True")
    };
    assert!(!ready(&status));
    node.event("Unhealthy", "Readiness probe failed").await;
    std::fs::write(node.bundles(&uid)[0].join("rootfs/tmp/ready"), "")
        .expect("the container's root");
    node.until("ready", |seen| {
        seen.statuses
            .get(&uid)
            .is_some_and(|status| first(status).ready && ready(status))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_liveness_restarts_the_container() {
    let node = Node::new().await;
    let mut one = container("c", "trap 'exit 0' TERM; while true; do sleep 0.05; done");
    one["livenessProbe"] = json!({ "tcpSocket": { "host": "127.0.0.1", "port": 1 }, "periodSeconds": 1, "failureThreshold": 2 });
    let uid = node
        .run(json!({ "terminationGracePeriodSeconds": 3, "containers": [one] }))
        .await;
    node.event(
        "Killing",
        "Container c failed liveness probe, will be restarted",
    )
    .await;
    node.until("a restart", |seen| {
        seen.statuses
            .get(&uid)
            .is_some_and(|status| first(status).restart_count == 1)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_reasons_vanish_when_the_container_runs() {
    let node = Node::new().await;
    let uid = node.run(script("sleep 1000")).await;
    let status = first(&node.phase(&uid, "Running").await);
    assert_eq!(waiting_reason(&status), None);
    assert!(
        status
            .container_id
            .expect("an id")
            .starts_with("portolan://")
    );
    assert!(
        status
            .image_id
            .starts_with("docker.io/test/busybox@sha256:"),
        "{}",
        status.image_id
    );
}
