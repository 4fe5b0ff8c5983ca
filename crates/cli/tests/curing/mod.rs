//! A task between a real server and a real file, and the pasting of cures: as printed, where they say, nothing corrected.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use pgferry_testkit::server::StopMode;
use pgferry_testkit::{Database, Server};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// The file's name needs quoting in a shell.
pub(crate) const FILE: &str = "the shop's task.toml";
const WITHIN: Duration = Duration::from_secs(60);

/// What the program says of an error or a finding.
#[derive(Clone, Debug)]
pub(crate) struct Told(pub(crate) Value);

impl Told {
    pub(crate) fn text(&self, key: &str) -> &str {
        self.0[key].as_str().unwrap_or_default()
    }

    pub(crate) fn cause(&self) -> &str {
        self.text("cause")
    }

    pub(crate) fn cure(&self, part: &str) -> Vec<String> {
        let texts = self.0["cure"][part].as_array().cloned().unwrap_or_default();
        texts.iter().map(|text| text.as_str().unwrap_or_default().to_owned()).collect()
    }

    pub(crate) fn advice(&self) -> &str {
        self.0["cure"]["advice"].as_str().unwrap_or_default()
    }
}

/// Where the lines of a cure belong; its advice says so in words.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Into {
    /// There are none.
    Nowhere,
    /// A section of the task file, such as `connections.source`.
    Section(&'static str),
    /// The top of `pg_hba.conf`, below the lines by which the test itself gets in.
    Hba,
    /// `psql`, by the superuser.
    Psql,
    /// A shell.
    Shell,
}

pub(crate) struct Scene {
    pub(crate) server: Server,
    pub(crate) database: Database,
    pub(crate) folder: tempfile::TempDir,
}

impl Scene {
    /// Two tables and a task file that names the server.
    pub(crate) async fn on(server: Server) -> Scene {
        let database = server.create_database().await.unwrap();
        let sql = "CREATE TABLE orders (id int PRIMARY KEY, note text); INSERT INTO orders SELECT g, 'x' FROM generate_series(1, 50) g; \
                   CREATE TABLE items (id int PRIMARY KEY, n int); INSERT INTO items VALUES (1, 1)";
        database.execute(sql).await.unwrap();
        let scene = Scene { server, database, folder: tempfile::tempdir().unwrap() };
        let url = scene.database.url();
        scene.write(&format!("url = \"{url}\""), "");
        scene
    }

    /// The keys of the connection, and what goes on after the task's own keys.
    pub(crate) fn write(&self, connection: &str, more: &str) {
        let text = format!(
            "version = 1\n\n[connections.source]\nkind = \"postgres\"\nconnect_timeout = \"5s\"\n{connection}\n\n\
             [connections.file]\nkind = \"duckdb\"\npath = \"copy.duckdb\"\n\n\
             [tasks.shop]\nsource = \"source\"\ntarget = \"file\"\nsync_mode = \"snapshot_cdc\"\nsync_interval = \"100ms\"\n\
             limits.retry_for = \"1s\"\ninclude = [\"public.*\"]\n\n\
             [tasks.shop.replication]\npublication = \"ferry\"\nslot = \"{}\"\nmanage = \"create\"\n{more}\n",
            self.slot()
        );
        std::fs::write(self.file(), text).unwrap();
    }

    pub(crate) fn slot(&self) -> String {
        format!("cures_{}", self.database.name())
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.folder.path().join(FILE)
    }

    /// Puts a line into a section of the task file: in place of the line with its key, or as the first.
    pub(crate) fn edit(&self, section: &str, line: &str) {
        let text = std::fs::read_to_string(self.file()).unwrap();
        let header = format!("[{section}]\n");
        let start = text.find(&header).unwrap_or_else(|| panic!("no {section} in {text}")) + header.len();
        let end = text[start..].find("\n[").map_or(text.len(), |length| start + length + 1);
        let key = line.split('=').next().unwrap_or_default().trim();
        let same = |other: &&str| other.split('=').next().is_some_and(|name| name.trim() == key);
        let kept: Vec<&str> = text[start..end].lines().filter(|other| !same(other)).collect();
        let edited = format!("{}{line}\n{}\n{}", &text[..start], kept.join("\n"), &text[end..]);
        std::fs::write(self.file(), edited).unwrap();
    }

