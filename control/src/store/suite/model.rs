//! Random operations against a model that keeps every revision whole.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngSeed, TestRunner};

use super::*;

const CASES: u32 = 24;
/// Cases differ from run to run; a failure names the seed to repeat it with.
const SEED_VARIABLE: &str = "PORTOLAN_STORE_SEED";

#[derive(Clone, Debug)]
enum Step {
    Put {
        key: u8,
        value: u16,
        guard: GuardKind,
    },
    Delete {
        key: u8,
        guard: GuardKind,
    },
    Compact {
        back: u8,
    },
}

#[derive(Clone, Copy, Debug)]
enum GuardKind {
    Any,
    Absent,
    Current,
    Stale,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let guard = prop_oneof![
        3 => Just(GuardKind::Any),
        1 => Just(GuardKind::Absent),
        2 => Just(GuardKind::Current),
        1 => Just(GuardKind::Stale),
    ];
    let put = (0..5u8, any::<u16>(), guard.clone());
    let put = put.prop_map(|(key, value, guard)| Step::Put { key, value, guard });
    let delete = (0..5u8, guard).prop_map(|(key, guard)| Step::Delete { key, guard });
    let compact = (0..12u8).prop_map(|back| Step::Compact { back });
    vec(prop_oneof![6 => put, 3 => delete, 1 => compact], 1..60)
}

/// What the store must look like, revision by revision.
struct Model {
    prefix: String,
    base: Revision,
    oldest: Revision,
    /// The state after each revision, `states[0]` at `base`.
    states: Vec<BTreeMap<String, (String, Revision, Revision)>>,
    log: Vec<String>,
}

impl Model {
    fn revision(&self) -> Revision {
        self.base + Revision::try_from(self.states.len()).unwrap() - 1
    }

    fn state(&self) -> &BTreeMap<String, (String, Revision, Revision)> {
        self.states.last().unwrap()
    }

    fn guard(&self, key: &str, kind: GuardKind) -> (Guard, bool) {
        let current = self.state().get(key);
        match kind {
            GuardKind::Any => (Guard::Any, true),
            GuardKind::Absent => (Guard::Absent, current.is_none()),
            GuardKind::Current => match current {
                Some((_, _, modified)) => (Guard::At(*modified), true),
                None => (Guard::At(self.base), false),
            },
            GuardKind::Stale => {
                let stale = current.map_or(self.base, |(_, _, modified)| modified - 1);
                (Guard::At(stale), false)
            }
        }
    }

    fn put(&mut self, key: &str, value: String) {
        let revision = self.revision() + 1;
        let mut state = self.state().clone();
        let before = state.remove(key);
        let was = before
            .as_ref()
            .map_or(String::new(), |(value, ..)| format!(" was {value}"));
        self.log.push(format!("{revision} {key}={value}{was}"));
        let created = before.map_or(revision, |(_, created, _)| created);
        state.insert(key.to_owned(), (value, created, revision));
        self.states.push(state);
    }

    fn delete(&mut self, key: &str) {
        let revision = self.revision() + 1;
        let mut state = self.state().clone();
        let (value, ..) = state.remove(key).unwrap();
        self.log.push(format!("{revision} -{key} was {value}"));
        self.states.push(state);
    }

    async fn step(&mut self, store: &dyn Store, step: &Step) {
        match step {
            Step::Put { key, value, guard } => {
                let key = format!("{}{key}", self.prefix);
                let (guard, holds) = self.guard(&key, *guard);
                let value = value.to_string();
                let written = store
                    .put(key.as_bytes(), bytes(&value), guard, None)
                    .await
                    .unwrap();
                if holds {
                    self.put(&key, value);
                }
                self.check(&key, &written, holds);
            }
            Step::Delete { key, guard } => {
                let key = format!("{}{key}", self.prefix);
                let (guard, holds) = self.guard(&key, *guard);
                let holds = holds && self.state().contains_key(&key);
                let written = store.delete(key.as_bytes(), guard).await.unwrap();
                if holds {
                    self.delete(&key);
                }
                self.check(&key, &written, holds);
            }
            Step::Compact { back } => {
                let line = (self.revision() - Revision::from(*back)).max(self.oldest);
                store.compact(line).await.unwrap();
                self.oldest = line;
            }
        }
    }

    fn check(&self, key: &str, written: &Written, holds: bool) {
        let expected = if holds {
            Written::Done(self.revision())
        } else {
            Written::Refused(self.state().get(key).map(|entry| key_value(key, entry)))
        };
        assert_eq!(written, &expected, "{key}");
    }

    /// Every revision that may still be read is as it was, and the history tells how they came about.
    async fn compare(&self, store: &dyn Store) {
        let first = usize::try_from(self.oldest - self.base).unwrap();
        for (revision, state) in (self.oldest..).zip(&self.states[first..]) {
            let range = store.range(at(&self.prefix, revision)).await.unwrap();
            let expected: Vec<_> = state
                .iter()
                .map(|(key, entry)| key_value(key, entry))
                .collect();
            assert_eq!(range.items, expected, "at revision {revision}");
        }
        // The change at the compacted revision itself may have lost what was before it.
        let expected = &self.log[first..];
        let from = self.oldest + 1;
        let mut watch = store
            .watch(self.prefix.as_bytes(), Some(from))
            .await
            .unwrap();
        assert_eq!(lines(&mut watch, expected.len()).await, expected);
    }
}

fn key_value(key: &str, (value, created, modified): &(String, Revision, Revision)) -> KeyValue {
    KeyValue {
        key: bytes(key),
        value: bytes(value),
        create_revision: *created,
        mod_revision: *modified,
    }
}

pub(super) async fn random_operations_agree_with_the_model<S: Subject>() {
    let subject = S::start().await;
    let store = subject.store();
    let seed = match std::env::var(SEED_VARIABLE) {
        Ok(seed) => seed.parse().expect("a seed is a number"),
        Err(_) => fastrand::u64(..),
    };
    println!("{SEED_VARIABLE}={seed}");
    let config = Config {
        rng_seed: RngSeed::Fixed(seed),
        ..Config::default()
    };
    let mut runner = TestRunner::new(config);
    for case in 0..CASES {
        let steps = steps().new_tree(&mut runner).unwrap().current();
        println!("case {case}: {steps:?}");
        let base = store.revision().await.unwrap();
        let mut model = Model {
            prefix: format!("/case{case}/"),
            base,
            oldest: base,
            states: vec![BTreeMap::new()],
            log: Vec::new(),
        };
        for step in &steps {
            model.step(&*store, step).await;
        }
        model.compare(&*store).await;
    }
}
