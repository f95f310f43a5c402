//! Reading: one object, a page of a list, a watch. All of it comes from the watch cache, brought up to the store first
//! where the client asks for what is newest; later pages of a list come from the store as of the first page's revision.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::engine::Engine;
use super::history::{Kind, Stored};
use super::selector::Selection;
use super::watch::{Beginning, Deliveries, Scope, follow};
use super::{Caller, ListOptions, ObjectKey, ResourceId, Status, meta};
use crate::resource::{Resource, Verb};
use crate::store::{self, RangeQuery, Revision};

/// The version tag of a continue token, as Kubernetes writes it.
const TOKEN_VERSION: &str = "meta.k8s.io/v1";

/// A page of a list, shared with the cache.
pub struct Page {
    /// The objects.
    pub items: Vec<Arc<Stored>>,
    /// What a watch goes on from.
    pub revision: Revision,
    /// Where the next page begins.
    pub continue_token: Option<String>,
    /// How many there are beyond this page, where that is known.
    pub remaining: Option<u64>,
}

/// The revision of a continue token that goes on with whatever there is now.
const INCONSISTENT: Revision = -1;

/// What a continue token says.
#[derive(Serialize, Deserialize)]
struct Token {
    #[serde(rename = "v")]
    version: String,
    #[serde(rename = "rv")]
    revision: Revision,
    /// The key that the next page begins after, with a NUL behind it as in Kubernetes.
    start: String,
}

impl Token {
    fn write(revision: Revision, last: &str) -> String {
        let token = Self {
            version: TOKEN_VERSION.to_owned(),
            revision,
            start: format!("{last}\0"),
        };
        let text = serde_json::to_vec(&token).expect("a token always serializes");
        URL_SAFE_NO_PAD.encode(text)
    }

    fn read(text: &str) -> Result<Self, Status> {
        let malformed =
            |why: String| Status::bad_request(format!("continue key is not valid: {why}"));
        let bytes = URL_SAFE_NO_PAD
            .decode(text)
            .map_err(|error| malformed(error.to_string()))?;
        let token: Self =
            serde_json::from_slice(&bytes).map_err(|error| malformed(error.to_string()))?;
        if token.version != TOKEN_VERSION {
            return Err(malformed(format!(
                "server does not recognize this encoded version {:?}",
                token.version
            )));
        }
        Ok(token)
    }

    fn after(&self) -> &str {
        self.start.trim_end_matches('\0')
    }
}

/// What a client says about the version that it wants.
enum Wanted {
    Newest,
    Any,
    AtLeast(Revision),
    Exactly(Revision),
}

fn revision_of(text: &str) -> Result<Revision, Status> {
    text.parse()
        .ok()
        .filter(|revision| *revision >= 0)
        .ok_or_else(|| {
            Status::bad_request(format!(
                "Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"
            ))
        })
}

fn wanted(options: &ListOptions) -> Result<Wanted, Status> {
    let exact = options.resource_version_match.as_deref() == Some("Exact");
    match options.resource_version.as_deref() {
        None | Some("") => Ok(Wanted::Newest),
        Some("0") => Ok(Wanted::Any),
        Some(text) if exact => Ok(Wanted::Exactly(revision_of(text)?)),
        Some(text) => Ok(Wanted::AtLeast(revision_of(text)?)),
    }
}

impl Engine {
    /// Reads one object, as new as the store has it.
    pub async fn read(
        &self,
        caller: &Caller,
        resource: ResourceId,
        key: &ObjectKey,
    ) -> Result<Arc<Stored>, Status> {
        let place = (key.namespace.as_deref(), Some(key.name.as_str()));
        let row = self.permitted(caller, resource, Verb::Get, place, None)?;
        self.cache.catch_up().await?;
        self.cached(row, key)
            .ok_or_else(|| Status::not_found(resource, &key.name))
    }

    /// One object as the cache has it.
    pub(super) fn cached(&self, row: &Resource, key: &ObjectKey) -> Option<Arc<Stored>> {
        self.cache.kind(row.id)?.get(&Self::cache_key(key))
    }

