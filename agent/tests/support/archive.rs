//! Image archives, made from scratch.

use std::{fs::File, io::Write as _, path::Path};

use portolan_agent::image::digest;
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

/// An entry of a layer.
pub struct Item {
    pub path: String,
    pub kind: EntryType,
    pub mode: u32,
    pub content: Vec<u8>,
    pub link: String,
}

impl Item {
    pub fn file(path: &str, mode: u32, content: impl Into<Vec<u8>>) -> Item {
        Item {
            path: path.into(),
            kind: EntryType::Regular,
            mode,
            content: content.into(),
            link: String::new(),
        }
    }

    pub fn folder(path: &str, mode: u32) -> Item {
        Item {
            kind: EntryType::Directory,
            ..Item::file(path, mode, "")
        }
    }

    pub fn link(path: &str, kind: EntryType, target: &str) -> Item {
        Item {
            kind,
            link: target.into(),
            ..Item::file(path, 0o777, "")
        }
    }
}

/// A layer's tar. Names are written as they are, also where an honest tool would refuse.
pub fn layer(items: &[Item]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for item in items {
        let mut header = Header::new_ustar();
        header.set_entry_type(item.kind);
        header.set_mode(item.mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        header.set_size(item.content.len() as u64);
        let raw = header.as_ustar_mut().expect("a ustar header");
        raw.name[..item.path.len()].copy_from_slice(item.path.as_bytes());
        raw.linkname[..item.link.len()].copy_from_slice(item.link.as_bytes());
        header.set_cksum();
        builder
            .append(&header, item.content.as_slice())
            .expect("memory");
    }
    builder.into_inner().expect("memory")
}

/// How a layer is kept in an archive.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

pub fn compress(tar: &[u8], how: Compression) -> Vec<u8> {
    match how {
        Compression::None => tar.to_vec(),
        Compression::Gzip => {
            let mut encoder =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(tar).expect("memory");
            encoder.finish().expect("memory")
        }
        Compression::Zstd => zstd::encode_all(tar, 1).expect("memory"),
    }
}

/// An OCI layout in a tar. `config` is the part of the image's configuration of the same name.
pub fn oci(path: &Path, layers: &[Vec<u8>], how: Compression, config: &Value) {
    let mut files: Vec<(String, Vec<u8>)> = vec![(
        "oci-layout".into(),
        br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
    )];
    let mut blob = |content: Vec<u8>, kind: &str| {
        let digest = digest(&content);
        let descriptor = json!({ "mediaType": kind, "digest": digest, "size": content.len() });
        files.push((format!("blobs/{}", digest.replace(':', "/")), content));
        descriptor
    };
    let diff_ids: Vec<String> = layers.iter().map(|tar| digest(tar)).collect();
    let kind = match how {
        Compression::None => "application/vnd.oci.image.layer.v1.tar",
        Compression::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
        Compression::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
    };
    let layers: Vec<Value> = layers
        .iter()
        .map(|tar| blob(compress(tar, how), kind))
        .collect();
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": config,
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = blob(
        config.to_string().into_bytes(),
        "application/vnd.oci.image.config.v1+json",
    );
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": layers,
    });
    let manifest = blob(
        manifest.to_string().into_bytes(),
        "application/vnd.oci.image.manifest.v1+json",
    );
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    files.push(("index.json".into(), index.to_string().into_bytes()));
    let mut builder = Builder::new(File::create(path).expect("a file for the archive"));
    for (name, content) in files {
        let mut header = Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        builder
            .append_data(&mut header, name, content.as_slice())
            .expect("a written archive");
    }
    builder.finish().expect("a written archive");
}

/// The layer of busybox: one program under many names.
pub fn busybox_layer() -> Vec<u8> {
    let program = std::fs::read("/bin/busybox").expect("busybox-static is installed");
    let mut items = vec![
        Item::folder("bin", 0o755),
        Item::folder("etc", 0o755),
        Item::folder("tmp", 0o1777),
        Item::file("bin/busybox", 0o755, program),
        Item::file(
            "etc/passwd",
            0o644,
            "root:x:0:0:root:/root:/bin/sh\nweb:x:33:33:web:/srv:/bin/sh\n",
        ),
        Item::file("etc/group", 0o644, "root:x:0:\nweb:x:33:\n"),
        Item::file("etc/plain", 0o644, "not a program"),
    ];
    for name in [
        "sh", "cat", "echo", "sleep", "true", "false", "id", "nc", "httpd", "wget", "ls", "grep",
        "head", "hostname", "mount", "unshare", "dd", "kill", "ps", "touch", "env", "stat", "tail",
        "seq", "pwd", "chmod", "df", "trap", "test", "printf", "mkdir", "rm", "readlink", "date",
        "cut", "wc", "yes",
    ] {
        items.push(Item::link(
            &format!("bin/{name}"),
            EntryType::Symlink,
            "busybox",
        ));
    }
    layer(&items)
}

/// An archive of busybox whose entry point prints its arguments.
pub fn busybox(path: &Path) {
    let config =
        json!({ "Entrypoint": ["echo"], "Cmd": ["from", "the", "image"], "Env": ["FROM=image"] });
    oci(path, &[busybox_layer()], Compression::Gzip, &config);
}
