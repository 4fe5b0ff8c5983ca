//! A connection that a thread of its own reads ahead: a busy stream is taken up in large pieces, whatever its messages' size.
//!
//! ```text
//!   socket ──read, nap──> buffer ──whole frames──> [ up to 4 pieces ] ──> ReadAhead (the caller's task)
//!                            ^───────── emptied buffers ───────────────────┘
//! ```
//!
//! Invariants: a piece holds whole frames only; `read_some` is cancel-safe; what waits is bounded (4 pieces of 256 kB, and one frame
//! where that is larger); dropping the `ReadAhead` ends the thread and the connection.
//!
//! Why ahead: the walsender stops where nobody takes its bytes up, so reading does not wait for decoding.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use pgferry_model::{Error, Result};
use tokio::sync::mpsc;

use crate::connection_thread::ConnectionThread;
use crate::error::ServerError;
use crate::explain::{Place, explain};
use crate::session::{
    FRAME_BYTES_MAX, Frame, KEPT_BYTES_MAX, READ_BYTES, SessionReader, drop_frame, first_frame, frame_length,
    take_frame,
};

/// Pieces that wait for the caller.
const PIECES_MAX: usize = 4;

/// The reading side of a connection that is read ahead.
pub struct ReadAhead {
    pieces: mpsc::Receiver<Result<BytesMut>>,
    emptied: mpsc::Sender<BytesMut>,
    buffer: BytesMut,
    place: Arc<Place>,
    _thread: ConnectionThread,
}

impl ReadAhead {
    /// Reads on from `reader`, which has to come from [`ConnectionThread::open`].
    pub fn start(thread: ConnectionThread, reader: SessionReader) -> Self {
        let (sender, pieces) = mpsc::channel(PIECES_MAX);
        let (emptied, free) = mpsc::channel(PIECES_MAX + 1);
        let place = Arc::clone(&reader.place);
        thread.spawn(Reading { reader, sender, free }.run());
        ReadAhead { pieces, emptied, buffer: BytesMut::new(), place, _thread: thread }
    }

    /// Waits for more; what is at hand has to be taken before. Returns the number of bytes; 0 at the end. Cancel-safe.
    pub async fn read_some(&mut self) -> Result<usize> {
        match self.pieces.recv().await {
            Some(piece) => {
                let emptied = std::mem::replace(&mut self.buffer, piece?);
                // Where there are enough, one is let go.
                let _ = self.emptied.try_send(emptied);
                Ok(self.buffer.len())
            }
            None => Ok(0),
        }
    }

    /// The first frame at hand, without taking it.
    pub fn peek_frame(&self) -> Result<Option<Frame<'_>>> {
        first_frame(&self.buffer, FRAME_BYTES_MAX)
    }

    /// Takes the frame that [`ReadAhead::peek_frame`] showed.
    pub fn consume_frame(&mut self) {
        drop_frame(&mut self.buffer, FRAME_BYTES_MAX);
    }

    /// Takes the body of the frame that [`ReadAhead::peek_frame`] showed, with its memory.
    pub fn take_frame(&mut self) -> Bytes {
        take_frame(&mut self.buffer, FRAME_BYTES_MAX)
    }

    /// An ErrorResponse as an error of pgferry.
    pub fn server_error(&self, body: &[u8], doing: &str) -> Error {
        explain(ServerError::parse(body), doing, &self.place, "")
    }
}

/// What the thread does.
struct Reading {
    reader: SessionReader,
    sender: mpsc::Sender<Result<BytesMut>>,
    free: mpsc::Receiver<BytesMut>,
}

impl Reading {
    async fn run(mut self) {
        // Frames may have come with the answer to the last statement.
        let ended = loop {
            let done = match self.whole_frames() {
                Ok(0) => self.read().await,
                Ok(bytes) => self.give(bytes).await,
                Err(failure) => Err(Some(failure)),
            };
            if let Err(ended) = done {
                break ended;
            }
        };
        // The server's last words come before the end. Nobody may be listening any more.
        if let Ok(bytes @ 1..) = self.whole_frames() {
            self.reader.buffer.truncate(bytes);
            let _ = self.sender.send(Ok(std::mem::take(&mut self.reader.buffer))).await;
        }
        if let Some(failure) = ended {
            let _ = self.sender.send(Err(failure)).await;
        }
    }

