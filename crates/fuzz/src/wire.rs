//! Any bytes as the words of a server: its frames, its errors, its positions.
//!
//! ```text
//!   want(1)  bytes of the server: startup and login, rows, a COPY, or a change stream
//! ```

use pgferry_model::Position;
use pgferry_postgres::fuzzing::{Want, talk};
use pgferry_source_postgres::decode::pgoutput::decode;
use pgferry_source_postgres::fuzzing::stream_message;
use tokio::runtime::Runtime;

thread_local! {
    static RUNTIME: Runtime = runtime();
}

#[allow(clippy::expect_used, reason = "nothing can be fuzzed without it")]
fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

pub(crate) fn server(bytes: &[u8]) {
    let Some((&want, said)) = bytes.split_first() else { return };
    let want = match want % 4 {
        0 => Want::Login,
        1 => Want::Rows,
        2 => Want::Copy,
        _ => Want::Changes,
    };
    let talking = talk(said, want, |session, tag, body| {
        match tag {
            b'd' => {
                if let Ok(Ok(message)) = stream_message(body) {
                    let _ = decode(message, false).is_ok() || decode(message, true).is_ok();
                }
            }
            b'E' => drop(session.server_error(body, "reading a table").to_string()),
            _ => {}
        }
        Ok(())
    });
    RUNTIME.with(|runtime| {
        if let Err(failure) = runtime.block_on(talking) {
            drop(failure.to_string());
        }
    });
}

/// A text that is a position comes back as it was, but for case and leading zeros.
pub(crate) fn lsn(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(position) = text.parse::<Position>() else { return };
    assert_eq!(position.to_string().parse(), Ok(position));
    let plain = |text: &str| {
        let halves: Vec<String> =
            text.split('/').map(|half| half.trim_start_matches('0').to_ascii_uppercase()).collect();
        halves.join("/")
    };
    assert_eq!(plain(text), plain(&position.to_string()));
}
