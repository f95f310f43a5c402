//! The demo's program, static so that an image needs nothing else, and the OCI archive that holds it.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{cargo, command, workspace::Workspace};

const PROGRAM: &str = "portolan-demo";

/// What [`build`] made.
pub struct Demo {
    /// The program, which also is the load generator.
    pub program: PathBuf,
    /// The OCI archive.
    pub image: PathBuf,
}

/// Where they are once they are built.
pub fn locate(workspace: &Workspace) -> Demo {
    Demo {
        program: workspace.target().join(PROGRAM),
        image: workspace.target().join(format!("{PROGRAM}.tar")),
    }
}

/// Builds program and archive, unless they are newer than their source.
pub fn build(workspace: &Workspace) -> Result<Demo> {
    let demo = locate(workspace);
    let sources = workspace.root().join("tests/demo");
    if is_newer(&demo.image, &sources)? {
        return Ok(demo);
    }
    let host = host_triple(workspace)?;
    let target = workspace.target().join("static");
    command::output(
        cargo::with_any_compiler()
            .current_dir(workspace.root())
            // With a --target the flags leave build scripts and procedural macros alone.
            .env("RUSTFLAGS", "-Ctarget-feature=+crt-static -Cstrip=symbols")
            .args(["build", "--quiet", "--package", PROGRAM, "--target", &host])
            .arg("--target-dir")
            .arg(&target),
    )?;
    let built = target.join(&host).join("debug").join(PROGRAM);
    install(&built, &demo.program)?;
    archive(workspace, &demo)?;
    Ok(demo)
}

/// Whether a file is newer than every file below a folder.
fn is_newer(file: &Path, folder: &Path) -> Result<bool> {
    let Ok(built) = fs::metadata(file).and_then(|metadata| metadata.modified()) else {
        return Ok(false);
    };
    for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let path = entry
            .with_context(|| format!("read {}", folder.display()))?
            .path();
        let fresh = if path.is_dir() {
            is_newer(file, &path)?
        } else {
            let changed = fs::metadata(&path).and_then(|metadata| metadata.modified());
            changed.with_context(|| format!("look at {}", path.display()))? < built
        };
        if !fresh {
            return Ok(false);
        }
    }
    Ok(true)
}

fn host_triple(workspace: &Workspace) -> Result<String> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let text = command::output(Command::new(rustc).arg("-vV").current_dir(workspace.root()))?;
    text.lines()
        .find_map(|line| line.strip_prefix("host: "))
        .map(str::to_owned)
        .context("rustc -vV names no host")
}

/// Copies a program so that a running one is not written to.
fn install(from: &Path, to: &Path) -> Result<()> {
    let temporary = to.with_extension("new");
    fs::copy(from, &temporary)
        .and_then(|_| fs::set_permissions(&temporary, fs::Permissions::from_mode(0o755)))
        .and_then(|()| fs::rename(&temporary, to))
        .with_context(|| format!("copy {} to {}", from.display(), to.display()))
}

/// Packs the program as an OCI image layout in a tar archive.
fn archive(workspace: &Workspace, demo: &Demo) -> Result<()> {
    let folder = workspace.target().join("demo-image");
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("empty {}", folder.display()))?;
    }
    let root = folder.join("root");
    let layout = Layout {
        folder: folder.join("layout"),
    };
    for part in [root.join("tmp"), root.join("etc"), layout.blobs()] {
        fs::create_dir_all(&part).with_context(|| format!("make {}", part.display()))?;
    }
    install(&demo.program, &root.join(PROGRAM))?;
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/bin/false\n")
        .context("write the image's /etc/passwd")?;

    let tar = folder.join("layer.tar");
    pack(&root, &tar)?;
    let layer = layout.add_file(&tar, "application/vnd.oci.image.layer.v1.tar")?;
    let config = layout.add_json(
        &json!({
            "architecture": oci_architecture(),
            "os": "linux",
            "config": {"Entrypoint": [format!("/{PROGRAM}")], "Cmd": ["serve"], "WorkingDir": "/"},
            "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
        }),
        "application/vnd.oci.image.config.v1+json",
    )?;
    let manifest = layout.add_json(
        &json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config,
            "layers": [layer],
        }),
        "application/vnd.oci.image.manifest.v1+json",
    )?;
    layout.finish(&manifest)?;
    let archive = folder.join("image.tar");
    pack(&layout.folder, &archive)?;
    fs::rename(&archive, &demo.image)
        .with_context(|| format!("put {} in place", demo.image.display()))?;
    fs::remove_dir_all(&folder).with_context(|| format!("clear {}", folder.display()))
}

/// Packs a folder so that equal contents give equal archives, whoever packs them and when.
fn pack(folder: &Path, archive: &Path) -> Result<()> {
    command::output(
        Command::new("tar")
            .args(["--create", "--sort=name", "--mtime=@0", "--numeric-owner"])
            .args(["--owner=0", "--group=0", "--file"])
            .arg(archive)
            .arg("--directory")
            .arg(folder)
            .arg("."),
    )
    .map(drop)
}

fn oci_architecture() -> &'static str {
    match env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// An OCI image layout under construction.
struct Layout {
    folder: PathBuf,
}

impl Layout {
    fn blobs(&self) -> PathBuf {
        self.folder.join("blobs/sha256")
    }

    /// Moves a file among the blobs and returns its descriptor.
    fn add_file(&self, file: &Path, media_type: &str) -> Result<Value> {
        let text = command::output(Command::new("sha256sum").arg("--binary").arg(file))?;
        let digest = text
            .split_whitespace()
            .next()
            .context("sha256sum says a digest")?
            .trim_start_matches('\\');
        let size = fs::metadata(file)
            .with_context(|| format!("look at {}", file.display()))?
            .len();
        fs::rename(file, self.blobs().join(digest))
            .with_context(|| format!("move {} among the blobs", file.display()))?;
        Ok(json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": size}))
    }

    fn add_json(&self, value: &Value, media_type: &str) -> Result<Value> {
        let file = self.folder.join("blob.json");
        fs::write(&file, value.to_string()).with_context(|| format!("write {}", file.display()))?;
        self.add_file(&file, media_type)
    }

    fn finish(&self, manifest: &Value) -> Result<()> {
        let index = json!({"schemaVersion": 2, "manifests": [manifest]});
        fs::write(self.folder.join("index.json"), index.to_string())
            .context("write the layout's index")?;
        fs::write(
            self.folder.join("oci-layout"),
            json!({"imageLayoutVersion": "1.0.0"}).to_string(),
        )
        .context("write the layout's version")
    }
}
