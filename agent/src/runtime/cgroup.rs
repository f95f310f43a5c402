//! Control groups as files, in both versions: what libcontainer makes is counted, emptied and removed here.
#![forbid(unsafe_code)]

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// How long the kernel may take to let go of a killed group.
const REMOVAL: Duration = Duration::from_secs(5);

/// The mount points of all hierarchies that have controllers or may hold processes.
fn hierarchies() -> io::Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    Ok(mount_points(&mounts))
}

fn mount_points(mounts: &str) -> Vec<PathBuf> {
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let point = fields.next()?;
            let kind = fields.next()?;
            (kind == "cgroup" || kind == "cgroup2").then(|| PathBuf::from(point))
        })
        .collect()
}

/// Where the hierarchy of version 2 is mounted, beside those of version 1 or alone.
pub fn unified() -> io::Result<Option<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    Ok(unified_of(&mounts))
}

fn unified_of(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let point = fields.next()?;
        (fields.next()? == "cgroup2").then(|| PathBuf::from(point))
    })
}

/// The folders of `group` in every hierarchy that has it.
pub(super) fn folders(group: &Path) -> io::Result<Vec<PathBuf>> {
    let relative = group.strip_prefix("/").unwrap_or(group);
    if relative.as_os_str().is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the root of all control groups",
        ));
    }
    let folders = hierarchies()?.into_iter().map(|root| root.join(relative));
    Ok(folders.filter(|folder| folder.is_dir()).collect())
}

/// How many processes of `group` the kernel has killed for want of memory. 0 for a group that does not exist.
pub fn oom_kills(group: &Path) -> io::Result<u64> {
    for folder in folders(group)? {
        for file in ["memory.events", "memory.oom_control"] {
            match fs::read_to_string(folder.join(file)) {
                Ok(text) => return Ok(keyed(&text, "oom_kill").unwrap_or(0)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(0)
}

pub(super) fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        (name == key).then(|| value.trim().parse().ok())?
    })
}

/// The processes of `group` and of all below it.
pub fn processes(group: &Path) -> io::Result<Vec<i32>> {
    let mut pids = Vec::new();
    for folder in folders(group)? {
        visit(&folder, &mut |folder| {
            match fs::read_to_string(folder.join("cgroup.procs")) {
                Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok())),
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error),
            }
            Ok(())
        })?;
    }
    pids.sort_unstable();
    pids.dedup();
    Ok(pids)
}

/// Kills whatever is in `group` and removes it with all below it from every hierarchy. It may be absent.
pub fn remove(group: &Path) -> io::Result<()> {
    let deadline = Instant::now() + REMOVAL;
    let mut pause = Duration::from_micros(200);
    loop {
        for pid in processes(group)? {
            match kill(Pid::from_raw(pid), Signal::SIGKILL) {
                Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        let mut busy = None;
        for folder in folders(group)? {
            if let Err(error) = visit(&folder, &mut remove_one) {
                busy = Some(error);
            }
        }
        match busy {
            None => return Ok(()),
            // Killed processes leave their group a moment later, and nothing announces it in version 1.
            Some(error)
                if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline =>
            {
                thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(20));
            }
            Some(error) => return Err(error),
        }
    }
}

fn remove_one(folder: &Path) -> io::Result<()> {
    match fs::remove_dir(folder) {
        Err(error) if !is_gone(&error) => Err(error),
        _ => Ok(()),
    }
}

/// The groups directly below `group`, by name, in any hierarchy.
pub fn children(group: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for folder in folders(group)? {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir()
                && let Ok(name) = entry.file_name().into_string()
            {
                names.push(name);
            }
        }
    }
    names.sort_unstable();
    names.dedup();
    Ok(names)
}

/// Deepest first.
fn visit(folder: &Path, act: &mut dyn FnMut(&Path) -> io::Result<()>) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if is_gone(&error) => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            visit(&entry.path(), act)?;
        }
    }
    act(folder)
}

/// Groups vanish while they are read.
pub(super) fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_of_both_versions_are_found() {
        let mounts = "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n\
                      tmpfs /sys/fs/cgroup tmpfs rw 0 0\n";
        assert_eq!(
            mount_points(mounts),
            [
                PathBuf::from("/sys/fs/cgroup/cpu"),
                PathBuf::from("/sys/fs/cgroup/unified")
            ]
        );
        let unified = PathBuf::from("/sys/fs/cgroup/unified");
        assert_eq!(unified_of(mounts), Some(unified));
        assert_eq!(unified_of("cgroup /sys/fs/cgroup/cpu cgroup rw 0 0"), None);
    }

    #[test]
    fn kills_are_read_from_both_versions() {
        assert_eq!(
            keyed("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", "oom_kill"),
            Some(3)
        );
        assert_eq!(
            keyed("low 0\noom 2\noom_kill 1\noom_group_kill 0\n", "oom_kill"),
            Some(1)
        );
    }

    #[test]
    fn the_root_of_all_groups_is_never_touched() {
        assert!(remove(Path::new("/")).is_err());
        assert!(remove(Path::new("")).is_err());
    }
}
