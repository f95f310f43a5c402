//! What watchers saw against what the store's history says, while control servers and members of etcd are killed, paused
//! and cut off: nothing lost, nothing doubled, nothing out of order, whichever server a watcher goes on with.
//!
//! Each run has a seed of its own; a failure names it. `PORTOLAN_WATCH_RUNS=200` is the long test, `PORTOLAN_WATCH_SEED=N`
//! repeats one run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;

#[path = "watches/history.rs"]
mod history;
#[path = "watches/watcher.rs"]
mod watcher;
#[path = "watches/world.rs"]
mod world;

use history::History;
use watcher::Watcher;
use world::World;

const RUNS: u64 = 5;
const FAULTS: usize = 3;
const WATCHERS: usize = 4;
const WRITERS: usize = 3;
/// Writers use few names, so that objects are made, changed and deleted again and again.
const NAMES: u64 = 6;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_see_the_stores_history() {
    let seeds: Vec<u64> = match number("PORTOLAN_WATCH_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("PORTOLAN_WATCH_RUNS").unwrap_or(RUNS))
            .map(|_| fastrand::u64(..))
            .collect(),
    };
    let mut world = World::start().await;
    for seed in seeds {
        println!("PORTOLAN_WATCH_SEED={seed}");
        run(&mut world, seed).await;
    }
}

async fn run(world: &mut World, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let first = world.revision().await + 1;
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..WRITERS)
        .map(|_| {
            let writer = write(world.clients(), random.fork(), Arc::clone(&stop));
            tokio::spawn(writer)
        })
        .collect();
    let watchers: Vec<_> = (0..WATCHERS)
        .map(|_| Watcher::start(world.clients(), random.fork()))
        .collect();
    for _ in 0..FAULTS {
        tokio::time::sleep(Duration::from_millis(random.u64(100..500))).await;
        world.suffer(&mut random).await;
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.expect("writers don't panic");
    }
    let last = world.mark().await;
    let history = History::read(world.store(), first, last).await;
    assert!(history.len() > 10, "something happened: {history:?}");
    for watcher in watchers {
        let parts = watcher.finish(last).await;
        if let Err(difference) = history.compare(&parts) {
            panic!("PORTOLAN_WATCH_SEED={seed}: {difference}\nseen: {parts:#?}");
        }
    }
}

/// Creates, changes and deletes at whichever server; what fails may have taken place or not, and the history tells.
async fn write(clients: Vec<kube::Client>, mut random: fastrand::Rng, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        let client = clients[random.usize(..clients.len())].clone();
        let maps: Api<ConfigMap> = Api::namespaced(client, world::NAMESPACE);
        let name = format!("m{}", random.u64(..NAMES));
        let value = random.u64(..).to_string();
        let work = async {
            match random.u8(..5) {
                0 => maps.delete(&name, &DeleteParams::default()).await.map(drop),
                1 | 2 => {
                    let map = json!({"metadata": {"name": name}, "data": {"value": value}});
                    let map = serde_json::from_value(map).expect("a ConfigMap");
                    maps.create(&PostParams::default(), &map).await.map(drop)
                }
                _ => {
                    let patch = Patch::Merge(json!({"data": {"value": value}}));
                    maps.patch(&name, &PatchParams::default(), &patch)
                        .await
                        .map(drop)
                }
            }
        };
        // A server that does not answer is not waited for.
        let answered = tokio::time::timeout(Duration::from_secs(1), work).await;
        if !matches!(answered, Ok(Ok(()))) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
