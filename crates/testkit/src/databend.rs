//! Real Databend's engine behind the protocol of its server (`databend-server/README.md`), on loopback, on a port of its own.
//!
//! ```text
//!   what is tested ──front (login, TLS, faults, counts)──┐
//!                                                        ├──> python server.py ──> engine, data below the run folder
//!   the test itself ──door (plain, none of these)────────┘
//! ```
//!
//! Invariants: it never outlives the test process; where it is not installed, the caller is told so, and says what it did not run; what the
//! test asks through the door is hit by no fault and counted nowhere.
//!
//! Limits: what an ended server held is lost. Calls to the door block their thread, for two minutes at most.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Value, json};
use ureq::Agent;
use ureq::http::{Request, Response};

use crate::kafka::NotInstalled;
use crate::run_folder;
use crate::server::{Certificates, cache};

/// The engine's version.
pub const VERSION: &str = "1.2.895";
const SERVER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/databend-server/server.py");
/// The longest that it may take to start; a cold machine needs some seconds.
const START_WITHIN: Duration = Duration::from_secs(120);
const ANSWER_WITHIN: Duration = Duration::from_secs(120);
/// The longest answer that is read.
const ANSWER_BYTES_MAX: u64 = 1 << 30;

/// How a server is reached and who may come in; by default without TLS, and everybody.
#[derive(Clone, Debug, Default)]
pub struct DatabendSettings {
    /// Who may come in with `password` or the private key of `public_key`. Without it and `token` everybody may.
    pub user: Option<String>,
    /// The user's; without it and `public_key` an empty one.
    pub password: Option<String>,
    /// A token that is admitted.
    pub token: Option<String>,
    /// File with the user's public key (PEM).
    pub public_key: Option<PathBuf>,
    pub tls: DatabendTls,
    /// Whether the server signs addresses for uploads; otherwise it refuses to (3902).
    pub presign: bool,
}

/// What the server shows of itself.
#[derive(Clone, Debug, Default)]
pub enum DatabendTls {
    /// It speaks in the clear.
    #[default]
    Off,
    /// A certificate for `localhost` and `127.0.0.1` of an authority of its own: [`DatabendServer::authority`].
    Made,
    /// Files with a certificate and its key (PEM).
    Files { certificate: PathBuf, key: PathBuf },
}

/// What goes wrong at the server's front.
#[derive(Clone, Debug)]
pub struct Fault {
    place: &'static str,
    pattern: String,
    kind: FaultKind,
    times: u32,
    skip: u32,
}

/// How it goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The server says that it is not ready: status 503.
    Unavailable,
    /// The connection breaks, with nothing done.
    DropBefore,
    /// All is done, and the connection breaks before the answer.
    DropAfter,
    /// The statement fails, as one of the server's own errors: its transaction fails with it. Other requests are answered with status 500.
    Error { code: u16, message: String },
    /// An answer with this status, with nothing done.
    Answer { status: u16, code: u16, message: String },
}

impl Fault {
    /// At the first statement whose text holds `pattern`, a regular expression in any case.
    pub fn on_sql(pattern: &str, kind: FaultKind) -> Fault {
        Fault { place: "sql", pattern: pattern.to_owned(), kind, times: 1, skip: 0 }
    }

    /// At the first request whose path holds `pattern`.
    pub fn on_path(pattern: &str, kind: FaultKind) -> Fault {
        Fault { place: "path", ..Fault::on_sql(pattern, kind) }
    }

    /// At so many matches, not one.
    #[must_use]
    pub fn times(self, times: u32) -> Fault {
        Fault { times, ..self }
    }

    /// Only after so many matches have passed.
    #[must_use]
    pub fn after(self, skip: u32) -> Fault {
        Fault { skip, ..self }
    }

