//! The floor of a snapshot: connections that send COPY, read as much as comes, and throw it away unseen.
//!
//! Why no library: it would copy and split what is read, and the floor would be the library's.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::server::Place;

/// The end of a simple query: ReadyForQuery, idle (PostgreSQL docs, chapter "Message Formats").
const READY: [u8; 6] = [b'Z', 0, 0, 0, 5, b'I'];
const READ_BYTES: usize = 1 << 20;

#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    place: Place,
    /// A statement per connection
    #[arg(long)]
    copy: Vec<String>,
}

trait Stream: Read + Write + Send {}

impl<T: Read + Write + Send> Stream for T {}

fn connect(options: &Options) -> Result<Box<dyn Stream>> {
    let mut stream: Box<dyn Stream> = if options.place.host.starts_with('/') {
        Box::new(UnixStream::connect(format!("{}/.s.PGSQL.{}", options.place.host, options.place.port))?)
    } else {
        Box::new(TcpStream::connect((options.place.host.as_str(), options.place.port))?)
    };
    let mut startup = vec![0, 0, 0, 0, 0, 3, 0, 0];
    for text in ["user", "postgres", "database", &options.place.database, ""] {
        startup.extend(text.as_bytes());
        startup.push(0);
    }
    let length = u32::try_from(startup.len())?.to_be_bytes();
    startup[..4].copy_from_slice(&length);
    stream.write_all(&startup)?;
    Ok(stream)
}

/// Reads to the end of an answer; its number of bytes.
fn skip(stream: &mut dyn Stream, room: &mut [u8]) -> Result<u64> {
    let (mut total, mut tail) = (0, Vec::<u8>::new());
    loop {
        let read = stream.read(room)?;
        if read == 0 {
            bail!("the server closed the connection: is it trusted, and is the statement right?");
        }
        total += read as u64;
        tail.extend(&room[read.saturating_sub(READY.len())..read]);
        tail.drain(..tail.len().saturating_sub(READY.len()));
        if tail == READY {
            return Ok(total);
        }
    }
}

fn drain(options: &Options, copy: &str) -> Result<u64> {
    let mut stream = connect(options)?;
    let mut room = vec![0; READ_BYTES];
    skip(&mut *stream, &mut room)?;
    let mut query = vec![b'Q'];
    query.extend(u32::try_from(copy.len() + 5)?.to_be_bytes());
    query.extend(copy.as_bytes());
    query.push(0);
    stream.write_all(&query)?;
    skip(&mut *stream, &mut room)
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let bytes = std::thread::scope(|scope| {
        let readers: Vec<_> =
            options.copy.iter().map(|copy| scope.spawn(move || drain(options, copy))).collect();
        readers
            .into_iter()
            .map(|reader| reader.join().map_err(|_| ()).ok().context("a reader's thread ended")?)
            .sum::<Result<u64>>()
    })?;
    println!("{bytes} bytes");
    Ok(())
}
