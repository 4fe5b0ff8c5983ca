//! Into Databend, beside what its engine alone needs: a table's snapshot, and merges into tables of a million rows and more.

mod engine;
mod merge;
mod snapshot;

use anyhow::Result;
use clap::Args;

use crate::effort::Effort;
use crate::report::Report;

#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) effort: Effort,
    /// Only this part: snapshot or merge
    #[arg(long)]
    part: Option<String>,
}

const METHOD: &str = "Into Databend's own engine (1.2.895, from PyPI) behind the test kit's server (`crates/testkit/databend-server`) on the same \
    machine; its CPU and memory are those of that process, with the protocol's part, which is Python. \
    Snapshot of `wide`: pgferry with 1, 2 and 4 loads at once, beside PostgreSQL's COPY thrown away, and beside `COPY INTO` of the very Parquet files that \
    pgferry had made in a run before, in the stage already: what the engine alone needs. Added is the time beyond the faster of those; on one machine pgferry and \
    PostgreSQL take their CPU from the engine, so own CPU stands beside it. No COPY under way: the part of the time in which the engine loads nothing. \
    Merges: changes (80/10/10, one transaction) of `ledger`, scattered over all keys or among the highest ones. Staged after: from the commit in the source until \
    they are durable in the raw table. A merge is from the first statement that pgferry sends for it to the end of the last one; added is what of that is not the engine's time \
    for `MERGE`, `DELETE` of what was staged, and `COMMIT`: pgferry's own questions, its position, and all between the statements. By hand: those three statements for a copy of the same \
    staged rows on the same table, put back to where it was (`FLASHBACK`); rows that differ afterwards fail the benchmark. Unordered: the same on a copy made without `CLUSTER BY`, in blocks of the engine's own size (once); \
    the source has its rows in the order of the key. The merge's CPU is that of all that the engine did from staged to merged, pgferry's own from before the commit.";

pub(crate) async fn run(options: &Options) -> Result<()> {
    let mut report = Report::new("databend", &options.effort, METHOD);
    let wanted = |part: &str| options.part.as_deref().is_none_or(|only| only == part);
    if wanted("snapshot") {
        snapshot::run(&options.effort, &mut report).await?;
    }
    if wanted("merge") {
        merge::run(&options.effort, &mut report).await?;
    }
    report.finish(&options.effort)
}