    /// Bytes of the buffer's whole frames.
    fn whole_frames(&self) -> Result<usize> {
        let mut bytes = 0;
        while let Some(length) = frame_length(&self.reader.buffer[bytes..], FRAME_BYTES_MAX)? {
            bytes += length;
        }
        Ok(bytes)
    }

    /// Hands over the whole frames; reads on while the caller is busy and a piece has room.
    async fn give(&mut self, whole: usize) -> Result<(), Option<Error>> {
        let room = self.reader.buffer.len() < READ_BYTES;
        let sender = self.sender.clone();
        tokio::select! {
            biased;
            permit = sender.reserve() => {
                let permit = permit.map_err(|_| None)?;
                let mut next = self.free.try_recv().ok().filter(|free| free.capacity() <= KEPT_BYTES_MAX).unwrap_or_default();
                next.clear();
                next.reserve(2 * READ_BYTES);
                next.extend_from_slice(&self.reader.buffer[whole..]);
                self.reader.buffer.truncate(whole);
                permit.send(Ok(std::mem::replace(&mut self.reader.buffer, next)));
                Ok(())
            }
            read = self.read(), if room => read,
        }
    }

    /// Reads what is at hand. `Err(None)`: the end, or the caller is gone.
    async fn read(&mut self) -> Result<(), Option<Error>> {
        let bytes = tokio::select! {
            read = self.reader.read_gathered() => read.map_err(Some)?,
            () = self.sender.closed() => return Err(None),
        };
        if bytes == 0 { Err(None) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncWriteExt;
    use tokio::net::UnixStream;

    use super::*;
    use crate::session::Session;
    use crate::stream::ByteStream;

    fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).expect("a short frame").to_be_bytes();
        [&[tag], &length[..], body].concat()
    }

    /// The caller takes nothing until the connection has ended: every frame waits for it, the last words too.
    #[tokio::test]
    async fn what_came_before_the_end_is_read_although_nobody_took_it_in_time() {
        let thread = ConnectionThread::start().expect("a thread");
        let (ours, mut theirs) = thread.open(async { UnixStream::pair() }).await.expect("a pair of sockets");
        let (reader, _writer) = Session::over(ByteStream::Unix(ours), crate::fuzzing::place()).into_split();
        let mut ahead = ReadAhead::start(thread, reader);
        // More than the pieces that may wait, less than the buffer behind them.
        let sent = READ_BYTES * 3 / 4 / 1000;
        for number in 0..sent {
            let body = [&u32::try_from(number).expect("small").to_be_bytes()[..], &[7; 990]].concat();
            theirs.write_all(&frame(b'd', &body)).await.expect("room");
            if number < 2 * PIECES_MAX {
                // Each becomes a piece of its own, until no more may wait.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        theirs.write_all(&frame(b'E', b"SFATAL\0\0")).await.expect("room");
        theirs.write_all(b"d\0\0").await.expect("room");
        drop(theirs);
        tokio::time::sleep(Duration::from_millis(100)).await;
        let (mut numbers, mut last_words) = (Vec::new(), 0);
        while ahead.read_some().await.expect("no error") > 0 {
            while let Some(frame) = ahead.peek_frame().expect("a frame") {
                match frame.tag {
                    b'd' => numbers.push(u32::from_be_bytes(frame.body[..4].try_into().expect("four bytes"))),
                    _ => last_words += 1,
                }
                ahead.consume_frame();
            }
        }
        assert_eq!(numbers, (0..u32::try_from(sent).expect("small")).collect::<Vec<_>>());
        assert_eq!(last_words, 1);
    }
}
