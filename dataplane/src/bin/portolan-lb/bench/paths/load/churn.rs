//! Connections while a service's endpoints come and go: how many are lost.
//!
//! What leaves a service goes on serving, as a pod does that is told to end. A path that loses a connection all the same
//! has lost it by itself.

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;

use super::{
    Figure, Measure,
    client::{Targets, ask},
    server::{Life, Waiting, listeners},
    with_server,
};
use crate::{
    bench::paths::{
        plan::Variant,
        stage::{Client, Table},
        topology::Topology,
    },
    space::Space,
};

/// Connections that stand while endpoints change, each for about as many new ones.
const STANDING: usize = 16;
/// The pause between two changes.
const PAUSE: Duration = Duration::from_millis(2);
/// How long a connection waits before it counts as lost: one retransmission of a SYN is late, not lost.
const GIVE_UP: Duration = Duration::from_millis(1_500);
/// The service that changes, which is the one that is asked.
const SERVICE: u32 = 0;

/// Opens, asks and closes connections while the service's first endpoint is replaced by another one and comes back.
pub fn run(
    client: Client<'_>,
    topology: &Topology,
    table: &mut Table,
    turn: u32,
    time: Duration,
) -> Result<Vec<Figure>> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let changes = scope.spawn(|| change(topology, table, &over));
        let figures = with_server(
            Measure::Churn,
            client,
            |life| serve(&topology.servers, &life),
            || Ok(knock(&Targets::new(client, turn), time)),
        );
        over.store(true, Ordering::Release);
        let changes = changes
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let mut figures = figures?;
        figures.push(Figure::new(
            "changes_per_second",
            "1/s",
            f64::from(changes?) / time.as_secs_f64(),
        ));
        Ok(figures)
    })
}

fn change(topology: &Topology, table: &mut Table, over: &AtomicBool) -> Result<u32> {
    let mut changes = 0;
    while !over.load(Ordering::Acquire) {
        for variant in [Variant::Changed, Variant::Loaded] {
            table.update(topology, SERVICE, variant)?;
            changes += 1;
            thread::sleep(PAUSE);
        }
    }
    Ok(changes)
}

fn knock(targets: &Targets, time: Duration) -> Vec<Figure> {
    let mut standing: Vec<TcpStream> = Vec::new();
    let (mut made, mut lost_new, mut lost_standing) = (0_u32, 0_u32, 0_u32);
    let began = Instant::now();
    while began.elapsed() < time {
        made += 1;
        let opened = targets
            .connect_to_service(SERVICE, GIVE_UP)
            .map(TcpStream::from)
            .and_then(|mut stream| ask(&mut stream).map(|()| stream));
        match opened {
            Ok(stream) => standing.push(stream),
            Err(_) => lost_new += 1,
        }
        if standing.len() > STANDING
            && let Err(error) = ask(&mut standing.remove(0))
        {
            tracing::debug!(%error, "a standing connection was lost");
            lost_standing += 1;
        }
    }
    for mut stream in standing {
        lost_standing += u32::from(ask(&mut stream).is_err());
    }
    let rate = f64::from(made) / began.elapsed().as_secs_f64();
    vec![
        Figure::new("lost_new", "connections", f64::from(lost_new)),
        Figure::new("lost_standing", "connections", f64::from(lost_standing)),
        Figure::new("connections_per_second", "1/s", rate),
    ]
}

/// Answers on many connections by turns.
fn serve(pods: &[Space], life: &Life<'_>) -> Result<()> {
    let listeners = listeners(pods)?;
    let waiting = Waiting::new()?;
    for (number, listener) in listeners.iter().enumerate() {
        waiting.add(listener, number)?;
    }
    life.is_ready()?;
    // Streams are numbered after the listeners.
    let mut streams: Vec<Option<TcpStream>> = Vec::new();
    while let Some(number) = waiting.next(life)? {
        if let Some(listener) = listeners.get(number) {
            let (stream, _) = listener.accept()?;
            stream.set_nodelay(true)?;
            let free = streams.iter().position(Option::is_none);
            let place = free.unwrap_or_else(|| {
                streams.push(None);
                streams.len() - 1
            });
            waiting.add(&stream, listeners.len() + place)?;
            streams[place] = Some(stream);
            continue;
        }
        let place = number - listeners.len();
        if let Some(stream) = &mut streams[place] {
            let mut byte = [0];
            let goes_on = match stream.read(&mut byte) {
                Ok(0) => false,
                Ok(_) => stream.write_all(&byte).is_ok(),
                Err(error) => error.kind() == ErrorKind::Interrupted,
            };
            if !goes_on {
                // A socket that is closed is waited for no more.
                streams[place] = None;
            }
        }
    }
    Ok(())
}
