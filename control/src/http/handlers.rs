//! From a request to the engine and back.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Query;
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::listing::{self, View};
use super::negotiate::{self, Form, Shape};
use super::query::Parameters;
use super::route::{self, Route};
use super::table::Include;
use super::{Server, body, discovery, health, identity, metrics, openapi, respond, streams, table};
use crate::api::rbac::Action;
use crate::api::{Api, Caller, ObjectKey, PatchKind, Status, WriteOptions, managed};
use crate::resource::{Faults, Path, Resource, schema};
use crate::store::backup;

/// How long a watch lasts whose client does not say; as in Kubernetes a random part is added.
const WATCH_LIMIT: u64 = 1800;

/// Letters of a field manager's name.
const MANAGER_LIMIT: usize = 128;

/// A request on its way.
pub(super) struct Exchange<'a> {
    pub(super) server: &'a Server,
    pub(super) caller: &'a Caller,
    pub(super) parts: Parts,
    pub(super) query: Parameters,
    pub(super) form: Form,
    pub(super) stop: CancellationToken,
}

/// Answers a request of the API.
pub async fn handle(
    server: &Server,
    caller: &Caller,
    request: Request<Body>,
    stop: CancellationToken,
) -> Response<Body> {
    match try_handle(server, caller, request, stop).await {
        Ok(response) => response,
        Err(status) => respond::status(&status),
    }
}

async fn try_handle(
    server: &Server,
    caller: &Caller,
    request: Request<Body>,
    stop: CancellationToken,
) -> Result<Response<Body>, Status> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path();
    let table = server.engine.table();
    let pairs: Query<Vec<(String, String)>> =
        Query::try_from_uri(&parts.uri).map_err(|error| Status::bad_request(error.to_string()))?;
    let query = Parameters::new(pairs.0);
    let route = route::find(path, table).ok_or_else(Status::no_such_path);
    match route {
        Ok(Route::Health(endpoint, only)) => {
            let verbose = query.get("verbose").is_some();
            let (engine, health) = (&server.engine, &server.health);
            return Ok(health::answer(&endpoint, only.as_deref(), verbose, engine, health).await);
        }
        Ok(Route::Version) => return Ok(respond::json(StatusCode::OK, &discovery::version())),
        _ => {}
    }
    let caller = &identity::of_request(&server.engine, caller, &parts.headers).await?;
    let on_resource = matches!(route, Ok(Route::Collection(..) | Route::Object(..)));
    if !on_resource {
        check_path(server, caller, &parts.method, path)?;
    }
    let route = route?;
    let stream = match &route {
        Route::Object(row, _, Some(subresource)) => streams::Kind::of(row, subresource),
        _ => None,
    };
    // Streams and the document of OpenAPI v2 have forms of their own.
    let form = match (stream, &route) {
        (Some(_), _) | (_, Route::OpenApi2) => Form::default(),
        _ => negotiate::form(&parts.headers)?,
    };
    let mut exchange = Exchange {
        server,
        caller,
        parts,
        query,
        form,
        stop,
    };
    match route {
        Route::Collection(row, namespace) if row.measures.is_some() => {
            exchange.measured(&row, namespace.as_deref(), None).await
        }
        Route::Object(row, key, None) if row.measures.is_some() => {
            let (namespace, name) = (key.namespace.as_deref(), Some(key.name.as_str()));
            exchange.measured(&row, namespace, name).await
        }
        Route::Collection(row, namespace) => {
            exchange.collection(row, namespace.as_deref(), body).await
        }
        Route::Object(row, key, subresource) => match subresource {
            None => exchange.object(&row, &key, body).await,
            Some(subresource) => match stream {
                Some(kind) => exchange.stream(kind, &row, &key).await,
                None => exchange.subresource(&row, &key, &subresource, body).await,
            },
        },
        Route::Metrics => Ok(metrics::answer(&server.programming.latency())),
        Route::Backup => download(server),
        other => exchange.document(&other),
    }
}

/// Everything that the store holds, sealed as it is there.
fn download(server: &Server) -> Result<Response<Body>, Status> {
    let store = server.store.as_ref().ok_or_else(Status::no_such_path)?;
    Ok(respond::download(backup::chunks(Arc::clone(store))))
}

/// Whether a caller may see a path that is no resource's.
fn check_path(server: &Server, caller: &Caller, method: &Method, path: &str) -> Result<(), Status> {
    let verb = method.as_str().to_lowercase();
    let action = Action {
        verb: &verb,
        path: Some(path),
        ..Action::default()
    };
    if server.engine.decide(caller, &action).is_some() {
        return Ok(());
    }
    Err(Status {
        code: 403,
        reason: "Forbidden".to_owned(),
        message: format!(
            "forbidden: User \"{}\" cannot {verb} path \"{path}\"",
            caller.user
        ),
        details: None,
    })
}

