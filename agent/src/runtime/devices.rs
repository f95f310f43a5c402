//! Which devices a container may use, under control groups of version 2: those that every container has, and no others.
//!
//! Version 1 has files for it, which libcontainer writes. In version 2 it takes a program on the control group, which the
//! kernel asks at each open(2) and mknod(2) of a device. The program is short and always the same, so it is made here by hand.
#![allow(
    unsafe_code,
    reason = "the bpf system call; each block says why it is sound"
)]

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    path::Path,
};

use super::cgroup;

/// The character devices that every container has (OCI runtime specification, "Default Devices"), by their numbers.
const ALLOWED: [(i32, Option<i32>); 9] = [
    (1, Some(3)), // null
    (1, Some(5)), // zero
    (1, Some(7)), // full
    (1, Some(8)), // random
    (1, Some(9)), // urandom
    (5, Some(0)), // tty
    (5, Some(1)), // console
    (5, Some(2)), // ptmx
    (136, None),  // pts
];

/// `BPF_DEVCG_DEV_CHAR`.
const CHARACTER: i32 = 2;
/// `BPF_DEVCG_ACC_MKNOD`. A node may be made of any device: it cannot be opened.
const MKNOD: i32 = 1;

/// Keeps the processes of a control group from all other devices. Nothing is done under version 1.
pub fn confine(group: &Path) -> io::Result<()> {
    let root = Path::new("/sys/fs/cgroup");
    if cgroup::unified()?.as_deref() != Some(root) {
        return Ok(());
    }
    let group = File::open(root.join(group.strip_prefix("/").unwrap_or(group)))?;
    attach(&load(&program())?, &group)
}

/// One instruction: opcode, registers (source, destination), offset, immediate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
struct Instruction {
    opcode: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn instruction(
    opcode: u8,
    destination: u8,
    source: u8,
    offset: i16,
    immediate: i32,
) -> Instruction {
    Instruction {
        opcode,
        registers: destination | source << 4,
        offset,
        immediate,
    }
}

/// Says 1 to what is allowed and 0 to the rest, given `struct bpf_cgroup_dev_ctx`: access and type, major, minor.
fn program() -> Vec<Instruction> {
    const LOAD_WORD: u8 = 0x61;
    const MOVE: u8 = 0xb7;
    const MOVE_REGISTER: u8 = 0xbf;
    const AND: u8 = 0x57;
    const SHIFT_RIGHT: u8 = 0x77;
    const IF_EQUAL: u8 = 0x15;
    const IF_NOT_EQUAL: u8 = 0x55;
    const EXIT: u8 = 0x95;
    let mut code = vec![
        instruction(LOAD_WORD, 2, 1, 0, 0),
        instruction(LOAD_WORD, 4, 1, 4, 0),
        instruction(LOAD_WORD, 5, 1, 8, 0),
        instruction(MOVE_REGISTER, 3, 2, 0, 0),
        instruction(SHIFT_RIGHT, 3, 0, 0, 16),
        instruction(AND, 2, 0, 0, 0xffff),
        instruction(MOVE, 0, 0, 0, 1),
        instruction(IF_NOT_EQUAL, 3, 0, 1, MKNOD),
        instruction(EXIT, 0, 0, 0, 0),
        instruction(IF_EQUAL, 2, 0, 2, CHARACTER),
        instruction(MOVE, 0, 0, 0, 0),
        instruction(EXIT, 0, 0, 0, 0),
    ];
    for (major, minor) in ALLOWED {
        match minor {
            Some(minor) => code.extend([
                instruction(IF_NOT_EQUAL, 4, 0, 2, major),
                instruction(IF_NOT_EQUAL, 5, 0, 1, minor),
                instruction(EXIT, 0, 0, 0, 0),
            ]),
            None => code.extend([
                instruction(IF_NOT_EQUAL, 4, 0, 1, major),
                instruction(EXIT, 0, 0, 0, 0),
            ]),
        }
    }
    code.extend([instruction(MOVE, 0, 0, 0, 0), instruction(EXIT, 0, 0, 0, 0)]);
    code
}

const PROGRAM_LOAD: libc::c_long = 5;
const PROGRAM_ATTACH: libc::c_long = 8;
/// `BPF_PROG_TYPE_CGROUP_DEVICE`.
const KIND: u32 = 15;
/// `BPF_CGROUP_DEVICE`.
const HOOK: u32 = 6;
/// `BPF_F_ALLOW_MULTI`: those of the groups above are asked too.
const MULTIPLE: u32 = 2;

/// What `BPF_PROG_LOAD` reads of `union bpf_attr`, up to the hook.
#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    kind: u32,
    count: u32,
    code: u64,
    license: u64,
    log: [u32; 4],
    /// Kernel version and flags.
    unused: [u32; 2],
    name: [u8; 16],
    interface: u32,
    hook: u32,
}

