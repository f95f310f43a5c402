//! Many nodes with the same service, one of which becomes hot: what load-aware preference does beside "always local"
//! and "evenly". Seeded, so that a seed always gives the same numbers; the benchmark page plots them.

use std::time::Duration;

use portolan_abi::{choice::ALL, hash::mix};
use serde::Serialize;

use super::{BackendLoad, Signals, State};

/// How new flows are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// As `State` says on each node.
    LoadAware,
    /// Always to the node's own backends.
    AlwaysLocal,
    /// To all backends alike, as kube-proxy does.
    Even,
}

/// What is simulated.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Scenario {
    /// Where randomness begins.
    pub seed: u64,
    /// How many nodes; each has one backend, and clients.
    pub nodes: usize,
    /// How long.
    pub seconds: u64,
    /// New flows a second at each node, on average.
    pub demand: f64,
    /// How many flows a second one backend can serve.
    pub capacity: f64,
    /// How many seconds a flow weighs on its backend: it moves only when it is over.
    pub flow_seconds: u64,
    /// From when to when something else takes most of node 0's CPU.
    pub hot: (u64, u64),
    /// What is left of the CPU then.
    pub left: f64,
}

impl Scenario {
    /// Twelve nodes at six tenths of what they can serve, one of which loses two thirds of its CPU for two minutes.
    pub const fn new(seed: u64) -> Self {
        Self {
            seed,
            nodes: 12,
            seconds: 420,
            demand: 600.0,
            capacity: 1_000.0,
            flow_seconds: 2,
            hot: (60, 180),
            left: 0.33,
        }
    }
}

/// One second of one policy.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Second {
    /// Which.
    pub second: u64,
    /// The part of node 0's new flows that stays there.
    pub local_share: f64,
    /// How much of node 0's CPU is asked for, in parts of what it has: above 1 its flows queue.
    pub hot_node_load: f64,
    /// The same of the busiest other node.
    pub other_nodes_load: f64,
    /// The part of all new flows that cross to another node.
    pub remote: f64,
    /// The part of all new flows that meet an overloaded backend.
    pub overloaded: f64,
}

/// One policy's course.
#[derive(Clone, Debug, Serialize)]
pub struct Course {
    /// Which.
    pub policy: Policy,
    /// Second by second.
    pub seconds: Vec<Second>,
}

/// What came out.
#[derive(Clone, Debug, Serialize)]
pub struct Simulation {
    /// What was simulated.
    pub scenario: Scenario,
    /// Each policy's course, over the same demand.
    pub courses: Vec<Course>,
}

/// Simulates all policies.
pub fn simulate(scenario: Scenario) -> Simulation {
    let policies = [Policy::LoadAware, Policy::AlwaysLocal, Policy::Even];
    let course = |policy| Course {
        policy,
        seconds: run(&scenario, policy),
    };
    Simulation {
        scenario,
        courses: policies.map(course).to_vec(),
    }
}

/// One node.
struct Node {
    state: State,
    /// Flows that began here in each of the last seconds, the newest last.
    flows: Vec<f64>,
    load: f64,
}

#[expect(
    clippy::cast_precision_loss,
    reason = "counts of nodes and seconds are small"
)]
fn run(scenario: &Scenario, policy: Policy) -> Vec<Second> {
    let mut nodes: Vec<Node> = (0..scenario.nodes)
        .map(|_| Node {
            state: State::new(),
            flows: vec![0.0; usize::try_from(scenario.flow_seconds).unwrap_or(1).max(1)],
            load: 0.0,
        })
        .collect();
    let mut random = scenario.seed;
    let mut seconds = Vec::new();
    for second in 0..scenario.seconds {
        let stays: Vec<f64> = nodes
            .iter()
            .map(|node| match policy {
                Policy::LoadAware => 1.0 - f64::from(node.state.away()) / f64::from(ALL),
                Policy::AlwaysLocal => 1.0,
                Policy::Even => 1.0 / scenario.nodes as f64,
            })
            .collect();
        let demands: Vec<f64> = nodes
            .iter()
            .map(|_| scenario.demand * (0.9 + 0.2 * fraction(&mut random)))
            .collect();
        let leaving = |node: usize| demands[node] * (1.0 - stays[node]);
        let all_leaving: f64 = (0..nodes.len()).map(leaving).sum();
        let arrivals: Vec<f64> = (0..nodes.len())
            .map(|node| {
                let others = (all_leaving - leaving(node)) / (scenario.nodes as f64 - 1.0);
                demands[node] * stays[node] + others
            })
            .collect();
        let now = Duration::from_secs(second);
        for (index, node) in nodes.iter_mut().enumerate() {
            let is_hot = index == 0 && (scenario.hot.0..scenario.hot.1).contains(&second);
            let cpu = if is_hot { scenario.left } else { 1.0 };
            node.flows.rotate_left(1);
            if let Some(newest) = node.flows.last_mut() {
                *newest = arrivals[index];
            }
            let open: f64 = node.flows.iter().sum();
            node.load = open / node.flows.len() as f64 / (scenario.capacity * cpu);
            node.state = node.state.step(signals(node.load, open), now);
        }
        let busiest = nodes[1..].iter().map(|node| node.load).fold(0.0, f64::max);
        let total: f64 = arrivals.iter().sum();
        let overloaded: f64 = (nodes.iter().zip(&arrivals))
            .filter(|(node, _)| node.load > 1.0)
            .map(|(_, arrivals)| arrivals)
            .sum();
        seconds.push(Second {
            second,
            local_share: stays[0],
            hot_node_load: nodes[0].load,
            other_nodes_load: busiest,
            remote: all_leaving / total,
            overloaded: overloaded / total,
        });
    }
    seconds
}

