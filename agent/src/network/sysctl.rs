//! Kernel settings of a network namespace. /proc/sys/net shows the namespace of the thread that opens it.

#![forbid(unsafe_code)]

use std::{fs, path::PathBuf};

use super::NetworkError;

/// Sets `net/ipv4/ip_forward` and its like; writes only what differs, since a write can have effects of its own.
pub fn set(name: &str, value: &str) -> Result<(), NetworkError> {
    if get(name)? == value {
        return Ok(());
    }
    fs::write(path(name), value).map_err(NetworkError::new("set sysctl", format!("{name}={value}")))
}

/// Reads a setting.
pub fn get(name: &str) -> Result<String, NetworkError> {
    let text = fs::read_to_string(path(name))
        .map_err(NetworkError::new("read sysctl", name.to_owned()))?;
    // Ranges come back with tabs between their ends.
    Ok(text.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Sets a setting that not every kernel has.
pub fn set_if_known(name: &str, value: &str) -> Result<(), NetworkError> {
    if exists(name)? {
        set(name, value)
    } else {
        Ok(())
    }
}

/// Whether the kernel has a setting, or a family of them.
pub fn exists(name: &str) -> Result<bool, NetworkError> {
    fs::exists(path(name)).map_err(NetworkError::new("look for sysctl", name.to_owned()))
}

fn path(name: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(name)
}
