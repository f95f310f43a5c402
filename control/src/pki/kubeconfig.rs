//! The file that kubectl reads: where the cluster is, how to know it, and who we are.

use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::{Authority, Identity};

/// What goes into a kubeconfig.
pub struct Kubeconfig<'a> {
    /// "https://HOST:PORT".
    pub server: &'a str,
    /// Who signed the server's certificate.
    pub authority: &'a Authority,
    /// Whom the file speaks for.
    pub identity: &'a Identity,
}

impl Kubeconfig<'_> {
    /// The file's text.
    pub fn render(&self) -> String {
        let authority = BASE64_STANDARD.encode(self.authority.certificate_pem());
        let certificate = BASE64_STANDARD.encode(&self.identity.certificate_pem);
        let key = BASE64_STANDARD.encode(self.identity.key.serialize_pem());
        let server = self.server;
        format!(
            "apiVersion: v1
kind: Config
clusters:
- name: portolan
  cluster:
    server: {server}
    certificate-authority-data: {authority}
users:
- name: kubernetes-admin
  user:
    client-certificate-data: {certificate}
    client-key-data: {key}
contexts:
- name: portolan
  context:
    cluster: portolan
    user: kubernetes-admin
current-context: portolan
"
        )
    }
}

/// Writes a file that only its owner may read. Whoever looks sees the old text or the new, never a part.
pub fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    std::fs::create_dir_all(folder)?;
    let mut draft = std::ffi::OsString::from(".");
    draft.push(name);
    draft.push(format!(".{}", std::process::id()));
    let draft = folder.join(draft);
    let written = write_new(&draft, text).and_then(|()| std::fs::rename(&draft, path));
    if written.is_err()
        && let Err(error) = std::fs::remove_file(&draft)
    {
        tracing::debug!(%error, path = %draft.display(), "no draft to remove");
    }
    written
}

fn write_new(path: &Path, text: &str) -> io::Result<()> {
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}
