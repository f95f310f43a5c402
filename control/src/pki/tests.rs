//! What the authority signs is what TLS and the identity check expect.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::*;
use crate::store::Embedded;

async fn authority() -> (tempfile::TempDir, Embedded, Authority) {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open(folder.path().join("store")).await.unwrap();
    let authority = Authority::load(&store).await.unwrap();
    (folder, store, authority)
}

fn node_request(common_name: &str) -> (KeyPair, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new([String::from("evil.example")]).unwrap();
    params.distinguished_name = subject(common_name, &["system:masters"]);
    let pem = params.serialize_request(&key).unwrap().pem().unwrap();
    (key, pem)
}

#[tokio::test]
async fn the_first_server_makes_the_authority_and_all_share_it() {
    let (_folder, store, first) = authority().await;
    let second = Authority::load(&store).await.unwrap();
    assert_eq!(first.fingerprint(), second.fingerprint());
    assert_eq!(first.fingerprint().to_string().len(), 64);
}

#[tokio::test]
async fn racing_servers_agree_on_one_authority() {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open(folder.path().join("store")).await.unwrap();
    let loads = (0..8).map(|_| Authority::load(&store));
    let prints = futures::future::join_all(loads).await;
    let prints: Vec<_> = prints
        .into_iter()
        .map(|load| load.unwrap().fingerprint())
        .collect();
    assert!(prints.iter().all(|print| *print == prints[0]), "{prints:?}");
}

#[tokio::test]
async fn a_node_gets_its_own_name_whatever_it_asks_for() {
    let (_folder, _store, authority) = authority().await;
    let (_, pem) = node_request("kubernetes-admin");
    let request = NodeRequest::parse(&pem).unwrap();
    let pem = authority.node("n1", &request).unwrap();
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let (_, certificate) = X509Certificate::from_der(&der).unwrap();
    let names: Vec<_> = certificate.subject().iter_common_name().collect();
    assert_eq!(names.len(), 1);
    assert_eq!(names[0].as_str().unwrap(), "system:node:n1");
    let groups: Vec<_> = certificate.subject().iter_organization().collect();
    assert_eq!(groups.len(), 1);
    assert_eq!(groups[0].as_str().unwrap(), "system:nodes");
    let names = certificate.subject_alternative_name().unwrap().unwrap();
    let names: Vec<String> = names
        .value
        .general_names
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(names, ["DNSName(n1)"]);
    assert!(!certificate.is_ca());
}

#[tokio::test]
async fn a_request_that_its_key_did_not_sign_is_refused() {
    let (_, mut pem) = node_request("n1");
    assert!(NodeRequest::parse("nonsense").is_err());
    let last = pem.rfind("==").unwrap_or(pem.len() / 2) - 8;
    let other = if pem.as_bytes()[last] == b'A' {
        "B"
    } else {
        "A"
    };
    pem.replace_range(last..=last, other);
    assert!(NodeRequest::parse(&pem).is_err());
}

/// Both sides of a handshake: the server shows the whole chain, the client is known by its certificate.
#[tokio::test]
async fn tls_knows_clients_by_their_certificate_and_lets_others_in_unnamed() {
    let (_folder, _store, authority) = authority().await;
    let names = [
        "control.example".to_owned(),
        "127.0.0.1".to_owned(),
        "::1".to_owned(),
    ];
    let server = server_config(&authority, &authority.server(&names).unwrap()).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
    let mut roots = RootCertStore::empty();
    roots.add(authority.certificate().clone()).unwrap();
    let admin = authority.admin().unwrap();
    for (name, identity) in [
        ("control.example", Some(admin)),
        ("127.0.0.1", None),
        ("::1", None),
    ] {
        let builder =
            ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots.clone());
        let is_known = identity.is_some();
        let config = match identity {
            Some(identity) => {
                let key = identity.key.serialize_der().try_into().unwrap();
                builder
                    .with_client_auth_cert(vec![identity.certificate], key)
                    .unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let (near, far) = tokio::io::duplex(1 << 16);
        let accepted = acceptor.accept(far);
        let name = ServerName::try_from(name).unwrap();
        let (connected, accepted) = tokio::join!(connector.connect(name, near), accepted);
        let (mut connected, mut accepted) = (connected.unwrap(), accepted.unwrap());
        connected.write_all(b"hello").await.unwrap();
        connected.flush().await.unwrap();
        let mut heard = [0; 5];
        accepted.read_exact(&mut heard).await.unwrap();
        assert_eq!(accepted.get_ref().1.peer_certificates().is_some(), is_known);
        let chain = connected.get_ref().1.peer_certificates().unwrap();
        assert_eq!(
            Fingerprint::of(chain.last().unwrap()),
            authority.fingerprint()
        );
    }
}

#[tokio::test]
async fn a_stranger_to_the_authority_is_refused() {
    let (_folder, _store, ours) = authority().await;
    let (_other_folder, _other_store, theirs) = authority().await;
    let server = server_config(&ours, &ours.server(&["a.example".to_owned()]).unwrap()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(ours.certificate().clone()).unwrap();
    let admin = theirs.admin().unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![admin.certificate],
            admin.key.serialize_der().try_into().unwrap(),
        )
        .unwrap();
    let (near, far) = tokio::io::duplex(1 << 16);
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let name = ServerName::try_from("a.example").unwrap();
    let (_connected, accepted) = tokio::join!(connector.connect(name, near), acceptor.accept(far));
    accepted.unwrap_err();
}

#[tokio::test]
async fn the_kubeconfig_is_private_and_names_all_that_kubectl_needs() {
    let (folder, _store, authority) = authority().await;
    let admin = authority.admin().unwrap();
    let kubeconfig = Kubeconfig {
        server: "https://127.0.0.1:6443",
        authority: &authority,
        identity: &admin,
    };
    let path = folder.path().join("sub/kubeconfig");
    write_private(&path, "old").unwrap();
    write_private(&path, &kubeconfig.render()).unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let text = std::fs::read_to_string(&path).unwrap();
    let parsed: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
    assert_eq!(
        parsed["clusters"][0]["cluster"]["server"],
        "https://127.0.0.1:6443"
    );
    assert_eq!(parsed["current-context"], "portolan");
    assert_eq!(
        std::fs::read_dir(path.parent().unwrap()).unwrap().count(),
        1
    );
}
