//! Runs a job in a virtual machine, to its end or to ours.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{
    accelerator::{self, Accelerator},
    cpio::Archive,
    kernel::Kernel,
    payload::{FIRST_PROCESS, Payload},
};
use crate::{command, setup::qemu::Qemu, workspace::Workspace};

/// A kernel that can boot says its first word within this time.
const FIRST_WORD: Duration = Duration::from_secs(5);
/// Between looks at a running machine.
const LOOK: Duration = Duration::from_millis(20);
/// How much of a console is kept in memory.
const CONSOLE: usize = 1 << 20;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// What to run, and how far it may go.
pub struct Job<'a> {
    /// The kernel to boot.
    pub kernel: &'a Kernel,
    /// Modules to load beside the usual ones.
    pub modules: &'a [String],
    /// The file system that it runs on; it must have an executable /portolan-job.
    pub payload: &'a Payload,
    /// A machine that has not ended by then is ended.
    pub limit: Duration,
    /// Where the job's stdout goes, as it comes.
    pub stdout: Box<dyn Write + Send + 'a>,
    /// Where its stderr goes.
    pub stderr: Box<dyn Write + Send + 'a>,
}

/// How a job ended.
#[derive(Debug, PartialEq)]
pub enum End {
    /// By itself, with this exit code.
    Exit(i32),
    /// The machine did not end in time.
    Hung,
    /// The kernel crashed, whatever the job had said before.
    Crashed,
    /// The machine ended and left no word; this is what is known.
    Lost(String),
}

/// An ended machine.
#[derive(Debug)]
pub struct Ended {
    /// How it ended.
    pub end: End,
    /// What the kernel wrote on its console; the last of it.
    pub console: String,
    /// How long the machine ran.
    pub took: Duration,
    /// What made it run.
    pub accelerator: Accelerator,
    /// A tar of what the job left in /results.
    pub results: Vec<u8>,
}

/// Boots a machine and runs a job in it. An error means that there was no machine.
pub fn run(workspace: &Workspace, qemu: &Qemu, mut job: Job) -> Result<Ended> {
    let folder = Folder::new(workspace)?;
    let memory = prepare(&folder.path, &job)?;
    let accelerator = accelerator::choose(workspace);
    if accelerator == Accelerator::Kvm {
        if let Some(ended) = boot(&folder.path, qemu, &mut job, accelerator, memory)? {
            return Ok(ended);
        }
        accelerator::refuse_kvm(workspace)?;
    }
    boot(&folder.path, qemu, &mut job, Accelerator::Emulation, memory)?
        .context("the kernel says nothing")
}

/// The files of one run; they go with it.
struct Folder {
    path: PathBuf,
}