    fn asked(&self) -> Value {
        let mut asked =
            json!({ "on": self.place, "match": self.pattern, "times": self.times, "skip": self.skip });
        let (kind, of_kind) = match &self.kind {
            FaultKind::Unavailable => ("503", json!({})),
            FaultKind::DropBefore => ("drop_before", json!({})),
            FaultKind::DropAfter => ("drop_after", json!({})),
            FaultKind::Error { code, message } => ("error", json!({ "code": code, "message": message })),
            FaultKind::Answer { status, code, message } => {
                ("error", json!({ "status": status, "code": code, "message": message }))
            }
        };
        asked["kind"] = kind.into();
        if let (Value::Object(asked), Value::Object(of_kind)) = (&mut asked, of_kind) {
            asked.extend(of_kind);
        }
        asked
    }
}

/// A running server.
#[derive(Clone, Debug)]
pub struct DatabendServer(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    settings: DatabendSettings,
    authority: Option<PathBuf>,
    folder: PathBuf,
    /// Where clients come in.
    front: u16,
    /// Where the test does.
    door: u16,
    agent: Agent,
    child: Mutex<Child>,
}

/// The Python in which the server runs, where `scripts/setup --test` has made it; the official driver is there, too.
///
/// # Errors
/// When nobody knows where the cache is. Where it is not installed, the reason.
pub fn python() -> Result<std::result::Result<PathBuf, NotInstalled>> {
    let folder = cache()?.join(format!("databend-server-{VERSION}"));
    if !folder.join("complete").exists() {
        let missing = format!("Databend {VERSION} is not in {}: run scripts/setup --test", folder.display());
        return Ok(Err(NotInstalled(missing)));
    }
    Ok(Ok(folder.join("bin/python")))
}

impl DatabendServer {
    /// The server with default settings that all tests of this process share. Faults and counts are of the server: a test of these starts
    /// one of its own.
    ///
    /// # Errors
    /// When it does not start. Where it is not installed, the reason.
    pub fn shared() -> Result<std::result::Result<DatabendServer, NotInstalled>> {
        type Started = std::result::Result<DatabendServer, NotInstalled>;
        static SHARED: OnceLock<std::result::Result<Started, String>> = OnceLock::new();
        let started = SHARED.get_or_init(|| {
            DatabendServer::start(&DatabendSettings::default()).map_err(|error| format!("{error:#}"))
        });
        started.clone().map_err(|error| anyhow!("{error}"))
    }