    pub(crate) async fn sql(&self, sql: &str) {
        self.database.execute(sql).await.unwrap_or_else(|failure| panic!("{sql}: {failure:#}"));
    }

    /// Connects as a role of its own, which owns the tables and may log in, but nothing more.
    pub(crate) async fn as_role(&self, attributes: &str) -> String {
        let (role, database) = (format!("cdc_{}", self.database.name()), self.database.name());
        self.sql(&format!(
            "CREATE ROLE {role} LOGIN PASSWORD 'secret' {attributes}; GRANT CREATE ON DATABASE {database} TO {role}; \
             ALTER TABLE orders OWNER TO {role}; ALTER TABLE items OWNER TO {role}"
        ))
        .await;
        let port = self.server.port();
        let keys = format!(
            "host = \"127.0.0.1\"\nport = {port}\ndatabase = \"{database}\"\nuser = \"{role}\"\n\
             password = {{ env = \"CURES_PASSWORD\" }}"
        );
        self.write(&keys, "");
        role
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin("pgferry"));
        command.current_dir(self.folder.path()).env_remove("PGFERRY_LOG").env("CURES_PASSWORD", "secret");
        command.args(arguments).stdin(Stdio::null());
        command
    }

    pub(crate) fn pgferry(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn told(&self, arguments: &[&str]) -> (Option<i32>, Value) {
        let output = self.pgferry(arguments);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let value = serde_json::from_str(text.lines().last().unwrap_or_default());
        let value = value.unwrap_or_else(|_| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)));
        (output.status.code(), value)
    }

    /// A run that has to end with everything carried.
    pub(crate) fn run(&self) {
        let (code, told) = self.told(&["run", FILE, "--json", "--until-caught-up"]);
        assert_eq!(code, Some(0), "{told:#}");
    }

    /// A run in the background.
    pub(crate) fn running(&self) -> Running {
        let mut command = self.command(&["run", FILE, "--json", "--until-caught-up"]);
        Running(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    /// The error with `code` that a run ends with: the command's, the task's or a table's.
    pub(crate) fn run_fails(&self, code: &str) -> Told {
        let (exit, told) = self.told(&["run", FILE, "--json", "--until-caught-up"]);
        assert_ne!(exit, Some(0), "{code} was expected: {told:#}");
        let result = &told["result"][0];
        let aside = result["set_aside"].as_array().cloned().unwrap_or_default();
        let mut errors = vec![told["error"].clone(), result["error"].clone()];
        errors.extend(aside.into_iter().map(|aside| aside["error"].clone()));
        let found = errors.iter().find(|error| error["code"] == code || error["behind"] == code);
        complete(found.unwrap_or_else(|| panic!("no {code} in {told:#}")))
    }

    /// The finding with `code` of a check.
    pub(crate) fn check_finds(&self, code: &str) -> Told {
        let (_, told) = self.told(&["check", FILE, "--json"]);
        let findings = told["result"][0]["findings"].as_array().cloned().unwrap_or_default();
        let found = findings.iter().find(|finding| finding["code"] == code && finding["outcome"] != "passed");
        complete(found.unwrap_or_else(|| panic!("no {code} in {told:#}")))
    }

    /// A check that finds nothing that keeps the task from running.
    pub(crate) fn check_passes(&self) {
        let (exit, told) = self.told(&["check", FILE, "--json"]);
        let findings = told["result"][0]["findings"].as_array().cloned().unwrap_or_default();
        let failed: Vec<&Value> = findings.iter().filter(|finding| finding["outcome"] == "failed").collect();
        assert!(exit == Some(0) && failed.is_empty(), "{told:#}");
    }

    /// Does what a cure says: its lines, its statements as the superuser, the reload or restart, its commands.
    pub(crate) async fn paste(&self, told: &Told, lines: Into) {
        for line in told.cure("lines") {
            match lines {
                Into::Nowhere => panic!("nowhere to paste {line}: {told:?}"),
                Into::Section(section) => self.edit(section, &line),
                Into::Hba => self.add_to_hba(&line),
                Into::Psql => self.sql(&line).await,
                Into::Shell => self.shell(&line),
            }
        }
        for statement in told.cure("sql") {
            self.sql(&statement).await;
        }
        match told.0["cure"]["restart"].as_str() {
            Some("server") => self.server.restart(StopMode::Fast).await.unwrap(),
            Some("reload") => self.server.reload().await.unwrap(),
            _ => {}
        }
        for command in told.cure("commands") {
            assert!(command.contains(r"'the shop'\''s task.toml'"), "{command} does not name the file");
            // Nobody can answer its question here.
            self.shell(&format!("{command} --yes"));
        }
    }

    fn add_to_hba(&self, line: &str) {
        let path = self.server.data_dir().join("pg_hba.conf");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{line}\n{text}")).unwrap();
    }

    fn shell(&self, line: &str) {
        let program = assert_cmd::cargo::cargo_bin("pgferry");
        let mut path = OsString::from(program.parent().unwrap_or_else(|| Path::new(".")));
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        let output = Command::new("sh")
            .current_dir(self.folder.path())
            .env("PATH", path)
            .env("CURES_PASSWORD", "secret")
            .args(["-c", line])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let told =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "pasted: {line}\n{told}");
    }
}

