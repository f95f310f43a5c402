//! The program itself: how it starts, what it says when it can't, and that nothing is lost when it is killed.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret};
use kube::api::{ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_portolan-control");
/// How long anything here may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

struct Control {
    folder: TempDir,
    port: u16,
    process: Child,
}

impl Control {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
        let process = command(&folder, port).spawn().unwrap();
        let mut control = Self {
            folder,
            port,
            process,
        };
        control.ready().await;
        control
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn client(&self) -> Client {
        let kubeconfig = Kubeconfig::read_from(self.path("kubeconfig")).unwrap();
        let options = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(kubeconfig, &options)
            .await
            .unwrap();
        Client::try_from(config).unwrap()
    }

    async fn ready(&mut self) {
        let begun = Instant::now();
        loop {
            assert!(self.process.try_wait().unwrap().is_none(), "{}", self.log());
            assert!(begun.elapsed() < PATIENCE, "{}", self.log());
            if self.path("kubeconfig").exists() {
                let request = http::Request::get("/readyz").body(Vec::new()).unwrap();
                if self.client().await.request_text(request).await.is_ok() {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn signal(&mut self, signal: Signal) -> ExitStatus {
        let id = i32::try_from(self.process.id()).unwrap();
        kill(Pid::from_raw(id), signal).unwrap();
        self.process.wait().unwrap()
    }

    async fn start_again(&mut self) {
        self.process = command(&self.folder, self.port).spawn().unwrap();
        self.ready().await;
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // One that has ended already can't be killed, and need not be.
        if let Err(error) = self.process.kill() {
            println!("not killed: {error}");
        }
        if let Err(error) = self.process.wait() {
            println!("not waited for: {error}");
        }
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn command(folder: &TempDir, port: u16) -> Command {
    let at = |name: &str| folder.path().join(name);
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(at("log"))
        .unwrap();
    let mut command = Command::new(PROGRAM);
    command
        .args(["serve", "--advertise=127.0.0.1"])
        .arg(format!("--listen=127.0.0.1:{port}"))
        .arg(format!("--listen=[::1]:{port}"))
        .arg(format!("--store=embedded:{}", at("store").display()))
        .arg(format!("--admin-kubeconfig={}", at("kubeconfig").display()))
        .arg(format!("--join-token-file={}", at("token").display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    command
}

fn config_map(number: usize) -> ConfigMap {
    let mut map = ConfigMap::default();
    map.metadata.name = Some(format!("c{number}"));
    map
}

#[tokio::test]
async fn it_starts_serves_and_ends_when_asked() {
    let mut control = Control::start().await;
    for file in ["store", "store.keys", "kubeconfig", "token"] {
        let mode = std::fs::metadata(control.path(file))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    let namespaces: Api<Namespace> = Api::all(control.client().await);
    let names = namespaces.list(&ListParams::default()).await.unwrap();
    let names: Vec<_> = names
        .items
        .into_iter()
        .filter_map(|one| one.metadata.name)
        .collect();
    assert_eq!(
        names,
        ["default", "kube-node-lease", "kube-public", "kube-system"]
    );
    let begun = Instant::now();
    assert!(
        control.signal(Signal::SIGTERM).success(),
        "{}",
        control.log()
    );
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_a_kill() {
    let mut control = Control::start().await;
    let token = std::fs::read_to_string(control.path("token")).unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(control.client().await, "default");
    for round in 0..3 {
        for number in 0..20 {
            let map = config_map(round * 20 + number);
            maps.create(&PostParams::default(), &map).await.unwrap();
        }
        control.signal(Signal::SIGKILL);
        control.start_again().await;
        let maps: Api<ConfigMap> = Api::namespaced(control.client().await, "default");
        let list = maps.list(&ListParams::default()).await.unwrap();
        let name = |map: &ConfigMap| map.metadata.name.clone().unwrap();
        // Every namespace has one more.
        let own = list
            .items
            .iter()
            .filter(|map| name(map) != "kube-root-ca.crt");
        assert_eq!(own.count(), (round + 1) * 20);
    }
    // A token that is still good stays, so that agents may go on with the file that they have.
    assert_eq!(
        std::fs::read_to_string(control.path("token")).unwrap(),
        token
    );
}

#[tokio::test]
async fn tokens_are_made_on_the_command_line() {
    let control = Control::start().await;
    let output = Command::new(PROGRAM)
        .args([
            "token",
            "create",
            "--uses",
            "3",
            "--ttl",
            "90m",
            "--kubeconfig",
        ])
        .arg(control.path("kubeconfig"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let token = String::from_utf8(output.stdout).unwrap();
    let parts: Vec<_> = token.trim().split('.').collect();
    let first = std::fs::read_to_string(control.path("token")).unwrap();
    assert_eq!(parts[2], first.trim().split('.').nth(2).unwrap());
    let secrets: Api<Secret> = Api::namespaced(control.client().await, "kube-system");
    let secret = secrets
        .get(&format!("bootstrap-token-{}", parts[0]))
        .await
        .unwrap();
    assert_eq!(
        secret.type_.as_deref(),
        Some("bootstrap.kubernetes.io/token")
    );
    assert_eq!(secret.data.unwrap()["uses"].0, b"3");
}

fn run(arguments: &[&str]) -> Output {
    Command::new(PROGRAM).args(arguments).output().unwrap()
}

fn secret(name: &str, value: &str) -> Secret {
    let mut secret = Secret::default();
    secret.metadata.name = Some(name.to_owned());
    secret.string_data = Some([("password".to_owned(), value.to_owned())].into());
    secret
}

/// Without the file of its keys a server starts on no store that is sealed, and says which key it wants.
#[tokio::test]
async fn a_lost_key_file_is_said_so() {
    let mut control = Control::start().await;
    let secrets: Api<Secret> = Api::namespaced(control.client().await, "default");
    let made = secret("db", "correct horse battery staple");
    secrets.create(&PostParams::default(), &made).await.unwrap();
    control.signal(Signal::SIGTERM);
    let bytes = std::fs::read(control.path("store")).unwrap();
    let encoded = b"Y29ycmVjdCBob3JzZSBiYXR0ZXJ5IHN0YXBsZQ==";
    assert!(!bytes.windows(encoded.len()).any(|part| part == encoded));
    let (keys, away) = (control.path("store.keys"), control.path("away"));
    std::fs::rename(&keys, &away).unwrap();
    let status = command(&control.folder, control.port).status().unwrap();
    assert_eq!(status.code(), Some(1));
    let log = control.log();
    assert!(log.contains("there is no encryption key file"), "{log}");
    assert!(log.contains("copy the file from another server"), "{log}");
    assert!(!keys.exists(), "another key would not help");
    std::fs::rename(&away, &keys).unwrap();
    control.start_again().await;
    let secrets: Api<Secret> = Api::namespaced(control.client().await, "default");
    let data = secrets.get("db").await.unwrap().data.unwrap();
    assert_eq!(data["password"].0, b"correct horse battery staple");
}

/// A server without keys gets them from one that runs, by a server's token; a node's token gets nothing, and a server of
/// another cluster is not believed.
#[tokio::test]
async fn a_server_joins_with_a_token() {
    let old = Control::start().await;
    let kubeconfig = old.path("kubeconfig");
    let create = ["token", "create", "--server", "--kubeconfig"];
    let output = run(&[&create[..], &[kubeconfig.to_str().unwrap()]].concat());
    assert!(output.status.success(), "{output:?}");
    let token = String::from_utf8(output.stdout).unwrap();
    let join = |control: &Control, folder: &TempDir, token: &str| {
        std::fs::write(folder.path().join("server-token"), token).unwrap();
        let mut command = command(folder, free_port());
        command
            .arg(format!("--join=https://127.0.0.1:{}", control.port))
            .arg("--server-token-file")
            .arg(folder.path().join("server-token"));
        command
    };
    let fresh = tempfile::tempdir().unwrap();
    let of_node = std::fs::read_to_string(old.path("token")).unwrap();
    let status = join(&old, &fresh, &of_node).status().unwrap();
    assert_eq!(status.code(), Some(1));
    let foreign = Control::start().await;
    let status = join(&foreign, &fresh, &token).status().unwrap();
    assert_eq!(status.code(), Some(1));
    let log = std::fs::read_to_string(fresh.path().join("log")).unwrap();
    assert!(log.contains("the join token is wrong"), "{log}");
    assert!(log.contains("can't reach https://127.0.0.1"), "{log}");
    assert!(!fresh.path().join("store.keys").exists());
    let mut new = Control {
        process: join(&old, &fresh, &token).spawn().unwrap(),
        port: 0,
        folder: fresh,
    };
    new.ready().await;
    let keys = |control: &Control| std::fs::read(control.path("store.keys")).unwrap();
    assert_eq!(keys(&new), keys(&old));
}

/// A backup of a running server, restored into a new store, is the cluster as it was: same authority, same objects; and
/// what clients know of the lost store's revisions is gone.
#[tokio::test]
async fn a_backup_of_a_running_server_is_restored() {
    let mut old = Control::start().await;
    let client = old.client().await;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "default");
    let hidden = secret("db", "hush");
    secrets
        .create(&PostParams::default(), &hidden)
        .await
        .unwrap();
    let (file, kubeconfig) = (old.path("backup"), old.path("kubeconfig"));
    let [file, kubeconfig] = [&file, &kubeconfig].map(|path| path.to_str().unwrap());
    let output = run(&["backup", "--kubeconfig", kubeconfig, file]);
    assert!(output.status.success(), "{output:?}");
    let permissions = std::fs::metadata(file).unwrap().permissions();
    assert_eq!(permissions.mode() & 0o777, 0o600);
    let maps: Api<ConfigMap> = Api::namespaced(client, "default");
    let lost = maps.create(&PostParams::default(), &config_map(1)).await;
    let lost = lost.unwrap().metadata.resource_version.unwrap();
    old.signal(Signal::SIGKILL);

    // The same store holds something already; beside it there is room.
    let full = format!("--store=embedded:{}", old.path("store").display());
    let output = run(&["restore", file, &full]);
    assert!(!output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("the store is not empty"), "{said}");
    std::fs::rename(old.path("store"), old.path("lost")).unwrap();
    let output = run(&["restore", file, &full]);
    assert!(output.status.success(), "{output:?}");
    old.start_again().await;
    let client = old.client().await;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "default");
    let data = secrets.get("db").await.unwrap().data.unwrap();
    assert_eq!(data["password"].0, b"hush");
    let maps: Api<ConfigMap> = Api::namespaced(client, "default");
    assert!(maps.get_opt("c1").await.unwrap().is_none());
    let made = maps.create(&PostParams::default(), &config_map(2)).await;
    let made = made.unwrap().metadata.resource_version.unwrap();
    let number = |version: &str| version.parse::<i64>().unwrap();
    assert!(number(&made) > number(&lost), "{made} after {lost}");
    let parameters = kube::api::WatchParams::default();
    let mut watch = Box::pin(maps.watch(&parameters, &lost).await.unwrap());
    match futures::StreamExt::next(&mut watch).await {
        Some(Ok(kube::api::WatchEvent::Error(status)) | Err(kube::Error::Api(status))) => {
            assert_eq!(status.code, 410);
        }
        other => panic!("{other:?}"),
    }
}

/// Runs `serve` with one argument changed, which must fail.
fn fails(change: &str) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    let mut fitting = command(&folder, free_port());
    let flag = change.split('=').next().unwrap().to_owned();
    let mut changed = Command::new(PROGRAM);
    let kept = fitting
        .get_args()
        .filter(|arg| !arg.to_string_lossy().starts_with(&flag));
    changed.args(kept).arg(change);
    fitting.stdin(Stdio::null());
    let Output { status, stderr, .. } = changed.output().unwrap();
    (status.code(), String::from_utf8(stderr).unwrap())
}

#[test]
fn what_can_not_be_is_said_clearly() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let unreachable = format!("http://127.0.0.1:{}", free_port());
    for (change, code, words) in [
        (
            format!("--listen={address}"),
            1,
            format!("can't listen on {address}: Address already in use"),
        ),
        (
            "--listen=192.0.2.1:6443".to_owned(),
            1,
            "can't listen on 192.0.2.1:6443".to_owned(),
        ),
        (
            "--store=embedded:/proc/no/store".to_owned(),
            1,
            "can't open /proc/no/store".to_owned(),
        ),
        (
            format!("--store=etcd:{unreachable}"),
            1,
            format!("no etcd answers at {unreachable}"),
        ),
        (
            "--store=nonsense".to_owned(),
            2,
            "expected embedded:FILE or etcd:".to_owned(),
        ),
        (
            "--admin-kubeconfig=/proc/no/file".to_owned(),
            1,
            "can't write /proc/no/file".to_owned(),
        ),
        (
            "--advertise=not a name!".to_owned(),
            2,
            "expected a DNS name".to_owned(),
        ),
        (
            "--service-cidr=10.0.0.0/16,10.1.0.0/16".to_owned(),
            1,
            "--service-cidr takes".to_owned(),
        ),
    ] {
        let (status, said) = fails(&change);
        assert_eq!(status, Some(code), "{change}: {said}");
        assert!(said.contains(&words), "{change}: {said}");
    }
}