    /// Starts a server that is as a test wants it.
    ///
    /// # Errors
    /// As [`DatabendServer::shared`].
    pub fn start(settings: &DatabendSettings) -> Result<std::result::Result<DatabendServer, NotInstalled>> {
        let python = match python()? {
            Ok(python) => python,
            Err(missing) => return Ok(Err(missing)),
        };
        let folder = run_folder::new_folder("databend")?;
        let mut command = Command::new(python);
        command
            .arg(SERVER)
            .args(["--port", "0", "--data"])
            // By this name it goes where a failed test keeps its logs.
            .arg(folder.join("data"));
        let authority = arguments(&mut command, settings, &folder)?;
        let mut child = command
            .current_dir(&folder)
            // The engine appends a backtrace to every error where this asks for one.
            .env("RUST_BACKTRACE", "0")
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::null())
            .stdout(File::create(folder.join("ports"))?)
            .stderr(File::create(folder.join("databend.log"))?)
            .spawn()
            .context("cannot start Databend's Python")?;
        run_folder::remember(child.id(), "KILL")?;
        let ports = await_ports(&mut child, &folder);
        if ports.is_err() {
            end(&mut child);
        }
        let (door, front) = ports?;
        let agent = Agent::config_builder()
            .timeout_global(Some(ANSWER_WITHIN))
            .http_status_as_error(false)
            .proxy(None)
            .build()
            .new_agent();
        let (settings, child) = (settings.clone(), Mutex::new(child));
        Ok(Ok(DatabendServer(Arc::new(Parts { settings, authority, folder, front, door, agent, child }))))
    }

    /// Where clients connect, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.0.front
    }

    /// The certificate (PEM) of who vouches for it, where it was made for it.
    pub fn authority(&self) -> Option<PathBuf> {
        self.0.authority.clone()
    }

    /// The address for Databend's own clients, with user, password and token of the settings; `&name=value` may be appended. The private
    /// key, and the session's time zone, are the caller's. The clients take `database` as it stands.
    pub fn dsn(&self, database: &str) -> String {
        let Parts { settings, authority, front, .. } = &*self.0;
        let user = match (&settings.user, &settings.password) {
            (Some(user), password) => {
                format!("{}:{}@", escaped(user), escaped(password.as_deref().unwrap_or_default()))
            }
            (None, _) => String::new(),
        };
        let security = match (&settings.tls, authority) {
            (DatabendTls::Off, _) => "sslmode=disable".to_owned(),
            (_, Some(authority)) => {
                format!("sslmode=require&tls_ca_file={}", escaped(&authority.to_string_lossy()))
            }
            (_, None) => "sslmode=require".to_owned(),
        };
        let token = settings.token.as_deref().filter(|_| settings.user.is_none());
        let token = token.map(|token| format!("&access_token={}", escaped(token))).unwrap_or_default();
        format!("databend://{user}127.0.0.1:{front}/{database}?{security}{token}")
    }

    /// Its process, with the engine in it.
    pub fn pid(&self) -> u32 {
        self.0.child.lock().unwrap_or_else(PoisonError::into_inner).id()
    }

    /// The folder in which the files of a stage are.
    pub fn stage_folder(&self, stage: &str) -> PathBuf {
        self.0.folder.join("data/data/stage/internal").join(stage)
    }

    /// What it has logged: a line per statement, with the moment of its end, id, seconds, text and outcome.
    pub fn log(&self) -> String {
        fs::read_to_string(self.0.folder.join("databend.log")).unwrap_or_default()
    }

    /// Makes something go wrong, from the next request on; several faults stand side by side.
    pub fn fault(&self, fault: &Fault) -> Result<()> {
        self.ask("POST", "/_test/faults", Some(&fault.asked())).map(drop)
    }

    /// Takes all faults back, and forgets that they fired.
    pub fn clear_faults(&self) -> Result<()> {
        self.ask("DELETE", "/_test/faults", None).map(drop)
    }

    /// How often faults have fired.
    pub fn faults_fired(&self) -> Result<u64> {
        let faults = self.ask("GET", "/_test/faults", None)?;
        let fired = faults.as_array().into_iter().flatten().filter_map(|fault| fault["fired"].as_u64());
        Ok(fired.sum())
    }

    /// How many statements clients have run, by their first word in lower case.
    pub fn statements(&self) -> Result<BTreeMap<String, u64>> {
        let counts = self.ask("GET", "/_test/statements", None)?;
        let counts = counts.as_object().into_iter().flatten();
        Ok(counts.filter_map(|(word, count)| Some((word.clone(), count.as_u64()?))).collect())
    }

    /// Counts statements from zero again.
    pub fn forget_statements(&self) -> Result<()> {
        self.ask("DELETE", "/_test/statements", None).map(drop)
    }

    /// Rolls back every open transaction, as a server does with those whose client is gone, only sooner. A statement that runs in one ends
    /// first. How many there were.
    pub fn roll_back_sessions(&self) -> Result<u64> {
        let answer = self.ask("DELETE", "/_test/sessions", None)?;
        answer["rolled_back"].as_u64().with_context(|| format!("unexpected answer: {answer}"))
    }

    /// Runs a statement in a session of its own, in UTC and the database `default`, and reads all its rows, each value as the server's text.
    ///
    /// # Errors
    /// The server's, as `[1025] Unknown table …`.
    pub fn query(&self, sql: &str) -> Result<Vec<Vec<Option<String>>>> {
        let mut page = self.ask("POST", "/v1/query", Some(&json!({ "sql": sql })))?;
        let mut rows = Vec::new();
        loop {
            if let Some(code) = page["error"]["code"].as_u64() {
                bail!("[{code}] {}", page["error"]["message"].as_str().unwrap_or_default());
            }
            for row in page["data"].as_array().into_iter().flatten() {
                let values = row.as_array().into_iter().flatten();
                rows.push(values.map(|value| value.as_str().map(str::to_owned)).collect());
            }
            match page["next_uri"].as_str().map(str::to_owned) {
                Some(next) => page = self.ask("GET", &next, None)?,
                None => return Ok(rows),
            }
        }
    }

    /// An answer of the door's, whatever its status where it is JSON.
    fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let url = format!("http://127.0.0.1:{}{path}", self.0.door);
        let request = Request::builder().method(method).uri(&url).header("content-type", "application/json");
        let answer = match body {
            Some(body) => self.0.agent.run(request.body(body.to_string())?),
            None => self.0.agent.run(request.body(())?),
        };
        let mut answer: Response<ureq::Body> = answer.with_context(|| format!("{method} {url}"))?;
        let status = answer.status();
        let text = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_string()?;
        let parsed: Value = serde_json::from_str(&text).with_context(|| format!("{method} {url}: {text}"))?;
        // A statement's own error comes with status 200.
        if !status.is_success() {
            bail!("{method} {url}: {status}: {text}");
        }
        Ok(parsed)
    }
}