/// Code, cause and cure are all there, and no placeholder is left in any of them.
fn complete(error: &Value) -> Told {
    let told = Told(error.clone());
    assert!(!told.cause().is_empty(), "no cause: {error:#}");
    assert!(!told.advice().is_empty(), "no cure: {error:#}");
    assert!(!error.to_string().contains("FILE"), "a placeholder: {error:#}");
    told
}

/// A program that ends with its test.
pub(crate) struct Running(pub(crate) Child);

impl Running {
    /// Waits for its end.
    pub(crate) fn ended(&mut self) -> Option<i32> {
        let until = Instant::now() + WITHIN;
        while Instant::now() < until {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("it does not end within {WITHIN:?}")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until a query says true.
pub(crate) async fn until(database: &Database, query: &str) {
    let client = database.client().await.unwrap();
    let end = Instant::now() + WITHIN;
    while Instant::now() < end {
        if client.query_one(query, &[]).await.unwrap().get(0) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{query} does not come true")
}

/// A pooler that does what PgBouncer below 1.23 does to a replication connection: it refuses its startup parameter. Everything
/// else goes to the server. Returns the port.
pub(crate) async fn pooler(server: u16) -> u16 {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(pooled(client, server));
        }
    });
    port
}

async fn pooled(mut client: TcpStream, server: u16) -> std::io::Result<()> {
    loop {
        let length = client.read_i32().await?;
        let mut body = vec![0; usize::try_from(length - 4).unwrap_or(0)];
        client.read_exact(&mut body).await?;
        // SSLRequest and GSSENCRequest (PostgreSQL docs, "Message Formats").
        if matches!(body.as_slice(), [0x04, 0xd2, 0x16, 0x2f | 0x30]) {
            client.write_all(b"N").await?;
            continue;
        }
        if body.windows(12).any(|part| part == b"replication\0") {
            let fields = b"SFATAL\0VFATAL\0C08P01\0Munsupported startup parameter: replication\0\0";
            client.write_all(b"E").await?;
            client.write_i32(4 + fields.len() as i32).await?;
            return client.write_all(fields).await;
        }
        let mut upstream = TcpStream::connect(("127.0.0.1", server)).await?;
        upstream.write_i32(length).await?;
        upstream.write_all(&body).await?;
        tokio::io::copy_bidirectional(&mut client, &mut upstream).await?;
        return Ok(());
    }
}
