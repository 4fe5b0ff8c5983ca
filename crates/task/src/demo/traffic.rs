//! Customers who buy while the demo runs: two clients, at most some hundred transactions a second.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pgferry_model::{Error, Result};
use pgferry_postgres::{ConnectionConfig, Purpose, Session};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::SERVER_FAILED;
use super::server::retry;

const CLIENTS: usize = 2;
const PAUSE: Duration = Duration::from_millis(5);
/// Transactions of a client at most, however long the demo runs.
const TRANSACTIONS_MAX: u64 = 500_000;

/// What a client does, in turn: orders come, move on and are returned; carts are filled and left.
const STATEMENTS: [&str; 6] = [
    "WITH o AS (INSERT INTO public.orders (customer_id, status, placed, note)
         VALUES (1 + floor(random() * 9999), 'placed', clock_timestamp(), NULL) RETURNING id)
     INSERT INTO public.order_items SELECT o.id, line, p.id, 1 + line % 3, p.price
     FROM o CROSS JOIN generate_series(1, 3) AS line
     JOIN public.products AS p ON p.id = (o.id * 13 + line * 29) % 500 + 1",
    "UPDATE public.orders SET status = 'paid' WHERE id IN
         (SELECT id FROM public.orders WHERE status = 'placed' ORDER BY id DESC LIMIT 3 FOR UPDATE SKIP LOCKED)",
    "INSERT INTO public.carts (customer_id, content, changed)
     VALUES (1 + floor(random() * 9999), '[1, 2, {\"gift\": true}]', localtimestamp)",
    "DELETE FROM public.carts WHERE id IN
         (SELECT id FROM public.carts ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED)",
    "UPDATE public.products SET price = price + 0.01, attributes = attributes || '{\"checked\": true}'
     WHERE id = 1 + floor(random() * 499)",
    "BEGIN; UPDATE public.orders SET note = 'never mind' WHERE id = 1 + floor(random() * 29999); ROLLBACK",
];

/// Running clients.
pub struct Traffic {
    stop: CancellationToken,
    clients: Vec<JoinHandle<Result<()>>>,
    transactions: Arc<AtomicU64>,
}

impl Traffic {
    /// Starts the clients. They stop when asked, or with the handle.
    pub fn start(connection: &ConnectionConfig) -> Traffic {
        let (stop, transactions) = (CancellationToken::new(), Arc::new(AtomicU64::new(0)));
        let client =
            |number| tokio::spawn(buy(connection.clone(), number, Arc::clone(&transactions), stop.clone()));
        let clients = (0..CLIENTS).map(client).collect();
        Traffic { stop, clients, transactions }
    }

    /// Transactions so far, rolled back ones included.
    pub fn transactions(&self) -> u64 {
        self.transactions.load(Ordering::Relaxed)
    }

    /// Stops the clients; each ends its transaction. Returns the number of transactions.
    pub async fn stop(mut self) -> Result<u64> {
        self.stop.cancel();
        for client in std::mem::take(&mut self.clients) {
            client.await.map_err(|lost| {
                Error::task_broken(SERVER_FAILED, "a client of the demo ended without a result")
                    .with_cure(retry())
                    .with_origin(lost)
            })??;
        }
        Ok(self.transactions())
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn buy(
    connection: ConnectionConfig,
    number: usize,
    done: Arc<AtomicU64>,
    stop: CancellationToken,
) -> Result<()> {
    let mut session = Session::connect(&connection, Purpose::Query).await?;
    let turns = STATEMENTS.iter().cycle().skip(number * STATEMENTS.len() / CLIENTS);
    for (_, statement) in (0..TRANSACTIONS_MAX).zip(turns) {
        session.simple_query(statement).await?;
        done.fetch_add(1, Ordering::Relaxed);
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = stop.cancelled() => break,
        }
    }
    session.close().await
}
