//! Who gets a certificate, and who does not.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use portolan_wire::v1::join_client::JoinClient;
use portolan_wire::v1::{JoinRequest, JoinResponse, JoinServerRequest};
use rcgen::{CertificateParams, KeyPair};
use serde_json::json;
use tonic::{Code, Status};

use super::Plane;
use crate::api::{Caller, WriteOptions};
use crate::grpc::members::{Members, Taken};
use crate::grpc::token::{self, Joins, NAMESPACE, Token};
use crate::pki::Fingerprint;
use crate::resource::rows::{LEASES, SECRETS};

fn request(token: &str, name: &str, key: &KeyPair) -> JoinRequest {
    let params = CertificateParams::default();
    JoinRequest {
        token: token.to_owned(),
        node_name: name.to_owned(),
        certificate_request_pem: params.serialize_request(key).unwrap().pem().unwrap(),
    }
}

async fn join(plane: &Plane, request: JoinRequest) -> Result<JoinResponse, Status> {
    let channel = plane.connect("system:anonymous", &[]).await;
    let joined = JoinClient::new(channel).join(request).await;
    joined.map(tonic::Response::into_inner)
}

async fn issue(plane: &Plane, uses: u32) -> Token {
    let authority = plane.authority.fingerprint().to_string();
    let day = Duration::from_hours(24);
    token::issue(&*plane.api(), &authority, Joins::Node, uses, day)
        .await
        .unwrap()
}

fn key() -> KeyPair {
    KeyPair::generate().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_lets_in_as_many_nodes_as_it_says() {
    let plane = Plane::start().await;
    let token = issue(&plane, 2).await.to_string();
    for name in ["n1", "n2.rack-3"] {
        let joined = join(&plane, request(&token, name, &key())).await.unwrap();
        assert_eq!(joined.ca_pem, plane.authority.certificate_pem());
        assert!(
            joined
                .certificate_pem
                .starts_with("-----BEGIN CERTIFICATE-----")
        );
    }
    let refused = join(&plane, request(&token, "n3", &key()))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert_eq!(refused.message(), "the join token is used up");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn racing_nodes_never_overspend_a_token() {
    let plane = Plane::start().await;
    let token = issue(&plane, 3).await.to_string();
    let attempts = (0..8).map(|number| {
        let request = request(&token, &format!("n{number}"), &key());
        join(&plane, request)
    });
    let joined = futures::future::join_all(attempts).await;
    assert_eq!(
        joined.iter().filter(|joined| joined.is_ok()).count(),
        3,
        "{joined:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_and_expired_tokens_are_told_apart_from_used_ones_only() {
    let plane = Plane::start().await;
    let good = issue(&plane, 5).await;
    let wrong_secret = Token {
        secret: "0123456789abcdef".to_owned(),
        ..good.clone()
    };
    let unknown = Token {
        id: "nobody".to_owned(),
        ..good.clone()
    };
    let mut expired = Token::generate(&good.authority);
    expired.id = "oldone".to_owned();
    let secret = expired.to_secret(Joins::Node, 5, Timestamp::UNIX_EPOCH);
    let options = WriteOptions::default();
    let caller = Caller::system("test");
    plane
        .api()
        .create(&caller, SECRETS, Some(NAMESPACE), secret, &options)
        .await
        .unwrap();
    for (token, words) in [
        (wrong_secret.to_string(), "the join token is wrong"),
        (unknown.to_string(), "the join token is wrong"),
        (
            expired.to_string(),
            "the join token expired at 1970-01-01T00:00:00Z",
        ),
        (
            "nonsense".to_owned(),
            "a join token has the form ID.SECRET.CA_SHA256_HEX",
        ),
    ] {
        let refused = join(&plane, request(&token, "n1", &key()))
            .await
            .unwrap_err();
        assert_eq!(
            (refused.code(), refused.message()),
            (Code::Unauthenticated, words)
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mistake_does_not_cost_a_use() {
    let plane = Plane::start().await;
    let token = issue(&plane, 1).await.to_string();
    for name in ["", "N1", "-n1", "a..b", "system:admin", &"n".repeat(64)] {
        let refused = join(&plane, request(&token, name, &key()))
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{name}");
    }
    let mut broken = request(&token, "n1", &key());
    broken.certificate_request_pem = "nonsense".to_owned();
    let refused = join(&plane, broken).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    join(&plane, request(&token, "n1", &key())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_belongs_to_one_key() {
    let plane = Plane::start().await;
    let token = issue(&plane, 9).await.to_string();
    let first = key();
    join(&plane, request(&token, "n1", &first)).await.unwrap();
    // An answer that got lost is asked for again.
    join(&plane, request(&token, "n1", &first)).await.unwrap();
    let refused = join(&plane, request(&token, "n1", &key()))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists);
    assert!(
        refused.message().contains("\"n1\""),
        "{}",
        refused.message()
    );
}

/// A node that lost its state has another key; it may come back once its lease has run out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_nodes_name_is_free_again() {
    let plane = Plane::start().await;
    let members = Members::new(plane.api(), plane.store.clone());
    let (old, new) = (Fingerprint::of(b"old"), Fingerprint::of(b"new"));
    let start = Timestamp::now();
    let after = |seconds| start + SignedDuration::from_secs(seconds);
    members.admit("n1", &old, start).await.unwrap();
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": { "name": "n1", "namespace": "kube-node-lease" },
        "spec": {
            "leaseDurationSeconds": 40,
            "renewTime": after(60).strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string(),
        },
    });
    let options = WriteOptions::default();
    let caller = Caller::system("test");
    let api = plane.api();
    let created = api.create(&caller, LEASES, Some("kube-node-lease"), lease, &options);
    created.await.unwrap();
    for seconds in [10, 39, 70, 99] {
        let taken = members.admit("n1", &new, after(seconds)).await.unwrap_err();
        assert!(matches!(taken, Taken::Alive(_)), "{taken:?}");
        members.admit("n1", &old, after(seconds)).await.unwrap();
    }
    members.admit("n1", &new, after(101)).await.unwrap();
    // Now it is the new key's, also before it has renewed the lease.
    let taken = members.admit("n1", &old, after(110)).await.unwrap_err();
    assert!(matches!(taken, Taken::Alive(_)), "{taken:?}");
}

async fn join_server(plane: &Plane, token: &Token) -> Result<String, Status> {
    let channel = plane.connect("system:anonymous", &[]).await;
    let request = JoinServerRequest {
        token: token.to_string(),
    };
    let joined = JoinClient::new(channel).join_server(request).await?;
    Ok(joined.into_inner().encryption_keys)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_servers_token_gets_the_keys_once_and_a_nodes_never() {
    let plane = Plane::start().await;
    std::fs::write(plane.folder.path().join("keys"), "the keys").unwrap();
    let of_node = issue(&plane, 5).await;
    let refused = join_server(&plane, &of_node).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let authority = plane.authority.fingerprint().to_string();
    let hour = Duration::from_hours(1);
    let api = plane.api();
    let of_server = token::issue(&*api, &authority, Joins::Server, 1, hour);
    let of_server = of_server.await.unwrap();
    let refused = join(&plane, request(&of_server.to_string(), "n1", &key())).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(join_server(&plane, &of_server).await.unwrap(), "the keys");
    let refused = join_server(&plane, &of_server).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(refused.message().contains("used up"), "{refused}");
}
