//! The slow programs, which the others reach by a tail call: one array for each type of program says where they are.
//!
//! The arrays are pinned, as the kernel empties one that no process and no pin holds. So they outlive a generation of
//! programs: for a moment one generation calls the other's, which is as good, since what passes between them is the packet.

use std::path::Path;

use aya::{Ebpf, maps::ProgramArray, programs::Program};

use super::{absent, kernel};
use crate::Error;

/// The arrays, with the program that each holds.
const SLOW: [(&str, &str); 2] = [("SLOW_TC", "slow_tcx"), ("SLOW_XDP", "slow_uplink")];

/// Whether a program is one of them.
pub fn is_slow(name: &str) -> bool {
    SLOW.iter().any(|(_, slow)| *slow == name)
}

/// Puts the slow programs that are loaded where the others look for them, before any of those runs.
pub fn join(object: &mut Ebpf) -> Result<(), Error> {
    for (array, name) in SLOW {
        let path = Path::new(name);
        let descriptor = match object.program(name) {
            Some(Program::Xdp(program)) => program.fd(),
            Some(Program::SchedClassifier(program)) => program.fd(),
            _ => return Err(absent(name)),
        };
        // That of a way that is not wanted, or one that the kernel has refused.
        let Ok(descriptor) = descriptor else {
            continue;
        };
        let descriptor = descriptor
            .try_clone()
            .map_err(|source| kernel("use program", path, source))?;
        let map = object.map_mut(array).ok_or_else(|| absent(array))?;
        ProgramArray::try_from(map)
            .and_then(|mut array| array.set(0, &descriptor, 0))
            .map_err(|source| kernel("hand packets over to program", path, source))?;
    }
    Ok(())
}
