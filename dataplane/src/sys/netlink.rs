//! One question to rtnetlink: does the peer of a veth run an XDP program? The peer may be in another namespace.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

const HEADER: usize = 16;
const LINK_HEADER: usize = 16;
const IFLA_LINK: u16 = 5;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_XDP: u16 = 43;
const IFLA_TARGET_NETNSID: u16 = 46;
const IFLA_XDP_ATTACHED: u16 = 2;
const XDP_ATTACHED_DRV: u8 = 1;
/// A kernel's answer about one link fits; statistics and all take about a page.
const ANSWER: usize = 32 * 1_024;

/// Whether the peer of a veth of the caller's namespace runs an XDP program in its driver.
pub fn peer_runs_xdp(interface: u32) -> io::Result<bool> {
    let near = link(interface, None)?;
    let number = |kind| attribute(&near, kind).and_then(|value| value.first_chunk().copied());
    let Some(peer) = number(IFLA_LINK).map(u32::from_ne_bytes) else {
        return Ok(false);
    };
    // A peer in the same namespace has no namespace id.
    let far = link(peer, number(IFLA_LINK_NETNSID))?;
    let mode = attribute(&far, IFLA_XDP).and_then(|xdp| attribute(xdp, IFLA_XDP_ATTACHED));
    Ok(mode.is_some_and(|mode| mode.first() == Some(&XDP_ATTACHED_DRV)))
}

/// The attributes of a link, in the namespace with an id.
fn link(interface: u32, namespace: Option<[u8; 4]>) -> io::Result<Vec<u8>> {
    let mut message = Vec::with_capacity(HEADER + LINK_HEADER + 8);
    let length = HEADER + LINK_HEADER + namespace.map_or(0, |_| 8);
    message.extend(
        u32::try_from(length)
            .map_err(io::Error::other)?
            .to_ne_bytes(),
    );
    message.extend(libc::RTM_GETLINK.to_ne_bytes());
    message.extend(
        u16::try_from(libc::NLM_F_REQUEST)
            .map_err(io::Error::other)?
            .to_ne_bytes(),
    );
    message.extend([0; 8]);
    message.extend([0; 4]);
    message.extend(interface.to_ne_bytes());
    message.extend([0; 8]);
    if let Some(id) = namespace {
        message.extend(8_u16.to_ne_bytes());
        message.extend(IFLA_TARGET_NETNSID.to_ne_bytes());
        message.extend(id);
    }
    let answer = ask(&message)?;
    let kind = answer
        .get(4..6)
        .and_then(|bytes| bytes.first_chunk().copied())
        .map(u16::from_ne_bytes);
    if kind != Some(libc::RTM_NEWLINK) {
        let code = answer
            .get(HEADER..)
            .and_then(|bytes| bytes.first_chunk().copied());
        let code = code.map_or(libc::EIO, |code| -i32::from_ne_bytes(code));
        return Err(io::Error::from_raw_os_error(code));
    }
    Ok(answer
        .get(HEADER + LINK_HEADER..)
        .unwrap_or_default()
        .to_vec())
}

fn ask(message: &[u8]) -> io::Result<Vec<u8>> {
    // SAFETY: a plain system call that makes a descriptor.
    let fd = unsafe {
        libc::socket(
            libc::AF_NETLINK,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            libc::NETLINK_ROUTE,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us alone.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: the message is readable for its length.
    let sent = unsafe {
        libc::send(
            socket.as_raw_fd(),
            message.as_ptr().cast(),
            message.len(),
            0,
        )
    };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut answer = vec![0; ANSWER];
    // SAFETY: the answer is writable for its length. The kernel has queued it before `send` returned.
    let length = unsafe {
        libc::recv(
            socket.as_raw_fd(),
            answer.as_mut_ptr().cast(),
            answer.len(),
            0,
        )
    };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    answer.truncate(length);
    Ok(answer)
}

/// The value of the first attribute of a kind.
fn attribute(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    const NESTED: u16 = 0x8000;
    loop {
        let length = usize::from(u16::from_ne_bytes(*attributes.first_chunk()?));
        let found = u16::from_ne_bytes(*attributes.get(2..)?.first_chunk()?) & !NESTED;
        let value = attributes.get(4..length)?;
        if found == kind {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_among_others_and_never_read_past_their_end() {
        let mut attributes = vec![5, 0, 3, 0, 1, 0, 0, 0];
        attributes.extend([8, 0, 5, 0, 9, 0, 0, 0]);
        assert_eq!(attribute(&attributes, 5), Some(&[9, 0, 0, 0][..]));
        assert_eq!(attribute(&attributes, 3), Some(&[1][..]));
        assert_eq!(attribute(&attributes, 7), None);
        for end in 0..attributes.len() {
            assert_eq!(attribute(&attributes[..end], 5), None);
        }
    }
}
