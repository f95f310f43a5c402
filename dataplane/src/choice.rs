//! From a service's backends to its choice tables: which backend stands in which table, and how a table is filled.

use std::net::IpAddr;

use portolan_abi::{
    backend::{class, offers},
    choice::{Candidate, ChoiceLine, LANES, fill, lines_for},
    hash::mix,
    service::table::{LOCAL_ONLY, OTHER, PREFERRED},
};

use crate::model::{
    Algorithm, Backend, Distribution,
    Locality::{self, Elsewhere, Node, Zone},
    ReturnPath, Service, TrafficPolicy,
};

/// The number of a locality in backends and counters.
pub fn class_of(locality: Locality) -> u8 {
    match locality {
        Locality::Node => class::NODE,
        Locality::Zone => class::ZONE,
        Locality::Elsewhere => class::ELSEWHERE,
    }
}

/// The locality of a class's number.
pub fn locality_of(class: u8) -> Locality {
    match class {
        class::NODE => Locality::Node,
        class::ZONE => Locality::Zone,
        _ => Locality::Elsewhere,
    }
}

/// Which of some backends stand in each table, as indexes, by [`portolan_abi::service::table`].
pub type Members = [Vec<usize>; 3];

/// Which of a service's backends of one family stand in each table.
///
/// Backends that terminate stand nowhere as long as another could take their place (KEP-1672): under a policy of Cluster
/// any other, under Local any other of this node. Topology hints count where they leave anybody who is ready.
pub fn members(service: &Service, backends: &[&Backend]) -> Members {
    let mut tables = Members::default();
    let pool = first_filled(
        backends,
        &[
            &|backend| is_ready(backend) && !backend.hinted_elsewhere,
            &is_ready,
            &is_ending,
        ],
    );
    let near = |wanted: &[Locality]| -> Vec<usize> {
        pool.iter()
            .filter(|index| wanted.contains(&backends[**index].locality))
            .copied()
            .collect()
    };
    let first = |choices: &[&[Locality]]| -> Vec<usize> {
        choices
            .iter()
            .map(|wanted| near(wanted))
            .find(|found| !found.is_empty())
            .unwrap_or_default()
    };
    match service.distribution {
        Distribution::Even => tables[PREFERRED].clone_from(&pool),
        Distribution::SameNode => tables[PREFERRED] = first(&[&[Node], &[Zone], &[Elsewhere]]),
        Distribution::SameZone => tables[PREFERRED] = first(&[&[Node, Zone], &[Elsewhere]]),
        Distribution::LoadAware => {
            tables[PREFERRED] = first(&[&[Node], &[Zone], &[Elsewhere]]);
            if !near(&[Node]).is_empty() {
                tables[OTHER] = first(&[&[Zone], &[Elsewhere]]);
            }
        }
    }
    let has_local =
        [service.internal_policy, service.external_policy].contains(&TrafficPolicy::Local);
    // What another node sends here encapsulated stays here.
    if has_local || service.return_path == ReturnPath::Direct {
        let is_here = |backend: &Backend| backend.locality == Node;
        tables[LOCAL_ONLY] = first_filled(
            backends,
            &[
                &|backend| is_here(backend) && is_ready(backend),
                &|backend| is_here(backend) && is_ending(backend),
            ],
        );
    }
    tables
}

fn is_ready(backend: &Backend) -> bool {
    !backend.terminating && backend.weight > 0
}

fn is_ending(backend: &Backend) -> bool {
    backend.terminating && backend.weight > 0
}

/// The backends that the first condition allows which allows any.
fn first_filled(backends: &[&Backend], conditions: &[&dyn Fn(&Backend) -> bool]) -> Vec<usize> {
    conditions
        .iter()
        .map(|allows| {
            let allowed = backends.iter().enumerate();
            allowed
                .filter(|(_, backend)| allows(backend))
                .map(|(index, _)| index)
                .collect::<Vec<_>>()
        })
        .find(|allowed| !allowed.is_empty())
        .unwrap_or_default()
}

