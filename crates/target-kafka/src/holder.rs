//! The holder of a task's lease: its producers, and what it knows of the task.
//!
//! ```text
//!   transactional id 0   the task's state                       (always)
//!   transactional id 1   the stream's changes and the position  (exactly once; else an idempotent producer)
//!   transactional id 2.. loads, one each                        (exactly once; else idempotent producers)
//! ```
//!
//! Taking the lease means to take over every id that any holder has used: what the older one has open is aborted, and its next commit
//! is refused by the brokers.
//!
//! Invariant: what is known of the task changes only after the commit that stores it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use pgferry_model::{Result, Table, TableName, TaskId};
use pgferry_pipeline::{DeletePolicy, failpoint};
use rdkafka::error::RDKafkaErrorCode;

use crate::broker::Cluster;
use crate::config::{Guarantee, KafkaConfig};
use crate::encode::{Encoder, Origin, Record, Scratch};
use crate::error::{by_code, fenced, topic_exists, topic_gone};
use crate::extra_topics::{self, DeadLetters, Tally};
use crate::progress::{Epoch, Held, StateRecord, Tasks, epoch_record};
use crate::schema::topic_of;
use crate::schema_registry::SchemaRegistry;
use crate::write::{NO_ROUTE, Producer, Route};

/// Partitions of the state topic: tasks that share one may have to wait for each other's open transactions at a start.
const STATE_PARTITIONS: i32 = 8;

/// Small segments: what is read at a start is what is not compacted yet.
const STATE_SETTINGS: &[(&str, &str)] = &[("cleanup.policy", "compact"), ("segment.bytes", "16777216")];
/// As much as brokers take in one request by default: a dead letter is large.
const EXTRA_SETTINGS: &[(&str, &str)] = &[("max.message.bytes", "104857600")];

/// One table, ready to be written.
pub(crate) struct Lane {
    pub(crate) encoder: Encoder,
    pub(crate) route: Route,
}

/// What is known of the task and of its topics.
#[derive(Default)]
pub(crate) struct View {
    pub(crate) held: Held,
    pub(crate) topics: HashMap<String, i32>,
    pub(crate) deletes: HashMap<TableName, DeletePolicy>,
    /// The largest batch that a topic takes, in bytes; only where that matters.
    pub(crate) limits: HashMap<String, usize>,
    lanes: HashMap<TableName, Arc<Lane>>,
}

/// The producer of the stream.
pub(crate) struct Stream {
    pub(crate) producer: Producer,
    /// Slices were dropped after an error; the rest of their transaction must not be written.
    pub(crate) slices_lost: bool,
    /// The transaction of the source that the last slice left open, and the number that its next change has.
    pub(crate) continued: Option<(u32, u64)>,
    /// What of that transaction is written.
    pub(crate) tally: Tally,
    pub(crate) scratch: Scratch,
}

/// A lease.
pub(crate) struct Holder {
    pub(crate) config: Arc<KafkaConfig>,
    pub(crate) cluster: Cluster,
    registry: Option<Arc<SchemaRegistry>>,
    pub(crate) task: TaskId,
    pub(crate) epoch: Epoch,
    state_partitions: i32,
    state: Mutex<Producer>,
    pub(crate) stream: Mutex<Stream>,
    loaders: Mutex<Vec<(usize, Producer)>>,
    pub(crate) view: Mutex<View>,
}

/// A transactional id of a task.
fn transactional_id(config: &KafkaConfig, task: &TaskId, number: usize) -> String {
    format!("{}-{task}-{number}", config.transactional_id_prefix)
}

/// The partition of the state topic that a task's records are in.
fn state_partition(task: &TaskId, partitions: i32) -> i32 {
    crate::write::partition_of(task.as_str().as_bytes(), partitions)
}

/// Makes the state topic, and those that the user wants beside the tables' own, where they are not there.
pub(crate) async fn make_topics(config: &KafkaConfig, cluster: &Cluster) -> Result<()> {
    let asking = cluster.clone();
    let topics = tokio::task::spawn_blocking(move || asking.topics()).await;
    let topics = topics.map_err(|lost| {
        pgferry_pipeline::error::worker_lost("a thread of the Kafka target ended without a result")
            .with_origin(lost)
    })??;
    let mut extra: Vec<&str> =
        extra_topics::named(config).filter(|topic| !topics.contains_key(*topic)).collect();
    extra.sort_unstable();
    extra.dedup();
    cluster.make(&extra, 1, EXTRA_SETTINGS).await?;
    if topics.contains_key(&config.state_topic) {
        return Ok(());
    }
    cluster.make(&[&config.state_topic], STATE_PARTITIONS, STATE_SETTINGS).await
}

