//! Images: import in all forms, pull from a registry, and archives that mean harm. Needs root.

mod support;

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use portolan_agent::image::{ImageError, Puller, Store, import, list, parse_name};
use serde_json::json;
use support::{
    Node,
    archive::{Compression, Item, busybox_layer, layer, oci},
    container,
};
use tar::EntryType;

struct Bed {
    folder: tempfile::TempDir,
}

impl Bed {
    fn new() -> Bed {
        assert!(
            nix::unistd::geteuid().is_root(),
            "unpacking images needs root"
        );
        Bed {
            folder: tempfile::tempdir().expect("a temporary folder"),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn state(&self) -> PathBuf {
        self.path("state")
    }

    fn import(&self, layers: &[Vec<u8>], how: Compression) -> Result<Vec<PathBuf>, ImageError> {
        let archive = self.path("image.tar");
        oci(&archive, layers, how, &json!({}));
        import(&self.state(), Some("demo/x:1"), &archive, &mut |_| ())?;
        let store = Store::open(&self.state().join("images"))?;
        let image = store
            .find(&parse_name("docker.io/demo/x:1")?)?
            .expect("the image");
        store.layers(&image)
    }
}

#[test]
fn layers_unpack_the_same_however_they_are_compressed() {
    for how in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let bed = Bed::new();
        let tar = layer(&[
            Item::folder("a", 0o750),
            Item::file("a/f", 0o4755, "text"),
            Item::link("a/s", EntryType::Symlink, "/etc/passwd"),
            Item::link("h", EntryType::Link, "a/f"),
            Item::file("deep/down/here", 0o600, "x"),
        ]);
        let layers = bed.import(&[tar], how).expect("an import");
        let root = &layers[0];
        let metadata = fs::metadata(root.join("a/f")).expect("a/f");
        assert_eq!(
            (metadata.mode() & 0o7777, metadata.nlink(), metadata.mtime()),
            (0o4755, 2, 1)
        );
        assert_eq!(
            fs::metadata(root.join("a")).expect("a").mode() & 0o7777,
            0o750
        );
        assert_eq!(
            fs::read_link(root.join("a/s")).expect("a link"),
            Path::new("/etc/passwd")
        );
        assert_eq!(
            fs::read_to_string(root.join("deep/down/here")).expect("a file"),
            "x"
        );
    }
}

#[test]
fn whiteouts_become_the_overlays_marks() {
    let bed = Bed::new();
    let lower = layer(&[
        Item::file("gone", 0o644, "x"),
        Item::file("d/old", 0o644, "x"),
    ]);
    let upper = layer(&[
        Item::file(".wh.gone", 0o644, ""),
        Item::folder("d", 0o755),
        Item::file("d/.wh..wh..opq", 0o644, ""),
        Item::file("d/new", 0o644, "y"),
    ]);
    let layers = bed
        .import(&[lower, upper], Compression::Gzip)
        .expect("an import");
    let mark = fs::symlink_metadata(layers[1].join("gone")).expect("a mark");
    assert!(mark.file_type().is_char_device());
    assert_eq!(mark.rdev(), 0);
    let opaque = xattr::get(layers[1].join("d"), "trusted.overlay.opaque").expect("attributes");
    assert_eq!(opaque.as_deref(), Some(b"y".as_slice()));
}

#[test]
fn no_entry_gets_out_of_its_layer() {
    let outside = tempfile::tempdir().expect("a temporary folder");
    let target = outside.path().join("victim");
    let text = target.to_str().expect("UTF-8").to_owned();
    let folder = outside.path().to_str().expect("UTF-8").to_owned();
    let cases: [Vec<Item>; 5] = [
        vec![Item::file("../victim", 0o644, "x")],
        vec![Item::file("a/../../victim", 0o644, "x")],
        vec![
            Item::link("out", EntryType::Symlink, &folder),
            Item::file("out/victim", 0o644, "x"),
        ],
        vec![
            Item::link("out", EntryType::Symlink, &text),
            Item::file("out", 0o644, "x"),
        ],
        vec![Item::link("h", EntryType::Link, "../../etc/passwd")],
    ];
    for (number, items) in cases.into_iter().enumerate() {
        let bed = Bed::new();
        let result = bed.import(&[layer(&items)], Compression::None);
        assert!(!target.exists(), "case {number}");
        if let Ok(layers) = result {
            // Links resolve inside of the layer, as they will in the container.
            assert!(number == 2 || number == 3, "case {number} must be refused");
            assert!(layers[0].exists());
        } else {
            assert!(
                list(&bed.state()).expect("the store").is_empty(),
                "case {number}"
            );
        }
    }
}

#[test]
fn overlay_marks_of_a_layer_are_refused() {
    let bed = Bed::new();
    let result = bed.import(
        &[layer(&[Item::link("x", EntryType::Char, "")])],
        Compression::None,
    );
    assert!(
        matches!(result, Err(ImageError::Unpack { .. })),
        "{result:?}"
    );
}

#[test]
fn content_that_differs_from_its_digest_leaves_nothing() {
    let bed = Bed::new();
    let archive = bed.path("image.tar");
    oci(
        &archive,
        &[layer(&[Item::file("f", 0o644, "right")])],
        Compression::None,
        &json!({}),
    );
    let mut bytes = fs::read(&archive).expect("the archive");
    let at = bytes
        .windows(5)
        .position(|part| part == b"right")
        .expect("the content");
    bytes[at..at + 5].copy_from_slice(b"wrong");
    fs::write(&archive, bytes).expect("the archive");
    let result = import(&bed.state(), Some("x"), &archive, &mut |_| ());
    assert!(
        matches!(result, Err(ImageError::Digest { .. })),
        "{result:?}"
    );
    let images = bed.state().join("images");
    for folder in ["refs", "layers", "tmp"] {
        let left = fs::read_dir(images.join(folder)).expect("a folder").count();
        assert_eq!(left, 0, "{folder}");
    }
}

#[test]
fn what_is_no_image_is_named() {
    let bed = Bed::new();
    let path = bed.path("nothing");
    fs::write(&path, "not a tar").expect("a file");
    let result = import(&bed.state(), Some("x"), &path, &mut |_| ());
    assert!(matches!(result, Err(ImageError::Unknown(_))), "{result:?}");
    oci(&path, &[], Compression::None, &json!({}));
    let result = import(&bed.state(), None, &path, &mut |_| ());
    assert!(matches!(result, Err(ImageError::Nameless)), "{result:?}");
}

#[test]
fn docker_archives_are_imported_under_their_own_names() {
    let bed = Bed::new();
    let tar = layer(&[Item::file("f", 0o644, "x")]);
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": { "Cmd": ["/f"] },
        "rootfs": { "type": "layers", "diff_ids": [portolan_agent::image::digest(&tar)] },
    });
    let manifest =
        json!([{ "Config": "c.json", "RepoTags": ["saved:2"], "Layers": ["l/layer.tar"] }]);
    let archive = bed.path("saved.tar");
    let mut builder = tar::Builder::new(fs::File::create(&archive).expect("a file"));
    for (name, content) in [
        ("l/layer.tar", tar),
        ("c.json", config.to_string().into_bytes()),
        ("manifest.json", manifest.to_string().into_bytes()),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        builder
            .append_data(&mut header, name, content.as_slice())
            .expect("a written archive");
    }
    builder.finish().expect("a written archive");
    let names = import(&bed.state(), None, &archive, &mut |_| ()).expect("an import");
    assert_eq!(names, ["docker.io/library/saved:2"]);
}