#[repr(C)]
struct AttachAttr {
    group: RawFd,
    program: RawFd,
    hook: u32,
    flags: u32,
}

fn load(code: &[Instruction]) -> io::Result<OwnedFd> {
    let mut attr = LoadAttr {
        kind: KIND,
        count: u32::try_from(code.len()).map_err(io::Error::other)?,
        code: code.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        hook: HOOK,
        ..LoadAttr::default()
    };
    attr.name[..8].copy_from_slice(b"portolan");
    let fd = bpf(PROGRAM_LOAD, &attr)?;
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attached so, a program goes with its control group.
fn attach(program: &OwnedFd, group: &File) -> io::Result<()> {
    let attr = AttachAttr {
        group: group.as_raw_fd(),
        program: program.as_raw_fd(),
        hook: HOOK,
        flags: MULTIPLE,
    };
    bpf(PROGRAM_ATTACH, &attr).map(drop)
}

fn bpf<T>(command: libc::c_long, attr: &T) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads as much of the attributes as their size says; both commands write nothing to them, and the
    // code and the license that they point to outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attr),
            size_of::<T>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program as the kernel would: it has no loops, and these few instructions.
    fn allows(access: u32, kind: u32, major: u32, minor: u32) -> bool {
        let code = program();
        let context = [access << 16 | kind, major, minor];
        let mut registers = [0_i64; 11];
        let mut at = 0_usize;
        loop {
            let one = code[at];
            let destination = usize::from(one.registers & 0xf);
            let immediate = i64::from(one.immediate);
            let mut next = at + 1;
            let mut jump = |is_taken: bool| {
                if is_taken {
                    next += usize::try_from(one.offset).expect("forwards");
                }
            };
            match one.opcode {
                0x61 => {
                    let word = usize::try_from(one.offset).expect("in the context") / 4;
                    registers[destination] = i64::from(context[word]);
                }
                0xb7 => registers[destination] = immediate,
                0xbf => registers[destination] = registers[usize::from(one.registers >> 4)],
                0x57 => registers[destination] &= immediate,
                0x77 => registers[destination] >>= immediate,
                0x15 => jump(registers[destination] == immediate),
                0x55 => jump(registers[destination] != immediate),
                0x95 => return registers[0] == 1,
                other => panic!("an instruction of another kind: {other:#x}"),
            }
            at = next;
        }
    }

    #[test]
    fn the_usual_devices_are_allowed_and_no_others() {
        const READ_AND_WRITE: u32 = 6;
        for (major, minor) in [(1, 3), (1, 9), (5, 0), (5, 2), (136, 0), (136, 17)] {
            assert!(allows(READ_AND_WRITE, 2, major, minor), "{major}:{minor}");
            assert!(!allows(READ_AND_WRITE, 1, major, minor), "a disk");
        }
        for (major, minor) in [(1, 1), (1, 11), (5, 3), (10, 229), (253, 0)] {
            assert!(!allows(READ_AND_WRITE, 2, major, minor), "{major}:{minor}");
            assert!(allows(1, 2, major, minor), "a node of it can be made");
        }
    }
}
