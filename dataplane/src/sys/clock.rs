//! The clock that the kernel programs tell flows' ages by: jiffies, since reading them costs a packet nothing.
//!
//! Programs and userspace reckon alike: whole jiffies since boot, times the nanoseconds of one.

use std::io;

use super::bpf::{call, make};

const PROGRAM_LOAD: libc::c_long = 5;
const PROGRAM_TEST_RUN: libc::c_long = 10;
const SCHED_CLS: u32 = 3;
const NANOSECONDS: u64 = 1_000_000_000;
/// `call bpf_jiffies64; exit`, each an opcode, registers, an offset and an immediate.
const JIFFIES: [u64; 2] = [0x85 | 118 << 32, 0x95];

/// What the kernel programs have to know of jiffies.
#[derive(Clone, Copy, Debug)]
pub struct Jiffies {
    /// The nanoseconds of one.
    pub nanoseconds: u64,
    /// The one in which the monotonic clock began.
    pub first: u64,
}

#[repr(C)]
#[derive(Default)]
struct ProgramAttr {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
}

#[repr(C)]
#[derive(Default)]
struct TestRunAttr {
    program: u32,
    verdict: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
}

/// Nanoseconds of the clock.
pub fn now() -> u64 {
    let jiffy = jiffy();
    monotonic_jiffies(jiffy) * jiffy
}

/// How the kernel counts jiffies: their number now, asked of it by a program, against the monotonic clock.
pub fn jiffies() -> io::Result<Jiffies> {
    let nanoseconds = jiffy();
    let program = make(
        PROGRAM_LOAD,
        &mut ProgramAttr {
            kind: SCHED_CLS,
            instructions: 2,
            code: JIFFIES.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
        },
    )?;
    let frame = [0_u8; 64];
    let mut run = TestRunAttr {
        program: u32::try_from(std::os::fd::AsRawFd::as_raw_fd(&program))
            .map_err(io::Error::other)?,
        data_size_in: 64,
        data_in: frame.as_ptr() as u64,
        repeat: 1,
        ..TestRunAttr::default()
    };
    let elapsed = monotonic_jiffies(nanoseconds);
    call(PROGRAM_TEST_RUN, &mut run)?;
    Ok(Jiffies {
        nanoseconds,
        first: first(elapsed, run.verdict, nanoseconds),
    })
}

/// The kernel begins five minutes before the lower half of its counter overflows. How far it went otherwise, the lower
/// half of the count says.
fn first(elapsed: u64, low_now: u32, nanoseconds: u64) -> u64 {
    let five_minutes = 300 * rate(nanoseconds);
    let usual = (1 << 32) - five_minutes;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the lower half is compared"
    )]
    let off = low_now.wrapping_sub((usual + elapsed) as u32).cast_signed();
    usual.wrapping_add_signed(off.into())
}

/// Jiffies in a second.
fn rate(nanoseconds: u64) -> u64 {
    (NANOSECONDS + nanoseconds / 2) / nanoseconds
}

fn monotonic_jiffies(nanoseconds: u64) -> u64 {
    let now = u128::from(read(libc::clock_gettime, libc::CLOCK_MONOTONIC_COARSE));
    let jiffies = now * u128::from(rate(nanoseconds)) / u128::from(NANOSECONDS);
    u64::try_from(jiffies).expect("a clock of 64 bits")
}

/// The nanoseconds of a jiffy, which is how far apart the coarse clock's moments are.
fn jiffy() -> u64 {
    read(libc::clock_getres, libc::CLOCK_MONOTONIC_COARSE).max(1)
}

fn read(
    ask: unsafe extern "C" fn(libc::clockid_t, *mut libc::timespec) -> libc::c_int,
    clock: libc::clockid_t,
) -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the structure is valid for writes, and the clock exists on every Linux.
    unsafe { ask(clock, &raw mut time) };
    u64::try_from(time.tv_sec).unwrap_or(0) * NANOSECONDS + u64::try_from(time.tv_nsec).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_jiffy_follows_from_the_lower_half_of_the_count() {
        let jiffy = 4_000_000;
        let usual = (1_u64 << 32) - 300 * 250;
        for elapsed in [0, 1_000, 75_000, 5 << 32] {
            for (off, first_one) in [(0, usual), (7, usual + 7)] {
                #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
                let low = (usual + elapsed + off) as u32;
                assert_eq!(first(elapsed, low, jiffy), first_one);
            }
        }
    }

    #[test]
    fn jiffies_in_a_second_are_a_whole_number() {
        assert_eq!(
            [10_000_000, 4_000_000, 3_333_333, 1_000_000].map(rate),
            [100, 250, 300, 1_000]
        );
    }
}