/// Adds the settings to the command line. The authority, where one was made.
fn arguments(command: &mut Command, settings: &DatabendSettings, folder: &Path) -> Result<Option<PathBuf>> {
    let texts =
        [("--user", &settings.user), ("--password", &settings.password), ("--token", &settings.token)];
    for (name, value) in texts {
        if let Some(value) = value {
            // In one word: a value may begin like an option.
            command.arg(format!("{name}={value}"));
        }
    }
    if let Some(file) = &settings.public_key {
        command.arg("--public-key").arg(file);
    }
    if settings.presign {
        command.arg("--presign");
    }
    match &settings.tls {
        DatabendTls::Off => Ok(None),
        DatabendTls::Files { certificate, key } => {
            command.arg("--tls-cert").arg(certificate).arg("--tls-key").arg(key);
            Ok(None)
        }
        DatabendTls::Made => {
            let files = folder.join("tls");
            fs::create_dir(&files)?;
            let made = Certificates::make(&files)?;
            command.arg("--tls-cert").arg(files.join("server.crt"));
            command.arg("--tls-key").arg(files.join("server.key"));
            Ok(Some(made.authority()))
        }
    }
}

/// The ports of door and front, once both are open.
fn await_ports(child: &mut Child, folder: &Path) -> Result<(u16, u16)> {
    let until = Instant::now() + START_WITHIN;
    loop {
        let told = fs::read_to_string(folder.join("ports"))?;
        let port = |name: &str| told.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        // The last line may not be whole yet.
        if let (Some(door), Some(front), true) = (port("door"), port("listening"), told.ends_with('\n')) {
            return Ok((door, front));
        }
        let ended = child.try_wait()?;
        if ended.is_some() || Instant::now() > until {
            let log = fs::read_to_string(folder.join("databend.log")).unwrap_or_default();
            bail!("Databend does not start ({ended:?}); its log:\n{log}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn end(child: &mut Child) {
    let _gone = child.kill();
    let _reaped = child.wait();
    run_folder::forget(child.id());
}

/// For one part of an address: everything but letters, digits and `-_.` as `%XX`.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.".contains(&byte) {
            escaped.push(byte.into());
        } else {
            // Writing to a string cannot fail.
            let _written = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

impl Drop for Parts {
    fn drop(&mut self) {
        end(self.child.get_mut().unwrap_or_else(PoisonError::into_inner));
    }
}
