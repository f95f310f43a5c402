//! Logs, as text.

use axum::body::Body;
use http::{HeaderValue, Response, header};
use http_body_util::BodyExt;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::super::handlers::Exchange;
use super::{Query, Target};
use crate::api::{Status, meta};

/// Passes a container's log on, as it comes.
pub async fn answer(exchange: &Exchange<'_>, target: &Target) -> Result<Response<Body>, Status> {
    let asked = &exchange.query;
    let container = target.container(asked_for(exchange))?;
    let mut query = Query::default();
    for flag in ["follow", "previous", "timestamps"] {
        if asked.flag(flag) {
            query.add(flag, "true");
        }
    }
    for name in ["tailLines", "limitBytes"] {
        if let Some(number) = asked.number(name)? {
            query.add(name, &number.to_string());
        }
    }
    if let Some(seconds) = asked.number("sinceSeconds")? {
        let seconds = SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
        let since = Timestamp::now()
            .checked_sub(seconds)
            .unwrap_or(Timestamp::MIN);
        query.add("sinceTime", &since.to_string());
    }
    for name in ["sinceTime", "stream"] {
        if let Some(value) = asked.get(name) {
            query.add(name, value);
        }
    }
    let path = format!(
        "/logs/{}/{}/{}/{container}{}",
        meta::namespace(&target.pod.value),
        target.name(),
        target.uid(),
        query.0
    );
    let agents = &exchange.server.agents;
    let answer = agents.get(&target.node.value, &path).await?;
    let stop = exchange.stop.clone();
    let body = answer.into_body().map_err(std::io::Error::other);
    let chunks = futures::StreamExt::take_until(body.into_data_stream(), async move {
        stop.cancelled().await;
    });
    Ok(text(Body::from_stream(chunks)))
}

/// What a pod without a node wrote: nothing, as far as the question makes sense.
pub fn of_no_node(exchange: &Exchange<'_>, pod: &Value) -> Result<Response<Body>, Status> {
    super::container(pod, asked_for(exchange))?;
    Ok(text(Body::empty()))
}

fn asked_for<'a>(exchange: &'a Exchange<'_>) -> Option<&'a str> {
    let asked = exchange.query.get("container");
    asked.filter(|name| !name.is_empty())
}

fn text(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let text = HeaderValue::from_static("text/plain");
    response.headers_mut().insert(header::CONTENT_TYPE, text);
    response
}
