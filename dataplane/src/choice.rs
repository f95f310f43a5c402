//! From a service's backends to its choice tables: which backend stands in which table, and how a table is filled.

use std::net::IpAddr;

use portolan_abi::{
    choice::{ChoiceLine, LANES, fill, lines_for},
    hash::mix,
    service::LOCAL_ONLY,
};

use crate::model::{Backend, Locality};

/// The index of a locality's table.
pub fn class_of(locality: Locality) -> u8 {
    match locality {
        Locality::Node => portolan_abi::backend::class::NODE,
        Locality::Zone => portolan_abi::backend::class::ZONE,
        Locality::Elsewhere => portolan_abi::backend::class::ELSEWHERE,
    }
}

/// The locality of a table's index.
pub fn locality_of(class: u8) -> Locality {
    match class {
        portolan_abi::backend::class::NODE => Locality::Node,
        portolan_abi::backend::class::ZONE => Locality::Zone,
        _ => Locality::Elsewhere,
    }
}

/// Which of the backends stand in each table, as indexes.
///
/// Backends that terminate stand nowhere as long as another could take their place: in the tables of the classes any
/// other backend, in the table of the policy Local any other of this node.
pub fn members(backends: &[&Backend]) -> [Vec<usize>; 4] {
    let mut tables: [Vec<usize>; 4] = Default::default();
    let all_terminate = backends.iter().all(|backend| backend.terminating);
    let local_terminate = backends
        .iter()
        .filter(|backend| backend.locality == Locality::Node)
        .all(|backend| backend.terminating);
    for (index, backend) in backends.iter().enumerate() {
        if !backend.terminating || all_terminate {
            tables[usize::from(class_of(backend.locality))].push(index);
        }
        if backend.locality == Locality::Node && (!backend.terminating || local_terminate) {
            tables[LOCAL_ONLY].push(index);
        }
    }
    tables
}

/// What a backend is, as a number that is the same on every node.
pub fn identity(backend: &Backend) -> u64 {
    let bits = match backend.address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    };
    let (high, low) = ((bits >> 64) as u64, bits & u128::from(u64::MAX));
    let low = u64::try_from(low).unwrap_or_default();
    mix(
        mix(mix(0x706f_7274_6f6c_616e, high), low),
        u64::from(backend.port),
    )
}

/// The lines of a table of backend ids, each with its [`identity`].
pub fn lines(backends: &[(u32, u64)]) -> Vec<ChoiceLine> {
    let count = lines_for(u32::try_from(backends.len()).unwrap_or(u32::MAX)) as usize;
    let mut lanes = vec![0; count * LANES];
    fill(&mut lanes, backends, &mut vec![0; backends.len()]);
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

    fn backend(last: u8, locality: Locality, terminating: bool) -> Backend {
        Backend {
            terminating,
            ..Backend::new(IpAddr::from([10, 0, 0, last]), 80, locality)
        }
    }

    #[test]
    fn terminating_backends_serve_only_when_nobody_else_can() {
        let local = backend(1, Locality::Node, true);
        let zone = backend(2, Locality::Zone, false);
        assert_eq!(
            members(&[&local, &zone]),
            [vec![], vec![1], vec![], vec![0]]
        );
        let zone = backend(2, Locality::Zone, true);
        assert_eq!(
            members(&[&local, &zone]),
            [vec![0], vec![1], vec![], vec![0]]
        );
    }

    #[test]
    fn shares_are_within_a_tenth_of_equal() {
        for count in 1..60_u8 {
            let backends: Vec<_> = (0..count)
                .map(|last| {
                    (
                        u32::from(last),
                        identity(&backend(last, Locality::Node, false)),
                    )
                })
                .collect();
            let lines = lines(&backends);
            let total = lines.len() * LANES;
            for (id, _) in &backends {
                let share = lines
                    .iter()
                    .flat_map(|line| line.backends)
                    .filter(|lane| lane == id)
                    .count();
                let equal = total / usize::from(count);
                assert!(
                    share == equal || share == equal + 1,
                    "{count} backends: {share} of {equal}"
                );
            }
        }
    }

    #[test]
    fn a_backend_that_leaves_disturbs_few_others() {
        let backends: Vec<_> = (0..50_u8)
            .map(|last| {
                (
                    u32::from(last),
                    identity(&backend(last, Locality::Node, false)),
                )
            })
            .collect();
        let before = lines(&backends);
        let after = lines(&backends[1..]);
        assert_eq!(before.len(), after.len());
        let lanes = |lines: &[ChoiceLine]| {
            lines
                .iter()
                .flat_map(|line| line.backends)
                .collect::<Vec<_>>()
        };
        let moved = lanes(&before)
            .into_iter()
            .zip(lanes(&after))
            .filter(|(old, new)| *old != 0 && old != new)
            .count();
        assert!(
            moved * 4 < before.len() * LANES,
            "{moved} of {} moved",
            before.len() * LANES
        );
    }
}