impl Exchange<'_> {
    fn types(&self) -> &schema::Set {
        self.server.engine.table().schema()
    }

    /// The options of a create or update; who does not name a field manager is known by its program's name.
    fn write_options(&self, duplicates: Vec<String>) -> Result<WriteOptions, Status> {
        let mut options = self.query.write_options(duplicates)?;
        if options.field_manager.is_none() {
            options.field_manager = self.user_agent();
        }
        Ok(options)
    }

    /// The options of a patch. An apply names its field manager; only an apply is forced.
    fn patch_options(
        &self,
        kind: PatchKind,
        duplicates: Vec<String>,
    ) -> Result<WriteOptions, Status> {
        if kind == PatchKind::Apply {
            return self.query.write_options(duplicates);
        }
        let options = self.write_options(duplicates)?;
        if options.force {
            let mut faults = Faults::new();
            let why = "may not be specified for non-apply patch";
            faults.forbidden(&Path::new("force"), why);
            let (group, kind) = ("meta.k8s.io", "PatchOptions");
            return Err(Status::invalid(group, kind, "", faults.into_causes()));
        }
        Ok(options)
    }

    /// "kubectl" of "kubectl/v1.32.4 (linux/amd64) ...".
    fn user_agent(&self) -> Option<String> {
        let agent = self.parts.headers.get(header::USER_AGENT)?.to_str().ok()?;
        let name = agent.split('/').next().unwrap_or(agent);
        let name: String = name.chars().take(MANAGER_LIMIT).collect();
        (!name.is_empty()).then_some(name)
    }

    pub(super) fn include(&self) -> Include {
        Include::parse(self.query.get("includeObject"))
    }

    pub(super) fn one(&self, code: StatusCode, row: &Resource, object: &Value) -> Response<Body> {
        // A deletion's Status is no object of the kind.
        let body = if object["kind"] == "Status" || object["kind"] == "Scale" {
            object.clone()
        } else {
            let object = managed::shown(object);
            table::shaped(row, &object, self.form.shape, self.include())
        };
        respond::value(code, self.form.encoding, &body)
    }

    async fn collection(
        &self,
        row: Arc<Resource>,
        namespace: Option<&str>,
        body: Body,
    ) -> Result<Response<Body>, Status> {
        let engine = &self.server.engine;
        match self.parts.method {
            Method::GET | Method::HEAD => {
                let options = self.query.list_options()?;
                let view = View {
                    form: self.form,
                    include: self.include(),
                };
                if self.query.flag("watch") {
                    let deliveries = engine
                        .follow(self.caller, row.id, namespace, &options)
                        .await?;
                    let limit = self
                        .query
                        .number("timeoutSeconds")?
                        .filter(|limit| *limit > 0);
                    let limit = limit.unwrap_or_else(|| WATCH_LIMIT + fastrand::u64(..WATCH_LIMIT));
                    let limit = Duration::from_secs(limit);
                    return Ok(listing::watch(
                        row,
                        deliveries,
                        view,
                        limit,
                        self.stop.clone(),
                    ));
                }
                let page = engine
                    .page(self.caller, row.id, namespace, &options)
                    .await?;
                Ok(listing::list(&row, &page, view))
            }
            Method::POST => {
                let bytes = body::bytes(body).await?;
                let parsed = body::object(self.types(), &self.parts.headers, &bytes)?;
                let options = self.write_options(parsed.duplicates)?;
                let outcome = engine
                    .create_object(self.caller, row.id, namespace, parsed.value, &options)
                    .await?;
                let response = self.one(StatusCode::CREATED, &row, &outcome.object);
                Ok(respond::with_warnings(response, &outcome.warnings))
            }
            Method::DELETE => {
                let bytes = body::bytes(body).await?;
                let asked = body::options(self.types(), &self.parts.headers, &bytes)?;
                let delete = self.query.delete_options(&asked)?;
                let list = self.query.list_options()?;
                let gone = engine
                    .delete_collection(self.caller, row.id, namespace, (&list, &delete))
                    .await?;
                Ok(respond::value(StatusCode::OK, self.form.encoding, &gone))
            }
            _ => Err(Status::method_not_allowed()),
        }
    }

    async fn object(
        &self,
        row: &Resource,
        key: &ObjectKey,
        body: Body,
    ) -> Result<Response<Body>, Status> {
        let engine = &self.server.engine;
        match self.parts.method {
            Method::GET | Method::HEAD => {
                let found = engine.read(self.caller, row.id, key).await?;
                Ok(self.one(StatusCode::OK, row, &found.value))
            }
            Method::PUT | Method::PATCH => self.write(row, key, None, body).await,
            Method::DELETE => {
                let bytes = body::bytes(body).await?;
                let asked = body::options(self.types(), &self.parts.headers, &bytes)?;
                let options = self.query.delete_options(&asked)?;
                let answer = engine.delete(self.caller, row.id, key, &options).await?;
                Ok(self.one(StatusCode::OK, row, &answer))
            }
            _ => Err(Status::method_not_allowed()),
        }
    }

    async fn subresource(
        &self,
        row: &Resource,
        key: &ObjectKey,
        subresource: &str,
        body: Body,
    ) -> Result<Response<Body>, Status> {
        let engine = &self.server.engine;
        // Before the body is read: it may be of a type that is not known either.
        if row.subresource(subresource).is_none() {
            return Err(Status::no_such_path());
        }
        match self.parts.method {
            Method::GET | Method::HEAD => {
                let found = engine
                    .read_subresource(self.caller, row.id, key, subresource)
                    .await?;
                Ok(self.one(StatusCode::OK, row, &found))
            }
            Method::PUT | Method::PATCH => self.write(row, key, Some(subresource), body).await,
            Method::POST => {
                let bytes = body::bytes(body).await?;
                let parsed = body::object(self.types(), &self.parts.headers, &bytes)?;
                let options = self.write_options(parsed.duplicates)?;
                let answer = engine
                    .post_subresource(
                        self.caller,
                        row.id,
                        key,
                        subresource,
                        parsed.value,
                        &options,
                    )
                    .await?;
                Ok(respond::json(StatusCode::CREATED, &answer))
            }
            _ => Err(Status::method_not_allowed()),
        }
    }

    /// PUT and PATCH of an object or a subresource.
    async fn write(
        &self,
        row: &Resource,
        key: &ObjectKey,
        subresource: Option<&str>,
        body: Body,
    ) -> Result<Response<Body>, Status> {
        let engine = &self.server.engine;
        let bytes = body::bytes(body).await?;
        let outcome = if self.parts.method == Method::PATCH {
            let (kind, parsed) = body::patch(&self.parts.headers, &bytes)?;
            let options = self.patch_options(kind, parsed.duplicates)?;
            let patch = (kind, parsed.value);
            engine
                .patch_object(self.caller, row.id, key, subresource, patch, &options)
                .await?
        } else {
            let parsed = body::object(self.types(), &self.parts.headers, &bytes)?;
            let options = self.write_options(parsed.duplicates)?;
            engine
                .update_object(
                    self.caller,
                    row.id,
                    key,
                    subresource,
                    parsed.value,
                    &options,
                )
                .await?
        };
        let code = if outcome.created {
            StatusCode::CREATED
        } else {
            StatusCode::OK
        };
        let response = self.one(code, row, &outcome.object);
        Ok(respond::with_warnings(response, &outcome.warnings))
    }

    /// Discovery and OpenAPI.
    fn document(&self, route: &Route) -> Result<Response<Body>, Status> {
        if !matches!(self.parts.method, Method::GET | Method::HEAD) {
            return Err(Status::method_not_allowed());
        }
        let table = self.server.engine.table();
        let core = matches!(route, Route::CoreVersions);
        if let (Shape::Discovery(version), Route::CoreVersions | Route::Groups) =
            (self.form.shape, route)
        {
            let listed = discovery::aggregated(table, core, version);
            let mut response = respond::json(StatusCode::OK, &listed);
            let kind = format!(
                "application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList"
            );
            if let Ok(kind) = HeaderValue::from_str(&kind) {
                response.headers_mut().insert(header::CONTENT_TYPE, kind);
            }
            return Ok(response);
        }
        let value = match route {
            Route::Index => Some(discovery::index(table)),
            Route::CoreVersions => Some(discovery::core_versions(table)),
            Route::Groups => Some(discovery::groups(table)),
            Route::Group(name) => discovery::group(table, name),
            Route::Resources(group, version) => discovery::resources(table, group, version),
            Route::Issuer => Some(discovery::issuer()),
            Route::TokenKeys => Some(self.server.engine.token_keys()),
            Route::OpenApi2 => return Ok(self.open_api_2()),
            Route::OpenApiIndex => Some(self.server.documents.index(table)),
            Route::OpenApi(group, version) => {
                let document = self.server.documents.get(table, group, version);
                return Ok(self.open_api(&document.ok_or_else(Status::no_such_path)?));
            }
            _ => None,
        };
        let value = value.ok_or_else(Status::no_such_path)?;
        Ok(respond::value(StatusCode::OK, self.form.encoding, &value))
    }

    /// The document of version 2, in protobuf for those who can read it.
    fn open_api_2(&self) -> Response<Body> {
        let accepted = self.parts.headers.get_all(header::ACCEPT).iter();
        let mut accepted = accepted.filter_map(|value| value.to_str().ok());
        let protobuf = accepted.any(|text| {
            let mut names = openapi::gnostic::ASKED.iter();
            names.any(|name| text.contains(name))
        });
        let table = self.server.engine.table();
        let text = self.server.documents.version_2(table, protobuf);
        let media_type = if protobuf {
            openapi::gnostic::MEDIA_TYPE
        } else {
            "application/json"
        };
        respond::bytes(StatusCode::OK, media_type, text)
    }

    /// A document whose URL names its hash never changes.
    fn open_api(&self, document: &openapi::Document) -> Response<Body> {
        let text = document.text.clone();
        let mut response = respond::bytes(StatusCode::OK, "application/json", text);
        if self.query.get("hash") == Some(document.hash.as_str()) {
            let forever = HeaderValue::from_static("public, immutable");
            response
                .headers_mut()
                .insert(header::CACHE_CONTROL, forever);
        }
        response
    }
}
