//! What cargo says of the workspace's packages, and who of them may depend on whom.

use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::{command, workspace::Workspace};

/// The graph's edges: a package and all of ours that it may depend on.
const MAY_DEPEND_ON: [(&str, &[&str]); 9] = [
    ("portolan-abi", &[]),
    ("portolan-ebpf", &["portolan-abi"]),
    ("portolan-dataplane", &["portolan-abi"]),
    ("portolan-wire", &[]),
    ("portolan-agent", &["portolan-dataplane", "portolan-wire"]),
    ("portolan-control", &["portolan-wire"]),
    ("portolan-demo", &[]),
    ("portolan-tests", &[]),
    ("xtask", &[]),
];

/// Crates whose types one package keeps to itself.
const KEPT: [(&str, &str); 5] = [
    ("aya", "portolan-dataplane"),
    ("aya-ebpf", "portolan-ebpf"),
    ("libcontainer", "portolan-agent"),
    ("rtnetlink", "portolan-agent"),
    ("etcd-client", "portolan-control"),
];

/// The packages of the whole graph.
#[derive(Deserialize)]
pub struct Metadata {
    /// Ours and others'.
    pub packages: Vec<Package>,
    workspace_members: Vec<String>,
}

/// One package.
#[derive(Deserialize)]
pub struct Package {
    /// Unique in the graph.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its release.
    pub version: String,
    /// Its licence as an SPDX expression.
    pub license: Option<String>,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
}

impl Metadata {
    /// Asks cargo.
    pub fn load(workspace: &Workspace) -> Result<Self> {
        let text = command::output(Command::new("cargo").current_dir(workspace.root()).args([
            "metadata",
            "--format-version",
            "1",
            "--locked",
        ]))?;
        serde_json::from_str(&text).context("understand cargo's metadata")
    }

    /// Whether a package is one of ours.
    pub fn is_ours(&self, package: &Package) -> bool {
        self.workspace_members.contains(&package.id)
    }

    /// Dependencies that point the wrong way.
    pub fn directions(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for package in self.packages.iter().filter(|package| self.is_ours(package)) {
            let allowed = MAY_DEPEND_ON
                .iter()
                .find(|(name, _)| *name == package.name)
                .map(|(_, allowed)| *allowed);
            let Some(allowed) = allowed else {
                faults.push(format!("{}: has no place among the packages", package.name));
                continue;
            };
            for dependency in &package.dependencies {
                let name = dependency.name.as_str();
                let is_ours = MAY_DEPEND_ON.iter().any(|(ours, _)| *ours == name);
                let keeper = KEPT.iter().find(|(kept, _)| *kept == name);
                if is_ours && !allowed.contains(&name) {
                    faults.push(format!("{} must not depend on {name}", package.name));
                }
                if let Some((_, keeper)) = keeper.filter(|(_, keeper)| *keeper != package.name) {
                    faults.push(format!(
                        "{} must not depend on {name}: {keeper} keeps it to itself",
                        package.name
                    ));
                }
            }
        }
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(name: &str, dependencies: &[&str]) -> Metadata {
        Metadata {
            packages: vec![Package {
                id: "id".to_owned(),
                name: name.to_owned(),
                version: "0.1.0".to_owned(),
                license: None,
                dependencies: dependencies
                    .iter()
                    .map(|name| Dependency {
                        name: (*name).to_owned(),
                    })
                    .collect(),
            }],
            workspace_members: vec!["id".to_owned()],
        }
    }

    #[test]
    fn the_directions_are_kept() {
        for (name, dependency, fine) in [
            ("portolan-agent", "portolan-dataplane", true),
            ("portolan-dataplane", "portolan-agent", false),
            ("portolan-control", "portolan-dataplane", false),
            ("portolan-dataplane", "aya", true),
            ("portolan-agent", "aya", false),
            ("xtask", "portolan-abi", false),
            ("portolan-new", "serde", false),
        ] {
            let faults = metadata(name, &[dependency]).directions();
            assert_eq!(
                faults.is_empty(),
                fine,
                "{name} on {dependency}: {faults:?}"
            );
        }
    }
}
