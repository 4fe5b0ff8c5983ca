//! Real PostgreSQL servers for tests.
//!
//! ```text
//!   installation (programs) ──> template (initdb once) ──copy──> data folder ──> postmaster (process)
//!                                                                                    │
//!                                    test ──> Database (its own, dropped at its end) ┘
//! ```
//!
//! Invariants: a test process has at most one shared server per major; a server ends with the last handle on it or
//! with the test process; a stopped server keeps its port and data for the next start.
//!
//! Why a process of our own and not `pg_ctl start`: the handle is the process, so its end can be waited for.
//! Limits: standbys are promoted by `pg_ctl`, because 10 has no SQL function for it.

mod certificates;
mod database;
mod installation;
mod options;
mod postmaster;
mod standby;
mod template;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail};
use tokio::sync::OnceCell;
use tokio_postgres::{Client, NoTls};

pub use certificates::Certificates;
pub use database::Database;
pub use installation::{MAJORS, cache};
pub use options::ServerOptions;
pub use postmaster::StopMode;

use crate::run_folder;
use installation::Installation;
use postmaster::Postmaster;

/// A handle on a running (or stopped) server; cheap to clone.
#[derive(Clone, Debug)]
pub struct Server(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    installation: Installation,
    options: ServerOptions,
    folder: PathBuf,
    port: u16,
    postmaster: Mutex<Option<Postmaster>>,
    certificates: Option<Certificates>,
}

static SHARED: [OnceCell<Server>; MAJORS.len()] = [const { OnceCell::const_new() }; MAJORS.len()];

impl Server {
    /// The server of `major` that all tests of this process share. Do not stop it and do not change its settings.
    ///
    /// # Errors
    /// When the major is not installed (the cure is in the text) or does not start.
    pub async fn shared(major: u32) -> Result<Self> {
        let Some(place) = MAJORS.iter().position(|known| *known == major) else {
            bail!("tests run on PostgreSQL {MAJORS:?}, not on {major}");
        };
        let server = SHARED[place].get_or_try_init(|| Self::start(ServerOptions::new(major))).await?;
        Ok(server.clone())
    }

    /// Starts a server of its own. It ends, and its data goes, with the last handle.
    pub async fn start(options: ServerOptions) -> Result<Self> {
        let major = options.major;
        let (installation, folder) = blocking(move || {
            let installation = Installation::find(major)?;
            let folder = run_folder::new_folder(&format!("postgres-{major}"))?;
            installation.give(&folder)?;
            template::copy_to(&installation, &folder.join("data"))?;
            Ok((installation, folder))
        })
        .await?;
        Self::start_in(installation, folder, options, |_| Ok(())).await
    }

