//! Joining, against a real TLS server in this process.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use portolan_agent::{
    join::{JoinError, JoinToken, NodeIdentity, identity_or_join, join},
    servers::Servers,
};
use portolan_wire::v1::{
    JoinRequest, JoinResponse, JoinServerRequest, JoinServerResponse,
    join_server::{Join, JoinServer},
};
use rcgen::{CertificateParams, CertificateSigningRequestParams, KeyPair, PublicKeyData};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Request, Response, Status,
    transport::{Server, ServerTlsConfig},
};

mod authority;

use authority::Authority;

/// How the server answers.
enum Behaviour {
    Admit,
    Refuse(Status),
    SignForAnotherKey,
    AnswerAnotherCa(String),
    /// Say that the store is away this many times.
    FailFirst(usize),
}

struct JoinService {
    authority: Arc<Authority>,
    behaviour: Behaviour,
    calls: Arc<AtomicUsize>,
    requests: Arc<Mutex<Vec<JoinRequest>>>,
}

#[tonic::async_trait]
impl Join for JoinService {
    async fn join_server(
        &self,
        _: Request<JoinServerRequest>,
    ) -> Result<Response<JoinServerResponse>, Status> {
        Err(Status::unimplemented("no agent asks for it"))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst);
        let request = request.into_inner();
        let mut csr = request.certificate_request_pem.clone();
        self.requests
            .lock()
            .expect("no panic under the lock")
            .push(request);
        let mut ca_pem = self.authority.pem.clone();
        match &self.behaviour {
            Behaviour::Refuse(status) => return Err(status.clone()),
            Behaviour::FailFirst(times) if call < *times => {
                return Err(Status::unavailable("the store does not answer"));
            }
            Behaviour::SignForAnotherKey => {
                let key = KeyPair::generate().expect("a key");
                let request = CertificateParams::default().serialize_request(&key);
                csr = request.expect("a request").pem().expect("PEM");
            }
            Behaviour::AnswerAnotherCa(pem) => ca_pem.clone_from(pem),
            Behaviour::Admit | Behaviour::FailFirst(_) => {}
        }
        Ok(Response::new(JoinResponse {
            certificate_pem: self.authority.sign(&csr),
            ca_pem,
        }))
    }
}

/// A running server with what it has seen.
struct Running {
    address: SocketAddr,
    authority: Arc<Authority>,
    calls: Arc<AtomicUsize>,
    requests: Arc<Mutex<Vec<JoinRequest>>>,
}

impl Running {
    async fn start(behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        Self::start_on(listener, behaviour, Arc::new(Authority::new("portolan")))
    }

    fn start_on(listener: TcpListener, behaviour: Behaviour, authority: Arc<Authority>) -> Self {
        let (calls, requests) = (Arc::default(), Arc::default());
        let service = JoinService {
            authority: authority.clone(),
            behaviour,
            calls: Arc::clone(&calls),
            requests: Arc::clone(&requests),
        };
        let address = listener.local_addr().expect("a bound address");
        let tls = ServerTlsConfig::new().identity(authority.server_identity());
        let server = Server::builder()
            .tls_config(tls)
            .expect("a TLS configuration")
            .add_service(JoinServer::new(service))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(server);
        Self {
            address,
            authority,
            calls,
            requests,
        }
    }

    fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    fn token(&self) -> JoinToken {
        token(&self.authority.fingerprint())
    }
}

fn token(fingerprint: &str) -> JoinToken {
    format!("abc123.s3cr3t.{fingerprint}")
        .parse()
        .expect("a token")
}

fn key() -> KeyPair {
    KeyPair::generate().expect("a key")
}

async fn refused(running: &Running, token: &JoinToken) -> JoinError {
    join(&running.url(), "n1", token, &key())
        .await
        .expect_err("not to be let in")
}

fn servers(url: &str) -> Servers {
    Servers::new(&[url.to_owned()], "n1").expect("a server")
}

