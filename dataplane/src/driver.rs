//! The generator of the microbenchmarks: runs a program over and over on packets that are new each time.
//!
//! See `ebpf/src/bin/bench.rs` for what runs in the kernel.

use std::path::Path;

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, ProgramArray},
    programs::Program,
};
use portolan_abi::drive::{self, Drive};

use crate::{
    Dataplane, Error, object,
    programs::{Run, absent, kernel, prepare, run},
};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target<'a> {
    /// One of the dataplane's programs.
    Dataplane(&'a str),
    /// One of the object of the benchmarks.
    Bench(&'a str),
}

/// The programs of the benchmarks.
#[derive(Debug)]
pub struct Driver {
    object: Ebpf,
}

impl Driver {
    /// Loads them. The floor's table has as many buckets and the kernel's LRU map as many entries as are said.
    pub fn load(buckets: u32, entries: u32) -> Result<Self, Error> {
        let name = Path::new("the programs of the benchmarks");
        let mut loader = EbpfLoader::new();
        loader
            .map_max_entries("LINES", buckets)
            .map_max_entries("LRU", entries);
        let mut bytes = object::bench()?;
        prepare(&mut bytes);
        let mut object = loader
            .load(&bytes)
            .map_err(|source| kernel("load", name, source))?;
        for (name, program) in object.programs_mut() {
            let result = match program {
                Program::Xdp(program) => program.load(),
                Program::SchedClassifier(program) => program.load(),
                _ => continue,
            };
            let name = name.to_owned();
            result.map_err(|source| kernel("load program", Path::new(&name), source))?;
        }
        Ok(Self { object })
    }

    /// Says what the generator goes on to.
    pub fn aim(&mut self, target: Target<'_>, dataplane: &Dataplane) -> Result<(), Error> {
        let (Target::Dataplane(name) | Target::Bench(name)) = target;
        let object = Path::new(name);
        let program = match target {
            Target::Dataplane(name) => dataplane.programs().object().program(name),
            Target::Bench(name) => self.object.program(name),
        };
        let (array, descriptor) = match program {
            Some(Program::Xdp(program)) => ("XDP_TARGET", program.fd()),
            Some(Program::SchedClassifier(program)) => ("TC_TARGET", program.fd()),
            _ => return Err(absent(name)),
        };
        let descriptor = descriptor
            .map_err(|source| kernel("use program", object, source))?
            .try_clone()
            .map_err(|source| kernel("use program", object, source))?;
        let map = self.object.map_mut(array).ok_or_else(|| absent(array))?;
        ProgramArray::try_from(map)
            .and_then(|mut array| array.set(0, &descriptor, 0))
            .map_err(|source| kernel("aim at program", object, source))
    }

    /// Tells the generator what to make.
    pub fn prepare(&mut self, drive: Drive) -> Result<(), Error> {
        let object = Path::new("DRIVE");
        let map = self
            .object
            .map_mut("DRIVE")
            .ok_or_else(|| absent("DRIVE"))?;
        Array::<_, [u64; drive::WORDS]>::try_from(map)
            .and_then(|mut array| array.set(0, drive.words(), 0))
            .map_err(|source| kernel("write", object, source))
    }

    /// Runs one of the object's programs so many times in a row; the duration is a run's on average.
    pub fn run(
        &self,
        program: &str,
        packet: &[u8],
        interface: u32,
        repeat: u32,
    ) -> Result<Run, Error> {
        run(&self.object, program, packet, interface, repeat)
    }
}
