//! The store of a cluster: etcd, 3.4 or newer.
//!
//! Every write is a transaction guarded by a revision. One etcd watch over all keys fills the feed that every watcher
//! here reads from, so a thousand watchers cost etcd one stream, and how far the stream has come is what a watcher may
//! be promised.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, DeleteOptions, GetOptions,
    GetResponse, Identity, KeyValue as EtcdKeyValue, PutOptions, ResponseHeader, TlsOptions, Txn,
    TxnOp, TxnOpResponse,
};
use tokio_util::task::AbortOnDropHandle;

mod error;
mod stream;

use super::feed::{self, Feed, Limits};
use super::{
    Action, Error, Fence, Guard, KeyValue, LeaseId, Range, RangeQuery, Revision, Store, Watch,
    Write, Written,
};
use error::{Refusal, is_final, refusal, unavailable};
use stream::Stream;

/// How long etcd may take for one request before its fate counts as unknown.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long one member may take before another is asked.
const ATTEMPT: Duration = Duration::from_secs(3);
/// For how long a request is asked again: a member may be dead, or the members choose a leader.
const RETRYING: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LAST_PAUSE: Duration = Duration::from_millis(200);
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
/// Members refuse to be asked more often than that.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(2));
/// How much history is read into memory at the start, for watchers that come back after a restart of this server.
const LOOK_BACK: Revision = 2000;
/// Lists and batches of changes may be long; etcd itself bounds each value.
const MESSAGE_LIMIT: usize = 1 << 30;

/// The store in an etcd.
#[derive(Clone)]
pub struct Etcd {
    client: Client,
    feed: Arc<Feed>,
    stream: Arc<Stream>,
    _follower: Arc<AbortOnDropHandle<()>>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// An endpoint is not a URL.
    #[error("{0:?} is not an http:// or https:// address of etcd")]
    Endpoint(String),
    /// No endpoint answers.
    #[error("no etcd answers at {endpoints}")]
    Unreachable {
        /// All that were tried.
        endpoints: String,
        /// Why.
        source: Error,
    },
}

/// How members are known, and how this server shows who it is; all in PEM.
#[derive(Clone, Default)]
pub struct Tls {
    /// Who signed the members' certificates.
    pub authority: Option<Vec<u8>>,
    /// This server's certificate and key.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl Tls {
    fn options(self) -> TlsOptions {
        let mut options = TlsOptions::new();
        if let Some(authority) = self.authority {
            options = options.ca_certificate(Certificate::from_pem(authority));
        }
        if let Some((certificate, key)) = self.identity {
            options = options.identity(Identity::from_pem(certificate, key));
        }
        options
    }
}

impl Etcd {
    /// Connects to the members at these URLs; `tls` is for those of https.
    pub async fn connect(endpoints: &[String], tls: Tls) -> Result<Self, ConnectError> {
        Self::connect_limited(endpoints, tls, Limits::default()).await
    }

    /// Connects with limits to what is kept in memory for watchers.
    pub(super) async fn connect_limited(
        endpoints: &[String],
        tls: Tls,
        limits: Limits,
    ) -> Result<Self, ConnectError> {
        let known = |url: &&String| !url.starts_with("http://") && !url.starts_with("https://");
        if let Some(endpoint) = endpoints.iter().find(known) {
            return Err(ConnectError::Endpoint(endpoint.clone()));
        }
        let unreachable = |source| ConnectError::Unreachable {
            endpoints: endpoints.join(", "),
            source,
        };
        let mut options = ConnectOptions::new()
            .with_connect_timeout(CONNECT_PATIENCE)
            .with_keep_alive(KEEP_ALIVE.0, KEEP_ALIVE.1)
            .with_keep_alive_while_idle(true)
            .with_require_leader(true);
        if endpoints.iter().any(|url| url.starts_with("https://")) {
            options = options.with_tls(tls.options());
        }
        let client = Client::connect(endpoints, Some(options))
            .await
            .map_err(|error| unreachable(unavailable(error)))?;
        let revision = tokio::time::timeout(CONNECT_PATIENCE, current(&client))
            .await
            .unwrap_or_else(|elapsed| Err(Error::Unavailable(Box::new(elapsed))))
            .map_err(unreachable)?;
        let start = (revision + 1 - LOOK_BACK).max(1);
        let feed = Arc::new(Feed::new(start, limits));
        let stream = Arc::new(Stream::new(client.clone()));
        let follower = Arc::clone(&stream).fill(Arc::clone(&feed));
        Ok(Self {
            client,
            feed,
            stream,
            _follower: Arc::new(AbortOnDropHandle::new(tokio::spawn(follower))),
        })
    }

