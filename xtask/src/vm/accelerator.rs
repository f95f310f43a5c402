//! What runs a VM: KVM where it boots kernels, emulation otherwise.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};

use crate::workspace::Workspace;

/// What makes a machine run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Accelerator {
    /// The CPU itself.
    Kvm,
    /// qemu's translator: slower, and there everywhere.
    Emulation,
}

impl Accelerator {
    /// For qemu.
    pub fn argument(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Emulation => "tcg,thread=multi",
        }
    }

    /// For the kernel. It reboots when it panics, and that ends the machine.
    pub fn command_line(self) -> &'static str {
        match self {
            // Its first word comes early, so that a hypervisor that cannot run it is found out soon.
            Self::Kvm => "console=ttyS0 earlyprintk=ttyS0 panic=-1 oops=panic loglevel=5",
            Self::Emulation => "console=ttyS0 panic=-1 oops=panic loglevel=5",
        }
    }

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "KVM",
            Self::Emulation => "emulation",
        }
    }
}

/// What to try first.
pub fn choose(workspace: &Workspace) -> Accelerator {
    let device = fs::File::options().read(true).write(true).open("/dev/kvm");
    let refused = fs::read_to_string(note(workspace)).is_ok_and(|text| text == host());
    if device.is_ok() && !refused {
        Accelerator::Kvm
    } else {
        Accelerator::Emulation
    }
}

/// Notes that KVM is there and does not boot kernels, as inside of some virtual machines: it costs seconds to find out.
pub fn refuse_kvm(workspace: &Workspace) -> Result<()> {
    let note = note(workspace);
    fs::write(&note, host()).with_context(|| format!("write {}", note.display()))
}

fn note(workspace: &Workspace) -> PathBuf {
    workspace.target().join("vm/kvm-does-not-boot")
}

/// This machine's kernel: another may do better.
fn host() -> String {
    fs::read_to_string("/proc/version").unwrap_or_default()
}
