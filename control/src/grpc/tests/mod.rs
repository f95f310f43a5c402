//! The services over a real connection, on the engine and the embedded store.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use super::{Services, router};
use crate::api::engine::{Engine, Running};
use crate::api::{Api, Caller, WriteOptions};
use crate::pki::Authority;
use crate::resource::rows::NAMESPACES;
use crate::routing::Publisher;
use crate::store::{Embedded, Store};

mod follow;
mod join;

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A control plane that only speaks gRPC.
struct Plane {
    running: Running,
    store: Arc<dyn Store>,
    authority: Arc<Authority>,
    publisher: Arc<Publisher>,
    shutdown: CancellationToken,
    servers: std::sync::Mutex<Vec<AbortHandle>>,
    folder: TempDir,
}

impl Plane {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Embedded::open(folder.path().join("store")).await.unwrap();
        let store: Arc<dyn Store> = Arc::new(store);
        let running = Engine::start(Arc::clone(&store), Vec::new()).await.unwrap();
        let authority = Arc::new(Authority::load(&*store).await.unwrap());
        let plane = Self {
            running,
            store,
            authority,
            publisher: Arc::new(Publisher::new("epoch")),
            shutdown: CancellationToken::new(),
            servers: std::sync::Mutex::default(),
            folder,
        };
        for name in ["kube-system", "kube-node-lease", "default"] {
            let namespace = json!({
                "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name },
            });
            let caller = Caller::system("test");
            let options = WriteOptions::default();
            let api = plane.api();
            let created = api.create(&caller, NAMESPACES, None, namespace, &options);
            created.await.unwrap();
        }
        plane
    }

    fn api(&self) -> Arc<dyn Api> {
        Arc::clone(&self.running.engine) as _
    }

    /// A connection whose certificate says this.
    async fn connect(&self, user: &str, groups: &[&str]) -> Channel {
        let caller = Caller {
            user: user.to_owned(),
            groups: groups.iter().map(|group| (*group).to_owned()).collect(),
            ..Caller::default()
        };
        let services = router(Services {
            api: self.api(),
            store: Arc::clone(&self.store),
            authority: Arc::clone(&self.authority),
            key_file: Some(self.folder.path().join("keys")),
            publisher: Arc::clone(&self.publisher),
            shutdown: self.shutdown.clone(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let services = services.layer(axum::Extension(caller));
        let server = tokio::spawn(async move { axum::serve(listener, services).await });
        self.servers.lock().unwrap().push(server.abort_handle());
        let endpoint = Channel::from_shared(format!("http://{address}")).unwrap();
        endpoint.connect().await.unwrap()
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        for server in self.servers.lock().unwrap().drain(..) {
            server.abort();
        }
    }
}
