//! The target's contract on Kafka: every call on a thread that may block, under the lease that `open` has taken.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use pgferry_model::{
    CellFormat, Class, Column, Delivery, Error, Finding, Position, Progress, Result, SourceIdentity, Table,
    TableName, TableState, TaskId,
};
use pgferry_pipeline::{
    ChangeForm, ChunkRows, ColumnMapping, CopyMark, DeletePolicy, Inspect, Receipt, SchemaChange,
    TableChanges, TablePlan, Target, Wants,
};

use crate::broker::{Cluster, Isolation};
use crate::check::{self, holds_records, lost_thread};
use crate::config::{Format, Guarantee, KafkaConfig};
use crate::copy;
use crate::deliver;
use crate::error::{fenced, registry_missing, topic_exists};
use crate::extra_topics::{Heart, tell_columns};
use crate::holder::{Holder, look, make_topics};
use crate::mapping::map_column;
use crate::progress::{
    Entry, StateRecord, Tasks, chunk_record, columns_of, position_record, source_record, table_record,
};
use crate::schema::{self, Step, There, TopicPlan};
use crate::schema_registry::SchemaRegistry;

struct Shared {
    config: Arc<KafkaConfig>,
    cluster: Cluster,
    registry: Option<Arc<SchemaRegistry>>,
    holder: Mutex<Option<Arc<Holder>>>,
    heart: Mutex<Option<Heart>>,
}

/// A Kafka cluster as a target.
#[derive(Clone)]
pub struct KafkaTarget(Arc<Shared>);

impl KafkaTarget {
    /// Makes the clients; nothing is connected yet. Fails with `target.kafka_property` and `target.kafka_registry_settings`.
    pub fn connect(config: KafkaConfig) -> Result<KafkaTarget> {
        let config = Arc::new(config);
        let cluster = Cluster::new(Arc::clone(&config))?;
        let registry = match (&config.schema_registry, config.format) {
            (Some(registry), Format::Avro) => Some(Arc::new(SchemaRegistry::new(registry)?)),
            (None, Format::Avro) => return Err(registry_missing()),
            _ => None,
        };
        let (holder, heart) = (Mutex::new(None), Mutex::new(None));
        Ok(KafkaTarget(Arc::new(Shared { config, cluster, registry, holder, heart })))
    }

    pub(crate) fn config(&self) -> &KafkaConfig {
        &self.0.config
    }

    pub(crate) fn cluster(&self) -> &Cluster {
        &self.0.cluster
    }

    /// Of schemas, where the format has them.
    pub(crate) fn registry(&self) -> Option<&Arc<SchemaRegistry>> {
        self.0.registry.as_ref()
    }

    /// Where it is, for people.
    pub(crate) fn place(&self) -> String {
        let servers = self.0.config.properties.iter().rev().find(|(key, _)| key == "bootstrap.servers");
        servers.map_or_else(String::new, |(_, servers)| servers.clone())
    }

    /// The task that it was opened for.
    pub(crate) fn task(&self) -> Option<TaskId> {
        self.0.holder.lock().as_ref().map(|holder| holder.task.clone())
    }

    pub(crate) fn holder(&self) -> Result<Arc<Holder>> {
        self.0.holder.lock().clone().ok_or_else(fenced)
    }

    /// Runs on a thread that may block.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&KafkaTarget) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let target = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&target)).await;
        done.unwrap_or_else(|lost| Err(lost_thread(lost)))
    }

    /// Runs on a thread that may block, under the lease.
    async fn held<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Holder) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.blocking(move |target| work(&*target.holder()?)).await
    }
}

/// What is to be done for tables, of all of them or an error.
struct Preparation {
    steps: Vec<(TablePlan, TopicPlan)>,
}