    /// Runs a guarded transaction and tells what came of it.
    async fn transact(
        &self,
        key: &[u8],
        guard: Compare,
        (write, value): (TxnOp, Option<&Bytes>),
        fence: Option<&Fence>,
    ) -> Result<Written, Error> {
        let mut guards = vec![guard];
        let mut looks = vec![TxnOp::get(key, None)];
        if let Some(fence) = fence {
            let made = fence.create_revision;
            let held = Compare::create_revision(fence.key.as_ref(), CompareOp::Equal, made);
            guards.push(held);
            looks.push(TxnOp::get(fence.key.as_ref(), None));
        }
        let txn = Txn::new().when(guards).and_then([write]).or_else(looks);
        let ask = || async { self.client.kv_client().txn(txn.clone()).await };
        let (response, attempts) = persistently(ask).await?;
        let revision = revision_of(response.header())?;
        if response.succeeded() {
            return Ok(Written::Done(revision));
        }
        let mut found = response.op_responses().into_iter();
        let there = looked_up(found.next())?;
        if let Some(fence) = fence {
            let mark = looked_up(found.next())?;
            if mark.is_none_or(|mark| mark.create_revision != fence.create_revision) {
                return Err(Error::Fenced);
            }
        }
        if attempts > 1 {
            // The first attempt may have been carried out though its answer was lost.
            match (value, &there) {
                (Some(value), Some(there)) if there.value == *value => {
                    return Ok(Written::Done(there.mod_revision));
                }
                (None, None) => return Ok(Written::Done(revision)),
                _ => {}
            }
        }
        Ok(Written::Refused(there))
    }

    async fn remove(
        &self,
        key: &[u8],
        guard: Guard,
        fence: Option<&Fence>,
    ) -> Result<Written, Error> {
        let guard = match guard {
            // Nothing to delete is a refusal, not a success that changes nothing.
            Guard::Any => Compare::mod_revision(key, CompareOp::Greater, 0),
            // No key is absent and there to be deleted.
            Guard::Absent => Compare::mod_revision(key, CompareOp::Less, 0),
            Guard::At(_) => compare(key, guard),
        };
        let delete = TxnOp::delete(key, Some(DeleteOptions::new()));
        self.transact(key, guard, (delete, None), fence).await
    }

    /// What a refused read or compaction means; etcd does not say which revisions there are.
    async fn revision_error(&self, error: etcd_client::Error, requested: Revision) -> Error {
        match refusal(&error) {
            Some(Refusal::Future) => match current(&self.client).await {
                Ok(current) => Error::Future { requested, current },
                Err(error) => error,
            },
            Some(Refusal::Compacted) => match self.stream.batch(requested).await {
                Err(error) => error,
                // A member that lags may still have it; the next read will do.
                Ok(_) => unavailable(error),
            },
            _ => unavailable(error),
        }
    }
}

