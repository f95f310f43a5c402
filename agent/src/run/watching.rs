//! Carries the programs' reports of watched packets to whoever asked for them.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use portolan_dataplane::{Error, Watcher, report::Filter};
use serde_json::Value;
use tokio::{runtime::Handle, sync::mpsc, time::sleep};

use super::answers::{encode, in_words};
use crate::{errors::chain, routes::DataplaneThread};

/// Reports that may wait for a slow reader; the ring buffer holds more, then counts what is lost.
const DEPTH: usize = 1024;
/// How long, in milliseconds, until it is noticed that nobody wants to hear any more.
const LOOK_UP: u16 = 100;
/// How long the next watcher waits for one that may be leaving, and how often it looks.
const LEAVING: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Begins to watch; ends when the receiver is dropped.
pub async fn start(
    pins: &Path,
    filter: &Filter,
    dataplane: DataplaneThread,
) -> Result<mpsc::Receiver<Value>, String> {
    let asked = Instant::now();
    let watcher = loop {
        match Watcher::start(pins, filter) {
            // Whoever asked last may have gone, and that not have been noticed yet.
            Err(Error::AlreadyWatched) if asked.elapsed() < LEAVING => sleep(LOOK_AGAIN).await,
            outcome => break outcome.map_err(|error| chain(&error))?,
        }
    };
    let (sender, receiver) = mpsc::channel(DEPTH);
    let runtime = Handle::current();
    tokio::task::spawn_blocking(move || {
        if let Err(message) = pass_on(watcher, &dataplane, &runtime, &sender) {
            tracing::warn!(message, "the watch of packets has ended");
        }
    });
    Ok(receiver)
}

fn pass_on(
    mut watcher: Watcher,
    dataplane: &DataplaneThread,
    runtime: &Handle,
    sender: &mpsc::Sender<Value>,
) -> Result<(), String> {
    while !sender.is_closed() {
        if !watcher.wait(LOOK_UP).map_err(|error| chain(&error))? {
            continue;
        }
        let observed = watcher.read();
        let described = dataplane.call(move |maps| maps.describe(&observed));
        for report in runtime.block_on(described).map_err(in_words)? {
            if sender.blocking_send(encode(&report)?).is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}
