//! Rows leave here: producers, their transactions, and which partition a record goes to.
//!
//! ```text
//!   begin ──> send* ──> settle (every record acknowledged) ──> commit
//!                └───────────────┴── an error ──> abort; what cannot be aborted is closed, and made anew by the next `open`
//! ```
//!
//! Invariants: a commit is tried only after every record of it is acknowledged; a producer that has failed for good writes nothing
//! any more.

use std::time::{Duration, Instant};

use pgferry_model::{Error, Result, TableName};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

use crate::broker::{ANSWER_WITHIN, Cluster, Told, Undelivered};
use crate::config::PartitionPolicy;
use crate::encode::{Record, Records};
use crate::error::{
    by_code, code_of, is_fenced, is_transient, own_record_refused, record_refused, refused, topic_gone,
    transaction_timeout, transactions_denied,
};
use crate::extra_topics::DeadLetters;

/// Between two looks for room in a producer's queue, and for the last acknowledgements.
const LOOK_AFTER: Duration = Duration::from_micros(500);
/// So many records are sent between two looks at what was not delivered.
const LOOK_EVERY: u32 = 4_096;

/// The number of a record that belongs to no table.
pub(crate) const NO_ROUTE: usize = usize::MAX;

/// One producer, with its transaction.
pub(crate) struct Producer {
    inner: BaseProducer<Told>,
    told: Told,
    /// Its transactional id, if it has one.
    id: Option<String>,
    state_topic: String,
    begun: Option<Instant>,
    timeout: Duration,
    sent: u32,
    dead: bool,
}

/// Where one table's records go.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    pub(crate) table: TableName,
    pub(crate) topic: String,
    pub(crate) partitions: i32,
    pub(crate) policy: PartitionPolicy,
    /// By the policy [`PartitionPolicy::TableHash`].
    table_partition: i32,
    /// Where records go that the topic does not take.
    pub(crate) dead_letters: Option<DeadLetters>,
}

impl Route {
    pub(crate) fn new(
        table: &TableName,
        database: &str,
        topic: &str,
        partitions: i32,
        policy: PartitionPolicy,
    ) -> Route {
        let name = format!("{database}.{}.{}", table.schema, table.name);
        let table_partition = partition_of(name.as_bytes(), partitions);
        Route {
            table: table.clone(),
            topic: topic.to_owned(),
            partitions,
            policy,
            table_partition,
            dead_letters: None,
        }
    }

    fn partition(&self, key: Option<&[u8]>) -> i32 {
        match (self.policy, key) {
            (PartitionPolicy::First, _) | (PartitionPolicy::KeyHash, None) => 0,
            (PartitionPolicy::TableHash, _) => self.table_partition,
            (PartitionPolicy::KeyHash, Some(key)) => partition_of(key, self.partitions),
        }
    }
}

/// As Java clients choose it (Apache Kafka source, `BuiltInPartitioner.partitionForKey`).
pub(crate) fn partition_of(bytes: &[u8], partitions: i32) -> i32 {
    (murmur2(bytes) & 0x7fff_ffff) as i32 % partitions.max(1)
}

