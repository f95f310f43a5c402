//! The flow table under threads: whatever they do at once, a flow leads to the backend that was given to it.

use std::{
    cell::Cell,
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use portolan_abi::{
    address::V4,
    bytes::{Be16, Be32},
    flow::{Bucket, Meta, Ports, SlotV4, Stage},
    flow_table::{self, FlowKey, Inserted, Insertion, Victim},
    open::NOBODY,
    protocol,
    tcp::{self, Sender},
};

/// A bucket of plain memory.
#[derive(Default)]
struct Words([AtomicU64; 16]);

#[derive(Clone, Copy)]
struct View<'a>(&'a Words);

impl<'a> View<'a> {
    fn addresses(self, slot: u32) -> u64 {
        self.0.0[slot as usize * 2].load(Ordering::Acquire)
    }

    fn word(self, slot: u32) -> &'a AtomicU64 {
        &self.0.0[slot as usize * 2 + 1]
    }
}

impl Bucket<V4> for View<'_> {
    fn meta(&self, slot: u32) -> Meta {
        Meta(self.word(slot).load(Ordering::Acquire))
    }

    fn client(&self, slot: u32) -> V4 {
        V4(Be32(
            u32::try_from(self.addresses(slot) & 0xffff_ffff).expect("masked"),
        ))
    }

    fn frontend(&self, slot: u32) -> V4 {
        V4(Be32(
            u32::try_from(self.addresses(slot) >> 32).expect("shifted"),
        ))
    }

    fn exchange(&self, slot: u32, old: Meta, new: Meta) -> bool {
        self.word(slot)
            .compare_exchange(old.0, new.0, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    fn try_lock(&self) -> bool {
        self.word(0).fetch_or(Meta::LOCK, Ordering::AcqRel) & Meta::LOCK == 0
    }

    fn unlock(&self) {
        self.word(0).fetch_and(!Meta::LOCK, Ordering::AcqRel);
    }

    fn publish(&self, slot: u32, meta: Meta) {
        self.word(slot).store(meta.0, Ordering::Release);
    }

    fn write(&self, slot: u32, client: V4, frontend: V4) {
        self.0.0[slot as usize * 2].store(SlotV4::addresses(client, frontend), Ordering::Release);
    }
}

fn key(client: u32) -> FlowKey<V4> {
    FlowKey {
        client: V4(Be32(client)),
        frontend: V4(Be32(0x0a60_0001)),
        ports: Ports {
            client: Be16(7),
            frontend: Be16(80),
        },
        protocol: 6,
    }
}

/// The one backend that a client may ever be led to.
fn backend_of(client: u32) -> u32 {
    client.wrapping_mul(7) & 0xf_ffff
}

fn insert(bucket: View<'_>, client: u32, leaves: u32, at_most: Victim, now: u64) -> Inserted {
    let key = key(client);
    let meta = Meta::new(key.ports, backend_of(client), Stage::TCP_SYN, now);
    flow_table::insert(
        &bucket,
        client & 7,
        &key,
        meta,
        Insertion { leaves, at_most },
        now,
    )
}

#[test]
fn threads_that_fight_for_one_bucket_never_meet_anothers_backend() {
    let words = Words::default();
    thread::scope(|scope| {
        for seed in 1..=4_u32 {
            let bucket = View(&words);
            scope.spawn(move || {
                let mut random = seed;
                for round in 0..200_000_u64 {
                    random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    // More clients than slots, with equal ports, so that slots change hands all the time.
                    let client = (random >> 16) % 24 + 1;
                    let now = round << 24;
                    let mut slot = 0;
                    let found = flow_table::find(&bucket, client & 7, &key(client), &mut slot);
                    if found.0 == 0 {
                        let inserted = insert(bucket, client, NOBODY, Victim::Confirmed, now);
                        assert_ne!(inserted.kind(), Inserted::FULL);
                    } else {
                        assert_eq!(
                            found.backend(),
                            backend_of(client),
                            "a flow met another's backend"
                        );
                        let flags = if random & 64 == 0 { tcp::ACK } else { tcp::FIN };
                        flow_table::refresh(&bucket, slot, found, Sender::Backend, flags, now);
                    }
                }
            });
        }
    });
    assert!(
        (0..8).all(|slot| View(&words).meta(slot).0 & Meta::LOCK == 0),
        "a lock was left behind"
    );
}

#[test]
fn slots_are_given_up_in_the_order_of_what_is_lost() {
    let words = Words::default();
    let bucket = View(&words);
    let second = 1 << 30;
    for client in 0..8 {
        let inserted = insert(bucket, client, NOBODY, Victim::Empty, 100 * second);
        assert_eq!(
            (inserted.kind(), inserted.victim()),
            (Inserted::NEW, Victim::Empty as u32)
        );
    }
    assert_eq!(
        insert(bucket, 8, NOBODY, Victim::Over, 100 * second).kind(),
        Inserted::FULL
    );
    let mut slot = 0;
    for client in 0..8 {
        let found = flow_table::find(&bucket, client & 7, &key(client), &mut slot);
        if client != 5 {
            flow_table::refresh(
                &bucket,
                slot,
                found,
                Sender::Backend,
                tcp::SYN | tcp::ACK,
                101 * second,
            );
        }
    }
    let inserted = insert(bucket, 9, NOBODY, Victim::Confirmed, 102 * second);
    assert_eq!(
        inserted.victim(),
        Victim::Unconfirmed as u32,
        "the flow that nobody answered goes first"
    );
    assert_eq!(flow_table::find(&bucket, 5, &key(5), &mut slot).0, 0);
    let inserted = insert(bucket, 10, NOBODY, Victim::Confirmed, 300 * second);
    assert_eq!(
        inserted.victim(),
        Victim::Over as u32,
        "then those that have aged"
    );
}

#[test]
fn a_datagrams_flow_that_waits_for_its_answer_outlasts_those_that_rest() {
    let words = Words::default();
    let bucket = View(&words);
    let second = 1 << 30;
    let put = |client: u32, now: u64| {
        let key = FlowKey {
            protocol: protocol::UDP,
            ..key(client)
        };
        let meta = Meta::new(key.ports, backend_of(client), Stage::UDP_NEW, now);
        let insertion = Insertion {
            leaves: NOBODY,
            at_most: Victim::Confirmed,
        };
        flow_table::insert(&bucket, client & 7, &key, meta, insertion, now)
    };
    for client in 0..7 {
        let slot = put(client, 100 * second).slot();
        let found = bucket.meta(slot);
        flow_table::refresh(&bucket, slot, found, Sender::Backend, 0, 100 * second);
    }
    let waiting = put(7, 140 * second).slot();
    // Another new flow of the same bucket, before the answer.
    assert_ne!(put(8, 140 * second).slot(), waiting);
    assert_eq!(bucket.client(waiting), key(7).client);
}

#[test]
fn a_flow_that_is_there_is_not_inserted_again_but_may_leave_its_backend() {
    let words = Words::default();
    let bucket = View(&words);
    let first = insert(bucket, 3, NOBODY, Victim::Confirmed, 0);
    let again = insert(bucket, 3, NOBODY, Victim::Confirmed, 0);
    assert_eq!(
        (again.kind(), again.slot()),
        (Inserted::EXISTING, first.slot())
    );
    let moved = insert(bucket, 3, backend_of(3), Victim::Empty, 0);
    assert_eq!((moved.kind(), moved.slot()), (Inserted::NEW, first.slot()));
}

/// A bucket in which another CPU puts a flow into the slot that is being read, just before one of the reads.
#[derive(Clone, Copy)]
struct Interrupted<'a> {
    words: &'a Words,
    /// Before which read.
    at: u32,
    /// How many there have been.
    reads: &'a Cell<u32>,
    /// Whether the second look at a meta word sees the word as it is, or as it was at first.
    looks_again: bool,
    first: &'a Cell<Option<(u32, Meta)>>,
    newcomer: u32,
}

