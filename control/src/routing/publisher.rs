//! Generations: each published table has a number, and a while of what changed is remembered for those who come back.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use tokio::time::Instant;

use super::latency::Programming;
use super::table::{NodeEntry, ServicePort, Table};

/// How many generations back a delta may begin.
const HISTORY: usize = 1024;

/// One generation of the table.
#[derive(Clone, Debug)]
pub struct Published {
    /// Which life of which server counts the generations.
    pub epoch: Arc<str>,
    /// Counts up from 1.
    pub generation: u64,
    /// The table itself.
    pub table: Arc<Table>,
    history: Arc<Mutex<VecDeque<Touched>>>,
}

/// Which entries a generation changed.
#[derive(Debug)]
struct Touched {
    generation: u64,
    services: BTreeSet<String>,
    nodes: BTreeSet<String>,
}

/// What a follower must be told to have a generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The whole table.
    Snapshot(Arc<Table>),
    /// What changed since a generation that the follower has.
    Delta {
        /// That generation.
        base: u64,
        /// New and changed service ports.
        services: Vec<Arc<ServicePort>>,
        /// Ids of service ports that are gone.
        gone_services: Vec<String>,
        /// New and changed nodes.
        nodes: Vec<Arc<NodeEntry>>,
        /// Names of nodes that are gone.
        gone_nodes: Vec<String>,
    },
}

impl Published {
    /// What a follower at `generation` of `epoch` must be told; a snapshot when the way from there is not known.
    pub fn since(&self, epoch: &str, generation: u64) -> Change {
        if epoch == &*self.epoch
            && generation > 0
            && generation <= self.generation
            && let Some((services, nodes)) = self.touched_since(generation)
        {
            return self.delta(generation, &services, &nodes);
        }
        Change::Snapshot(Arc::clone(&self.table))
    }

    fn touched_since(&self, generation: u64) -> Option<(BTreeSet<String>, BTreeSet<String>)> {
        let history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = history
            .front()
            .map_or(self.generation, |touched| touched.generation - 1);
        if generation < oldest {
            return None;
        }
        let mut services = BTreeSet::new();
        let mut nodes = BTreeSet::new();
        // The history is shared and may be ahead of this generation; what came later is told later.
        let later = |touched: &&Touched| {
            touched.generation > generation && touched.generation <= self.generation
        };
        for touched in history.iter().filter(later) {
            services.extend(touched.services.iter().cloned());
            nodes.extend(touched.nodes.iter().cloned());
        }
        Some((services, nodes))
    }

    fn delta(&self, base: u64, services: &BTreeSet<String>, nodes: &BTreeSet<String>) -> Change {
        let (services, gone_services) = split(services, &self.table.services);
        let (nodes, gone_nodes) = split(nodes, &self.table.nodes);
        Change::Delta {
            base,
            services,
            gone_services,
            nodes,
            gone_nodes,
        }
    }
}

/// The entries that there are, and the names of those that are gone.
fn split<T>(
    names: &BTreeSet<String>,
    entries: &BTreeMap<String, Arc<T>>,
) -> (Vec<Arc<T>>, Vec<String>) {
    let (mut there, mut gone) = (Vec::new(), Vec::new());
    for name in names {
        match entries.get(name) {
            Some(entry) => there.push(Arc::clone(entry)),
            None => gone.push(name.clone()),
        }
    }
    (there, gone)
}

/// The side of one who follows the generations.
pub type Subscription = watch::Receiver<Option<Published>>;

/// The side that makes generations.
#[derive(Debug)]
pub struct Publisher {
    current: watch::Sender<Option<Published>>,
    epoch: Arc<str>,
    history: Arc<Mutex<VecDeque<Touched>>>,
    programming: Arc<Programming>,
    /// How often somebody has asked for everything to be read anew.
    wanted: watch::Sender<u64>,
    /// Up to which of these askings that was done, and published.
    refreshed: watch::Sender<u64>,
}

impl Publisher {
    /// A publisher without a table yet. `epoch` must differ from that of every other life of every server.
    pub fn new(epoch: &str) -> Self {
        Self {
            current: watch::Sender::new(None),
            epoch: epoch.into(),
            history: Arc::default(),
            programming: Arc::default(),
            wanted: watch::Sender::new(0),
            refreshed: watch::Sender::new(0),
        }
    }

    /// What a source of the table follows: a higher number asks for everything to be read anew.
    pub fn wanted(&self) -> watch::Receiver<u64> {
        self.wanted.subscribe()
    }

    /// Everything that was asked for up to this number has been read and published.
    pub fn refreshed(&self, up_to: u64) {
        self.refreshed.send_replace(up_to);
    }

    /// Completes once the table shows at least what the API holds now. A follower that comes from another server must not
    /// be taken back by one that lags.
    pub async fn catch_up(&self) {
        if self.wanted.receiver_count() == 0 {
            // Nobody but the caller publishes here.
            return;
        }
        let mut ticket = 0;
        self.wanted.send_modify(|wanted| {
            *wanted += 1;
            ticket = *wanted;
        });
        let mut refreshed = self.refreshed.subscribe();
        // The sender lives as long as this.
        drop(refreshed.wait_for(|done| *done >= ticket).await);
    }

    /// Which life of which server this is.
    pub fn epoch(&self) -> &str {
        &self.epoch
    }

    /// Follows the generations. There is none until everything has been listed once.
    pub fn subscribe(&self) -> Subscription {
        self.current.subscribe()
    }

    /// Who has which generation, and how long that took.
    pub fn programming(&self) -> &Arc<Programming> {
        &self.programming
    }

    /// The table as last published.
    pub fn table(&self) -> Table {
        let current = self.current.borrow();
        current
            .as_ref()
            .map_or_else(Table::default, |current| Table::clone(&current.table))
    }

    /// Publishes a table, unless it is what everyone has. `since` is when the first of its changes was seen.
    pub fn publish(&self, table: Table, since: Instant) {
        let (old, generation) = match &*self.current.borrow() {
            Some(current) => (Arc::clone(&current.table), current.generation + 1),
            None => (Arc::default(), 1),
        };
        let services = changed(&old.services, &table.services);
        let nodes = changed(&old.nodes, &table.nodes);
        if generation > 1 && services.is_empty() && nodes.is_empty() {
            return;
        }
        tracing::debug!(
            generation,
            services = services.len(),
            nodes = nodes.len(),
            "the routing table changed"
        );
        let touched = Touched {
            generation,
            services,
            nodes,
        };
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        history.push_back(touched);
        if history.len() > HISTORY {
            history.pop_front();
        }
        drop(history);
        self.programming
            .published(generation, since, Instant::now());
        self.current.send_replace(Some(Published {
            epoch: Arc::clone(&self.epoch),
            generation,
            table: Arc::new(table),
            history: Arc::clone(&self.history),
        }));
    }
}

/// The names of entries that are not the same in both.
fn changed<T: PartialEq>(
    old: &BTreeMap<String, Arc<T>>,
    new: &BTreeMap<String, Arc<T>>,
) -> BTreeSet<String> {
    let differs = |(name, entry): &(&String, &Arc<T>)| {
        // Entries that did not change are the same allocation, which is quickly seen.
        let same = |other: &Arc<T>| Arc::ptr_eq(other, entry) || other == *entry;
        !old.get(*name).is_some_and(same)
    };
    let upserted = new.iter().filter(differs).map(|(name, _)| name);
    let gone = old.keys().filter(|name| !new.contains_key(*name));
    upserted.chain(gone).cloned().collect()
}