/// What each of the backends is to new flows, as its entry in the map says it.
pub fn offers(service: &Service, members: &Members, backends: &[&Backend]) -> Vec<u8> {
    let counted = match service.algorithm {
        Algorithm::LeastConnections => offers::COUNTED,
        Algorithm::Maglev => 0,
    };
    let mut bits: Vec<u8> = backends
        .iter()
        .map(|backend| {
            if backend.hinted_elsewhere {
                counted | offers::HINTED_ELSEWHERE
            } else {
                counted
            }
        })
        .collect();
    for (table, bit) in [
        (PREFERRED, offers::CLUSTER),
        (OTHER, offers::CLUSTER),
        (LOCAL_ONLY, offers::LOCAL),
    ] {
        for index in &members[table] {
            bits[*index] |= bit;
        }
    }
    bits
}

/// What a backend is, as a number that is the same on every node.
pub fn identity(address: IpAddr, port: u16) -> u64 {
    let bits = match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    };
    let (high, low) = ((bits >> 64) as u64, bits & u128::from(u64::MAX));
    let low = u64::try_from(low).unwrap_or_default();
    mix(mix(mix(0x706f_7274_6f6c_616e, high), low), u64::from(port))
}

/// How many lines a table of candidates takes.
pub fn line_count(candidates: &[Candidate]) -> u32 {
    lines_for(candidates.iter().map(|candidate| candidate.weight))
}

