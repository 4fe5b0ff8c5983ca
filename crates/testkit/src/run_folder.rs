//! The folder of this test process, and the watcher that ends and removes everything when the process ends.
//!
//! ```text
//!   test process ──holds──> stdin of the watcher ──EOF when it dies──> watcher (sh)
//!        │                                                              │
//!        └─ <folder>/processes/<pid>  (signal, start time)  <──reads────┘ ends them, removes <folder>
//! ```
//!
//! Invariants: a process is ended only while its start time is still the recorded one, so a reused id is never
//! hit; the watcher holds neither our output nor our terminal, so the test runner never waits for it.
//!
//! Why not `PR_SET_PDEATHSIG`: it fires when the *thread* that started the child ends, and every test runs in a
//! thread of its own; the shared server would die with the first test. Why a shell: it has to outlive us, and a
//! killed process runs no code of its own.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, anyhow};

/// Reads until the test process is gone, then ends what it recorded (gently, 5 s, then by force) and clears up.
const WATCHER: &str = r#"
cat >/dev/null
root=$1
alive() { [ "$(sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20)" = "$2" ]; }
for entry in "$root"/processes/*; do
    [ -f "$entry" ] || continue
    read -r signal started <"$entry"
    pid=${entry##*/}
    alive "$pid" "$started" && kill -s "$signal" "$pid" 2>/dev/null
done
for entry in "$root"/processes/*; do
    [ -f "$entry" ] || continue
    read -r signal started <"$entry"
    pid=${entry##*/}
    tries=0
    while alive "$pid" "$started" && [ $tries -lt 100 ]; do
        state=$(sed 's/.*) //' "/proc/$pid/stat" 2>/dev/null | cut -d' ' -f1)
        [ "$state" = Z ] && break
        sleep 0.05
        tries=$((tries + 1))
    done
    alive "$pid" "$started" && kill -s KILL "$pid" 2>/dev/null
done
if [ -e "$root/keep" ]; then
    rm -rf "$root"/*/data "$root"/*/socket "$root"/libraries-* "$root"/processes "$root/keep"
else
    rm -rf "$root"
fi
"#;

struct RunFolder {
    root: PathBuf,
    /// Never written to: closing it, which the death of this process does, is the signal.
    _alive: Option<ChildStdin>,
    _watcher: Child,
}

static RUN_FOLDER: OnceLock<Result<RunFolder, String>> = OnceLock::new();
static NEXT: AtomicU64 = AtomicU64::new(1);

/// The folder of this test process; made, with its watcher, at the first call.
pub(crate) fn root() -> Result<&'static Path> {
    let made = RUN_FOLDER.get_or_init(|| make().map_err(|error| format!("{error:#}")));
    made.as_ref().map(|folder| folder.root.as_path()).map_err(|error| anyhow!("{error}"))
}

fn make() -> Result<RunFolder> {
    let root = tempfile::Builder::new()
        .prefix("pgferry-test-")
        .tempdir()
        .context("cannot make a temporary folder")?;
    // Servers run as another user, who must reach their folders below.
    fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755))?;
    fs::create_dir(root.path().join("processes"))?;
    let mut watcher = Command::new("/bin/sh")
        .args(["-c", WATCHER, "pgferry-test-watcher"])
        .arg(root.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .current_dir("/")
        .process_group(0)
        .spawn()
        .context("cannot start the watcher of the test process")?;
    let alive = watcher.stdin.take();
    Ok(RunFolder { root: root.keep(), _alive: alive, _watcher: watcher })
}

/// A new folder below the folder of this test process, named `<name>-<number>`.
pub(crate) fn new_folder(name: &str) -> Result<PathBuf> {
    let folder = root()?.join(format!("{name}-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
    fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}

/// Has the watcher send `signal` to `pid` when this test process ends. Call [`forget`] when the process is gone.
pub(crate) fn remember(pid: u32, signal: &str) -> Result<()> {
    let started = start_time(pid).with_context(|| format!("process {pid} ended at once"))?;
    fs::write(entry(pid)?, format!("{signal} {started}\n"))?;
    Ok(())
}

/// Takes `pid` off the watcher's list.
pub(crate) fn forget(pid: u32) {
    if let Ok(entry) = entry(pid) {
        let _already_gone = fs::remove_file(entry);
    }
}

fn entry(pid: u32) -> Result<PathBuf> {
    Ok(root()?.join("processes").join(pid.to_string()))
}

/// Field 22 of `/proc/<pid>/stat`; counted after the last parenthesis, because a program's name may hold blanks.
fn start_time(pid: u32) -> io::Result<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    Ok(after_name.split(' ').nth(19).unwrap_or_default().to_owned())
}

/// Keeps the server logs of this test process on disk and says where they are. A panicking test does it by itself;
/// a test that fails by returning an error calls it.
#[expect(clippy::print_stderr, reason = "the person who reads a failed test needs the path")]
pub fn keep_logs() {
    let Ok(root) = root() else { return };
    if File::create_new(root.join("keep")).is_ok() {
        eprintln!("server logs of this failed test are kept below {}", root.display());
    }
}

/// Says what could not be cleaned up; a test must not fail in silence, nor panic while it unwinds.
#[expect(clippy::print_stderr, reason = "a destructor has no other way to say what went wrong")]
pub(crate) fn warn(text: &str) {
    eprintln!("testkit: {text}");
}

/// Sends `signal` (a name without SIG) to a process this crate started.
pub(crate) fn signal(pid: u32, signal: &str) -> Result<()> {
    let status = Command::new("/bin/sh")
        .args(["-c", "kill -s \"$1\" \"$2\"", "kill", signal, &pid.to_string()])
        .stderr(Stdio::null())
        .status()?;
    anyhow::ensure!(status.success(), "cannot send {signal} to process {pid}: it is gone");
    Ok(())
}
