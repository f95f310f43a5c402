//! Access control by stock kubectl: accounts, their tokens, roles, bindings, and questions about them.

use serde_json::{Value, json};

use super::{Cluster, Said, cluster};

/// Runs kubectl as the bearer of a token, without a client certificate.
async fn as_bearer(cluster: &Cluster, token: &str, arguments: &[&str]) -> Said {
    let text = std::fs::read_to_string(cluster.folder.path().join("kubeconfig")).expect("a file");
    let kept = |line: &&str| !line.contains("client-");
    let mut config: Vec<&str> = text.lines().filter(kept).collect();
    let at = config
        .iter()
        .position(|line| *line == "  user:")
        .expect("a user");
    let token = format!("    token: {token}");
    config.insert(at + 1, &token);
    let path = cluster.folder.path().join("bearer");
    std::fs::write(&path, config.join("\n")).expect("a file");
    let path = path.to_string_lossy().into_owned();
    cluster
        .kubectl(&[&["--kubeconfig", &path], arguments].concat())
        .await
}

/// Whether the credentials did not hold, in the words of a command or of the discovery before it.
fn is_unauthorized(said: &Said) -> bool {
    let words = [
        "Unauthorized",
        "asked for the client to provide credentials",
    ];
    !said.ok && words.iter().any(|words| said.err.contains(words))
}

/// Asks until the answer is "yes": bindings take effect a moment after they are made.
async fn until_allowed(cluster: &Cluster, question: &[&str]) {
    for _ in 0..100 {
        let said = cluster
            .kubectl(&[&["auth", "can-i"], question].concat())
            .await;
        if said.out.trim() == "yes" {
            return;
        }
    }
    panic!("never allowed: {question:?}");
}

#[tokio::test]
async fn an_account_may_what_its_roles_say_until_it_is_gone() {
    let cluster = cluster().await;
    cluster.kubectl_ok(&["create", "sa", "robot"]).await;
    let token = cluster.kubectl_ok(&["create", "token", "robot"]).await;
    let token = token.trim();
    let who = as_bearer(&cluster, token, &["auth", "whoami", "-o", "json"]).await;
    assert!(who.ok, "{}", who.err);
    let who: Value = serde_json::from_str(&who.out).expect("JSON");
    let info = &who["status"]["userInfo"];
    assert_eq!(info["username"], "system:serviceaccount:default:robot");
    let groups = json!([
        "system:serviceaccounts",
        "system:serviceaccounts:default",
        "system:authenticated"
    ]);
    assert_eq!(info["groups"], groups);
    let refused = as_bearer(&cluster, token, &["get", "pods"]).await;
    let expected = "pods is forbidden: User \"system:serviceaccount:default:robot\" cannot list resource \"pods\" in API \
                    group \"\" in the namespace \"default\"";
    assert!(refused.err.contains(expected), "{}", refused.err);
    cluster
        .kubectl_ok(&[
            "create",
            "role",
            "reader",
            "--verb=get,list",
            "--resource=pods,deployments.apps",
        ])
        .await;
    let bind = ["create", "rolebinding", "robots", "--role=reader"];
    cluster
        .kubectl_ok(&[&bind[..], &["--serviceaccount=default:robot"]].concat())
        .await;
    let me = "--as=system:serviceaccount:default:robot";
    until_allowed(&cluster, &["list", "pods", me]).await;
    for (arguments, allowed) in [
        (&["get", "pods"][..], true),
        (&["get", "deployments"], true),
        (&["get", "secrets"], false),
        (&["get", "pods", "-A"], false),
        (&["get", "pods", "-n", "kube-system"], false),
        (&["delete", "pod", "x"], false),
        (&["api-resources"], true),
    ] {
        let said = as_bearer(&cluster, token, arguments).await;
        assert_eq!(said.ok, allowed, "{arguments:?} {}", said.err);
    }
    let shown = cluster
        .kubectl_ok(&["get", "rolebindings", "-o", "wide"])
        .await;
    assert!(
        shown.contains("Role/reader") && shown.contains("default/robot"),
        "{shown}"
    );
    cluster.kubectl_ok(&["delete", "sa", "robot"]).await;
    let gone = as_bearer(&cluster, token, &["get", "pods"]).await;
    assert!(is_unauthorized(&gone), "{}", gone.err);
}

#[tokio::test]
async fn questions_are_answered() {
    let cluster = cluster().await;
    let admin = cluster.kubectl_ok(&["auth", "whoami"]).await;
    assert!(admin.contains("kubernetes-admin"), "{admin}");
    for (question, answer) in [
        (&["create", "pods"][..], "yes"),
        (&["create", "pods", "--as=nobody"], "no"),
        (&["get", "/version", "--as=nobody"], "yes"),
        (&["get", "/metrics", "--as=nobody"], "no"),
        (
            &["create", "pods", "--as=root", "--as-group=system:masters"],
            "yes",
        ),
        (
            &[
                "get",
                "pods",
                "--subresource=log",
                "--as=system:node:n1",
                "--as-group=system:nodes",
            ],
            "no",
        ),
        (
            &[
                "list",
                "services",
                "--as=system:node:n1",
                "--as-group=system:nodes",
            ],
            "yes",
        ),
    ] {
        let said = cluster
            .kubectl(&[&["auth", "can-i"], question].concat())
            .await;
        assert_eq!(said.out.trim(), answer, "{question:?} {}", said.err);
    }
    let listed = cluster
        .kubectl_ok(&["auth", "can-i", "--list", "--as=nobody"])
        .await;
    assert!(
        listed.contains("selfsubjectaccessreviews.authorization.k8s.io"),
        "{listed}"
    );
    let review = json!({"spec": {"token": "x.y.z"}});
    let path = "POST /apis/authentication.k8s.io/v1/tokenreviews";
    let (code, answer) = cluster.ask(path, &review).await;
    assert_eq!(
        (code, &answer["status"]["authenticated"]),
        (201, &json!(false))
    );
    let (code, _) = cluster
        .ask(
            "POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            &json!({"spec": {}}),
        )
        .await;
    assert_eq!(code, 422);
}

