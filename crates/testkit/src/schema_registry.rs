//! A real schema registry: Apicurio's, with its state in memory, on loopback, on a port of its own.
//!
//! Invariants: it never outlives the test process; where it is not installed, the caller is told so, and says what it did not run.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use crate::kafka::{NotInstalled, free_port};
use crate::run_folder;
use crate::server::cache;

const VERSION: &str = "3.0.9";
/// The longest that it may take to start; a cold machine needs some seconds.
const START_WITHIN: Duration = Duration::from_secs(120);

/// A running registry.
#[derive(Clone, Debug)]
pub struct SchemaRegistry(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    port: u16,
    child: Mutex<Option<Child>>,
}

impl SchemaRegistry {
    /// The registry that all tests of this process share.
    ///
    /// # Errors
    /// When it does not start. Where it is not installed, the reason.
    pub fn shared() -> Result<std::result::Result<SchemaRegistry, NotInstalled>> {
        type Started = std::result::Result<SchemaRegistry, NotInstalled>;
        static SHARED: OnceLock<std::result::Result<Started, String>> = OnceLock::new();
        let started = SHARED.get_or_init(|| SchemaRegistry::start().map_err(|error| format!("{error:#}")));
        started.clone().map_err(|error| anyhow!("{error}"))
    }

    fn start() -> Result<std::result::Result<SchemaRegistry, NotInstalled>> {
        let folder = cache()?.join(format!("apicurio-registry-{VERSION}"));
        if !folder.join("complete").exists() {
            let missing = format!(
                "Apicurio Registry {VERSION} is not in {}: run scripts/setup --test",
                folder.display()
            );
            return Ok(Err(NotInstalled(missing)));
        }
        let (port, place) = (free_port()?, run_folder::new_folder("registry")?);
        let log = File::create(place.join("registry.log"))?;
        let child = Command::new("java")
            .args(["-Xmx256m", "-XX:TieredStopAtLevel=1", "-Dquarkus.http.host=127.0.0.1"])
            .arg(format!("-Dquarkus.http.port={port}"))
            .arg("-jar")
            .arg(folder.join("runner.jar"))
            .current_dir(&place)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start java")?;
        run_folder::remember(child.id(), "KILL")?;
        let registry = SchemaRegistry(Arc::new(Parts { port, child: Mutex::new(Some(child)) }));
        registry.await_answer(&place)?;
        Ok(Ok(registry))
    }

    fn await_answer(&self, place: &PathBuf) -> Result<()> {
        let until = Instant::now() + START_WITHIN;
        while !self.answers() {
            if Instant::now() > until {
                let log = std::fs::read_to_string(place.join("registry.log")).unwrap_or_default();
                bail!("the schema registry does not answer; its log:\n{log}");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    fn answers(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.0.port)) else { return false };
        let asked = stream.set_read_timeout(Some(Duration::from_secs(5))).and_then(|()| {
            stream.write_all(b"GET /apis/ccompat/v7/subjects HTTP/1.0\r\nHost: localhost\r\n\r\n")
        });
        let mut answer = [0; 12];
        asked.is_ok() && stream.read_exact(&mut answer).is_ok() && answer.ends_with(b" 200")
    }

    /// Where clients ask.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/apis/ccompat/v7", self.0.port)
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        let taken = self.child.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut child) = taken {
            let _gone = child.kill();
            let _reaped = child.wait();
            run_folder::forget(child.id());
        }
    }
}
