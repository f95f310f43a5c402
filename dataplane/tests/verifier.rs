//! What the kernel's verifier makes of the programs.

mod support;

use std::time::Instant;

use aya::{EbpfLoader, programs::Program};

/// The kernel gives up at a million.
const MOST: u32 = 500_000;

#[test]
fn the_programs_are_far_from_the_limits_of_the_verifier() {
    let pins = support::netns::BpfFs::new();
    std::fs::create_dir_all(pins.pins()).expect("a folder can be made");
    let bytes = std::fs::read(support::object()).expect("the object can be read");
    let mut object = EbpfLoader::new()
        .default_map_pin_directory(pins.pins())
        .load(&bytes)
        .expect("the object can be parsed and its maps made");
    let mut too_many = Vec::new();
    for (name, program) in object.programs_mut() {
        let began = Instant::now();
        let info = match program {
            Program::Xdp(program) => program.load().map(|()| program.info()),
            Program::SchedClassifier(program) => program.load().map(|()| program.info()),
            Program::CgroupSockAddr(program) => program.load().map(|()| program.info()),
            Program::CgroupSock(program) => program.load().map(|()| program.info()),
            _ => panic!("{name} is of no known kind"),
        };
        let info = match info {
            Ok(info) => info.expect("a loaded program has information"),
            Err(error) => {
                let text = format!("{error:?}");
                let from = text.len().saturating_sub(2500);
                too_many.push(format!(
                    "{name} after {:?}: ...{}",
                    began.elapsed(),
                    &text[from..]
                ));
                continue;
            }
        };
        let count = info
            .verified_instruction_count()
            .expect("this kernel counts");
        let size = info.size_jitted();
        println!(
            "{name}: {count} instructions verified in {:?}, {size} bytes",
            began.elapsed()
        );
        if count > MOST {
            too_many.push(format!("{name}: {count}"));
        }
    }
    assert!(too_many.is_empty(), "{}", too_many.join("\n"));
}