    /// Starts a server on the data folder that lies in `folder`; `finish` has the last word on its files.
    async fn start_in(
        installation: Installation,
        folder: PathBuf,
        options: ServerOptions,
        finish: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Self> {
        let socket = folder.join("socket");
        fs::create_dir(&socket)?;
        installation.give(&socket)?;
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o755))?;
        let certificates = options.write(&installation, &folder.join("data"), &socket)?;
        finish(&folder.join("data"))?;
        let (postmaster, port) = Postmaster::start(&installation, &folder, None).await?;
        let postmaster = Mutex::new(Some(postmaster));
        Ok(Self(Arc::new(Parts { installation, options, folder, port, postmaster, certificates })))
    }

    /// The major version.
    pub fn major(&self) -> u32 {
        self.0.installation.major
    }

    /// As `server_version_num`: 180004.
    pub fn version_num(&self) -> u32 {
        let minor = self.0.installation.version.split('.').nth(1).and_then(|minor| minor.parse::<u32>().ok());
        self.major() * 10_000 + minor.unwrap_or(0)
    }

    /// The TCP port on 127.0.0.1; the same for the server's whole life.
    pub fn port(&self) -> u16 {
        self.0.port
    }

    /// The folder with the Unix socket, for `host=`.
    pub fn socket_dir(&self) -> PathBuf {
        self.0.folder.join("socket")
    }

    /// The server's data folder.
    pub fn data_dir(&self) -> PathBuf {
        self.0.folder.join("data")
    }

    /// The server's log.
    pub fn log_path(&self) -> PathBuf {
        self.0.folder.join("server.log")
    }

    /// The certificates of a server started with [`ServerOptions::tls`].
    pub fn certificates(&self) -> Option<&Certificates> {
        self.0.certificates.as_ref()
    }

    /// A URL over TCP for the superuser and `database`, whose name needs no escaping.
    pub fn url(&self, database: &str) -> String {
        format!("postgresql://postgres@127.0.0.1:{}/{database}", self.port())
    }

    /// A configuration over the Unix socket for the superuser and `database`.
    pub fn config(&self, database: &str) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        config.host_path(self.socket_dir()).port(self.port()).user("postgres").dbname(database);
        config.connect_timeout(std::time::Duration::from_secs(10)).application_name("testkit");
        config
    }

    /// A session of the superuser in `database`, over the Unix socket. It ends with the client.
    pub async fn client(&self, database: &str) -> Result<Client> {
        connect(&self.config(database)).await
    }

    /// A new, empty database of its own for one test.
    pub async fn create_database(&self) -> Result<Database> {
        Database::create(self).await
    }

    /// Sets `name` for the whole server and reloads. Returns whether it takes a restart to count.
    pub async fn set(&self, name: &str, value: &str) -> Result<bool> {
        let client = self.client("postgres").await?;
        client.batch_execute(&format!("ALTER SYSTEM SET {name} = '{}'", value.replace('\'', "''"))).await?;
        let row = client.query_one("SELECT context FROM pg_settings WHERE name = $1", &[&name]).await?;
        let restart = row.get::<_, &str>(0) == "postmaster";
        self.reload().await?;
        Ok(restart)
    }

    /// Has the server read its configuration files again and waits until it has.
    pub async fn reload(&self) -> Result<()> {
        let client = self.client("postgres").await?;
        let loaded = "SELECT pg_conf_load_time()::text";
        let before: String = client.query_one(loaded, &[]).await?.get(0);
        client.batch_execute("SELECT pg_reload_conf()").await?;
        for _ in 0..500 {
            // A session takes over new settings between two statements, once its signal has arrived.
            let now: String = client.query_one(loaded, &[]).await?.get(0);
            if now != before
                && self.client("postgres").await?.query_one(loaded, &[]).await?.get::<_, String>(0) != before
            {
                return Ok(());
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        bail!("the server did not read its configuration within 5 s")
    }

    /// Whether the server process runs.
    pub fn running(&self) -> bool {
        self.postmaster().as_mut().is_some_and(Postmaster::alive)
    }

    /// The server's process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.postmaster().as_ref().map(Postmaster::pid)
    }

    /// Ends the server and waits for its end; its data and port stay for [`Server::resume`].
    pub async fn stop(&self, mode: StopMode) -> Result<()> {
        let Some(postmaster) = self.postmaster().take() else {
            return Ok(());
        };
        blocking(move || postmaster.stop(mode)).await
    }

    /// Ends the server process with SIGKILL, as a crash of the machine's kernel would look to it.
    pub async fn kill9(&self) -> Result<()> {
        self.stop(StopMode::Kill).await
    }

    /// Starts a stopped server again on its data and port.
    pub async fn resume(&self) -> Result<()> {
        if self.running() {
            return Ok(());
        }
        let (postmaster, _) =
            Postmaster::start(&self.0.installation, &self.0.folder, Some(self.port())).await?;
        *self.postmaster() = Some(postmaster);
        Ok(())
    }

    /// [`Server::stop`], then [`Server::resume`].
    pub async fn restart(&self, mode: StopMode) -> Result<()> {
        self.stop(mode).await?;
        self.resume().await
    }

    fn postmaster(&self) -> MutexGuard<'_, Option<Postmaster>> {
        self.0.postmaster.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        drop(self.postmaster.lock().unwrap_or_else(PoisonError::into_inner).take());
        if std::thread::panicking() {
            run_folder::keep_logs();
        } else if let Err(error) = fs::remove_dir_all(&self.folder) {
            run_folder::warn(&format!("cannot remove {}: {error}", self.folder.display()));
        }
    }
}

/// A session by `config`; its connection ends with the client.
pub(crate) async fn connect(config: &tokio_postgres::Config) -> Result<Client> {
    let (client, connection) = config.connect(NoTls).await.context("cannot connect to the test server")?;
    tokio::spawn(connection);
    Ok(client)
}

/// Runs blocking work off the async threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.context("blocking work was cancelled")?
}