impl Interrupted<'_> {
    fn read<T>(&self, read: impl FnOnce(View<'_>) -> T) -> T {
        if self.reads.replace(self.reads.get() + 1) == self.at {
            let at_most = Victim::Confirmed;
            insert(View(self.words), self.newcomer, NOBODY, at_most, 1 << 40);
        }
        read(View(self.words))
    }
}

impl Bucket<V4> for Interrupted<'_> {
    fn meta(&self, slot: u32) -> Meta {
        let seen = self.read(|bucket| bucket.meta(slot));
        match self.first.replace(Some((slot, seen))) {
            Some((before, meta)) if before == slot && !self.looks_again => meta,
            _ => seen,
        }
    }

    fn client(&self, slot: u32) -> V4 {
        self.read(|bucket| bucket.client(slot))
    }

    fn frontend(&self, slot: u32) -> V4 {
        self.read(|bucket| bucket.frontend(slot))
    }

    fn exchange(&self, slot: u32, old: Meta, new: Meta) -> bool {
        View(self.words).exchange(slot, old, new)
    }

    fn try_lock(&self) -> bool {
        View(self.words).try_lock()
    }

    fn unlock(&self) {
        View(self.words).unlock();
    }

    fn publish(&self, slot: u32, meta: Meta) {
        View(self.words).publish(slot, meta);
    }

    fn write(&self, slot: u32, client: V4, frontend: V4) {
        View(self.words).write(slot, client, frontend);
    }
}