    fn kind(&self, row: &Resource) -> Result<&Arc<Kind>, Status> {
        self.cache.kind(row.id).ok_or_else(Status::no_such_path)
    }

    fn scope(
        row: &Resource,
        namespace: Option<&str>,
        options: &ListOptions,
    ) -> Result<Scope, Status> {
        Ok(Scope {
            namespace: namespace.unwrap_or("").to_owned(),
            selection: Selection::parse(
                options.label_selector.as_deref(),
                options.field_selector.as_deref(),
                row,
            )?,
        })
    }

    /// Reads a page of objects.
    pub async fn page(
        &self,
        caller: &Caller,
        resource: ResourceId,
        namespace: Option<&str>,
        options: &ListOptions,
    ) -> Result<Page, Status> {
        let row = self.row(resource)?.clone();
        let scope = Self::scope(&row, namespace, options)?;
        let name = scope.selection.fields.name().map(str::to_owned);
        self.permitted(
            caller,
            resource,
            Verb::List,
            (namespace, name.as_deref()),
            None,
        )
        .or_else(|refused| self.permitted_selection(caller, &row, Verb::List, &scope, refused))?;
        let limit = options.limit.filter(|limit| *limit > 0);
        if let Some(token) = options.continue_token.as_deref().filter(|t| !t.is_empty()) {
            let token = Token::read(token)?;
            let start = token.after().to_owned();
            if token.revision == INCONSISTENT {
                self.cache.catch_up().await?;
                return Ok(cached_page(self.kind(&row)?, &scope, Some(&start), limit));
            }
            return self
                .stored_page(&row, &scope, token.revision, Some(start), limit)
                .await;
        }
        match wanted(options)? {
            Wanted::Newest => self.cache.catch_up().await?,
            Wanted::Any => {}
            Wanted::AtLeast(revision) => self.cache.wait_for(revision).await?,
            Wanted::Exactly(revision) => {
                return self.stored_page(&row, &scope, revision, None, limit).await;
            }
        }
        Ok(cached_page(self.kind(&row)?, &scope, None, limit))
    }

    /// The objects that a kind measures, for who may see the measurements: one, or those of a list.
    pub async fn measured(
        &self,
        caller: &Caller,
        (resource, of): (ResourceId, ResourceId),
        (namespace, name): (Option<&str>, Option<&str>),
        options: &ListOptions,
    ) -> Result<Page, Status> {
        let verb = if name.is_some() {
            Verb::Get
        } else {
            Verb::List
        };
        self.permitted(caller, resource, verb, (namespace, name), None)?;
        let row = self.row(of)?;
        let scope = Self::scope(row, namespace, options)?;
        self.cache.catch_up().await?;
        let mut page = cached_page(self.kind(row)?, &scope, None, None);
        if let Some(name) = name {
            page.items.retain(|item| meta::name(&item.value) == name);
        }
        Ok(page)
    }

    /// A page as of a past revision, from the store.
    async fn stored_page(
        &self,
        row: &Resource,
        scope: &Scope,
        revision: Revision,
        start: Option<String>,
        limit: Option<usize>,
    ) -> Result<Page, Status> {
        let prefix = row.prefix();
        let goes_on = start.clone();
        let mut query = RangeQuery {
            prefix: Bytes::from(format!("{prefix}{}", key_prefix(scope))),
            after: start.map(|start| Bytes::from(format!("{prefix}{start}"))),
            limit,
            revision: Some(revision),
        };
        let mut items: Vec<Arc<Stored>> = Vec::new();
        loop {
            let range = self
                .store
                .range(query.clone())
                .await
                .map_err(|error| expired(error, goes_on.as_deref()))?;
            let mut last = None;
            let mut left = range.remaining + range.items.len() as u64;
            for item in range.items {
                left -= 1;
                let value: Value = serde_json::from_slice(&item.value)
                    .map_err(|error| Status::internal(error.to_string()))?;
                let stored = Arc::new(Stored::new(value, item.mod_revision));
                last = Some(item.key);
                if scope.sees(&stored) {
                    items.push(stored);
                }
                if left > 0 && limit.is_some_and(|limit| items.len() >= limit) {
                    break;
                }
            }
            let full = limit.is_some_and(|limit| items.len() >= limit);
            let Some(last) = last.filter(|_| left > 0) else {
                return Ok(Page {
                    items,
                    revision,
                    continue_token: None,
                    remaining: None,
                });
            };
            if full {
                let key = String::from_utf8_lossy(&last);
                let key = key.strip_prefix(prefix.as_str()).unwrap_or(&key);
                return Ok(Page {
                    items,
                    revision,
                    continue_token: Some(Token::write(revision, key)),
                    remaining: scope.selection.is_empty().then_some(left),
                });
            }
            query.after = Some(last);
        }
    }

