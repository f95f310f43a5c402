//! What the kernel must be able to do, tried out: nothing is left of it.

use std::io;

use super::bpf::make;

const MAP_CREATE: libc::c_long = 0;
const PROGRAM_LOAD: libc::c_long = 5;
const ARRAY: u32 = 2;
const MMAPABLE: u32 = 1 << 10;
const SCHED_CLS: u32 = 3;

#[repr(C)]
#[derive(Default)]
struct MapAttr {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct ProgramAttr {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
}

/// Makes an array whose memory could be shared, as most maps are.
pub fn shared_array() -> io::Result<()> {
    drop(make(
        MAP_CREATE,
        &mut MapAttr {
            kind: ARRAY,
            key_size: 4,
            value_size: 8,
            max_entries: 1,
            flags: MMAPABLE,
        },
    )?);
    Ok(())
}

/// Loads a program that calls the newest helper that the kernel programs cannot do without: `bpf_redirect_peer`.
pub fn newest_helper() -> io::Result<()> {
    /// `r1 = 0; r2 = 0; call 155; r0 = 0; exit`, each an opcode, registers, an offset and an immediate.
    const CODE: [u64; 5] = [0x1b7, 0x2b7, 0x85 | 155 << 32, 0xb7, 0x95];
    drop(make(
        PROGRAM_LOAD,
        &mut ProgramAttr {
            kind: SCHED_CLS,
            instructions: 5,
            code: CODE.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
        },
    )?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_can_do_all_of_it() {
        if nix::unistd::geteuid().is_root() {
            shared_array().expect("an array");
            newest_helper().expect("a program");
        } else {
            let error = shared_array().expect_err("nobody may");
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        }
    }
}