/// Looks for a flow that comes into a full bucket between two of the reads; whether the answer was another's ever.
fn meets_anothers(looks_again: bool) -> bool {
    let newcomer = 9;
    (0..40).any(|at| {
        let words = Words::default();
        for client in 0..8 {
            insert(View(&words), client, NOBODY, Victim::Empty, 0);
        }
        let (reads, first) = (Cell::new(0), Cell::new(None));
        let bucket = Interrupted {
            words: &words,
            at,
            reads: &reads,
            looks_again,
            first: &first,
            newcomer,
        };
        let found = flow_table::find(&bucket, newcomer & 7, &key(newcomer), &mut 0);
        found.0 != 0 && found.backend() != backend_of(newcomer)
    })
}

#[test]
fn a_flow_that_takes_a_slot_under_a_readers_eyes_is_not_taken_for_the_one_before() {
    assert!(!meets_anothers(true));
    assert!(
        meets_anothers(false),
        "without the second look it would be, so that this test sees what it is for"
    );
}

#[test]
fn a_full_bucket_takes_every_new_flow_and_says_what_it_gave_up() {
    let words = Words::default();
    let bucket = View(&words);
    let second = 1 << 30;
    let mut slot = 0;
    for client in 0..8 {
        insert(bucket, client, NOBODY, Victim::Empty, second);
        let found = flow_table::find(&bucket, client & 7, &key(client), &mut slot);
        let flags = tcp::SYN | tcp::ACK;
        flow_table::refresh(&bucket, slot, found, Sender::Backend, flags, second);
    }
    for client in 8..200 {
        let inserted = insert(bucket, client, NOBODY, Victim::Confirmed, 2 * second);
        assert_eq!(inserted.kind(), Inserted::NEW);
        assert!(inserted.victim() >= Victim::Unconfirmed as u32);
        let found = flow_table::find(&bucket, client & 7, &key(client), &mut slot);
        assert_eq!(found.backend(), backend_of(client));
    }
}

#[test]
fn a_client_that_uses_its_port_anew_never_meets_its_old_flow() {
    let words = Words::default();
    let bucket = View(&words);
    let (old, new) = (backend_of(3), 77);
    insert(bucket, 3, NOBODY, Victim::Confirmed, 0);
    let key = key(3);
    let meta = Meta::new(key.ports, new, Stage::TCP_SYN, 0);
    let wish = Insertion {
        leaves: old,
        at_most: Victim::Confirmed,
    };
    let moved = flow_table::insert(&bucket, 3, &key, meta, wish, 0);
    assert_eq!(moved.kind(), Inserted::NEW);
    let mut slot = 0;
    assert_eq!(flow_table::find(&bucket, 3, &key, &mut slot).backend(), new);
    let count = (0..8).filter(|slot| bucket.meta(*slot).stage() != Stage::EMPTY);
    assert_eq!(count.count(), 1, "the old one has no other slot");
}
