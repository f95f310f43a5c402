//! Every kubectl from 1.20 on against transcripts of what Kubernetes answers (`*.txt` beside this file), in parallel on one
//! whole control plane without nodes. Where a version differs, or has no such command, its transcript says so.
//!
//! `every_command` is played by all versions. The others go deeper, with three of them: the oldest, the first that sends
//! protobuf, and the newest. With `PORTOLAN_EVERY_KUBECTL=1` all play everything; they are told of in each transcript.
//! `PORTOLAN_RECORD=1 cargo test --lib -- golden` writes down what was said; what it changes is to be read and judged.

mod mask;
mod transcript;

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use tokio::process::Command;
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::cli::{Cli, Command as Verb};
use crate::run;
use mask::Masks;
use transcript::{Said, Step, VERSIONS};

/// How long one command may take.
const LIMIT: Duration = Duration::from_mins(2);
/// What takes longer than this is worth a look.
const SLOW: Duration = Duration::from_secs(5);
/// How many versions are at work at once: more wait for the same cores.
const AT_ONCE: usize = 6;
const NEWEST: u32 = VERSIONS[VERSIONS.len() - 1];
/// Who plays what not all have to.
const SOME: [u32; 3] = [VERSIONS[0], 32, NEWEST];

fn is_set(variable: &str) -> bool {
    std::env::var_os(variable).is_some()
}

/// A control plane with everything but nodes, in this process.
struct Plane {
    folder: tempfile::TempDir,
    masks: Masks,
    stop: CancellationToken,
    serving: JoinHandle<Result<(), run::Error>>,
}

fn kubectl(version: u32) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/kubectls");
    let path = folder.join(format!("kubectl-1.{version}"));
    assert!(
        path.exists(),
        "this test needs {}: `cargo xtask setup` unpacks it",
        path.display()
    );
    path
}

fn namespace_of(version: u32) -> String {
    format!("team-1-{version}")
}

impl Plane {
    async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name).display().to_string();
        let arguments = [
            "portolan-control".to_owned(),
            "serve".to_owned(),
            "--advertise=127.0.0.1".to_owned(),
            "--listen=127.0.0.1:0".to_owned(),
            format!("--store=embedded:{}", at("store")),
            format!("--admin-kubeconfig={}", at("kubeconfig")),
        ];
        let Verb::Serve(options) = Cli::parse_from(arguments).command else {
            panic!("it was told to serve");
        };
        let stop = CancellationToken::new();
        let serving = tokio::spawn(run::serve(options, stop.clone()));
        let plane = Self {
            folder,
            masks: Masks::new(),
            stop,
            serving,
        };
        for version in VERSIONS {
            let bin = plane.home(version).join("bin");
            std::fs::create_dir_all(&bin).expect("a folder");
            symlink(kubectl(version), bin.join("kubectl")).expect("a link");
        }
        plane.ready().await;
        plane
    }

    /// A folder of a version's own, where its commands run.
    fn home(&self, version: u32) -> PathBuf {
        self.folder.path().join(format!("v{version}"))
    }

    async fn ready(&self) {
        let deadline = tokio::time::Instant::now() + LIMIT;
        loop {
            assert!(!self.serving.is_finished(), "the control plane ended");
            assert!(tokio::time::Instant::now() < deadline, "it is not ready");
            if self.folder.path().join("kubeconfig").exists()
                && self.run(NEWEST, "kubectl get --raw /readyz").await.code == 0
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Runs a command with one version of kubectl; tells what it said, masked.
    async fn run(&self, version: u32, command: &str) -> Said {
        let (home, namespace) = (self.home(version), namespace_of(version));
        let path = std::env::var("PATH").expect("a PATH");
        let child = Command::new("sh")
            .args(["-c", command])
            .current_dir(&home)
            .env("PATH", format!("{}:{path}", home.join("bin").display()))
            .env("HOME", &home)
            .env("KUBECONFIG", self.folder.path().join("kubeconfig"))
            .env("NS", &namespace)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("sh");
        let Ok(output) = tokio::time::timeout(LIMIT, child.wait_with_output()).await else {
            panic!("kubectl 1.{version} does not end: {command}");
        };
        let output = output.expect("sh runs");
        let home = home.display().to_string();
        let masked = |bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes);
            let text = self.masks.put_on(&text, &namespace, &home);
            if text.is_empty() || text.ends_with('\n') {
                text
            } else {
                text + "\n"
            }
        };
        Said {
            out: masked(&output.stdout),
            err: masked(&output.stderr),
            code: output.status.code().unwrap_or(-1),
        }
    }

    /// Runs all steps with one version, in a namespace of its own.
    async fn play(&self, version: u32, steps: &[Step]) -> Vec<Said> {
        let namespace = namespace_of(version);
        let script = format!(
            "kubectl create namespace {namespace} && cp $KUBECONFIG kubeconfig && \
             KUBECONFIG=kubeconfig kubectl config set-context --current --namespace={namespace}"
        );
        let begun = self.run(version, &script).await;
        assert_eq!(begun.code, 0, "{begun:?}");
        let mut heard = Vec::new();
        for step in steps {
            let command = format!("export KUBECONFIG=$HOME/kubeconfig\n{}", step.command);
            let since = Instant::now();
            heard.push(self.run(version, &command).await);
            if since.elapsed() > SLOW {
                println!("1.{version} took {:?}: {}", since.elapsed(), step.command);
            }
        }
        heard
    }

    async fn stop(self) {
        self.stop.cancel();
        let ended = self.serving.await.expect("no panic");
        ended.expect("it ends well");
    }
}

