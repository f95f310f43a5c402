//! Offload switches of an interface, by the ethtool ioctl of linux/ethtool.h.

use std::{io, os::fd::AsRawFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// `SIOCETHTOOL` of linux/sockios.h.
const SIOCETHTOOL: libc::c_ulong = 0x8946;

/// An offload that a single-value command switches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Offload {
    /// `ETHTOOL_SGRO`: receive side coalescing.
    GenericReceive = 0x2c,
}

/// `struct ethtool_value`.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

/// Switches an offload of an interface of the calling thread's network namespace.
pub fn set_offload(interface: &str, offload: Offload, on: bool) -> io::Result<()> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let mut value = EthtoolValue {
        command: offload as u32,
        data: u32::from(on),
    };
    let mut request = libc::ifreq {
        ifr_name: interface_name(interface)?,
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_data: (&raw mut value).cast(),
        },
    };
    // SAFETY: `request` is a whole ifreq whose name is NUL-terminated and whose data points to an ethtool_value that
    // lives past the call; single-value commands read and write no more than that.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn interface_name(name: &str) -> io::Result<[libc::c_char; libc::IFNAMSIZ]> {
    let mut buffer = [0; libc::IFNAMSIZ];
    if name.len() >= buffer.len() || !name.is_ascii() || name.contains('\0') {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{name:?} can't be an interface's name"),
        ));
    }
    for (slot, byte) in buffer.iter_mut().zip(name.bytes()) {
        *slot = libc::c_char::from_ne_bytes([byte]);
    }
    Ok(buffer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_the_kernel_would_cut_are_refused() {
        for name in ["abcdefghijklmnop", "a\0b", "é"] {
            let error = set_offload(name, Offload::GenericReceive, true).expect_err(name);
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn an_absent_interface_is_the_kernels_error() {
        let error =
            set_offload("ptl-none", Offload::GenericReceive, true).expect_err("no interface");
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
    }
}
