//! How much memory a control group works with, in both versions of control groups.
#![forbid(unsafe_code)]

use std::{fs, io, path::Path};

use super::cgroup::{folders, is_gone, keyed};

/// Bytes that a group uses, without file pages that nobody has touched for long: what it would miss. `None` for a group
/// that is gone.
pub fn working_set(group: &Path) -> io::Result<Option<u64>> {
    for folder in folders(group)? {
        for (usage, inactive) in [
            ("memory.current", "inactive_file"),
            ("memory.usage_in_bytes", "total_inactive_file"),
        ] {
            let read = |name: &str| match fs::read_to_string(folder.join(name)) {
                Ok(text) => Ok(Some(text)),
                Err(error) if is_gone(&error) => Ok(None),
                Err(error) => Err(error),
            };
            let Some(used) = read(usage)? else {
                continue;
            };
            let stat = read("memory.stat")?.unwrap_or_default();
            return Ok(in_use(&used, &stat, inactive));
        }
    }
    Ok(None)
}

fn in_use(used: &str, stat: &str, inactive: &str) -> Option<u64> {
    let used: u64 = used.trim().parse().ok()?;
    Some(used.saturating_sub(keyed(stat, inactive).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_pages_that_nobody_needs_do_not_count() {
        let stat = "anon 5\ninactive_file 4096\ntotal_inactive_file 8192\n";
        assert_eq!(in_use("12288\n", stat, "inactive_file"), Some(8192));
        assert_eq!(in_use("12288\n", stat, "total_inactive_file"), Some(4096));
        assert_eq!(in_use("1\n", stat, "inactive_file"), Some(0));
        assert_eq!(in_use("max\n", "", "inactive_file"), None);
    }
}
