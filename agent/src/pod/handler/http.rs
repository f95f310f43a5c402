//! A GET of one answer's head, in the clear or over TLS.
#![forbid(unsafe_code)]

use std::{io, sync::Arc};

use k8s_openapi::api::core::v1::HTTPGetAction;
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use super::{Target, at};

/// As much of an answer as is read.
const LONGEST_ANSWER: u64 = 10 * 1024;

/// Redirects count as success, as they do in Kubernetes; certificates are not verified, as they are not there.
pub async fn get(action: &HTTPGetAction, target: &Target) -> Result<(), String> {
    let (host, port) = target.endpoint(action.host.as_deref(), &action.port)?;
    let path = action
        .path
        .as_deref()
        .filter(|path| path.starts_with('/'))
        .unwrap_or("/");
    let place = at(&host, port);
    let secure = action.scheme.as_deref() == Some("HTTPS");
    let scheme = if secure { "https" } else { "http" };
    let fail = |error: io::Error| format!("Get \"{scheme}://{place}{path}\": {error}");
    let request = request(action, path, &place);
    let stream = TcpStream::connect((host.as_str(), port))
        .await
        .map_err(fail)?;
    let answer = if secure {
        let stream = encrypted(stream, &host).await.map_err(fail)?;
        ask(stream, &request).await
    } else {
        ask(stream, &request).await
    };
    match status_code(&answer.map_err(fail)?) {
        Some(200..=399) => Ok(()),
        Some(code) => Err(format!("HTTP probe failed with statuscode: {code}")),
        None => Err(format!(
            "Get \"{scheme}://{place}{path}\": malformed HTTP response"
        )),
    }
}

fn request(action: &HTTPGetAction, path: &str, place: &str) -> String {
    let mut request = format!("GET {path} HTTP/1.1\r\n");
    let headers = || action.http_headers.iter().flatten();
    let has = |name: &str| headers().any(|own| own.name.eq_ignore_ascii_case(name));
    for (name, value) in [
        ("Host", place),
        ("User-Agent", "kube-probe/1.36"),
        ("Accept", "*/*"),
    ] {
        if !has(name) {
            request.extend([name, ": ", value, "\r\n"]);
        }
    }
    for header in headers() {
        request.extend([header.name.as_str(), ": ", header.value.as_str(), "\r\n"]);
    }
    request.push_str("Connection: close\r\n\r\n");
    request
}

/// The answer as far as its first line.
async fn ask(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    request: &str,
) -> io::Result<Vec<u8>> {
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut answer = Vec::new();
    let mut limited = stream.take(LONGEST_ANSWER);
    while !answer.contains(&b'\n') {
        if limited.read_buf(&mut answer).await? == 0 {
            break;
        }
    }
    Ok(answer)
}

async fn encrypted(
    stream: TcpStream,
    host: &str,
) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone(provider)))
        .with_no_client_auth();
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
}

/// Takes every certificate: a probe asks whether a container serves, not who it is.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn status_code(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|&byte| byte == b'\n').next()?;
    let line = std::str::from_utf8(line).ok()?;
    let rest = line.strip_prefix("HTTP/1.")?;
    rest.split(' ').nth(1)?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_lines_are_read() {
        assert_eq!(status_code(b"HTTP/1.1 200 OK\r\nX: y"), Some(200));
        assert_eq!(status_code(b"HTTP/1.0 503\r\n"), Some(503));
        assert_eq!(status_code(b"SSH-2.0\r\n"), None);
    }

    #[tokio::test]
    async fn a_self_signed_server_is_asked_over_tls() {
        let made = rcgen::generate_simple_self_signed(vec!["x".to_owned()]).expect("a certificate");
        let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der())
            .expect("a key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .expect("a server's configuration");
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let port = listener.local_addr().expect("an address").port();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.expect("a client");
            let mut stream = acceptor.accept(stream).await.expect("a handshake");
            let mut asked = [0; 64];
            let length = stream.read(&mut asked).await.expect("a request");
            assert!(asked[..length].starts_with(b"GET /up HTTP/1.1\r\n"));
            stream
                .write_all(b"HTTP/1.1 204 No Content\r\n\r\n")
                .await
                .expect("an answer");
        });
        let stream = TcpStream::connect(("127.0.0.1", port))
            .await
            .expect("a connection");
        let stream = encrypted(stream, "127.0.0.1")
            .await
            .expect("any certificate will do");
        let request = request(&HTTPGetAction::default(), "/up", "127.0.0.1");
        let answer = ask(stream, &request).await.expect("an answer");
        assert_eq!(status_code(&answer), Some(204));
    }
}
