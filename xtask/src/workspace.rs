//! Where things lie: the source tree, cargo's target folder, and what xtask keeps in it.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// The source tree and its build folder.
pub struct Workspace {
    root: PathBuf,
    target: PathBuf,
}

impl Workspace {
    /// Finds the tree that this xtask was built from and the target folder that cargo put it in.
    pub fn locate() -> Result<Self> {
        let manifest_dir = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = manifest_dir
            .parent()
            .context("xtask lies in a folder of the workspace")?
            .to_owned();
        let executable = env::current_exe().context("find xtask's own executable")?;
        // Cargo marks its target folder; that respects CARGO_TARGET_DIR and build.target-dir without asking cargo.
        let target = executable
            .ancestors()
            .find(|folder| folder.join("CACHEDIR.TAG").exists())
            .map_or_else(|| root.join("target"), Path::to_owned);
        Ok(Self { root, target })
    }

    /// The folder of the workspace's Cargo.toml.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Cargo's target folder.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Where tools that are unpacked or built, not installed, lie.
    pub fn tools(&self) -> PathBuf {
        self.target.join("tools")
    }

    /// The executables among them.
    pub fn tools_bin(&self) -> PathBuf {
        self.tools().join("bin")
    }

    /// PATH with our own tools first, and the sbin folders that a plain user's PATH may lack.
    pub fn path_variable(&self) -> Result<OsString> {
        let mut folders = vec![self.tools_bin()];
        folders.extend(path_folders());
        env::join_paths(folders).context("the folders of PATH joined again")
    }

    /// The first executable of this name: among our tools, then on PATH.
    pub fn find_program(&self, name: &str) -> Option<PathBuf> {
        std::iter::once(self.tools_bin())
            .chain(path_folders())
            .map(|folder| folder.join(name))
            .find(|candidate| is_executable(candidate))
    }
}

/// The folders of PATH, then those for system administration: Debian keeps `ip` and `nft` there.
pub fn path_folders() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> =
        env::var_os("PATH").map_or_else(Vec::new, |path| env::split_paths(&path).collect());
    for folder in ["/usr/local/sbin", "/usr/sbin", "/sbin"] {
        if !folders.iter().any(|known| known == Path::new(folder)) {
            folders.push(folder.into());
        }
    }
    folders
}

/// Whether this is a file that someone may execute.
pub fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata()
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}
