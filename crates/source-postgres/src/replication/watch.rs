//! Looks, while changes flow, whether the publication still has the task's tables: what it lacks never arrives, and nothing says so.
//!
//! ```text
//!   every half minute: publication ──lacks a table that still exists──> trouble ──> the stream's next fill fails with it
//! ```
//!
//! Invariants: a table's trouble is told once; a question that fails is asked again later, it ends nothing; a table that was dropped is no
//! trouble. Why not from the stream itself: the server sends nothing when a publication changes.

use std::time::Duration;

use pgferry_model::{Class, Error, Result};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::publication::{self, Needed};
use crate::config::PostgresSourceConfig;
use crate::control::PostgresControl;
use crate::error;

const EVERY: Duration = Duration::from_secs(30);

/// The task that looks; it ends with this.
pub(crate) struct Watch {
    troubles: mpsc::UnboundedReceiver<Error>,
    looking: JoinHandle<()>,
}

impl Watch {
    /// `needed`: the tables that follow the stream. It asks on a connection of its own: the server may let it wait for a table that is being
    /// altered, and nobody else should wait with it.
    pub(crate) fn start(config: PostgresSourceConfig, needed: Vec<Needed>) -> Watch {
        let (found, troubles) = mpsc::unbounded_channel();
        let control = PostgresControl::new(config);
        Watch { troubles, looking: tokio::spawn(look(control, needed, found)) }
    }

    /// What was found and not told yet.
    pub(crate) fn take(&mut self) -> Option<Error> {
        self.troubles.try_recv().ok()
    }

    /// Waits for the next trouble; for ever where none comes. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Error {
        match self.troubles.recv().await {
            Some(trouble) => trouble,
            None => std::future::pending().await,
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.looking.abort();
    }
}

async fn look(control: PostgresControl, mut needed: Vec<Needed>, found: mpsc::UnboundedSender<Error>) {
    while !needed.is_empty() {
        tokio::time::sleep(EVERY).await;
        let looked = troubles(&control, &mut needed).await;
        control.release().await;
        match looked {
            Ok(troubles) => troubles.into_iter().for_each(|trouble| drop(found.send(trouble))),
            Err(failure) => {
                tracing::debug!(
                    code = failure.code().as_str(),
                    "the publication was not looked at: {failure}"
                );
            }
        }
    }
}

/// Takes tables out of `needed` that the publication lacks. One that is gone altogether is the server's to tell, at the next change.
async fn troubles(control: &PostgresControl, needed: &mut Vec<Needed>) -> Result<Vec<Error>> {
    let name = &control.config.replication.publication;
    let Some(published) = publication::find(control, name).await? else { return Ok(Vec::new()) };
    let exists = publication::existing(control, needed).await?;
    let mut troubles = Vec::new();
    for one in exists {
        let lacks = publication::missing(Some(&published), std::slice::from_ref(&one));
        if lacks.is_empty() {
            continue;
        }
        let statement = publication::statement(control, true, &lacks).await?;
        let trouble = publication::not_published(name, &published, &lacks, &statement);
        let trouble = trouble.with_class(Class::TableBroken).with_table(one.name.clone());
        troubles.push(error::left_publication(trouble));
        needed.retain(|other| other.name != one.name);
    }
    Ok(troubles)
}