fn plan_all(target: &KafkaTarget, holder: &Holder, plans: &[TablePlan]) -> Result<Preparation> {
    let cluster = target.cluster();
    let topics = cluster.topics()?;
    let own = holder.view.lock().held.clone();
    let known =
        |plan: &TablePlan| own.tables.get(&plan.table.name).is_some_and(|entry| !entry.topic.is_empty());
    // Whose a topic is has to be asked for tables that are new to the task only.
    let mut tasks =
        if plans.iter().all(known) { Tasks::default() } else { look(target.config(), cluster)?.0 };
    tasks.0.insert(holder.task.clone(), own);
    let mut steps = Vec::with_capacity(plans.len());
    for plan in plans {
        let holds = |topic: &str| holds_records(target, topic, topics.get(topic).copied().unwrap_or(0));
        let there = There { topics: &topics, holds: &holds, tasks: &tasks };
        let entry = tasks.0.get(&holder.task).and_then(|held| held.tables.get(&plan.table.name));
        let found = schema::plan(target.config(), &holder.task, plan, entry, &there)?;
        // The next table's plan knows of this one's topic.
        let mut noted = entry.cloned().unwrap_or_default();
        noted.topic.clone_from(&found.topic);
        if let Some(held) = tasks.0.get_mut(&holder.task) {
            held.tables.insert(plan.table.name.clone(), noted);
        }
        steps.push((plan.clone(), found));
    }
    holder.view.lock().topics = topics;
    Ok(Preparation { steps })
}

/// Offsets at which the task's own records will begin, where a topic holds others'.
fn own_from(holder: &Holder, topic: &str) -> Result<Vec<i64>> {
    let partitions = holder.view.lock().topics.get(topic).copied().unwrap_or(0);
    let mut offsets = Vec::new();
    let mut holds = false;
    for partition in 0..partitions {
        let (first, next) = holder.cluster.offsets(topic, partition, Isolation::Everything)?;
        holds |= next > first;
        offsets.push(next);
    }
    Ok(if holds { offsets } else { Vec::new() })
}

/// Notes what was prepared, in one commit.
fn note_prepared(holder: &Holder, preparation: &Preparation) -> Result<()> {
    let mut records: Vec<StateRecord> = Vec::new();
    let mut entries: HashMap<TableName, Entry> = HashMap::new();
    let mut told: Vec<(Arc<Table>, bool)> = Vec::new();
    for (plan, found) in &preparation.steps {
        let name = &plan.table.name;
        for (task, table) in &found.taken_from {
            records.push(table_record(task, table, None));
        }
        let before = holder.view.lock().held.tables.get(name).cloned();
        let ours = before.as_ref().is_some_and(|entry| entry.topic == found.topic);
        let mut entry = match before {
            Some(entry) if ours => entry,
            _ => {
                let mut entry = Entry::default();
                entry.topic.clone_from(&found.topic);
                entry.set_state(&TableState::Waiting);
                if found.step == Step::TakeOver {
                    entry.own_from = own_from(holder, &found.topic)?;
                }
                entry
            }
        };
        let columns = columns_of(&plan.table);
        if ours && entry.columns == columns {
            continue;
        }
        told.push((Arc::clone(&plan.table), entry.columns.is_empty()));
        entry.columns = columns;
        records.push(table_record(&holder.task, name, Some(&entry)));
        entries.insert(name.clone(), entry);
    }
    if !records.is_empty() {
        holder.store_with(&records, &[], |producer| {
            tell_columns(&holder.config, &holder.task, &told, producer)
        })?;
    }
    let mut view = holder.view.lock();
    view.held.tables.extend(entries);
    for (plan, _) in &preparation.steps {
        view.deletes.insert(plan.table.name.clone(), plan.deletes);
    }
    drop(view);
    preparation.steps.iter().for_each(|(plan, _)| holder.forget_lane(&plan.table.name));
    Ok(())
}

/// Stores entries of tables that `change` makes of those that are known, in one commit.
fn store_entries(
    holder: &Holder,
    names: &[TableName],
    more: &[StateRecord],
    change: impl Fn(&mut Entry),
) -> Result<()> {
    let mut records = more.to_vec();
    let mut entries = Vec::with_capacity(names.len());
    for name in names {
        let mut entry = holder.view.lock().held.tables.get(name).cloned().unwrap_or_default();
        let chunks = entry.chunks.clone();
        change(&mut entry);
        let gone = chunks.iter().filter(|number| !entry.chunks.contains(number));
        records.extend(gone.map(|&number| chunk_record(&holder.task, name, number, None)));
        records.push(table_record(&holder.task, name, Some(&entry)));
        entries.push((name.clone(), entry));
    }
    holder.store(&records)?;
    holder.view.lock().held.tables.extend(entries);
    Ok(())
}

fn set_state(entry: &mut Entry, state: &TableState) {
    entry.set_state(state);
    if matches!(state, TableState::Copied | TableState::CatchingUp | TableState::Live) {
        entry.chunks.clear();
    }
}

fn forget(entry: &mut Entry) {
    entry.set_state(&TableState::Waiting);
    entry.set_cut(None);
    entry.chunks.clear();
}

