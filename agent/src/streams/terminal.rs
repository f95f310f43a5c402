//! Pseudo-terminals for commands that want one.

use std::{io, os::fd::OwnedFd};

use rustix::{
    pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt},
    termios::{Winsize, tcsetwinsize},
};
use tokio::fs::File;

/// The side of a terminal where a person would sit.
pub struct Terminal {
    /// What the command prints comes out of it.
    master: std::fs::File,
    /// What is typed for the command.
    pub keyboard: File,
}

impl Terminal {
    /// A new terminal, and the side of it that a command gets.
    pub fn open() -> io::Result<(Self, OwnedFd)> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let slave = ioctl_tiocgptpeer(&master, flags)?;
        let master = std::fs::File::from(master);
        let terminal = Self {
            keyboard: File::from_std(master.try_clone()?),
            master,
        };
        Ok((terminal, slave))
    }

    /// Reads what the command prints; at the end of its last user it fails.
    pub fn screen(&self) -> io::Result<File> {
        Ok(File::from_std(self.master.try_clone()?))
    }

    /// Says how large the terminal is now.
    pub fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        Ok(tcsetwinsize(&self.master, size)?)
    }
}