impl Folder {
    fn new(workspace: &Workspace) -> Result<Self> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = workspace
            .target()
            .join("vm/runs")
            .join(format!("{}-{number}", std::process::id()));
        fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(Self { path })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Writes initramfs and payload. How many MiB of memory the machine needs.
fn prepare(folder: &Path, job: &Job) -> Result<u64> {
    let mut archive = Archive::new(Vec::new());
    for name in ["bin", "dev", "proc", "root", "sys"] {
        archive.folder(name, 0o755)?;
    }
    archive.device("dev/console", 5, 1)?;
    let busybox = fs::read("/usr/bin/busybox")
        .or_else(|_| fs::read("/bin/busybox"))
        .context("read busybox")?;
    archive.file("bin/busybox", 0o755, &busybox)?;
    archive.link("bin/sh", "busybox")?;
    archive.file("init", 0o755, FIRST_PROCESS.as_bytes())?;
    let mut initramfs = archive.finish()?;
    initramfs.extend(job.kernel.modules(job.modules)?);
    let path = folder.join("initramfs");
    fs::write(&path, &initramfs).with_context(|| format!("write {}", path.display()))?;
    let size = job.payload.write(&folder.join("payload"))?;
    Ok(1024 + (size >> 20) * 3 / 2)
}

/// Boots once. `None` if the kernel said nothing, not even its first word, as under a hypervisor that cannot run it.
fn boot(
    folder: &Path,
    qemu: &Qemu,
    job: &mut Job,
    accelerator: Accelerator,
    memory: u64,
) -> Result<Option<Ended>> {
    let begun = Instant::now();
    let ports = ["console", "control", "results", "stdout", "stderr"];
    let pipes = ports
        .iter()
        .map(|name| Pipe::new(&folder.join(name)))
        .collect::<Result<Vec<_>>>()?;
    let mut command = machine(qemu, folder, job.kernel, accelerator, memory);
    let errors = folder.join("qemu");
    let stderr = File::create(&errors).with_context(|| format!("write {}", errors.display()))?;
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr);
    let console = Tail::default();
    let (watched, control, results) = thread::scope(|scope| -> Result<_> {
        let [console_pipe, control, results, stdout, stderr] = &pipes[..] else {
            unreachable!("a pipe for each port");
        };
        let console = &console;
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot run {}", command::line(&command)))?;
        let (job_stdout, job_stderr) = (&mut job.stdout, &mut job.stderr);
        scope.spawn(|| console_pipe.copy(&mut console.clone()));
        scope.spawn(|| stdout.copy(job_stdout));
        scope.spawn(|| stderr.copy(job_stderr));
        let control = scope.spawn(|| control.read());
        let results = scope.spawn(|| results.read());
        let impatient = accelerator == Accelerator::Kvm;
        let watched = watch(&mut child, job.limit, || {
            impatient && begun.elapsed() > FIRST_WORD && console.is_empty()
        });
        pipes.iter().for_each(Pipe::close);
        let control = control.join().expect("reading does not panic");
        let results = results.join().expect("reading does not panic");
        Ok((watched?, control, results))
    })?;
    let said = fs::read_to_string(&errors).unwrap_or_default();
    let console = console.text();
    let end = match watched {
        Watched::Silent => return Ok(None),
        Watched::Late => End::Hung,
        Watched::Ended(status) => {
            judge(status, &String::from_utf8_lossy(&control), &console, &said)?
        }
    };
    Ok(Some(Ended {
        end,
        console,
        took: begun.elapsed(),
        accelerator,
        results,
    }))
}

fn machine(
    qemu: &Qemu,
    folder: &Path,
    kernel: &Kernel,
    accelerator: Accelerator,
    memory: u64,
) -> Command {
    let mut command = qemu.command();
    let place = |name: &str| folder.join(name).display().to_string();
    command
        .args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
        ])
        .args(["-machine", "q35,usb=off", "-cpu", "max", "-smp", "2"])
        .args(["-accel", accelerator.argument()])
        .args(["-m", &memory.to_string()])
        .arg("-kernel")
        .arg(kernel.image())
        .args(["-initrd", &place("initramfs")])
        .args(["-append", accelerator.command_line()])
        .arg("-drive")
        .arg(format!(
            "file={},format=raw,if=virtio,readonly=on",
            place("payload")
        ))
        .args([
            "-chardev",
            &format!("file,id=console,path={}", place("console")),
        ])
        .args(["-serial", "chardev:console"])
        .args(["-device", "virtio-serial-pci"]);
    for port in ["control", "results", "stdout", "stderr"] {
        command
            .args(["-chardev", &format!("file,id={port},path={}", place(port))])
            .args([
                "-device",
                &format!("virtserialport,chardev={port},name={port}"),
            ]);
    }
    command
}

enum Watched {
    Ended(ExitStatus),
    Late,
    Silent,
}

/// Waits for a machine; one that takes too long, or is given up, is killed.
fn watch(child: &mut Child, limit: Duration, given_up: impl Fn() -> bool) -> Result<Watched> {
    let begun = Instant::now();
    let watched = loop {
        if let Some(status) = child.try_wait().context("wait for qemu")? {
            return Ok(Watched::Ended(status));
        }
        if given_up() {
            break Watched::Silent;
        }
        if begun.elapsed() > limit {
            break Watched::Late;
        }
        thread::sleep(LOOK);
    };
    child.kill().context("kill qemu")?;
    child.wait().context("wait for qemu")?;
    Ok(watched)
}

/// What a machine's last words mean.
fn judge(status: ExitStatus, control: &str, console: &str, said: &str) -> Result<End> {
    if let Some(signal) = status.signal() {
        bail!("qemu was ended by signal {signal}: {}", said.trim());
    }
    if !status.success() {
        bail!("qemu ended with {status}: {}", said.trim());
    }
    if console.lines().any(is_crash) {
        return Ok(End::Crashed);
    }
    let mut words = control.trim().splitn(2, ' ');
    Ok(match (words.next(), words.next()) {
        (Some("exit"), Some(code)) => match code.parse() {
            Ok(code) => End::Exit(code),
            Err(_) => End::Lost(format!("it ended with {code:?}, which is no exit code")),
        },
        (Some("failed"), Some(what)) => End::Lost(format!("it could not {what}")),
        _ => End::Lost("it ended without a word".to_owned()),
    })
}