/// Plays a transcript with these versions.
async fn check(name: &str, versions: &[u32]) {
    let record = is_set("PORTOLAN_RECORD");
    let all = record || is_set("PORTOLAN_EVERY_KUBECTL");
    let versions = if all { &VERSIONS[..] } else { versions };
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("src/http/tests/golden")
        .join(format!("{name}.txt"));
    let text = std::fs::read_to_string(&path).expect("a transcript");
    let mut steps = transcript::parse(&text).unwrap_or_else(|line| panic!("{name}: {line:?}"));
    let plane = Arc::new(Plane::start().await);
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    let mut playing = JoinSet::new();
    for version in versions.iter().copied() {
        let (plane, turns, steps) = (plane.clone(), turns.clone(), steps.clone());
        playing.spawn(async move {
            let _turn = turns.acquire().await.expect("never closed");
            (version, plane.play(version, &steps).await)
        });
    }
    let mut heard = playing.join_all().await;
    heard.sort_by_key(|(version, _)| *version);
    let plane = Arc::into_inner(plane).expect("no one else has it");
    plane.stop().await;
    if record {
        for (at, step) in steps.iter_mut().enumerate() {
            let said: Vec<_> = heard
                .iter()
                .map(|(version, said)| (*version, said[at].clone()))
                .collect();
            step.record(&said);
        }
        std::fs::write(&path, transcript::render(&steps)).expect("written");
        return;
    }
    let wrong = differences(&steps, &heard);
    assert!(wrong.is_empty(), "{name}: {}", wrong.join("\n"));
}

/// Each step that some version answered otherwise than it should, with those versions.
fn differences(steps: &[Step], heard: &[(u32, Vec<Said>)]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (at, step) in steps.iter().enumerate() {
        let said = heard.iter().map(|(version, said)| (*version, &said[at]));
        let others = said.filter(|(version, said)| {
            step.expected(*version).cloned().unwrap_or_default() != **said
        });
        let others: Vec<_> = others
            .map(|(version, said)| (version, said.clone()))
            .collect();
        if !others.is_empty() {
            let mut found = step.clone();
            found.record(&others);
            let (expected, found) = (
                transcript::render(std::slice::from_ref(step)),
                transcript::render(&[found]),
            );
            wrong.push(format!("expected\n{expected}found\n{found}"));
        }
    }
    wrong
}

macro_rules! transcripts {
    ($($name:ident by $versions:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                check(stringify!($name), &$versions).await;
            }
        )*
    };
}

transcripts!(
    every_command by VERSIONS,
    access by SOME,
    applying by SOME,
    changing by SOME,
    creating by SOME,
    deleting by SOME,
    describing by SOME,
    getting by SOME,
    rolling by SOME,
    telling by SOME,
);