/// A registry on a loopback port of its own, ended with the test.
struct Registry {
    child: Child,
    address: String,
    _folder: tempfile::TempDir,
}

impl Registry {
    fn start() -> Registry {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let config = folder.path().join("config.yml");
        let storage = folder.path().join("storage");
        let text = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:0\n",
            storage.display()
        );
        fs::write(&config, text).expect("a file");
        let mut child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("docker-registry is installed");
        let stderr = child.stderr.take().expect("a pipe");
        let mut lines = BufReader::new(stderr).lines();
        let address = lines
            .by_ref()
            .map(|line| line.expect("a line"))
            .find_map(|line| {
                let (_, rest) = line.split_once("listening on ")?;
                Some(rest.split(['"', ' ']).next()?.to_owned())
            })
            .expect("the registry says where it listens");
        // Keeps the pipe empty for as long as the registry lives.
        std::thread::spawn(move || lines.for_each(drop));
        Registry {
            child,
            address,
            _folder: folder,
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.child.kill().expect("a running registry");
        self.child.wait().expect("an ended registry");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn image_is_pulled_from_a_registry_on_loopback() {
    let node = Node::empty().await;
    let registry = Registry::start();
    let bed = Bed::new();
    let (archive, layout) = (bed.path("image.tar"), bed.path("layout"));
    oci(
        &archive,
        &[busybox_layer()],
        Compression::Gzip,
        &json!({ "Cmd": ["echo", "pulled"] }),
    );
    fs::create_dir(&layout).expect("a folder");
    let run =
        |command: &mut Command| assert!(command.status().expect("an installed command").success());
    run(Command::new("tar")
        .arg("-xf")
        .arg(&archive)
        .arg("-C")
        .arg(&layout));
    let name = format!("{}/demo/pulled:1", registry.address);
    run(Command::new("skopeo")
        .args(["copy", "--quiet", "--dest-tls-verify=false"])
        .arg(format!("oci:{}", layout.display()))
        .arg(format!("docker://{name}")));
    let uid = node
        .run(json!({ "restartPolicy": "Never", "containers": [
            { "name": "c", "image": name }, { "name": "d", "image": name },
        ] }))
        .await;
    node.phase(&uid, "Succeeded").await;
    assert_eq!(node.log(&uid, "c", 0), "pulled\n");
    node.event("Pulling", &format!("Pulling image \"{name}\""))
        .await;
    node.event(
        "Pulled",
        &format!("Successfully pulled image \"{name}\" in "),
    )
    .await;
    let absent = format!("{}/demo/absent:1", registry.address);
    let uid = node
        .run(json!({ "containers": [{ "name": "c", "image": absent }] }))
        .await;
    let status = node.waiting(&uid, "ErrImagePull").await;
    let message = status
        .state
        .and_then(|state| state.waiting)
        .and_then(|waiting| waiting.message)
        .unwrap_or_default();
    assert!(
        message.contains(&format!(
            "failed to resolve reference \"{absent}\": {absent}: not found"
        )),
        "{message}"
    );
}

#[tokio::test]
async fn pull_on_a_machine_without_ca_certificates_is_an_error_and_no_panic() {
    const NAME: &str = "pull_on_a_machine_without_ca_certificates_is_an_error_and_no_panic";
    if std::env::var_os("SSL_CERT_FILE").is_none() {
        // The variables count for a whole process: one of its own has this machine without certificates.
        let output = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", NAME, "--nocapture"])
            .env("SSL_CERT_FILE", "/nonexistent")
            .env("SSL_CERT_DIR", "/nonexistent")
            .output()
            .expect("this program runs");
        assert!(output.status.success(), "{output:?}");
        return;
    }
    let bed = Bed::new();
    let puller = Puller::new(Store::open(&bed.path("images")).expect("a store"));
    for name in ["127.0.0.1:1/x:1", "registry.invalid/x:1"] {
        let answer = puller.pull(&parse_name(name).expect("a name")).await;
        let told = answer.expect_err("there is no registry").to_string();
        assert!(
            told.contains(name.split('/').next().expect("a host")),
            "{told}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn upper_layers_hide_and_replace_in_a_running_container() {
    let node = Node::empty().await;
    let archive = node.config.state_dir.join("image.tar");
    let upper = layer(&[
        Item::file("etc/.wh.plain", 0o644, ""),
        Item::file("etc/added", 0o644, "new"),
    ]);
    oci(
        &archive,
        &[busybox_layer(), upper],
        Compression::Zstd,
        &json!({}),
    );
    import(
        &node.config.state_dir,
        Some(support::IMAGE),
        &archive,
        &mut |_| (),
    )
    .expect("an import");
    let one = container("c", "cat /etc/added; test -e /etc/plain || echo hidden");
    let uid = node
        .run(json!({ "restartPolicy": "Never", "containers": [one] }))
        .await;
    node.phase(&uid, "Succeeded").await;
    assert_eq!(node.log(&uid, "c", 0), "newhidden\n");
}
