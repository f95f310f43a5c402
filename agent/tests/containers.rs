//! Containers of all kinds, run to their end. Needs root.

mod support;

use serde_json::json;
use support::{Node, container, end, first, script};

#[tokio::test(flavor = "multi_thread")]
async fn image_command_runs_to_completion() {
    let node = Node::new().await;
    let uid = node
        .run(json!({ "restartPolicy": "Never", "containers": [{ "name": "c", "image": support::IMAGE }] }))
        .await;
    let status = node.phase(&uid, "Succeeded").await;
    assert_eq!(end(&first(&status)), (0, "Completed".into()));
    assert_eq!(node.log(&uid, "c", 0), "from the image\n");
    for (reason, text) in [
        (
            "Pulled",
            "Container image \"test/busybox:1\" already present on machine",
        ),
        ("Created", "Created container: c"),
        ("Started", "Started container c"),
    ] {
        node.event(reason, text).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_and_signals_are_told() {
    let node = Node::new().await;
    for (text, expected) in [
        ("exit 7", (7, "Error")),
        // A doubled dollar sign is a plain one in a pod's command.
        ("sh -c 'kill -9 $$$$'; exit $?", (137, "Error")),
        ("printf last > /dev/termination-log; exit 3", (3, "Error")),
    ] {
        let uid = node.run(script(text)).await;
        let status = first(&node.phase(&uid, "Failed").await);
        assert_eq!(end(&status), (expected.0, expected.1.into()), "{text}");
        let ended = status
            .state
            .and_then(|state| state.terminated)
            .expect("an end");
        assert_eq!(
            ended.message.as_deref(),
            text.contains("last").then_some("last")
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_limit_ends_in_oom_killed() {
    let node = Node::new().await;
    let mut spec = script("x=1; while true; do x=$x$x; done");
    spec["containers"][0]["resources"] = json!({ "limits": { "memory": "16Mi", "cpu": "500m" } });
    let uid = node.run(spec).await;
    let status = node.phase(&uid, "Failed").await;
    assert_eq!(end(&first(&status)), (137, "OOMKilled".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn cpu_limit_is_the_kernels() {
    let node = Node::new().await;
    let mut spec = script("echo ready; sleep 1000");
    spec["containers"][0]["resources"] =
        json!({ "limits": { "cpu": "500m" }, "requests": { "cpu": "250m" } });
    let uid = node.run(spec).await;
    node.logged(&uid, "c", "ready").await;
    let id = node.bundles(&uid)[0].file_name().expect("an id").to_owned();
    let group = node.config.cgroup_root.join(format!("pod{uid}")).join(id);
    let v1 = std::path::Path::new("/sys/fs/cgroup/cpu").join(&group);
    let (file, expected) = if v1.exists() {
        (v1.join("cpu.cfs_quota_us"), "50000")
    } else {
        (
            std::path::Path::new("/sys/fs/cgroup")
                .join(&group)
                .join("cpu.max"),
            "50000 100000",
        )
    };
    let text = std::fs::read_to_string(&file).expect("the container's control group");
    assert_eq!(text.trim(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_are_only_those_allowed() {
    let node = Node::new().await;
    // No driver has this number: whoever may open it is told so.
    let text =
        "mknod /disk b 240 7; cat /disk 2>&1; mknod /own c 1 3; echo lost > /own && echo written";
    for (privileged, expected) in [
        (false, "Operation not permitted"),
        (true, "No such device or address"),
    ] {
        let mut spec = script(text);
        spec["containers"][0]["securityContext"] = json!({ "privileged": privileged });
        let uid = node.run(spec).await;
        node.phase(&uid, "Succeeded").await;
        let log = node.log(&uid, "c", 0);
        assert!(log.contains(expected), "privileged {privileged}: {log}");
        assert!(log.ends_with("written\n"), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pids_limit_is_enforced() {
    let node = Node::new().await;
    let text = "n=0; while [ $n -lt LIMIT ]; do sleep 1000 & n=$((n + 1)); echo $n; done";
    let uid = node
        .run(script(&text.replace("LIMIT", &support::PIDS.to_string())))
        .await;
    node.phase(&uid, "Failed").await;
    let log = node.log(&uid, "c", 0);
    // The shell is one of them.
    assert!(log.contains(&format!("{}\n", support::PIDS - 1)), "{log}");
    assert!(log.contains("can't fork"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_of_a_pod_share_network_and_host_name() {
    let node = Node::new().await;
    let uid = node
        .run(json!({
            "restartPolicy": "Never",
            "volumes": [{ "name": "shared", "emptyDir": {} }],
            "containers": [
                {
                    "name": "server", "image": support::IMAGE,
                    "command": ["sh", "-c", "mkdir /tmp/www; hostname > /tmp/www/index.html; echo up; httpd -f -p 127.0.0.1:8080 -h /tmp/www"],
                    "volumeMounts": [{ "name": "shared", "mountPath": "/shared" }],
                },
                {
                    "name": "client", "image": support::IMAGE,
                    "command": ["sh", "-c", "until wget -q -O - http://127.0.0.1:8080/; do sleep 0.05; done; touch /shared/x; ps | grep -c httpd; hostname; cat /etc/hosts; echo done"],
                    "volumeMounts": [{ "name": "shared", "mountPath": "/shared" }],
                },
            ],
        }))
        .await;
    let log = node.logged(&uid, "client", "done").await;
    let name = format!("p-{uid}");
    assert_eq!(log.lines().filter(|line| *line == name).count(), 2, "{log}");
    assert!(log.contains(&format!("10.244.0.7\t{name}")), "{log}");
    let volume = node.config.pods_dir().join(&uid).join("volumes/shared/x");
    assert!(volume.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn environment_and_arguments_are_expanded() {
    let node = Node::new().await;
    let uid = node
        .run(json!({
            "restartPolicy": "Never", "nodeName": "n1",
            "containers": [{
                "name": "c", "image": support::IMAGE,
                "args": ["$(FROM)", "$(NAME)/$(IP)/$(NODE)/$(APP)", "$(CPU)", "$$(NAME)", "$(NONE)"],
                "env": [
                    { "name": "NAME", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } },
                    { "name": "IP", "valueFrom": { "fieldRef": { "fieldPath": "status.podIP" } } },
                    { "name": "NODE", "valueFrom": { "fieldRef": { "fieldPath": "spec.nodeName" } } },
                    { "name": "APP", "valueFrom": { "fieldRef": { "fieldPath": "metadata.labels['app']" } } },
                    { "name": "CPU", "valueFrom": { "resourceFieldRef": { "resource": "limits.cpu" } } },
                ],
            }],
        }))
        .await;
    node.phase(&uid, "Succeeded").await;
    assert_eq!(
        node.log(&uid, "c", 0),
        format!("image p-{uid}/10.244.0.7/n1/x 2 $(NAME) $(NONE)\n")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_are_confined() {
    let node = Node::new().await;
    let text = "id -u; grep CapEff /proc/self/status; grep NoNewPrivs /proc/self/status; grep Seccomp: /proc/self/status; \
                mount -t tmpfs x /tmp 2>/dev/null || echo no mount; touch /x 2>/dev/null || echo read-only; \
                cat /proc/kcore 2>/dev/null | head -c 1 | wc -c; touch /proc/sys/kernel/x 2>/dev/null || echo no sys; \
                unshare -n true 2>/dev/null || echo no unshare; ls /dev; stat -c %a /dev/shm; pwd";
    let mut spec = script(text);
    spec["securityContext"] = json!({ "runAsUser": 1000 });
    spec["containers"][0]["workingDir"] = json!("/tmp");
    spec["containers"][0]["securityContext"] =
        json!({ "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false });
    let uid = node.run(spec).await;
    node.phase(&uid, "Succeeded").await;
    let log = node.log(&uid, "c", 0);
    for expected in [
        "1000\n",
        "CapEff:\t0000000000000000\n",
        "NoNewPrivs:\t1\n",
        "Seccomp:\t2\n",
        "no mount\n",
        "read-only\n",
        "no sys\n",
        "no unshare\n",
        "urandom\n",
        "1777\n/tmp\n",
    ] {
        assert!(log.contains(expected), "{expected:?} in {log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn root_has_the_default_capabilities_and_the_filter() {
    let node = Node::new().await;
    let uid = node
        .run(script(
            "grep CapEff /proc/self/status; grep Seccomp: /proc/self/status; unshare -n true 2>/dev/null || echo no unshare",
        ))
        .await;
    node.phase(&uid, "Succeeded").await;
    assert_eq!(
        node.log(&uid, "c", 0),
        "CapEff:\t00000000a80425fb\nSeccomp:\t2\nno unshare\n"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn init_containers_run_first_and_in_order() {
    let node = Node::new().await;
    let mount = json!([{ "name": "work", "mountPath": "/box" }]);
    let step = |name: &str, text: &str| {
        let mut one = container(name, text);
        one["volumeMounts"] = mount.clone();
        one
    };
    let uid = node
        .run(json!({
            "restartPolicy": "Never",
            "volumes": [{ "name": "work", "emptyDir": { "medium": "Memory" } }],
            "initContainers": [step("a", "echo a >> /box/x"), step("b", "echo b >> /box/x")],
            "containers": [step("c", "cat /box/x; mount | grep ' /box ' | cut -d' ' -f1")],
        }))
        .await;
    let status = node.phase(&uid, "Succeeded").await;
    assert_eq!(node.log(&uid, "c", 0), "a\nb\ntmpfs\n");
    let init = status.init_container_statuses.expect("init containers");
    assert!(init.iter().all(|one| one.ready), "{init:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn configuration_comes_as_files_and_variables() {
    let node = Node::new().await;
    let map = serde_json::from_value(json!({ "data": { "k": "v", "file": "text" } }))
        .expect("a ConfigMap");
    node.references
        .config_maps
        .lock()
        .expect("no panics")
        .insert("cm".into(), map);
    let secret = serde_json::from_value(json!({ "data": { "p": "cHc=" } })).expect("a Secret");
    node.references
        .secrets
        .lock()
        .expect("no panics")
        .insert("s".into(), secret);
    let mut one = container("c", "echo $K $PRE_p; cat /cm/file; ls /cm");
    one["env"] =
        json!([{ "name": "K", "valueFrom": { "configMapKeyRef": { "name": "cm", "key": "k" } } }]);
    one["envFrom"] = json!([{ "prefix": "PRE_", "secretRef": { "name": "s" } }]);
    one["volumeMounts"] = json!([{ "name": "cm", "mountPath": "/cm" }]);
    let uid = node
        .run(json!({
            "restartPolicy": "Never",
            "volumes": [{ "name": "cm", "configMap": { "name": "cm" } }],
            "containers": [one],
        }))
        .await;
    node.phase(&uid, "Succeeded").await;
    assert_eq!(node.log(&uid, "c", 0), "v pw\ntextfile\nk\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn host_network_is_the_agents_own() {
    let node = Node::new().await;
    let mut spec = script("readlink /proc/self/ns/net");
    spec["hostNetwork"] = json!(true);
    let uid = node.run(spec).await;
    let status = node.phase(&uid, "Succeeded").await;
    let own = std::fs::read_link("/proc/self/ns/net").expect("a namespace");
    assert_eq!(node.log(&uid, "c", 0).trim(), own.to_string_lossy());
    assert_eq!(status.pod_ip.as_deref(), Some("10.89.0.11"));
}