/// The lines of a table of candidates.
pub fn lines(candidates: &[Candidate]) -> Vec<ChoiceLine> {
    let count = line_count(candidates) as usize;
    let mut lanes = vec![0; count * LANES];
    fill(&mut lanes, candidates, &mut vec![[0; 2]; candidates.len()]);
    lanes
        .chunks_exact(LANES)
        .map(|chunk| {
            let mut line = ChoiceLine::default();
            line.backends.copy_from_slice(chunk);
            line
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Protocol, ServiceName};

    /// "node", "zone" and "far" backends in a row, "!" for one that terminates, "0" for no weight, "~" for one that is
    /// hinted elsewhere.
    fn backends(text: &str) -> Vec<Backend> {
        let one = |(number, word): (usize, &str)| {
            let last = u8::try_from(number).expect("few backends");
            let locality = match word.trim_end_matches(['!', '0', '~']) {
                "node" => Locality::Node,
                "zone" => Locality::Zone,
                "far" => Locality::Elsewhere,
                other => panic!("no such place: {other}"),
            };
            Backend {
                terminating: word.contains('!'),
                weight: if word.contains('0') { 0 } else { 100 },
                hinted_elsewhere: word.contains('~'),
                ..Backend::new(IpAddr::from([10, 0, 0, last]), 80, locality)
            }
        };
        text.split_whitespace().enumerate().map(one).collect()
    }

    /// The three tables of backends in words: "0 1 | 2 |".
    fn tables(distribution: Distribution, local: bool, text: &str) -> String {
        let policy = if local {
            TrafficPolicy::Local
        } else {
            TrafficPolicy::Cluster
        };
        let service = Service {
            distribution,
            external_policy: policy,
            ..Service::new(ServiceName("s".to_owned()), Protocol::Tcp)
        };
        let backends = backends(text);
        let tables = members(&service, &backends.iter().collect::<Vec<_>>());
        let words = tables.map(|table| {
            let numbers: Vec<_> = table.iter().map(ToString::to_string).collect();
            numbers.join(" ")
        });
        words.join(" | ").trim().to_owned()
    }

    #[test]
    fn distributions_lay_out_the_tables_that_they_promise() {
        use Distribution::{Even, LoadAware, SameNode, SameZone};
        let all = "node zone far node";
        for (distribution, text, expected) in [
            (Even, all, "0 1 2 3 |  |"),
            (SameNode, all, "0 3 |  |"),
            (SameNode, "zone far", "0 |  |"),
            (SameNode, "far far", "0 1 |  |"),
            (SameZone, all, "0 1 3 |  |"),
            (SameZone, "far node", "1 |  |"),
            (SameZone, "far far", "0 1 |  |"),
            (LoadAware, all, "0 3 | 1 |"),
            (LoadAware, "node far far", "0 | 1 2 |"),
            (LoadAware, "node node", "0 1 |  |"),
            (LoadAware, "zone far", "0 |  |"),
            (LoadAware, "far", "0 |  |"),
            (LoadAware, "", "|  |"),
        ] {
            assert_eq!(
                tables(distribution, false, text),
                expected,
                "{distribution:?} of {text}"
            );
        }
    }

    #[test]
    fn terminating_backends_serve_only_when_nobody_else_can() {
        use Distribution::{Even, LoadAware};
        for (text, expected) in [
            ("node! zone", "1 |  | 0"),
            ("node! zone!", "0 | 1 | 0"),
            ("node! node zone!", "1 |  | 1"),
            ("zone far", "0 |  |"),
        ] {
            assert_eq!(tables(LoadAware, true, text), expected, "{text}");
        }
        assert_eq!(tables(Even, false, "node! far! zone"), "2 |  |");
    }

    #[test]
    fn hints_keep_backends_out_of_all_but_the_local_table() {
        use Distribution::Even;
        for (text, expected) in [
            ("node~ zone far", "1 2 |  | 0"),
            ("node~ zone~", "0 1 |  | 0"),
            // The one hinted here ends: anybody who is ready, before anybody who ends.
            ("node! zone~", "1 |  | 0"),
        ] {
            assert_eq!(tables(Even, true, text), expected, "{text}");
        }
    }

    #[test]
    fn backends_without_weight_get_nothing() {
        use Distribution::LoadAware;
        assert_eq!(tables(LoadAware, true, "node0 zone node"), "2 | 1 | 2");
        assert_eq!(tables(LoadAware, true, "node0"), "|  |");
        assert_eq!(tables(LoadAware, false, "node0 zone!"), "1 |  |");
    }

    fn candidates(weights: &[u32]) -> Vec<Candidate> {
        let one = |(id, weight): (u32, &u32)| {
            let [_, _, high, low] = id.to_be_bytes();
            Candidate {
                id,
                weight: *weight,
                hash: identity(IpAddr::from([10, 0, high, low]), 80),
            }
        };
        (0_u32..).zip(weights).map(one).collect()
    }

    fn lanes(candidates: &[Candidate]) -> Vec<u32> {
        lines(candidates)
            .iter()
            .flat_map(|line| line.backends)
            .collect()
    }

    #[test]
    fn shares_are_equal_where_weights_are() {
        for count in 1..60 {
            let lanes = lanes(&candidates(&vec![100; count]));
            for id in 0..u32::try_from(count).expect("few") {
                let share = lanes.iter().filter(|lane| **lane == id).count();
                let equal = lanes.len() / count;
                assert!(
                    share == equal || share == equal + 1,
                    "{count} backends: {share} of {equal}"
                );
            }
        }
    }

    #[test]
    fn shares_follow_weights() {
        for weights in [
            &[100, 200, 300][..],
            &[1, 100],
            &[50, 100, 100, 100],
            &[7, 13, 1, 1],
        ] {
            let lanes = lanes(&candidates(weights));
            let total: u32 = weights.iter().sum();
            for (id, weight) in (0_u32..).zip(weights) {
                let share = lanes.iter().filter(|lane| **lane == id).count();
                let wanted = lanes.len() * *weight as usize / total as usize;
                assert!(
                    share.abs_diff(wanted) <= 2,
                    "{weights:?}: {id} has {share} lanes, not {wanted}"
                );
            }
        }
    }

    #[test]
    fn a_backend_that_leaves_disturbs_few_others() {
        for weights in [vec![100; 50], [vec![100; 25], vec![300; 25]].concat()] {
            let all = candidates(&weights);
            let (before, after) = (lanes(&all), lanes(&all[1..]));
            assert_eq!(before.len(), after.len());
            let moved = before
                .iter()
                .zip(&after)
                .filter(|(old, new)| **old != 0 && old != new)
                .count();
            assert!(
                moved * 4 < before.len(),
                "{moved} of {} moved",
                before.len()
            );
        }
    }
}