/// What a node's agent would see of so much load: the CPU is used up to all of it, and what is beyond waits.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a count of flows"
)]
fn signals(load: f64, open: f64) -> Signals {
    let seen = BackendLoad {
        cpu: load.min(1.0),
        pressure: ((load - 0.9) / 1.5).clamp(0.0, 1.0),
        overflows: u64::from(load > 3.0),
    };
    Signals {
        heat: seen.heat(),
        connections: open as u64,
    }
}

/// The next number of a sequence, from 0 to 1.
fn fraction(random: &mut u64) -> f64 {
    *random = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let bits = u32::try_from(mix(1, *random) >> 32).unwrap_or(0);
    f64::from(bits) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn course(simulation: &Simulation, policy: Policy) -> &[Second] {
        let course = simulation
            .courses
            .iter()
            .find(|course| course.policy == policy);
        &course.expect("each policy has a course").seconds
    }

    /// How often the share turned from going up to going down or back, small moves aside.
    fn turns(seconds: &[Second]) -> usize {
        let moves: Vec<bool> = seconds
            .windows(2)
            .map(|two| two[1].local_share - two[0].local_share)
            .filter(|change| change.abs() > 0.01)
            .map(|change| change > 0.0)
            .collect();
        moves.windows(2).filter(|two| two[0] != two[1]).count()
    }

    #[test]
    fn the_same_seed_gives_the_same_course() {
        let text = |seed| format!("{:?}", simulate(Scenario::new(seed)).courses);
        assert!(text(1) == text(1));
        assert!(text(1) != text(2));
    }

    #[test]
    fn a_hot_node_sheds_within_five_seconds_comes_back_and_does_not_oscillate() {
        for seed in 0..20 {
            for flow_seconds in [1, 2, 5, 10] {
                let scenario = Scenario {
                    flow_seconds,
                    ..Scenario::new(seed)
                };
                let simulation = simulate(scenario);
                let aware = course(&simulation, Policy::LoadAware);
                let at = |second: u64| aware[usize::try_from(second).expect("small")];
                let (from, to) = scenario.hot;
                assert!(aware[..60].iter().all(|second| second.local_share > 0.999));
                let shed = at(from + flow_seconds.min(5) + 4).local_share;
                assert!(
                    shed < 0.7,
                    "seed {seed}, flows of {flow_seconds} s: {shed} stays"
                );
                let back = at(to + 200).local_share;
                assert!(back > 0.999, "seed {seed}, {flow_seconds} s: {back} stays");
                assert!(
                    turns(aware) <= 6,
                    "seed {seed}, {flow_seconds} s: {} turns",
                    turns(aware)
                );
                // From a while after the heat began, hardly anybody meets an overloaded backend.
                let begun = usize::try_from(from + 30).expect("small");
                let ended = usize::try_from(to).expect("small");
                let sum: f64 = aware[begun..ended]
                    .iter()
                    .map(|second| second.overloaded)
                    .sum();
                let local = course(&simulation, Policy::AlwaysLocal);
                let local: f64 = local[begun..ended]
                    .iter()
                    .map(|second| second.overloaded)
                    .sum();
                assert!(sum * 4.0 < local, "seed {seed}: {sum} against {local}");
            }
        }
    }

    #[test]
    fn without_heat_nothing_crosses_to_another_node() {
        let scenario = Scenario {
            left: 1.0,
            ..Scenario::new(3)
        };
        let simulation = simulate(scenario);
        let aware = course(&simulation, Policy::LoadAware);
        assert!(aware.iter().all(|second| second.remote < 1e-9));
        let even = course(&simulation, Policy::Even);
        assert!(even.iter().all(|second| second.remote > 0.9));
    }
}
