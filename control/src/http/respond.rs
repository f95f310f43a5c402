//! Making answers.

use axum::body::Body;
use bytes::Bytes;
use futures::Stream;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::Value;

use super::negotiate::Encoding;
use crate::api::Status;
use crate::store;

/// An answer of bytes of a media type.
pub fn bytes(code: StatusCode, media_type: &'static str, body: Bytes) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("no-cache, private"),
    );
    response
}

/// An answer of plain text.
pub fn text(code: StatusCode, body: String) -> Response<Body> {
    bytes(code, "text/plain; charset=utf-8", Bytes::from(body))
}

/// A file that is made while it is sent; should that fail, the client sees that it is not whole.
pub fn download(
    chunks: impl Stream<Item = Result<Bytes, store::Error>> + Send + 'static,
) -> Response<Body> {
    let mut response = bytes(StatusCode::OK, "application/octet-stream", Bytes::default());
    *response.body_mut() = Body::from_stream(chunks);
    response
}

/// An answer of JSON.
pub fn json(code: StatusCode, body: &Value) -> Response<Body> {
    let text = serde_json::to_vec(body).expect("a JSON value always serializes");
    bytes(code, "application/json", Bytes::from(text))
}

/// An answer in the encoding that the client asked for.
pub fn value(code: StatusCode, encoding: Encoding, body: &Value) -> Response<Body> {
    match encoding {
        Encoding::Json => json(code, body),
        Encoding::Yaml => match serde_saphyr::to_string(body) {
            Ok(text) => bytes(code, "application/yaml", Bytes::from(text)),
            Err(error) => status(&Status::internal(error.to_string())),
        },
    }
}

/// A failure.
pub fn status(status: &Status) -> Response<Body> {
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = json(code, &status.to_value());
    let seconds = status
        .details
        .as_ref()
        .and_then(|details| details.retry_after_seconds);
    if let Some(seconds) = seconds {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// Adds what the client should know, as `Warning` headers.
pub fn with_warnings(mut response: Response<Body>, warnings: &[String]) -> Response<Body> {
    for warning in warnings {
        let quoted = warning.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
    response
}