/// Sends a request, again where a member is dead or slow, and waits for no longer than is useful.
async fn patiently<T, F>(ask: impl Fn() -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, etcd_client::Error>>,
{
    persistently(ask).await.map(|(answer, _)| answer)
}

/// The same; says how often it was sent, for all but the last may have been carried out too.
async fn persistently<T, F>(ask: impl Fn() -> F) -> Result<(T, u32), Error>
where
    F: Future<Output = Result<T, etcd_client::Error>>,
{
    let begun = Instant::now();
    let mut attempts = 0;
    let mut pause = FIRST_PAUSE;
    loop {
        attempts += 1;
        let patience = ATTEMPT.min(PATIENCE.saturating_sub(begun.elapsed()));
        let error = match tokio::time::timeout(patience, ask()).await {
            Ok(Ok(answer)) => return Ok((answer, attempts)),
            Ok(Err(error)) if is_final(&error) => return Err(unavailable(error)),
            Ok(Err(error)) => Error::Unavailable(Box::new(error)),
            Err(elapsed) => Error::Unavailable(Box::new(elapsed)),
        };
        if begun.elapsed() + pause > RETRYING {
            return Err(error);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

async fn current(client: &Client) -> Result<Revision, Error> {
    let count = GetOptions::new().with_count_only();
    let response = {
        let ask = || async { client.kv_client().get("/", Some(count.clone())).await };
        patiently(ask).await?
    };
    revision_of(response.header())
}

fn revision_of(header: Option<&ResponseHeader>) -> Result<Revision, Error> {
    header
        .map(ResponseHeader::revision)
        .ok_or_else(|| Error::Unavailable("etcd's answer has no header".into()))
}

fn key_value(kv: EtcdKeyValue) -> KeyValue {
    let (create_revision, mod_revision) = (kv.create_revision(), kv.mod_revision());
    let (key, value) = kv.into_key_value();
    KeyValue {
        key: key.into(),
        value: value.into(),
        create_revision,
        mod_revision,
    }
}

/// The key that a transaction looked up.
fn looked_up(response: Option<TxnOpResponse>) -> Result<Option<KeyValue>, Error> {
    match response {
        Some(TxnOpResponse::Get(mut found)) => {
            Ok(found.take_kvs().into_iter().next().map(key_value))
        }
        _ => Err(Error::Unavailable("etcd left out what is there".into())),
    }
}

fn compare(key: &[u8], guard: Guard) -> Compare {
    match guard {
        // Every key's last write has a revision of at least 0: that of an absent one.
        Guard::Any => Compare::mod_revision(key, CompareOp::Greater, -1),
        Guard::Absent => Compare::mod_revision(key, CompareOp::Equal, 0),
        Guard::At(revision) => Compare::mod_revision(key, CompareOp::Equal, revision),
    }
}

/// The first key after all that begin with the prefix; for a prefix without one, the end of all keys.
fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

/// The first key of a query.
fn range_start(query: &RangeQuery) -> Vec<u8> {
    match &query.after {
        Some(after) if *after >= query.prefix => [after.as_ref(), &[0]].concat(),
        _ if query.prefix.is_empty() => vec![0],
        _ => query.prefix.to_vec(),
    }
}

fn page(query: &RangeQuery, mut response: GetResponse) -> Result<Range, Error> {
    let now = revision_of(response.header())?;
    let items: Vec<_> = response.take_kvs().into_iter().map(key_value).collect();
    let total = u64::try_from(response.count()).unwrap_or(0);
    Ok(Range {
        remaining: total.saturating_sub(items.len() as u64),
        revision: query.revision.unwrap_or(now),
        items,
    })
}

#[async_trait]
impl Store for Etcd {
    async fn get(&self, key: &[u8]) -> Result<Option<KeyValue>, Error> {
        let ask = || async { self.client.kv_client().get(key, None).await };
        let mut response = patiently(ask).await?;
        Ok(response.take_kvs().into_iter().next().map(key_value))
    }

    async fn range(&self, query: RangeQuery) -> Result<Range, Error> {
        let mut options = GetOptions::new().with_range(prefix_end(&query.prefix));
        options = match query.limit {
            Some(0) => options.with_count_only(),
            Some(limit) => options.with_limit(i64::try_from(limit).unwrap_or(i64::MAX)),
            None => options,
        };
        if let Some(revision) = query.revision {
            options = options.with_revision(revision);
        }
        let ask = || async {
            let mut kv = self
                .client
                .kv_client()
                .max_decoding_message_size(MESSAGE_LIMIT);
            match kv.get(range_start(&query), Some(options.clone())).await {
                Err(error) if refusal(&error).is_some() => Ok(Err(error)),
                answer => answer.map(Ok),
            }
        };
        match patiently(ask).await? {
            Ok(response) => page(&query, response),
            Err(error) => {
                let requested = query.revision.unwrap_or(0);
                Err(self.revision_error(error, requested).await)
            }
        }
    }

    async fn write(&self, write: Write) -> Result<Written, Error> {
        write.check_size()?;
        let Write {
            key,
            guard,
            action,
            fence,
        } = write;
        let (value, lease) = match action {
            Action::Put { value, lease } => (value, lease),
            Action::Delete => return self.remove(&key, guard, fence.as_ref()).await,
        };
        let size = value.len();
        let options = lease.map(|lease| PutOptions::new().with_lease(lease.0));
        let put = (
            TxnOp::put(key.as_ref(), value.clone(), options),
            Some(&value),
        );
        let guard = compare(&key, guard);
        match self.transact(&key, guard, put, fence.as_ref()).await {
            Err(Error::NoSuchLease(_)) => Err(Error::NoSuchLease(lease.unwrap_or(LeaseId(0)))),
            Err(Error::TooLarge { limit, .. }) => Err(Error::TooLarge { size, limit }),
            written => written,
        }
    }

    async fn watch(&self, prefix: &[u8], from: Option<Revision>) -> Result<Watch, Error> {
        let from = match from {
            Some(revision) => revision,
            None => current(&self.client).await? + 1,
        };
        let history = Arc::clone(&self.stream);
        let prefix = Bytes::copy_from_slice(prefix);
        Ok(feed::follow(Arc::clone(&self.feed), history, prefix, from))
    }

    async fn revision(&self) -> Result<Revision, Error> {
        current(&self.client).await
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        let compacted = self.client.kv_client().compact(revision, None).await;
        if let Err(error) = compacted {
            match refusal(&error) {
                // Another server, or an earlier call, has gone further.
                Some(Refusal::Compacted) => {}
                _ => return Err(self.revision_error(error, revision).await),
            }
        }
        self.feed.compact(revision);
        Ok(())
    }

    async fn lease_grant(&self, ttl: Duration) -> Result<LeaseId, Error> {
        // etcd counts in seconds; a lease may last longer than asked, never shorter.
        let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
        let ask = || async { self.client.lease_client().grant(seconds, None).await };
        let granted = patiently(ask).await?;
        Ok(LeaseId(granted.id()))
    }

    async fn lease_keep_alive(&self, lease: LeaseId) -> Result<(), Error> {
        let ask = || async {
            match self.client.lease_client().keep_alive(lease.0).await {
                // The client asks once by itself, and fails so when the answer is a time of 0.
                Err(etcd_client::Error::LeaseKeepAliveError(_)) => Ok(false),
                kept => kept.map(|_| true),
            }
        };
        if patiently(ask).await? {
            Ok(())
        } else {
            Err(Error::NoSuchLease(lease))
        }
    }

    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), Error> {
        let ask = || async { self.client.lease_client().revoke(lease.0).await };
        match patiently(ask).await {
            Err(Error::NoSuchLease(_)) => Err(Error::NoSuchLease(lease)),
            revoked => revoked.map(drop),
        }
    }
}