/// What all tasks hold, for a look without a lease.
pub(crate) fn look(config: &KafkaConfig, cluster: &Cluster) -> Result<(Tasks, HashMap<String, i32>)> {
    let topics = cluster.topics()?;
    let partitions = topics.get(&config.state_topic).copied().unwrap_or(0);
    Ok((Tasks::read(cluster, &config.state_topic, partitions, None)?, topics))
}

impl Holder {
    /// Takes the lease. The state topic is there.
    pub(crate) fn open(
        config: &Arc<KafkaConfig>,
        cluster: &Cluster,
        registry: Option<Arc<SchemaRegistry>>,
        task: &TaskId,
    ) -> Result<Holder> {
        let exactly_once = config.guarantee == Guarantee::ExactlyOnce;
        let producers = if exactly_once { 2 + config.loads_max } else { 1 };
        let ids = |number: usize| (number < producers).then(|| transactional_id(config, task, number));
        let wanted = (0..2 + config.loads_max).map(ids);
        let mut taken = take_over(cluster, &wanted.collect::<Vec<_>>())?.into_iter();
        let (Some(state), Some(stream)) = (taken.next(), taken.next()) else {
            return Err(by_code("taking over the task's transactions", RDKafkaErrorCode::Unknown));
        };
        let topics = cluster.topics()?;
        let topic = &config.state_topic;
        let partitions = topics.get(topic).copied().unwrap_or(STATE_PARTITIONS);
        let own = state_partition(task, partitions);
        let read = || -> Result<Held> {
            let mut tasks = Tasks::read(cluster, topic, partitions, Some(own))?;
            Ok(tasks.0.remove(task).unwrap_or_default())
        };
        let mut held = read()?;
        if held.epoch.producers > producers {
            // Ids of an older holder that this one does not use: only to refuse their commits.
            let others =
                (producers..held.epoch.producers).map(|number| Some(transactional_id(config, task, number)));
            drop(take_over(cluster, &others.collect::<Vec<_>>())?);
            held = read()?;
        }
        held.epoch = held.epoch.raised(producers);
        let holder = Holder {
            epoch: held.epoch,
            task: task.clone(),
            state_partitions: partitions,
            state: Mutex::new(state),
            stream: Mutex::new(Stream {
                producer: stream,
                slices_lost: false,
                continued: None,
                tally: Tally::default(),
                scratch: Scratch::default(),
            }),
            loaders: Mutex::new(taken.enumerate().map(|(at, loader)| (at + 2, loader)).collect()),
            view: Mutex::new(View { held, topics, ..View::default() }),
            config: Arc::clone(config),
            cluster: cluster.clone(),
            registry,
        };
        holder.store(&[epoch_record(task, holder.epoch)])?;
        Ok(holder)
    }

    /// Of schemas, where the format has them.
    pub(crate) fn registry(&self) -> Option<&SchemaRegistry> {
        self.registry.as_deref()
    }

    pub(crate) fn exactly_once(&self) -> bool {
        self.config.guarantee == Guarantee::ExactlyOnce
    }

    /// Refuses where another process has taken the lease.
    pub(crate) fn verify_lease(&self) -> Result<()> {
        self.store(&[epoch_record(&self.task, self.epoch)])
    }

    /// Stores records of the task's state in one commit.
    pub(crate) fn store(&self, records: &[StateRecord]) -> Result<()> {
        self.store_with(records, &[], |_| Ok(()))
    }

    /// Stores records of the task's state, and what else is sent, in one commit.
    pub(crate) fn store_with(
        &self,
        records: &[StateRecord],
        routes: &[Route],
        also: impl FnOnce(&mut Producer) -> Result<()>,
    ) -> Result<()> {
        let mut producer = self.state.lock();
        producer.begin()?;
        let sent = also(&mut producer)
            .and_then(|()| self.send_state(&mut producer, records))
            .and_then(|()| producer.settle(routes));
        if let Err(failure) = sent {
            producer.abort();
            return Err(failure);
        }
        failpoint::pass("target.record_before_commit");
        producer.commit()?;
        failpoint::pass("target.record_after_commit");
        Ok(())
    }

    /// Sends records of the task's state, in the caller's transaction.
    pub(crate) fn send_state(&self, producer: &mut Producer, records: &[StateRecord]) -> Result<()> {
        for StateRecord { task, key, value } in records {
            let record = Record { key: Some(key), value: value.as_deref(), headers: &[], everywhere: false };
            let partition = state_partition(task, self.state_partitions);
            producer
                .send(&self.config.state_topic, partition, &record, NO_ROUTE)
                .map_err(|failure| producer.failed("storing the task's progress", failure))?;
        }
        Ok(())
    }

