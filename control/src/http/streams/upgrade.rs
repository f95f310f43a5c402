//! From a request to a connection that is no longer HTTP: by WebSocket or by SPDY/3.1, with the best protocol that both
//! sides know.

use axum::body::Body;
use http::{HeaderMap, HeaderName, HeaderValue, Response, header};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;

use super::super::handlers::Exchange;
use super::{spdy, switching, text, websocket};
use crate::api::Status;

/// Which protocol is spoken in SPDY's streams.
const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");

/// How bytes are carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Messages.
    WebSocket,
    /// Streams.
    Spdy,
}

/// What client and server agree on.
pub struct Agreed {
    /// How bytes are carried.
    pub transport: Transport,
    /// One of the protocols that were offered.
    pub protocol: &'static str,
    /// What the client is answered.
    pub response: Response<Body>,
    client: OnUpgrade,
}

impl Agreed {
    /// Calls `act` with the connection when the client has been answered; the connection ends with the server at the
    /// latest.
    pub fn then<F>(
        self,
        exchange: &Exchange<'_>,
        act: impl FnOnce(TokioIo<Upgraded>) -> F + Send + 'static,
    ) -> Response<Body>
    where
        F: Future<Output = std::io::Result<()>> + Send,
    {
        let (client, stop) = (self.client, exchange.stop.clone());
        tokio::spawn(async move {
            let Ok(client) = client.await else {
                return;
            };
            tokio::select! {
                ended = act(TokioIo::new(client)) => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "a stream's connection broke");
                    }
                }
                () = stop.cancelled() => {}
            }
        });
        self.response
    }
}

/// Agrees on a protocol; each list has the best first.
pub fn agree(
    exchange: &mut Exchange<'_>,
    websocket: &[&'static str],
    spdy: &[&'static str],
) -> Result<Agreed, Status> {
    let required = || Status::bad_request("Upgrade request required");
    let headers = &exchange.parts.headers;
    let key = websocket::key(headers).map(str::to_owned);
    let (transport, name, served) = match &key {
        Some(_) => (Transport::WebSocket, websocket::PROTOCOL, websocket),
        None if text(headers, header::UPGRADE).eq_ignore_ascii_case(spdy::PROTOCOL) => {
            (Transport::Spdy, STREAM_PROTOCOL, spdy)
        }
        None => return Err(required()),
    };
    let offered = listed(headers, &name);
    let protocol = served.iter().copied().find(|known| offered.contains(known));
    let protocol = protocol.ok_or_else(|| {
        Status::bad_request(format!(
            "unable to upgrade: unable to negotiate protocol: client supports {offered:?}, server accepts {served:?}"
        ))
    })?;
    let mut response = match key {
        Some(key) => websocket::accepted(&key),
        None => switching(spdy::PROTOCOL),
    };
    let chosen = HeaderValue::from_static(protocol);
    response.headers_mut().insert(name, chosen);
    let client = exchange.parts.extensions.remove::<OnUpgrade>();
    Ok(Agreed {
        transport,
        protocol,
        response,
        client: client.ok_or_else(required)?,
    })
}

/// All protocols that a client names, in one header or several.
fn listed<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Vec<&'a str> {
    let values = headers.get_all(name).iter();
    let texts = values.filter_map(|value| value.to_str().ok());
    texts
        .flat_map(|text| text.split(',').map(str::trim))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_come_in_one_header_or_several() {
        let mut headers = HeaderMap::new();
        for value in ["v5.channel.k8s.io", "v4.channel.k8s.io, channel.k8s.io"] {
            headers.append(STREAM_PROTOCOL, HeaderValue::from_static(value));
        }
        let expected = ["v5.channel.k8s.io", "v4.channel.k8s.io", "channel.k8s.io"];
        assert_eq!(listed(&headers, &STREAM_PROTOCOL), expected);
    }
}
