//! Answers of many objects: lists and watches, whole, as tables or as metadata alone. Objects that go out whole are
//! serialized once for all clients.

use std::time::Duration;

use axum::body::Body;
use bytes::{BufMut, Bytes, BytesMut};
use futures::StreamExt;
use http::{Response, StatusCode};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use super::negotiate::{Encoding, Form, Shape};
use super::respond;
use super::table::{self, Include};
use crate::api::Status;
use crate::api::engine::{Deliveries, Delivery, Page, Stored};
use crate::api::managed;
use crate::resource::Resource;

/// How a list or watch is shown.
#[derive(Clone, Copy)]
pub struct View {
    /// The negotiated form.
    pub form: Form,
    /// What a table's rows carry.
    pub include: Include,
}

fn list_metadata(page: &Page) -> Value {
    let mut metadata = Map::new();
    metadata.insert(
        "resourceVersion".to_owned(),
        json!(page.revision.to_string()),
    );
    if let Some(token) = &page.continue_token {
        metadata.insert("continue".to_owned(), json!(token));
    }
    if let Some(remaining) = page.remaining {
        metadata.insert("remainingItemCount".to_owned(), json!(remaining));
    }
    Value::Object(metadata)
}

/// Answers with a page of objects.
pub fn list(row: &Resource, page: &Page, view: View) -> Response<Body> {
    let metadata = list_metadata(page);
    let objects = || page.items.iter().map(|item| &item.value);
    let body = match (view.form.shape, view.form.encoding) {
        (Shape::Table, _) => {
            table::table(row, objects(), &metadata, view.include, Timestamp::now())
        }
        (Shape::Metadata, _) => json!({
            "kind": "PartialObjectMetadataList",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": metadata,
            "items": objects().map(table::metadata_of).collect::<Vec<_>>(),
        }),
        (Shape::Object | Shape::Discovery(_), Encoding::Json) => {
            let text = whole_list(row, page, &metadata);
            return respond::bytes(StatusCode::OK, "application/json", text);
        }
        (Shape::Object | Shape::Discovery(_), Encoding::Yaml) => json!({
            "kind": row.list_kind(),
            "apiVersion": row.id.api_version(),
            "metadata": metadata,
            "items": objects().map(managed::shown).collect::<Vec<_>>(),
        }),
    };
    respond::value(StatusCode::OK, view.form.encoding, &body)
}

/// A list's JSON, put together from its objects' own.
fn whole_list(row: &Resource, page: &Page, metadata: &Value) -> Bytes {
    let size: usize = page.items.iter().map(|item| item.json().len() + 1).sum();
    let mut text = BytesMut::with_capacity(size + 256);
    let head = format!(
        "{{\"kind\":\"{}\",\"apiVersion\":\"{}\",\"metadata\":{metadata},\"items\":[",
        row.list_kind(),
        row.id.api_version()
    );
    text.put_slice(head.as_bytes());
    for (at, item) in page.items.iter().enumerate() {
        if at > 0 {
            text.put_u8(b',');
        }
        text.put_slice(item.json());
    }
    text.put_slice(b"]}\n");
    text.freeze()
}

/// Answers with a watch, one line of JSON an event, until the time is over or the server stops.
pub fn watch(
    row: std::sync::Arc<Resource>,
    deliveries: Deliveries,
    view: View,
    limit: Duration,
    stop: CancellationToken,
) -> Response<Body> {
    let end = async move {
        tokio::select! {
            () = tokio::time::sleep(limit) => {}
            () = stop.cancelled() => {}
        }
    };
    let lines = deliveries
        .take_until(end)
        .map(move |delivery| line(&row, delivery, view))
        .map(Ok::<Bytes, std::convert::Infallible>);
    let mut response = respond::bytes(StatusCode::OK, "application/json", Bytes::new());
    *response.body_mut() = Body::from_stream(lines);
    response
}

fn line(row: &Resource, delivery: Result<Delivery, Status>, view: View) -> Bytes {
    match delivery {
        Ok(Delivery::Added(stored)) => event("ADDED", &shaped(row, &stored, view)),
        Ok(Delivery::Modified(stored)) => event("MODIFIED", &shaped(row, &stored, view)),
        Ok(Delivery::Deleted(stored)) => event("DELETED", &shaped(row, &stored, view)),
        Ok(Delivery::Bookmark { revision, initial }) => {
            event("BOOKMARK", &bookmark(row, revision, initial, view))
        }
        Err(status) => event("ERROR", status.to_value().to_string().as_bytes()),
    }
}

fn event(kind: &str, object: &[u8]) -> Bytes {
    let mut line = BytesMut::with_capacity(object.len() + 40);
    line.put_slice(b"{\"type\":\"");
    line.put_slice(kind.as_bytes());
    line.put_slice(b"\",\"object\":");
    line.put_slice(object);
    line.put_slice(b"}\n");
    line.freeze()
}

fn shaped(row: &Resource, stored: &Stored, view: View) -> Bytes {
    match view.form.shape {
        Shape::Object | Shape::Discovery(_) => stored.json().clone(),
        shape => table::shaped(row, &stored.value, shape, view.include)
            .to_string()
            .into(),
    }
}

fn bookmark(row: &Resource, revision: i64, initial: bool, view: View) -> Bytes {
    let mut metadata = json!({"resourceVersion": revision.to_string()});
    if initial {
        metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
    }
    let object = match view.form.shape {
        Shape::Table => {
            let none = std::iter::empty();
            table::table(row, none, &metadata, view.include, Timestamp::now())
        }
        Shape::Metadata => table::metadata_of(&json!({"metadata": metadata})),
        Shape::Object | Shape::Discovery(_) => json!({
            "kind": row.kind,
            "apiVersion": row.id.api_version(),
            "metadata": metadata,
        }),
    };
    object.to_string().into()
}
