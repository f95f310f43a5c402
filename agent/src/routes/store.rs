//! The last routing table on disk, so that a node without a control plane serves it.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::{sync::watch, task::JoinHandle};

use super::table::Table;
use crate::{
    errors::chain,
    files::{self, FileError},
};

/// Changes come in bursts; the disk hears of them this much later.
const DEBOUNCE: Duration = Duration::from_millis(300);

/// Where the table is kept.
#[derive(Clone, Debug)]
pub struct TableStore {
    path: PathBuf,
}

impl TableStore {
    /// In a state directory.
    pub fn new(state_dir: &std::path::Path) -> Self {
        Self {
            path: state_dir.join("routes.json"),
        }
    }

    /// The table that was stored last. One that can't be read is as good as none: the control plane has it.
    pub fn load(&self) -> Option<Table> {
        let content = files::read_if_present(&self.path)
            .inspect_err(
                |error| tracing::warn!(error = %chain(error), "no routing table from disk"),
            )
            .ok()??;
        serde_json::from_slice(&content)
            .inspect_err(|error| {
                tracing::warn!(%error, path = %self.path.display(), "the stored routing table is broken");
            })
            .ok()
    }

    /// Writes a table.
    pub fn save(&self, table: &Table) -> Result<(), FileError> {
        let content =
            serde_json::to_vec(table).expect("a table has string keys and no failing values");
        files::replace(&self.path, &content, 0o600)
    }

    /// Keeps writing the newest table; the last one is written when its sender is gone.
    pub fn keep_saving(self, mut tables: watch::Receiver<Arc<Table>>) -> JoinHandle<()> {
        let mut saved = tables.borrow().clone();
        tokio::spawn(async move {
            while tables.changed().await.is_ok() {
                tokio::time::sleep(DEBOUNCE).await;
                let newest = tables.borrow_and_update().clone();
                if Arc::ptr_eq(&saved, &newest) {
                    continue;
                }
                let (store, table) = (self.clone(), newest.clone());
                match tokio::task::spawn_blocking(move || store.save(&table)).await {
                    Ok(Ok(())) => saved = newest,
                    Ok(Err(error)) => {
                        tracing::warn!(error = %chain(&error), "the routing table is not on disk");
                    }
                    Err(error) => std::panic::resume_unwind(error.into_panic()),
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_file_is_as_good_as_none() {
        let state = tempfile::tempdir().expect("a temporary directory");
        let store = TableStore::new(state.path());
        assert_eq!(store.load(), None);
        std::fs::write(state.path().join("routes.json"), "{").expect("written");
        assert_eq!(store.load(), None);
    }

    #[tokio::test]
    async fn the_newest_table_is_on_disk_when_its_sender_is_gone() {
        let state = tempfile::tempdir().expect("a temporary directory");
        let store = TableStore::new(state.path());
        let (sender, receiver) = watch::channel(Arc::new(Table::default()));
        let keeper = store.clone().keep_saving(receiver);
        for generation in 1..=3 {
            let table = Table {
                generation,
                ..Table::default()
            };
            sender.send(Arc::new(table)).expect("the keeper listens");
        }
        drop(sender);
        keeper.await.expect("no panic");
        assert_eq!(store.load().expect("stored").generation, 3);
    }
}
