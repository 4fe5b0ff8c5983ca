//! Memory stays bounded while long values are loaded.

use std::sync::Arc;

use pgferry_model::{Batch, Op};
use pgferry_pipeline::{ChunkRows, Inspect, Target, rows_between};

use crate::making::*;

/// 1.2 GiB of text, in values of 32 KiB; DuckDB may use 512 MB.
const BATCHES: u64 = 300;
const ROWS: u64 = 128;
const VALUE_BYTES: usize = 32 << 10;

fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1024
}

/// 4 MiB of hexadecimal noise.
fn noise() -> String {
    let mut seed = 42u64;
    let mut next = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        format!("{seed:016x}")
    };
    (0..256 << 10).map(|_| next()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn long_values_do_not_pile_up_in_the_appender() {
    let people = people();
    let made = copying(&people, &[]).await;
    let noise = noise();
    let (sender, receiver) = rows_between();
    let sending = {
        let people = Arc::clone(&people);
        async move {
            let mut highest = 0;
            for number in 0..BATCHES {
                let mut batch = Batch::new(Arc::clone(&people));
                for row in 0..ROWS {
                    let id = number * ROWS + row;
                    let from = (id * 7919) as usize % (noise.len() - VALUE_BYTES);
                    let body = noise[from..from + VALUE_BYTES].to_owned();
                    batch.start_row(Op::Insert, 0);
                    batch.start_new();
                    push(&mut batch, &[t(&id.to_string()), t("a"), In::Text(body), t("1")]);
                }
                sender.send(batch).await.unwrap();
                highest = highest.max(resident_mib());
            }
            sender.end(BATCHES * ROWS).await.unwrap();
            highest
        }
    };
    let (loaded, highest) =
        tokio::join!(made.target.load(ChunkRows { chunk: chunk(&people, 1), rows: receiver }), sending);
    assert_eq!(loaded.unwrap(), BATCHES * ROWS);
    assert_eq!(made.target.count(&people).await.unwrap(), BATCHES * ROWS);
    assert!(highest < 800, "{highest} MiB");
}
