//! Which kernels Debian has, and the packages that hold them.

use anyhow::{Result, bail};

use crate::{setup::suites::Suites, workspace::Workspace};

/// The kernel of Debian's releases, by series, and the suites that it is in.
const RELEASES: [(&str, &[&str]); 3] = [
    ("5.10", &["bullseye", "bullseye-security"]),
    ("6.1", &["bookworm", "bookworm-security"]),
    ("6.12", &["trixie", "trixie-security"]),
];

/// Where all newer ones are.
const UNRELEASED: &[&str] = &["trixie-backports", "sid"];

/// The name of the newest kernel that Debian has.
const NEWEST: &str = "newest";

/// Debian builds its kernel in flavours; this one is small, boots fast, and lacks only drivers of real hardware.
const FLAVOUR: &str = "-cloud-amd64";

/// A kernel that Debian has.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Its first two numbers: "6.12".
    pub series: String,
    /// As `uname -r` says it: "6.12.117+deb13-cloud-amd64".
    pub release: String,
    /// The packages that hold it.
    pub packages: Vec<String>,
}

/// Looks a kernel up, in lists that are read anew.
pub fn find(workspace: &Workspace, name: &str) -> Result<(Entry, Suites)> {
    let released = RELEASES.iter().find(|(series, _)| *series == name);
    let (folder, suites) = released.map_or(("unreleased", UNRELEASED), |(series, suites)| {
        (*series, *suites)
    });
    let suites = Suites::new(&workspace.target().join("vm/apt").join(folder), suites)?;
    suites.update()?;
    let entries = entries(&suites.names("linux-")?);
    let found = if name == NEWEST {
        entries.last()
    } else {
        entries.iter().rfind(|entry| entry.series == name)
    };
    match found {
        Some(entry) => Ok((entry.clone(), suites)),
        None => bail!(
            "Debian has no kernel {name}; it has {}",
            known(&entries).join(", ")
        ),
    }
}

/// The names that [`find`] knows, given what is in the suites of unreleased kernels.
fn known(unreleased: &[Entry]) -> Vec<&str> {
    let mut names: Vec<&str> = RELEASES.iter().map(|(series, _)| *series).collect();
    names.extend(unreleased.iter().map(|entry| entry.series.as_str()));
    names.push(NEWEST);
    names.dedup();
    names
}

/// The kernels among packages, oldest first.
fn entries(packages: &[String]) -> Vec<Entry> {
    let mut entries: Vec<Entry> = packages
        .iter()
        .filter_map(|package| {
            let release = package.strip_prefix("linux-image-")?;
            let version = release.strip_suffix(FLAVOUR)?;
            let mut numbers = version.split('.');
            let (major, minor) = (numbers.next()?, numbers.next()?);
            let is_number = |text: &str| text.parse::<u32>().is_ok();
            // "6.1-cloud-amd64" is a package that only names the newest.
            if !is_number(major) || !is_number(minor) || numbers.next().is_none() {
                return None;
            }
            let holders = ["image", "binary", "modules"]
                .map(|part| format!("linux-{part}-{release}"))
                .into_iter()
                .filter(|name| packages.contains(name));
            Some(Entry {
                series: format!("{major}.{minor}"),
                release: release.to_owned(),
                packages: holders.collect(),
            })
        })
        .collect();
    entries.sort_by_key(|entry| numbers(&entry.release));
    entries
}

/// Every number in a version, by which versions are ordered.
fn numbers(version: &str) -> Vec<u32> {
    version
        .split(|character: char| !character.is_ascii_digit())
        .filter_map(|part| part.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed() -> Vec<Entry> {
        let packages = [
            "linux-image-7.2.9+deb13-cloud-amd64",
            "linux-image-7.2.13+deb14-cloud-amd64",
            "linux-binary-7.2.13+deb14-cloud-amd64",
            "linux-modules-7.2.13+deb14-cloud-amd64",
            "linux-image-7.2.13+deb14-amd64",
            "linux-image-6.18.9+deb13-cloud-amd64",
            "linux-image-6.18.9+deb13-cloud-amd64-dbg",
            "linux-image-6.1-cloud-amd64",
            "linux-image-cloud-amd64",
        ];
        entries(&packages.map(str::to_owned))
    }

    #[test]
    fn kernels_are_ordered_by_number_and_know_their_packages() {
        let entries = listed();
        let releases: Vec<&str> = entries.iter().map(|entry| entry.release.as_str()).collect();
        assert_eq!(
            releases,
            [
                "6.18.9+deb13-cloud-amd64",
                "7.2.9+deb13-cloud-amd64",
                "7.2.13+deb14-cloud-amd64"
            ]
        );
        assert_eq!(
            entries[2].packages,
            [
                "linux-image-7.2.13+deb14-cloud-amd64",
                "linux-binary-7.2.13+deb14-cloud-amd64",
                "linux-modules-7.2.13+deb14-cloud-amd64"
            ]
        );
    }

    #[test]
    fn all_known_names_are_told() {
        assert_eq!(
            known(&listed()),
            ["5.10", "6.1", "6.12", "6.18", "7.2", NEWEST]
        );
    }
}
