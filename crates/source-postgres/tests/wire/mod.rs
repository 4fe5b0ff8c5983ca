//! A server of a given major and a connection that shows every byte, for recording what servers really send.
//!
//! Why not `pg_recvlogical`: it writes messages one after the other with a line feed between, which binary content makes
//! ambiguous, and only one major of it is installed.

use std::fs;
use std::io::{self, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running server, stopped and removed when dropped. Runs as the OS user `postgres`.
pub(crate) struct Server {
    child: Child,
    folder: tempfile::TempDir,
    pub(crate) port: u16,
}

fn installation(major: u32) -> Option<(PathBuf, Option<PathBuf>)> {
    let debian = PathBuf::from(format!("/usr/lib/postgresql/{major}/bin"));
    let native = PathBuf::from(format!("/var/cache/pgferry/postgres-{major}/native"));
    if debian.join("initdb").exists() {
        Some((debian, None))
    } else if native.join("bin/initdb").exists() {
        Some((native.join("bin"), Some(native.join("lib"))))
    } else {
        None
    }
}

fn as_postgres(program: &Path, libraries: Option<&PathBuf>) -> Command {
    let id = |flag: &str| -> u32 {
        let output = Command::new("id").args([flag, "postgres"]).output().expect("id runs");
        String::from_utf8(output.stdout).expect("digits").trim().parse().expect("the OS user postgres")
    };
    let mut command = Command::new(program);
    command.uid(id("-u")).gid(id("-g")).stdin(Stdio::null()).current_dir("/");
    if let Some(libraries) = libraries {
        command.env("LD_LIBRARY_PATH", libraries);
    }
    command
}

impl Server {
    /// `None`: that major is not installed.
    pub(crate) fn start(major: u32) -> Option<Self> {
        let (bin, libraries) = installation(major)?;
        let folder = tempfile::tempdir().expect("a folder");
        let data = folder.path().join("data");
        fs::create_dir(&data).expect("a folder");
        for path in [folder.path(), &data] {
            let owner = Command::new("chown").arg("postgres").arg(path).status().expect("chown runs");
            assert!(owner.success());
        }
        let made = as_postgres(&bin.join("initdb"), libraries.as_ref())
            .args(["-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "-N", "-D"])
            .arg(&data)
            .stdout(Stdio::null())
            .status()
            .expect("initdb runs");
        assert!(made.success(), "initdb of {major}");
        let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port();
        let log = fs::File::create(folder.path().join("log")).expect("a log");
        let mut command = as_postgres(&bin.join("postgres"), libraries.as_ref());
        command.arg("-D").arg(&data).args(["-p", &port.to_string(), "-h", "127.0.0.1", "-k", ""]);
        for setting in ["wal_level=logical", "fsync=off", "max_prepared_transactions=4", "autovacuum=off"] {
            command.args(["-c", setting]);
        }
        if major >= 13 {
            command.args(["-c", "logical_decoding_work_mem=64kB"]);
        }
        let child = command.stdout(Stdio::null()).stderr(log).spawn().expect("postgres starts");
        let server = Server { child, folder, port };
        let until = Instant::now() + Duration::from_secs(30);
        while Connection::open(port, false).is_err() {
            assert!(Instant::now() < until, "the server of {major} does not answer: {:?}", server.log());
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(server)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    pub(crate) fn connect(&self) -> Connection {
        Connection::open(self.port, false).expect("a connection")
    }

    pub(crate) fn connect_for_replication(&self) -> Connection {
        Connection::open(self.port, true).expect("a connection")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-INT", &self.child.id().to_string()]).status();
        let _ = self.child.wait();
    }
}

pub(crate) struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    fn open(port: u16, replication: bool) -> io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        let mut connection = Connection { stream: BufReader::new(stream) };
        let mut body = 196_608u32.to_be_bytes().to_vec();
        body.extend_from_slice(b"user\0postgres\0database\0postgres\0client_encoding\0UTF8\0TimeZone\0UTC\0");
        if replication {
            body.extend_from_slice(b"replication\0database\0");
        }
        body.push(0);
        let mut message = (body.len() as u32 + 4).to_be_bytes().to_vec();
        message.extend_from_slice(&body);
        connection.stream.get_mut().write_all(&message)?;
        connection.until_ready()?;
        Ok(connection)
    }

    fn send(&mut self, kind: u8, body: &[u8]) -> io::Result<()> {
        let mut message = vec![kind];
        message.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
        message.extend_from_slice(body);
        self.stream.get_mut().write_all(&message)
    }

    fn message(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let mut head = [0; 5];
        self.stream.read_exact(&mut head)?;
        let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize - 4;
        let mut body = vec![0; len];
        self.stream.read_exact(&mut body)?;
        if head[0] == b'E' {
            return Err(io::Error::other(String::from_utf8_lossy(&body).replace('\0', " ")));
        }
        Ok((head[0], body))
    }

    /// The first field of each row.
    fn until_ready(&mut self) -> io::Result<Vec<String>> {
        let mut rows = Vec::new();
        loop {
            match self.message()? {
                (b'Z', _) => return Ok(rows),
                (b'D', row) if row.len() >= 6 => {
                    let len = i32::from_be_bytes([row[2], row[3], row[4], row[5]]).max(0) as usize;
                    rows.push(String::from_utf8_lossy(&row[6..6 + len]).into_owned());
                }
                _ => {}
            }
        }
    }

    /// Runs statements; returns the first field of each row.
    pub(crate) fn run(&mut self, sql: &str) -> Vec<String> {
        self.send(b'Q', &[sql.as_bytes(), b"\0"].concat()).expect("sent");
        self.until_ready().unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// Reads the slot's stream up to an LSN: the payloads of its `w` messages.
    pub(crate) fn stream(&mut self, slot: &str, options: &str, until: u64) -> Vec<Vec<u8>> {
        let sql = format!("START_REPLICATION SLOT {slot} LOGICAL 0/0 ({options})\0");
        self.send(b'Q', sql.as_bytes()).expect("sent");
        let mut frames = Vec::new();
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut answered = false;
        loop {
            assert!(Instant::now() < deadline, "{slot} does not get to the end");
            if !answered {
                // Asks for a keepalive, so that the end is known.
                let mut status = vec![b'r'];
                status.extend_from_slice(&[0; 32]);
                status.push(1);
                self.send(b'd', &status).expect("sent");
                answered = true;
            }
            let (kind, body) = self.message().unwrap_or_else(|error| panic!("{sql}: {error}"));
            if kind != b'd' {
                continue;
            }
            match body.first() {
                Some(b'w') => frames.push(body[25..].to_vec()),
                Some(b'k') => {
                    let end = u64::from_be_bytes(body[1..9].try_into().expect("8 bytes"));
                    if end >= until {
                        return frames;
                    }
                    std::thread::sleep(Duration::from_millis(20));
                    answered = false;
                }
                _ => {}
            }
        }
    }
}
