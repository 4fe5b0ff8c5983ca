//! Clusters, targets and changes for the tests.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Result;
use pgferry_model::{
    Batch, CellFormat, Column, DataType, Delivery, Op, Position, Slice, Table, TableId, TableName,
    TableState, TaskId, TypeKind,
};
use pgferry_pipeline::{DeletePolicy, IfTargetExists, TableChanges, TablePlan, Target};
use pgferry_target_kafka::{KafkaConfig, KafkaTarget};
use pgferry_testkit::kafka::{Broker, NotInstalled, Setup};

/// The broker that the tests of this process share; `None`, said on the terminal, where none is installed.
pub(crate) fn broker() -> Result<Option<Broker>> {
    or_said(Broker::shared()?)
}

/// A broker of the test's own, to be ended; `None` as above.
pub(crate) fn own_broker() -> Result<Option<Broker>> {
    or_said(Broker::start(pgferry_testkit::kafka::version())?)
}

/// A broker that is as the test wants it; `None` as above.
pub(crate) fn broker_with(setup: &Setup) -> Result<Option<Broker>> {
    or_said(Broker::start_with(pgferry_testkit::kafka::version(), setup)?)
}

/// What is installed; `None`, said on the terminal, where it is not.
pub(crate) fn or_said<T>(there: Result<T, NotInstalled>) -> Result<Option<T>> {
    match there {
        Ok(there) => Ok(Some(there)),
        Err(missing) => {
            // Not with a macro: those the test runner shows of failed tests only.
            writeln!(std::io::stderr().lock(), "NOT RUN: a test on Kafka: {}", missing.0)?;
            Ok(None)
        }
    }
}

/// Settings of a task whose topics nobody else uses.
pub(crate) fn config(broker: &Broker) -> KafkaConfig {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut config = KafkaConfig::new(broker.bootstrap_servers());
    config.source_database = "shop".to_owned();
    config.topic_rule = format!("t{number}.#{{source_schema_name}}.#{{source_table_name}}");
    config.state_topic = format!("t{number}.state");
    config.transactional_id_prefix = format!("t{number}");
    config
}

/// A table of `id` (the key) and `body`.
pub(crate) fn table(name: &str) -> Arc<Table> {
    let column = |name: &str, kind| Column {
        name: name.into(),
        data_type: DataType {
            oid: 0,
            name: "x".into(),
            kind,
            sends_binary: true,
            output_function: "pg_catalog.textout".into(),
        },
        nullable: true,
    };
    let name = TableName::new("public", name);
    Arc::new(Table {
        id: TableId(0),
        target_name: name.clone(),
        name,
        columns: vec![column("id", TypeKind::Int4), column("body", TypeKind::Text)],
        key: vec![0],
        key_enforced: true,
        full_identity: false,
        rows_estimated: 0,
        bytes: 0,
    })
}

pub(crate) fn plan(table: &Arc<Table>) -> TablePlan {
    TablePlan { table: Arc::clone(table), if_exists: IfTargetExists::Error, deletes: DeletePolicy::Carry }
}

/// Inserts of `id` and `body`.
pub(crate) fn inserts(table: &Arc<Table>, rows: &[(u32, &str)]) -> TableChanges {
    let mut batch = Batch::new(Arc::clone(table));
    for (sequence, (id, body)) in rows.iter().enumerate() {
        batch.start_row(Op::Insert, sequence as u32);
        batch.start_new();
        batch.push_value(CellFormat::Text, id.to_string().as_bytes());
        batch.push_value(CellFormat::Text, body.as_bytes());
    }
    TableChanges::Every(batch)
}

/// A whole delivery.
pub(crate) fn delivery(through: u64, tables: Vec<TableChanges>) -> Arc<Delivery<TableChanges>> {
    Arc::new(Delivery {
        after: Position::from_lsn(through - 1),
        through: Position::from_lsn(through),
        tables,
        transactions: Vec::new(),
        slice: Slice::Whole,
    })
}

/// An open target of the task `shop`, with tables that follow the stream.
pub(crate) async fn live(config: KafkaConfig, names: &[&str]) -> Result<(Arc<KafkaTarget>, Vec<Arc<Table>>)> {
    let target = Arc::new(KafkaTarget::connect(config)?);
    target.open(&TaskId::new("shop")).await?;
    let tables: Vec<_> = names.iter().map(|name| table(name)).collect();
    for table in &tables {
        target.prepare(&plan(table)).await?;
        target.set_state(table, TableState::Live).await?;
    }
    Ok((target, tables))
}