    /// Follows a list.
    pub async fn follow(
        &self,
        caller: &Caller,
        resource: ResourceId,
        namespace: Option<&str>,
        options: &ListOptions,
    ) -> Result<Deliveries, Status> {
        let row = self.row(resource)?.clone();
        let scope = Self::scope(&row, namespace, options)?;
        let name = scope.selection.fields.name().map(str::to_owned);
        self.permitted(
            caller,
            resource,
            Verb::Watch,
            (namespace, name.as_deref()),
            None,
        )
        .or_else(|refused| self.permitted_selection(caller, &row, Verb::Watch, &scope, refused))?;
        let kind = self.kind(&row)?.clone();
        let wanted = wanted(options)?;
        let initial = options.send_initial_events || matches!(wanted, Wanted::Newest | Wanted::Any);
        match wanted {
            Wanted::Newest => self.cache.catch_up().await?,
            Wanted::Any => {}
            Wanted::AtLeast(revision) | Wanted::Exactly(revision) if initial => {
                self.cache.wait_for(revision).await?;
            }
            Wanted::AtLeast(revision) | Wanted::Exactly(revision) => {
                let beginning = Beginning {
                    initial: Vec::new(),
                    mark_initial: false,
                    position: revision,
                };
                return Ok(follow(kind, scope, beginning, options.allow_bookmarks));
            }
        }
        let page = cached_page(&kind, &scope, None, None);
        let beginning = Beginning {
            initial: page.items,
            mark_initial: options.send_initial_events && options.allow_bookmarks,
            position: page.revision,
        };
        Ok(follow(kind, scope, beginning, options.allow_bookmarks))
    }
}

fn key_prefix(scope: &Scope) -> String {
    if scope.namespace.is_empty() {
        String::new()
    } else {
        format!("{}/", scope.namespace)
    }
}

fn cached_page(kind: &Kind, scope: &Scope, after: Option<&str>, limit: Option<usize>) -> Page {
    let mut snapshot = kind.snapshot(&key_prefix(scope));
    if let Some(after) = after {
        snapshot.items.retain(|(key, _)| key.as_str() > after);
    }
    let revision = snapshot.revision;
    let mut items = Vec::new();
    let mut left = snapshot.items.len() as u64;
    for (key, stored) in snapshot.items {
        left -= 1;
        if scope.sees(&stored) {
            items.push(stored);
        }
        if left > 0 && limit.is_some_and(|limit| items.len() >= limit) {
            return Page {
                items,
                revision,
                continue_token: Some(Token::write(revision, &key)),
                remaining: scope.selection.is_empty().then_some(left),
            };
        }
    }
    Page {
        items,
        revision,
        continue_token: None,
        remaining: None,
    }
}

/// What a list that is too old is answered: one that goes on after a key may do so with what there is now, one that names
/// its version can't.
fn expired(error: store::Error, goes_on: Option<&str>) -> Status {
    match (error, goes_on) {
        (store::Error::Compacted { .. }, Some(after)) => {
            Status::continue_expired(Token::write(INCONSISTENT, after))
        }
        (store::Error::Compacted { .. }, None) => {
            Status::expired("The resourceVersion for the provided list is too old.")
        }
        (other, _) => other.into(),
    }
}