#[tokio::test]
async fn a_node_with_a_good_token_gets_a_certificate_for_its_key() {
    let running = Running::start(Behaviour::Admit).await;
    let state = tempfile::tempdir().expect("a temporary directory");
    let token = running.token();
    let identity = identity_or_join(state.path(), &servers(&running.url()), "n1", || Ok(token))
        .await
        .expect("joined");
    assert_eq!(identity.ca, running.authority.pem);
    assert_eq!(
        NodeIdentity::load(state.path()).expect("stored"),
        Some(identity.clone())
    );
    {
        let requests = running.requests.lock().expect("no panic under the lock");
        assert_eq!(requests[0].node_name, "n1");
        assert!(requests[0].token.starts_with("abc123.s3cr3t."));
        assert!(!requests[0].certificate_request_pem.contains("PRIVATE"));
    }
    // The next run needs neither token nor server.
    let again = identity_or_join(state.path(), &servers("https://127.0.0.1:1"), "n1", || {
        Err(JoinError::NoToken)
    })
    .await
    .expect("from disk");
    assert_eq!(again, identity);
    assert_eq!(running.calls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_server_with_another_ca_never_sees_the_token() {
    let running = Running::start(Behaviour::Admit).await;
    let other = Authority::new("someone else");
    let error = refused(&running, &token(&other.fingerprint())).await;
    assert!(matches!(error, JoinError::Untrusted { .. }), "{error:?}");
    assert!(
        error
            .to_string()
            .ends_with("none of the 2 certificates that it showed has the token's fingerprint"),
        "{error}"
    );
    assert_eq!(running.calls.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_certificate_for_another_name_is_not_trusted() {
    let running = Running::start(Behaviour::Admit).await;
    let url = format!("https://localhost:{}", running.address.port());
    let error = join(&url, "n1", &running.token(), &key())
        .await
        .expect_err("another name");
    assert!(matches!(error, JoinError::Untrusted { .. }), "{error:?}");
}

#[tokio::test]
async fn a_refusal_is_final_and_leaves_nothing() {
    for status in [
        Status::unauthenticated("the token is used up"),
        Status::already_exists("another node is called n1"),
    ] {
        let message = status.message().to_owned();
        let running = Running::start(Behaviour::Refuse(status)).await;
        let state = tempfile::tempdir().expect("a temporary directory");
        let token = running.token();
        let error = identity_or_join(state.path(), &servers(&running.url()), "n1", || Ok(token))
            .await
            .expect_err("refused");
        assert!(error.to_string().ends_with(&message), "{error}");
        assert_eq!(running.calls.load(Ordering::SeqCst), 1);
        let left: Vec<_> = std::fs::read_dir(state.path())
            .expect("the directory")
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[tokio::test]
async fn answers_that_cannot_be_used_are_refused() {
    let running = Running::start(Behaviour::SignForAnotherKey).await;
    let error = refused(&running, &running.token()).await;
    assert!(matches!(error, JoinError::Answer { .. }), "{error:?}");

    let other = Authority::new("someone else");
    let running = Running::start(Behaviour::AnswerAnotherCa(other.pem)).await;
    let error = refused(&running, &running.token()).await;
    assert!(matches!(error, JoinError::Answer { .. }), "{error:?}");
}

#[tokio::test]
async fn an_unreachable_server_is_tried_until_it_is_there() {
    let placeholder = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = placeholder.local_addr().expect("a bound address");
    drop(placeholder);
    let authority = Arc::new(Authority::new("portolan"));
    let token = token(&authority.fingerprint());
    let url = format!("https://{address}");
    let error = join(&url, "n1", &token, &key())
        .await
        .expect_err("nobody listens");
    assert!(error.is_transient(), "{error:?}");

    let state = tempfile::tempdir().expect("a temporary directory");
    let path = state.path().to_owned();
    let joining =
        tokio::spawn(
            async move { identity_or_join(&path, &servers(&url), "n1", || Ok(token)).await },
        );
    let listener = TcpListener::bind(address)
        .await
        .expect("the port is free again");
    let running = Running::start_on(listener, Behaviour::FailFirst(2), authority);
    tokio::time::timeout(Duration::from_secs(30), joining)
        .await
        .expect("in time")
        .expect("no panic")
        .expect("joined");
    assert_eq!(running.calls.load(Ordering::SeqCst), 3);
    let requests = running.requests.lock().expect("no panic under the lock");
    let keys = requests.iter().map(|request| {
        let csr = &request.certificate_request_pem;
        let csr = CertificateSigningRequestParams::from_pem(csr).expect("a request");
        csr.public_key.der_bytes().to_vec()
    });
    let keys: std::collections::BTreeSet<_> = keys.collect();
    assert_eq!(keys.len(), 1, "every attempt is for the same key");
}

#[tokio::test]
async fn a_url_that_is_none_is_named() {
    let token = token(&"0".repeat(64));
    for url in ["10.89.0.1:6443", "http://10.89.0.1:6443", ""] {
        let error = join(url, "n1", &token, &key())
            .await
            .expect_err("no https URL");
        assert!(matches!(error, JoinError::Server(_)), "{url}: {error:?}");
    }
}