#[async_trait]
impl Target for KafkaTarget {
    fn wants(&self) -> Wants {
        Wants {
            changes: ChangeForm::EveryChange,
            loads_max: self.config().loads_max.max(1),
            slices: true,
            atomic: self.config().guarantee == Guarantee::ExactlyOnce,
        }
    }

    fn snapshot_format(&self, table: &Table, column: &Column) -> CellFormat {
        map_column(self.config(), table, column).snapshot_format(&column.data_type)
    }

    fn mapping(&self, table: &Table) -> Result<Vec<ColumnMapping>> {
        let mapping = |column: &Column| {
            let kind = map_column(self.config(), table, column);
            ColumnMapping {
                column: column.name.to_string(),
                source_type: column.data_type.name.to_string(),
                target_type: kind.name,
                fidelity: kind.fidelity,
                note: kind.note.to_owned(),
            }
        };
        Ok(table.columns.iter().map(mapping).collect())
    }

    async fn open(&self, task: &TaskId) -> Result<Progress> {
        make_topics(self.config(), self.cluster()).await?;
        let task = task.clone();
        self.blocking(move |target| {
            let shared = &target.0;
            let registry = shared.registry.clone();
            let holder = Holder::open(&shared.config, &shared.cluster, registry, &task)?;
            let progress = holder.view.lock().held.progress()?;
            let holder = Arc::new(holder);
            *shared.heart.lock() = Heart::begin(&holder);
            *shared.holder.lock() = Some(holder);
            Ok(progress)
        })
        .await
    }

    async fn held(&self, task: &TaskId) -> Result<Option<Progress>> {
        let task = task.clone();
        self.blocking(move |target| {
            let (mut tasks, _) = look(target.config(), target.cluster())?;
            let held = tasks.0.remove(&task).filter(|held| held.epoch.epoch > 0);
            held.map(|held| held.progress()).transpose()
        })
        .await
    }

    async fn identify(&self, source: &SourceIdentity) -> Result<()> {
        let source = source.clone();
        self.held(move |holder| {
            holder.store(&[source_record(&holder.task, Some(&source))])?;
            holder.view.lock().held.source = Some(source);
            Ok(())
        })
        .await
    }

    async fn prepare(&self, plan: &TablePlan) -> Result<()> {
        self.prepare_all(std::slice::from_ref(plan)).await
    }

    async fn prepare_all(&self, plans: &[TablePlan]) -> Result<()> {
        let (holder, plans) = (self.holder()?, plans.to_vec());
        let planning = Arc::clone(&holder);
        let preparation = self.blocking(move |target| plan_all(target, &planning, &plans)).await?;
        let steps = &preparation.steps;
        if steps.iter().any(|(_, found)| matches!(found.step, Step::Make | Step::Empty | Step::Replace)) {
            let verifying = Arc::clone(&holder);
            self.blocking(move |_| verifying.verify_lease()).await?;
        }
        let cluster = self.cluster();
        for (_, found) in steps {
            let partitions = holder.view.lock().topics.get(&found.topic).copied().unwrap_or(0);
            match found.step {
                Step::Empty => cluster.empty(&found.topic, partitions).await?,
                Step::Replace => cluster.remove(&found.topic).await?,
                Step::Keep | Step::Make | Step::TakeOver => {}
            }
        }
        let made = steps.iter().filter(|(_, found)| matches!(found.step, Step::Make | Step::Replace));
        let mut made: Vec<&str> = made.map(|(_, found)| found.topic.as_str()).collect();
        made.sort_unstable();
        made.dedup();
        cluster.make(&made, self.config().partitions, &[]).await?;
        if !made.is_empty() {
            pgferry_pipeline::failpoint::pass("target.table_created");
        }
        let mut limits = HashMap::new();
        if let Some(letters) = &self.config().dead_letter_topic {
            let mut topics: Vec<String> = steps.iter().map(|(_, found)| found.topic.clone()).collect();
            topics.push(letters.clone());
            topics.sort_unstable();
            topics.dedup();
            limits = cluster.limits(&topics).await?;
        }
        self.blocking(move |target| {
            let topics = target.cluster().topics()?;
            {
                let mut view = holder.view.lock();
                view.topics = topics;
                view.limits.extend(limits);
            }
            note_prepared(&holder, &preparation)
        })
        .await
    }

    async fn begin_copy(&self, table: &Arc<Table>, mark: CopyMark) -> Result<()> {
        self.begin_copies(std::slice::from_ref(table), mark).await
    }

