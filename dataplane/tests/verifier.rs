//! What the kernel makes of the programs: that its verifier accepts them, at what cost, and which of its hooks they hang on.

mod support;

use std::path::Path;

use portolan_dataplane::{
    Config, Dataplane, Transmit,
    model::{TcMode, XdpMode},
};
use support::{
    facts::note,
    lab::{self, Lab},
    netns::BpfFs,
};

/// A tenth above the most that any takes; the verifier gives up at a million.
const MOST: u32 = 225_000;

#[test]
fn every_program_loads_in_its_largest_configuration() {
    let pins = BpfFs::new();
    let config = Config::new(
        support::object(),
        pins.pins(),
        lab::NODE.map(lab::address).to_vec(),
    );
    let mut dataplane = match Dataplane::open(config) {
        Ok(dataplane) => dataplane,
        Err(error) => {
            note("feature programs absent");
            panic!("{error:#?}");
        }
    };
    note("feature programs native");
    let programs = dataplane.programs_info().expect("they are loaded");
    assert!(!programs.is_empty());
    let has = |(major, minor)| support::kernel() >= (major, minor);
    let has_hooks = programs.iter().any(|one| one.name == "socket_connect4");
    assert_eq!(has_hooks, has((5, 18)), "a hook can refuse since 5.18");
    note(if has_hooks {
        "feature sockets native"
    } else {
        "feature sockets fallback: packet by packet"
    });
    note(if has((5, 12)) {
        "feature atomics native"
    } else {
        "feature atomics fallback: locks by addition"
    });
    let slow = programs.iter().filter(|one| one.name.starts_with("slow_"));
    let has_slow = slow.count() == 2;
    note(if has_slow {
        "feature hard-packets native"
    } else {
        "feature hard-packets fallback: the stack"
    });
    assert!(has_slow || !has((6, 6)), "the slow programs are refused");
    for program in programs {
        // Kernels before 5.16 do not say.
        if program.instructions > 0 {
            note(&format!(
                "instructions {} {}",
                program.name, program.instructions
            ));
        }
        assert!(
            program.instructions < MOST,
            "{} is near the verifier's limit: {} instructions",
            program.name,
            program.instructions
        );
    }
}

#[test]
fn programs_hang_on_the_best_hooks_that_the_kernel_has() {
    let lab = Lab::with(Transmit::Never, |config| config.ways.xdp = true);
    let (tcx, tc) = match lab.dataplane.tc_mode() {
        TcMode::Tcx => (true, "native"),
        TcMode::Clsact => (false, "fallback: clsact"),
    };
    note(&format!("feature tc {tc}"));
    note(match lab.mode {
        XdpMode::Native => "feature xdp native",
        XdpMode::Generic => "feature xdp fallback: generic",
        XdpMode::Absent => "feature xdp absent",
    });
    let has = |major, minor| support::kernel() >= (major, minor);
    assert_eq!(tcx, has(6, 6), "tcx came with 6.6");
    assert_eq!(lab.mode, XdpMode::Native, "every veth runs XDP");
    note(if has(5, 18) {
        "feature xdp-fragments native"
    } else {
        "feature xdp-fragments absent"
    });
    note(if Path::new("/proc/net/ip_vs").exists() {
        "feature ipvs native"
    } else {
        "feature ipvs absent"
    });
}
