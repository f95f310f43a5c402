//! Routes.Follow: each agent's own stream of generations. A slow agent skips generations and holds up nobody: its
//! next update is made when it can take one, from what it was sent last to what there is then.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::Stream;
use portolan_wire::v1 as wire;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::{caller, convert};
use crate::pki::{NODE_PREFIX, NODES_GROUP};
use crate::routing::{Publisher, Subscription};

/// How long an agent may take to say who it is.
const HELLO: Duration = Duration::from_secs(10);
/// How long this server may take to be up to date for an agent that comes from another.
const CATCH_UP: Duration = Duration::from_secs(5);

pub(super) struct Service {
    publisher: Arc<Publisher>,
    shutdown: CancellationToken,
}

impl Service {
    pub fn new(publisher: Arc<Publisher>, shutdown: CancellationToken) -> Self {
        Self {
            publisher,
            shutdown,
        }
    }
}

type Inbound = Streaming<wire::FollowRequest>;
type Outbound = Result<wire::RouteUpdate, Status>;

#[async_trait]
impl wire::routes_server::Routes for Service {
    type FollowStream = Pin<Box<dyn Stream<Item = Outbound> + Send>>;

    async fn follow(
        &self,
        request: Request<Inbound>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let node = node_of(&request)?;
        let (out, stream) = mpsc::channel(1);
        let follower = Follower {
            node,
            inbound: request.into_inner(),
            out,
            publisher: Arc::clone(&self.publisher),
        };
        let shutdown = self.shutdown.clone();
        // The hello is awaited in the task: an agent may wait for our headers before it sends anything.
        tokio::spawn(async move {
            shutdown.run_until_cancelled(follower.run()).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

/// Only nodes follow, and each knows itself by its certificate.
fn node_of<T>(request: &Request<T>) -> Result<String, Status> {
    let caller = caller(request).map_err(|status| *status)?;
    let node = caller.user.strip_prefix(NODE_PREFIX);
    match node {
        Some(node) if caller.groups.iter().any(|group| group == NODES_GROUP) => Ok(node.to_owned()),
        _ if caller.user == "system:anonymous" => {
            Err(Status::unauthenticated("a node certificate is needed"))
        }
        _ => Err(Status::permission_denied(format!(
            "{:?} is no node; only nodes follow routes",
            caller.user
        ))),
    }
}

struct Follower {
    node: String,
    inbound: Inbound,
    out: mpsc::Sender<Outbound>,
    publisher: Arc<Publisher>,
}

/// What the agent was sent last.
struct Sent {
    epoch: String,
    generation: u64,
}

impl Follower {
    async fn run(mut self) {
        let ended = match self.hello().await {
            Ok(sent) => {
                if let Err(status) = self.catch_up(&sent).await {
                    self.refuse(status).await;
                    return;
                }
                let programming = Arc::clone(self.publisher.programming());
                let id = programming.joined(&self.node);
                tracing::info!(
                    node = self.node,
                    generation = sent.generation,
                    "follows routes"
                );
                let ended = self.follow(id, sent).await;
                programming.left(id, Instant::now());
                ended
            }
            Err(status) => Err(status),
        };
        if let Err(status) = ended {
            self.refuse(status).await;
        }
    }

    async fn refuse(&self, status: Status) {
        tracing::info!(node = self.node, %status, "no longer follows routes");
        if self.out.send(Err(status)).await.is_err() {
            tracing::trace!(node = self.node, "the stream was gone already");
        }
    }

    /// What an agent has from another server, or from an earlier life of this one, may be newer than what is here.
    async fn catch_up(&self, held: &Sent) -> Result<(), Status> {
        if held.epoch.is_empty() || self.publisher.epoch() == held.epoch {
            return Ok(());
        }
        tokio::time::timeout(CATCH_UP, self.publisher.catch_up())
            .await
            .map_err(|_| Status::unavailable("this server's routes are not up to date"))
    }

    async fn hello(&mut self) -> Result<Sent, Status> {
        let first = tokio::time::timeout(HELLO, self.inbound.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no hello in time"))??;
        let Some(wire::follow_request::Message::Hello(hello)) =
            first.and_then(|request| request.message)
        else {
            return Err(Status::invalid_argument(
                "the first message must be a hello",
            ));
        };
        if hello.node_name != self.node {
            return Err(Status::permission_denied(format!(
                "the certificate is of node {:?}, not {:?}",
                self.node, hello.node_name
            )));
        }
        Ok(Sent {
            epoch: hello.epoch,
            generation: hello.generation,
        })
    }

    async fn follow(&mut self, id: u64, mut sent: Sent) -> Result<(), Status> {
        let mut published = self.publisher.subscribe();
        let mut greeted = false;
        let out = self.out.clone();
        loop {
            tokio::select! {
                permit = ready(&out, &mut published, &sent, greeted) => {
                    let Some((permit, update)) = permit else {
                        return Ok(());
                    };
                    greeted = true;
                    sent = Sent { epoch: update.epoch.clone(), generation: update.generation };
                    permit.send(Ok(update));
                }
                message = self.inbound.message() => match message? {
                    Some(request) => self.heard(id, &sent.epoch, request)?,
                    None => return Ok(()),
                },
            }
        }
    }

    fn heard(&self, id: u64, epoch: &str, request: wire::FollowRequest) -> Result<(), Status> {
        match request.message {
            Some(wire::follow_request::Message::Ack(ack)) if ack.error.is_empty() => {
                tracing::debug!(node = self.node, epoch, generation = ack.generation, "ack");
                self.publisher
                    .programming()
                    .acked(id, ack.generation, Instant::now());
                Ok(())
            }
            Some(wire::follow_request::Message::Ack(ack)) => {
                tracing::warn!(
                    node = self.node,
                    generation = ack.generation,
                    error = ack.error,
                    "the node keeps an older routing table"
                );
                Ok(())
            }
            _ => Err(Status::invalid_argument("after the hello come acks")),
        }
    }
}

/// Completes when there is news and room for it; `None` when nobody listens or publishes any more. Dropping it midway
/// loses nothing.
async fn ready<'a>(
    out: &'a mpsc::Sender<Outbound>,
    published: &mut Subscription,
    sent: &Sent,
    greeted: bool,
) -> Option<(mpsc::Permit<'a, Outbound>, wire::RouteUpdate)> {
    let news = |current: &Option<crate::routing::Published>| {
        current.as_ref().is_some_and(|current| {
            !greeted || *current.epoch != *sent.epoch || current.generation != sent.generation
        })
    };
    published.wait_for(news).await.ok()?;
    let permit = out.reserve().await.ok()?;
    // What is newest now, not what was when the wait ended.
    let current = published.borrow_and_update().clone()?;
    let update = convert::update(&current, &sent.epoch, sent.generation);
    Some((permit, update))
}