/// Whether this line of a console is a kernel's that says that it is broken. It was told to panic then, and a panic ends
/// the machine.
pub fn is_crash(line: &str) -> bool {
    const SIGNS: [&str; 4] = [
        "Kernel panic - not syncing",
        "Oops: ",
        "kernel BUG at ",
        "BUG: kernel ",
    ];
    // A program's lines on the console are none of the kernel's, which begin with the time.
    line.starts_with('[') && SIGNS.iter().any(|sign| line.contains(sign))
}

/// A named pipe that qemu writes to.
struct Pipe {
    reading: File,
    /// Keeps it open until the machine has ended: a reader would see the end before qemu has begun.
    held: Mutex<Option<File>>,
}

impl Pipe {
    fn new(path: &Path) -> Result<Self> {
        if !path.exists() {
            command::output(Command::new("mkfifo").arg(path))?;
        }
        let open = || format!("open {}", path.display());
        // Opened for both, a pipe does not wait for its other side.
        let held = File::options()
            .read(true)
            .write(true)
            .open(path)
            .with_context(open)?;
        let reading = File::open(path).with_context(open)?;
        Ok(Self {
            reading,
            held: Mutex::new(Some(held)),
        })
    }

    fn close(&self) {
        self.held.lock().expect("nobody panics with it").take();
    }

    /// Copies until the pipe is closed.
    fn copy(&self, to: &mut dyn Write) {
        let mut reading = &self.reading;
        let mut buffer = vec![0; 1 << 16];
        while let Ok(length @ 1..) = reading.read(&mut buffer) {
            // Who has stopped listening to us must not stop the machine.
            let _ignored = to.write_all(&buffer[..length]).and_then(|()| to.flush());
        }
    }

    fn read(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.copy(&mut bytes);
        bytes
    }
}

/// The last of what was written to it.
#[derive(Clone, Default)]
struct Tail(Arc<Mutex<Vec<u8>>>);

impl Tail {
    fn is_empty(&self) -> bool {
        self.0.lock().expect("nobody panics with it").is_empty()
    }

    fn text(&self) -> String {
        let bytes = self.0.lock().expect("nobody panics with it");
        String::from_utf8_lossy(&bytes).replace('\r', "")
    }
}

impl Write for Tail {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut kept = self.0.lock().expect("nobody panics with it");
        kept.extend_from_slice(bytes);
        let surplus = kept.len().saturating_sub(CONSOLE);
        kept.drain(..surplus);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_is_never_a_pass() {
        let ended = ExitStatus::from_raw(0);
        let judge = |control: &str, console: &str| {
            judge(ended, control, console, "").expect("qemu ended well")
        };
        assert_eq!(judge("exit 0\n", "portolan: ok\n"), End::Exit(0));
        assert_eq!(judge("exit 3\n", ""), End::Exit(3));
        for console in [
            "[    3.1] Kernel panic - not syncing: sysrq triggered crash\n",
            "[    3.1] Oops: general protection fault\n",
            "ok\n[    3.1] kernel BUG at net/core/dev.c:1!\n",
        ] {
            assert_eq!(judge("exit 0\n", console), End::Crashed);
        }
        assert_eq!(judge("exit 0\n", "a test said Oops: \n"), End::Exit(0));
        assert!(matches!(judge("", ""), End::Lost(_)));
        assert!(matches!(judge("exit x", ""), End::Lost(_)));
        let End::Lost(why) = judge("failed unpack the files: no space\n", "") else {
            panic!("it was lost");
        };
        assert_eq!(why, "it could not unpack the files: no space");
    }

    #[test]
    fn qemus_own_failure_is_an_error() {
        let error = judge(ExitStatus::from_raw(256), "", "", "no such device").expect_err("failed");
        assert!(error.to_string().contains("no such device"), "{error}");
    }

    #[test]
    fn the_last_of_a_long_console_is_kept() {
        let mut tail = Tail::default();
        tail.write_all(&vec![b'a'; CONSOLE]).expect("memory");
        tail.write_all(b"end").expect("memory");
        assert_eq!(tail.text().len(), CONSOLE);
        assert!(tail.text().ends_with("aend"));
    }
}