    async fn begin_copies(&self, tables: &[Arc<Table>], mark: CopyMark) -> Result<()> {
        let tables = tables.to_vec();
        self.held(move |holder| copy::begin(holder, &tables, mark)).await
    }

    async fn load(&self, chunk: ChunkRows) -> Result<u64> {
        self.held(move |holder| copy::load(holder, chunk)).await
    }

    async fn load_tables(&self, tables: Vec<(ChunkRows, TableState)>) -> Result<Vec<u64>> {
        self.held(move |holder| copy::load_tables(holder, tables)).await
    }

    async fn set_state(&self, table: &Arc<Table>, state: TableState) -> Result<()> {
        self.set_states(std::slice::from_ref(table), state).await
    }

    async fn set_states(&self, tables: &[Arc<Table>], state: TableState) -> Result<()> {
        let names: Vec<TableName> = tables.iter().map(|table| table.name.clone()).collect();
        self.held(move |holder| store_entries(holder, &names, &[], |entry| set_state(entry, &state))).await
    }

    async fn forget(&self, table: Option<&TableName>) -> Result<()> {
        let table = table.cloned();
        self.held(move |holder| {
            let Some(table) = table else {
                let names: Vec<TableName> = holder.view.lock().held.tables.keys().cloned().collect();
                let more = [position_record(&holder.task, None), source_record(&holder.task, None)];
                store_entries(holder, &names, &more, forget)?;
                let mut view = holder.view.lock();
                (view.held.position, view.held.source) = (None, None);
                return Ok(());
            };
            if !holder.view.lock().held.tables.contains_key(&table) {
                return holder.verify_lease();
            }
            store_entries(holder, &[table], &[], forget)
        })
        .await
    }

    async fn apply(&self, delivery: Arc<Delivery<TableChanges>>) -> Result<Receipt> {
        self.held(move |holder| deliver::apply(holder, &delivery)).await
    }

    async fn discard(&self) -> Result<()> {
        let Some(holder) = self.0.holder.lock().clone() else { return Ok(()) };
        self.blocking(move |_| {
            deliver::discard(&mut holder.stream.lock());
            Ok(())
        })
        .await
    }

    async fn evolve(&self, change: &SchemaChange) -> Result<()> {
        let after = Arc::clone(&change.after);
        self.held(move |holder| {
            let topic = schema::topic_of(&holder.config, &after);
            let taken =
                holder.view.lock().held.tables.get(&after.name).is_some_and(|entry| entry.topic == topic);
            if !taken {
                return Err(topic_exists(&after.name, &topic));
            }
            let mut entry = holder.view.lock().held.tables.get(&after.name).cloned().unwrap_or_default();
            entry.columns = columns_of(&after);
            let record = table_record(&holder.task, &after.name, Some(&entry));
            let told = [(Arc::clone(&after), false)];
            holder.store_with(&[record], &[], |producer| {
                tell_columns(&holder.config, &holder.task, &told, producer)
            })?;
            holder.view.lock().held.tables.insert(after.name.clone(), entry);
            Ok(())
        })
        .await
    }

    async fn check(&self, plans: &[TablePlan]) -> Result<Vec<Finding>> {
        let plans = plans.to_vec();
        self.blocking(move |target| check::findings(target, &plans)).await
    }

    async fn describe(&self, plan: &TablePlan) -> Result<Vec<String>> {
        let plan = plan.clone();
        self.blocking(move |target| check::statements(target, &plan)).await
    }

    fn inspect(&self) -> &dyn Inspect {
        self
    }

    fn outcome_unknown(&self, error: &Error) -> bool {
        error.class() == Class::Transient
    }

    async fn close(&self) -> Result<()> {
        drop(self.0.heart.lock().take());
        let Some(holder) = self.0.holder.lock().take() else { return Ok(()) };
        // What is open is aborted; a client ends after its last answer.
        self.blocking(move |_| {
            deliver::discard(&mut holder.stream.lock());
            drop(holder);
            Ok(())
        })
        .await
    }
}

/// The stored position, as far as it is known here.
pub(crate) fn stored_position(holder: &Holder) -> Position {
    holder.view.lock().held.position.unwrap_or(Position::ZERO)
}

/// Whether deletes of a table are carried.
pub(crate) fn carries_deletes(holder: &Holder, table: &TableName) -> bool {
    holder.view.lock().deletes.get(table).copied().unwrap_or_default() == DeletePolicy::Carry
}