/// The hash of Kafka's Java clients: MurmurHash2, 32 bits, with their seed.
fn murmur2(bytes: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    const SEED: u32 = 0x9747_b28c;
    let mut hash = SEED ^ bytes.len() as u32;
    let (words, rest) = bytes.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    if !rest.is_empty() {
        for (at, &byte) in rest.iter().enumerate() {
            hash ^= u32::from(byte) << (8 * at);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

impl Producer {
    /// A producer; with an id, the older holders of the id are refused from now on, and what they left open is aborted.
    pub(crate) fn new(cluster: &Cluster, transactional_id: Option<&str>) -> Result<Producer> {
        let (inner, told) = cluster.producer(transactional_id)?;
        let timeout = Duration::from_millis(cluster.transaction_timeout_ms());
        let producer = Producer {
            inner,
            told,
            id: transactional_id.map(str::to_owned),
            state_topic: cluster.state_topic().to_owned(),
            begun: None,
            timeout,
            sent: 0,
            dead: false,
        };
        if transactional_id.is_some() {
            // Connected first: asked without a connection, the client waits half a second before it tries again.
            let _metadata =
                producer.inner.client().fetch_metadata(Some(&producer.state_topic), ANSWER_WITHIN);
            producer
                .retried(|inner| inner.init_transactions(ANSWER_WITHIN))
                .map_err(|failure| producer.failed("taking over the task's transactions", failure))?;
        }
        Ok(producer)
    }

    /// Whether it has failed for good.
    pub(crate) fn is_dead(&self) -> bool {
        self.dead
    }

    pub(crate) fn has_begun(&self) -> bool {
        self.begun.is_some()
    }

    /// Begins a transaction, where it has them.
    pub(crate) fn begin(&mut self) -> Result<()> {
        if self.dead {
            let fatal = self.inner.client().fatal_error().map(|(code, _)| code);
            return Err(self.meant("writing to the cluster", fatal.unwrap_or(RDKafkaErrorCode::State)));
        }
        let _old = (self.told.take_undelivered(), self.told.take_denied());
        if self.id.is_some() {
            self.inner
                .begin_transaction()
                .map_err(|failure| self.failed("beginning a transaction", failure))?;
        }
        self.begun = Some(Instant::now());
        Ok(())
    }

    /// Hands a record over; waits while the queue is full. `number` comes back with an error of its delivery.
    pub(crate) fn send(
        &mut self,
        topic: &str,
        partition: i32,
        record: &Record<'_>,
        number: usize,
    ) -> std::result::Result<(), KafkaError> {
        let mut message = BaseRecord::<[u8], [u8], usize>::with_opaque_to(topic, number).partition(partition);
        if let Some(key) = record.key {
            message = message.key(key);
        }
        if let Some(value) = record.value {
            message = message.payload(value);
        }
        if !record.headers.is_empty() {
            let mut headers = OwnedHeaders::new_with_capacity(record.headers.len());
            for (key, value) in record.headers {
                headers = headers.insert(Header { key, value: Some(value) });
            }
            message = message.headers(headers);
        }
        self.sent = self.sent.wrapping_add(1);
        if self.sent.is_multiple_of(LOOK_EVERY) {
            self.inner.poll(Duration::ZERO);
        }
        loop {
            match self.inner.send(message) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    message = back;
                    self.pause();
                }
                Err((failure, _)) => return Err(failure),
            }
        }
    }

    /// Takes what the client has to tell, and waits a moment. The client's own `poll` is no way to wait for a millisecond: it asks librdkafka
    /// for the whole milliseconds that are left, which are none, again and again until the time is over.
    fn pause(&self) {
        self.inner.poll(Duration::ZERO);
        std::thread::sleep(LOOK_AFTER);
    }

    /// Waits until every record is acknowledged. `routes`: of the numbers that records were sent with.
    pub(crate) fn settle(&mut self, routes: &[Route]) -> Result<()> {
        // Once without a wait: what lingers goes out now.
        let _more = self.inner.flush(Duration::ZERO);
        while self.inner.in_flight_count() > 0 {
            self.pause();
        }
        match self.told.take_undelivered() {
            None => Ok(()),
            Some(first) => Err(self.undelivered(routes, &first)),
        }
    }

    /// What the first record that was not delivered means; its number is that of the route it was sent on.
    fn undelivered(&self, routes: &[Route], first: &Undelivered) -> Error {
        use RDKafkaErrorCode as Is;
        let &Undelivered { number, ref topic, code } = first;
        if let Some((code, _)) = self.inner.client().fatal_error() {
            return self.meant("writing to the cluster", code);
        }
        if self.timed_out(code) {
            return self.meant("writing to the cluster", code);
        }
        if let Some(topic) = self.told.take_denied() {
            let denied = Is::TopicAuthorizationFailed;
            return match routes.iter().find(|route| route.topic == topic) {
                Some(route) => record_refused(&route.table, &topic, denied),
                None => own_record_refused(&self.state_topic, &topic, denied),
            };
        }
        // Records of a transaction that has failed only say that they went with it; a topic that is gone is the one cause of that which
        // belongs to a table.
        let vague = is_transient(code) || matches!(code, Is::Fatal | Is::UnknownTopicId);
        match routes.get(number) {
            _ if vague => match self.missing(routes) {
                Some(route) => topic_gone(&route.table, &route.topic),
                None => by_code("writing to the cluster", Is::MessageTimedOut),
            },
            Some(route) => record_refused(&route.table, &route.topic, code),
            None => own_record_refused(&self.state_topic, topic, code),
        }
    }

    /// The first topic that is not there any more. Asked for all: asking for one may make it.
    fn missing<'r>(&self, routes: &'r [Route]) -> Option<&'r Route> {
        let metadata = self.inner.client().fetch_metadata(None, ANSWER_WITHIN).ok()?;
        let there = |route: &&Route| metadata.topics().iter().any(|topic| topic.name() == route.topic);
        routes.iter().find(|route| !there(route))
    }

    /// The brokers end a transaction that is open for too long by raising the epoch of its id, as a takeover does.
    fn timed_out(&self, code: RDKafkaErrorCode) -> bool {
        let expired = is_fenced(code)
            || matches!(code, RDKafkaErrorCode::InvalidTransactionalState | RDKafkaErrorCode::Fatal);
        expired && self.begun.is_some_and(|begun| begun.elapsed() >= self.timeout)
    }

    /// Commits the transaction, where it has them. All records are acknowledged.
    pub(crate) fn commit(&mut self) -> Result<()> {
        if self.id.is_some() {
            let committed = self.retried(|inner| inner.commit_transaction(ANSWER_WITHIN));
            if let Err(failure) = committed {
                let abort = matches!(&failure, KafkaError::Transaction(error) if error.txn_requires_abort());
                let told = self.failed("committing a transaction", failure);
                // Whether it was committed is not known, unless the brokers ask for its abortion.
                self.dead |= !abort;
                self.abort();
                return Err(told);
            }
        }
        self.begun = None;
        Ok(())
    }

    /// Drops what was sent since `begin`. Without transactions what is on its way may still arrive.
    pub(crate) fn abort(&mut self) {
        if self.begun.take().is_none() || self.dead {
            return;
        }
        // Everything is answered first: the client's own abortion would wait for reports that nobody takes, and dropping records leaves
        // a gap in their numbers, which the brokers take for a loss.
        while self.inner.in_flight_count() > 0 {
            self.pause();
        }
        if self.id.is_some() {
            let aborted = self.retried(|inner| inner.abort_transaction(ANSWER_WITHIN));
            if let Err(failure) = aborted {
                tracing::debug!(%failure, "a transaction could not be aborted; its id is taken over anew");
                self.dead = true;
            }
        } else {
            self.dead |= self.inner.client().fatal_error().is_some();
        }
        let _dropped = self.told.take_undelivered();
    }

    fn retried(
        &self,
        mut call: impl FnMut(&BaseProducer<Told>) -> std::result::Result<(), KafkaError>,
    ) -> std::result::Result<(), KafkaError> {
        let deadline = Instant::now() + 2 * ANSWER_WITHIN;
        loop {
            match call(&self.inner) {
                Err(KafkaError::Transaction(error)) if error.is_retriable() && Instant::now() < deadline => {
                    self.inner.poll(Duration::from_millis(10));
                }
                answer => return answer,
            }
        }
    }

    pub(crate) fn failed(&self, doing: &str, failure: KafkaError) -> Error {
        let code = code_of(&failure);
        if code == Some(RDKafkaErrorCode::Fatal)
            && let Some((code, _)) = self.inner.client().fatal_error()
        {
            return self.meant(doing, code);
        }
        match code {
            Some(code)
                if code == RDKafkaErrorCode::TransactionalIdAuthorizationFailed || self.timed_out(code) =>
            {
                self.meant(doing, code).with_origin(failure)
            }
            Some(code @ RDKafkaErrorCode::TopicAuthorizationFailed) => {
                let topic = self.told.take_denied().unwrap_or_else(|| self.state_topic.clone());
                own_record_refused(&self.state_topic, &topic, code).with_origin(failure)
            }
            _ => refused(doing, failure, self.told.connection()),
        }
    }

    /// What an error of the whole producer means.
    fn meant(&self, doing: &str, code: RDKafkaErrorCode) -> Error {
        match (&self.id, code) {
            _ if self.timed_out(code) => transaction_timeout(self.timeout.as_secs()),
            (Some(id), RDKafkaErrorCode::TransactionalIdAuthorizationFailed) => {
                transactions_denied(doing, id.trim_end_matches(|c: char| c.is_ascii_digit()))
            }
            _ => by_code(doing, code),
        }
    }
}

