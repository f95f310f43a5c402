//! What the kernel says of network devices in the caller's namespace.

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

const ETHTOOL: libc::c_ulong = 0x8946;
const DRIVER_INFO: u32 = 0x3;
const SET_TRANSMIT_CHECKSUM: u32 = 0x17;

/// `struct ethtool_drvinfo` up to what is read of it, padded to its size.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    rest: [u8; 160],
}

fn control_socket() -> io::Result<OwnedFd> {
    // SAFETY: a plain system call that makes a descriptor.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn request(interface: &str) -> io::Result<libc::ifreq> {
    // SAFETY: all zeroes are a valid request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from.cast_signed();
    }
    Ok(request)
}

fn ioctl(number: libc::c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
    let socket = control_socket()?;
    // SAFETY: the request is valid, and so is what its data points to, for the numbers used here.
    if unsafe { libc::ioctl(socket.as_raw_fd(), number, std::ptr::from_mut(request)) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The name of an interface.
pub fn name_of(index: u32) -> io::Result<String> {
    let name = nix::net::if_::if_indextoname(index)?;
    Ok(name.to_string_lossy().into_owned())
}

/// The index of an interface.
pub fn index_of(interface: &str) -> io::Result<u32> {
    let name = CString::new(interface)?;
    // SAFETY: the name ends with a zero.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}

/// The longest packet that an interface takes, from the IP header on.
pub fn mtu_of(interface: &str) -> io::Result<u32> {
    let mut request = request(interface)?;
    ioctl(libc::SIOCGIFMTU, &mut request)?;
    // SAFETY: the call has filled this member in.
    Ok(unsafe { request.ifr_ifru.ifru_mtu }.unsigned_abs())
}

/// The MAC address of an interface.
pub fn mac_of(interface: &str) -> io::Result<[u8; 6]> {
    let mut request = request(interface)?;
    ioctl(libc::SIOCGIFHWADDR, &mut request)?;
    // SAFETY: the call has filled this member in.
    let data = unsafe { request.ifr_ifru.ifru_hwaddr.sa_data };
    let mut mac = [0; 6];
    for (to, from) in mac.iter_mut().zip(data) {
        *to = from.cast_unsigned();
    }
    Ok(mac)
}

/// The name of an interface's driver, such as "veth".
pub fn driver(interface: &str) -> io::Result<String> {
    let mut info = DriverInfo {
        command: DRIVER_INFO,
        driver: [0; 32],
        rest: [0; 160],
    };
    let mut request = request(interface)?;
    request.ifr_ifru.ifru_data = std::ptr::from_mut(&mut info).cast();
    ioctl(ETHTOOL, &mut request)?;
    let end = info
        .driver
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(info.driver.len());
    Ok(String::from_utf8_lossy(&info.driver[..end]).into_owned())
}

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// Leaves the checksums of what an interface sends to the device, or has the stack complete them.
pub fn offload_checksums(interface: &str, offload: bool) -> io::Result<()> {
    let mut value = Value {
        command: SET_TRANSMIT_CHECKSUM,
        data: u32::from(offload),
    };
    let mut request = request(interface)?;
    request.ifr_ifru.ifru_data = std::ptr::from_mut(&mut value).cast();
    ioctl(ETHTOOL, &mut request)
}