#[tokio::test]
async fn nobody_gives_what_they_do_not_have() {
    let cluster = cluster().await;
    let make = ["create", "clusterrole", "manager", "--verb=*"];
    let kinds = "--resource=roles.rbac.authorization.k8s.io,rolebindings.rbac.authorization.k8s.io,configmaps";
    cluster.kubectl_ok(&[&make[..], &[kinds]].concat()).await;
    // "*" would be the verbs bind and escalate too.
    let verbs = r#"{"rules":[
        {"apiGroups":["rbac.authorization.k8s.io"],"resources":["roles","rolebindings"],"verbs":["create","get","list","update","patch"]},
        {"apiGroups":[""],"resources":["configmaps"],"verbs":["get"]}]}"#;
    cluster
        .kubectl_ok(&[
            "patch",
            "clusterrole",
            "manager",
            "--type=merge",
            "-p",
            verbs,
        ])
        .await;
    let bind = [
        "create",
        "clusterrolebinding",
        "eve",
        "--clusterrole=manager",
        "--user=eve",
    ];
    cluster.kubectl_ok(&bind).await;
    until_allowed(&cluster, &["create", "roles", "--as=eve"]).await;
    let role = async |name: &str, verb: &str, kind: &str| {
        let (verb, kind) = (format!("--verb={verb}"), format!("--resource={kind}"));
        cluster
            .kubectl(&["create", "role", name, &verb, &kind, "--as=eve"])
            .await
    };
    let own = role("own", "get", "configmaps").await;
    assert!(own.ok, "{}", own.err);
    let more = role("more", "get", "secrets").await;
    assert!(!more.ok);
    let expected = "is attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], \
                    Resources:[\"secrets\"], Verbs:[\"get\"]}";
    assert!(more.err.contains(expected), "{}", more.err);
    let bind = [
        "create",
        "rolebinding",
        "up",
        "--clusterrole=cluster-admin",
        "--user=eve",
        "--as=eve",
    ];
    let up = cluster.kubectl(&bind).await;
    assert!(up.err.contains("not currently held"), "{}", up.err);
    let bind = [
        "create",
        "rolebinding",
        "down",
        "--role=own",
        "--user=bob",
        "--as=eve",
    ];
    let down = cluster.kubectl(&bind).await;
    assert!(down.ok, "{}", down.err);
    let other = cluster
        .kubectl(&["get", "cm", "--as=root", "--as-group=system:masters"])
        .await;
    assert!(other.ok, "{}", other.err);
    let imitate = ["auth", "can-i", "impersonate", "users", "--as=eve"];
    assert_eq!(cluster.kubectl(&imitate).await.out.trim(), "no");
}

#[tokio::test]
async fn a_binding_keeps_its_role() {
    let cluster = cluster().await;
    let bind = [
        "create",
        "rolebinding",
        "b",
        "--clusterrole=view",
        "--user=a",
    ];
    cluster.kubectl_ok(&bind).await;
    let patch = r#"{"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"edit"}}"#;
    let refused = cluster
        .kubectl(&["patch", "rolebinding", "b", "-p", patch])
        .await;
    assert!(
        refused.err.contains("cannot change roleRef"),
        "{}",
        refused.err
    );
}

#[tokio::test]
async fn tokens_are_bounded() {
    let cluster = cluster().await;
    cluster.kubectl_ok(&["create", "sa", "robot"]).await;
    let short = cluster
        .kubectl(&["create", "token", "robot", "--duration=1m"])
        .await;
    let expected = "may not specify a duration less than 10 minutes";
    assert!(short.err.contains(expected), "{}", short.err);
    let other = cluster
        .kubectl_ok(&[
            "create",
            "token",
            "robot",
            "--audience=elsewhere",
            "--duration=10m",
        ])
        .await;
    let refused = as_bearer(&cluster, other.trim(), &["get", "pods"]).await;
    assert!(is_unauthorized(&refused), "{}", refused.err);
    let review = json!({"spec": {"token": other.trim(), "audiences": ["elsewhere"]}});
    let (_, answer) = cluster
        .ask("POST /apis/authentication.k8s.io/v1/tokenreviews", &review)
        .await;
    assert_eq!(
        answer["status"]["user"]["username"],
        "system:serviceaccount:default:robot"
    );
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  serviceAccountName: robot\n  containers: [{name: c, image: x}]\n";
    cluster.apply(pod).await;
    let bound = [
        "create",
        "token",
        "robot",
        "--bound-object-kind=Pod",
        "--bound-object-name=p",
    ];
    let bound = cluster.kubectl_ok(&bound).await;
    let who = as_bearer(&cluster, bound.trim(), &["auth", "whoami"]).await;
    assert!(
        who.out.contains("authentication.kubernetes.io/pod-name"),
        "{}{}",
        who.out,
        who.err
    );
    cluster
        .kubectl_ok(&["delete", "pod", "p", "--force", "--grace-period=0"])
        .await;
    let gone = as_bearer(&cluster, bound.trim(), &["auth", "whoami"]).await;
    assert!(is_unauthorized(&gone), "{}", gone.err);
}