/// Sends one table's records.
pub(crate) struct Sender<'a> {
    pub(crate) producer: &'a mut Producer,
    pub(crate) routes: &'a [Route],
    /// Which of `routes`.
    pub(crate) number: usize,
}

impl Records for Sender<'_> {
    fn put(&mut self, record: &Record<'_>) -> Result<()> {
        let Some(route) = self.routes.get(self.number) else { return Ok(()) };
        if let Some(letters) = route.dead_letters.as_ref().filter(|letters| letters.takes(record)) {
            return self.put_aside(route, letters, record);
        }
        let partitions = if record.everywhere {
            0..route.partitions
        } else {
            let partition = route.partition(record.key);
            partition..partition + 1
        };
        for partition in partitions {
            self.producer.send(&route.topic, partition, record, self.number).map_err(
                |failure| match code_of(&failure) {
                    Some(code @ (RDKafkaErrorCode::Fatal | RDKafkaErrorCode::State)) => {
                        let topic = route.topic.clone();
                        self.producer
                            .undelivered(self.routes, &Undelivered { number: self.number, topic, code })
                    }
                    Some(code) => record_refused(&route.table, &route.topic, code),
                    None => self.producer.failed("writing to the cluster", failure),
                },
            )?;
        }
        Ok(())
    }
}

impl Sender<'_> {
    fn put_aside(&mut self, route: &Route, letters: &DeadLetters, record: &Record<'_>) -> Result<()> {
        let (headers, whole) = letters.letter(&route.topic, record);
        let letter = Record { value: record.value.filter(|_| whole), headers: &headers, ..*record };
        tracing::warn!(
            table = %route.table,
            topic = letters.topic,
            "a record is larger than its topic takes, and is a dead letter now"
        );
        metrics::counter!("pgferry_dead_letters_total", "task" => letters.task.to_string()).increment(1);
        let sent = self.producer.send(&letters.topic, 0, &letter, NO_ROUTE);
        sent.map_err(|failure| self.producer.failed(&format!("writing to topic {}", letters.topic), failure))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The texts and hashes of Apache Kafka's own test of it.
    #[test]
    fn the_hash_is_that_of_java_clients() {
        for (text, hash) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(text.as_bytes()) as i32, hash, "{text}");
        }
        assert_eq!(partition_of(b"foobar", 3), ((-790_332_482i32) & 0x7fff_ffff) % 3);
    }
}
