//! Pseudo-terminals for containers and commands that want one.
#![forbid(unsafe_code)]

use std::{fs::File, io, os::fd::OwnedFd};

use rustix::{
    pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt},
    termios::{Winsize, tcsetwinsize},
};
use serde::Deserialize;

/// The side of a terminal where a person would sit: what is printed comes out of it, what is typed goes in.
#[derive(Debug)]
pub struct Terminal(File);

impl Terminal {
    /// A new terminal, and the side of it that a command gets.
    pub fn open() -> io::Result<(Self, OwnedFd)> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let slave = ioctl_tiocgptpeer(&master, flags)?;
        Ok((Self(File::from(master)), slave))
    }

    /// The same side once more. When the command's side has lost its last user, reading fails.
    pub fn duplicate(&self) -> io::Result<File> {
        self.0.try_clone()
    }

    /// Says how large the terminal is now.
    pub fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        Ok(tcsetwinsize(&self.0, size)?)
    }
}

/// Columns and rows, out of what clients send on the channel for sizes: `{"Width":80,"Height":24}`.
pub fn size(payload: &[u8]) -> io::Result<(u16, u16)> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Size {
        width: u16,
        height: u16,
    }
    let size: Size = serde_json::from_slice(payload).map_err(|error| {
        let why = format!("the size of a terminal is malformed: {error}");
        io::Error::new(io::ErrorKind::InvalidData, why)
    })?;
    Ok((size.width, size.height))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_sizes_are_told() {
        let read = |text: &str| size(text.as_bytes()).map_err(|error| error.to_string());
        assert_eq!(read(r#"{"Width":80,"Height":24}"#), Ok((80, 24)));
        for text in [
            "",
            "{}",
            r#"{"Width":80}"#,
            r#"{"Width":-1,"Height":24}"#,
            r#"{"Width":70000,"Height":1}"#,
        ] {
            let told = read(text).expect_err(text);
            assert!(
                told.starts_with("the size of a terminal is malformed: "),
                "{told}"
            );
        }
    }
}
