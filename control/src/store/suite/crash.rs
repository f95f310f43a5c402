//! A writer that is killed without warning: whatever it was told is stored, is stored.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use super::embedded::open;
use super::*;
use crate::store::embedded::Options;

/// Set in the child that writes until it is killed.
const CHILD_VARIABLE: &str = "PORTOLAN_STORE_CRASH_CHILD";
const TEST: &str = "store::suite::crash::acknowledged_writes_survive_kill";
const ROUNDS: usize = 5;
const WRITERS: usize = 8;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_writes_survive_kill() {
    if let Ok(path) = std::env::var(CHILD_VARIABLE) {
        return write_until_killed(Path::new(&path)).await;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let mut last = 1;
    for round in 0..ROUNDS {
        let acknowledged = run_and_kill(&path, 40 + round * 35);
        let store = open(options(&path)).await;
        let revision = store.revision().await.unwrap();
        let mut newest = last;
        for (key, at) in acknowledged {
            let stored = store.get(key.as_bytes()).await.unwrap().expect(&key);
            assert!(
                stored.mod_revision >= at,
                "{key} is older than acknowledged"
            );
            newest = newest.max(at);
        }
        assert!(
            newest > last && revision >= newest,
            "{last} {newest} {revision}"
        );
        let mut watch = store.watch(b"/", Some(last + 1)).await.unwrap();
        let history = changes(&mut watch, usize::try_from(revision - last).unwrap()).await;
        let revisions: Vec<_> = history.iter().map(Change::revision).collect();
        assert_eq!(revisions, ((last + 1)..=revision).collect::<Vec<_>>());
        last = revision;
        drop(watch);
        drop(store);
    }
}

/// Runs this test as the child, kills it after some acknowledgements, and returns all that it gave.
fn run_and_kill(path: &Path, acknowledgements: usize) -> Vec<(String, Revision)> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", TEST, "--nocapture"])
        .env(CHILD_VARIABLE, path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut seen = Vec::new();
    let output = BufReader::new(child.stdout.take().unwrap());
    for line in output.lines() {
        let line = line.unwrap();
        let Some((key, revision)) = line
            .strip_prefix("ack ")
            .and_then(|ack| ack.split_once(' '))
        else {
            continue;
        };
        seen.push((key.to_owned(), revision.parse().unwrap()));
        if seen.len() == acknowledgements {
            child.kill().unwrap();
        }
    }
    let status = child.wait().unwrap();
    assert!(
        status.code().is_none(),
        "the child ended by itself: {status}"
    );
    seen
}

async fn write_until_killed(path: &Path) {
    let store = open(options(path)).await;
    let writers = (0..WRITERS).map(|writer| {
        let store = store.clone();
        tokio::spawn(async move {
            for number in 0.. {
                let key = format!("/crash/{writer}/{}", number % 50);
                let revision = put(&store, &key, &number.to_string()).await;
                writeln!(std::io::stdout().lock(), "ack {key} {revision}").unwrap();
            }
        })
    });
    futures::future::join_all(writers.collect::<Vec<_>>()).await;
}

fn options(path: &Path) -> Options {
    Options {
        path: path.to_owned(),
        max_bytes: None,
    }
}
