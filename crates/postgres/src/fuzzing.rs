//! A session with a server that says anything: what crates/fuzz cannot reach from outside.

use std::io::Write as _;
use std::net::Shutdown;
use std::sync::atomic::AtomicU8;

use pgferry_model::Result;
use tokio::net::UnixStream;

use crate::config::{ConnectionConfig, Secret};
use crate::explain::Place;
use crate::session::{Purpose, Session};
use crate::stream::ByteStream;

/// What we want from the server.
#[derive(Clone, Copy, Debug)]
pub enum Want {
    /// Startup, login and settings.
    Login,
    /// The rows of a small query.
    Rows,
    /// A COPY to us.
    Copy,
    /// A change stream.
    Changes,
}

/// Talks to a server whose words are `said`, whatever we say, and which then hangs up; every frame of a COPY goes to `each`.
pub async fn talk(
    said: &[u8],
    want: Want,
    mut each: impl FnMut(&Session, u8, &[u8]) -> Result<()>,
) -> Result<()> {
    // The socket's own buffer holds all that is said; nobody has to run on the other side.
    let (ours, theirs) = UnixStream::pair().map_err(crate::session::lost)?;
    let mut theirs = theirs.into_std().map_err(crate::session::lost)?;
    theirs.write_all(said).map_err(crate::session::lost)?;
    theirs.shutdown(Shutdown::Write).map_err(crate::session::lost)?;
    let mut config = ConnectionConfig::new("here", 5432, "d", "u");
    config.password = Some(Secret::new("p"));
    let stream = ByteStream::Unix(ours);
    let mut session = match want {
        Want::Login => {
            return Session::begin(stream, &config, Purpose::Replication, &AtomicU8::new(0)).await.map(drop);
        }
        _ => Session::over(stream, place()),
    };
    match want {
        Want::Copy => session.copy_out("COPY").await?,
        Want::Changes => session.copy_both("START_REPLICATION").await?,
        _ => return session.simple_query("SELECT").await.map(drop),
    }
    loop {
        while let Some(frame) = session.peek_frame()? {
            each(&session, frame.tag, frame.body)?;
            session.consume_frame();
        }
        if session.read_some().await? == 0 {
            return Ok(());
        }
    }
}

/// Where nobody is.
pub(crate) fn place() -> Place {
    Place {
        host: "here".into(),
        port: 5432,
        database: "d".into(),
        user: "u".into(),
        own_address: None,
        encrypted: false,
    }
}