    /// A producer of its own for a load.
    pub(crate) fn loader(&self) -> Result<(usize, Producer)> {
        let taken = self.loaders.lock().pop();
        let (number, producer) =
            taken.ok_or_else(|| by_code("loading more chunks at once than set", RDKafkaErrorCode::State))?;
        if !producer.is_dead() {
            return Ok((number, producer));
        }
        match self.revived(number) {
            Ok(revived) => Ok((number, revived)),
            Err(failure) => {
                self.give_back(number, producer);
                Err(failure)
            }
        }
    }

    pub(crate) fn give_back(&self, number: usize, producer: Producer) {
        self.loaders.lock().push((number, producer));
    }

    /// A producer in place of one that has failed for good; what became of its last commit is read again.
    fn revived(&self, number: usize) -> Result<Producer> {
        // Taking its id over would refuse the commits of a newer holder.
        let read = || -> Result<Held> {
            let partitions = self.state_partitions;
            let own = Some(state_partition(&self.task, partitions));
            let mut tasks = Tasks::read(&self.cluster, &self.config.state_topic, partitions, own)?;
            Ok(tasks.0.remove(&self.task).unwrap_or_default())
        };
        if read()?.epoch.epoch != self.epoch.epoch {
            return Err(fenced());
        }
        let id = self.exactly_once().then(|| transactional_id(&self.config, &self.task, number));
        let producer = Producer::new(&self.cluster, id.as_deref())?;
        let now = read()?;
        let mut view = self.view.lock();
        for (name, entry) in &mut view.held.tables {
            if let Some(stored) = now.tables.get(name) {
                entry.chunks.clone_from(&stored.chunks);
            }
        }
        Ok(producer)
    }

    /// A table, ready to be written: it has been taken over, and its topic is there.
    pub(crate) fn lane(&self, table: &Arc<Table>) -> Result<Arc<Lane>> {
        let mut view = self.view.lock();
        if let Some(lane) = view.lanes.get(&table.name).filter(|lane| lane.encoder.fits(table)) {
            return Ok(Arc::clone(lane));
        }
        let topic = topic_of(&self.config, table);
        if view.held.tables.get(&table.name).is_none_or(|entry| entry.topic != topic) {
            return Err(topic_exists(&table.name, &topic));
        }
        if !view.topics.contains_key(&topic) {
            view.topics = self.cluster.topics()?;
        }
        let Some(&partitions) = view.topics.get(&topic) else { return Err(topic_gone(&table.name, &topic)) };
        let deletes = view.deletes.get(&table.name).copied().unwrap_or_default();
        let mut route = Route::new(
            &table.name,
            &self.config.source_database,
            &topic,
            partitions,
            self.config.partition_policy,
        );
        route.dead_letters = self.dead_letters(&view, &topic);
        // The registry may let itself be waited for.
        drop(view);
        let lane = Arc::new(Lane {
            encoder: Encoder::new(&self.config, &self.task, table, deletes, self.registry.as_deref())?,
            route,
        });
        self.view.lock().lanes.insert(table.name.clone(), Arc::clone(&lane));
        Ok(lane)
    }

    fn dead_letters(&self, view: &View, topic: &str) -> Option<DeadLetters> {
        let letters = self.config.dead_letter_topic.clone()?;
        let limit = *view.limits.get(topic)?;
        let own_limit = view.limits.get(&letters).copied().unwrap_or(limit);
        Some(DeadLetters { topic: letters, limit, own_limit })
    }

    /// What is known of a table's topic is looked up anew by its next write.
    pub(crate) fn forget_lane(&self, table: &TableName) {
        self.view.lock().lanes.remove(table);
    }
}

/// Makes producers side by side; with an id, older holders of it are refused from now on.
fn take_over(cluster: &Cluster, ids: &[Option<String>]) -> Result<Vec<Producer>> {
    std::thread::scope(|scope| {
        let making: Vec<_> =
            ids.iter().map(|id| scope.spawn(move || Producer::new(cluster, id.as_deref()))).collect();
        making
            .into_iter()
            .map(|made| {
                made.join().unwrap_or_else(|_| {
                    Err(pgferry_pipeline::error::worker_lost(
                        "a thread of the Kafka target ended without a result",
                    ))
                })
            })
            .collect()
    })
}

/// The origin of a snapshot's rows, or of a record that a copy writes on its own account.
pub(crate) fn snapshot_origin(lsn: u64) -> Origin {
    let now_ms = now_ms();
    Origin { snapshot: true, lsn, order: 0, xid: 0, committed_at_ms: now_ms, now_ms }
}

/// Milliseconds since 1970-01-01 UTC.
pub(crate) fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}
