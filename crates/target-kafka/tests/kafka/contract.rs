//! The contract of targets, on topics of a real broker.

use std::sync::Arc;

use anyhow::Result;
use async_trait::async_trait;
use pgferry_model::{Batch, CellFormat, Op, Position, Table, TaskId, TypeKind};
use pgferry_pipeline::{
    Chunk, ChunkRows, CopyMark, DeletePolicy, IfTargetExists, TablePlan, Target, TextRow, rows_between,
};
use pgferry_target_kafka::{Format, Guarantee, KafkaConfig, KafkaTarget, RegistryConfig};
use pgferry_testkit::kafka::Broker;
use pgferry_testkit::schema_registry::SchemaRegistry;
use pgferry_testkit::target_contract::{Scene, Scenery};

use crate::making::config;

/// Topics with a prefix of their own.
struct Topics(KafkaConfig);

impl Topics {
    fn with(change: impl FnOnce(&mut KafkaConfig)) -> Result<Self> {
        let broker = Broker::shared()?.map_err(|missing| anyhow::anyhow!("{}", missing.0))?;
        let mut config = config(&broker);
        config.loads_max = 3;
        change(&mut config);
        Ok(Topics(config))
    }
}

/// A scene is a set of topics under one of the target's settings.
macro_rules! scene {
    ($name:ident, $change:expr) => {
        scene!($name, $change, false);
    };
    ($name:ident, $change:expr, $avro:expr) => {
        struct $name(Topics);

        #[async_trait]
        impl Scene for $name {
            fn unavailable() -> Result<Option<String>> {
                let registry = if $avro { SchemaRegistry::shared()?.err() } else { None };
                Ok(Broker::shared()?.err().or(registry).map(|missing| missing.0))
            }

            async fn fresh() -> Result<Self> {
                Ok($name(Topics::with($change)?))
            }

            async fn holder(&self) -> Result<Arc<dyn Target>> {
                Ok(Arc::new(KafkaTarget::connect(self.0.0.clone())?))
            }

            async fn put_foreign(&self, table: &Table, rows: &[TextRow]) -> Result<Scenery> {
                put_foreign(&self.0.0, table, rows).await
            }

            async fn remove_table(&self, table: &Table) -> Result<Scenery> {
                remove_topic(&self.0.0, table).await
            }

            fn misfit(&self) -> Option<(TypeKind, &'static str)> {
                Some((TypeKind::Timestamp, "294276-12-31 23:59:59.987654"))
            }

            fn has_columns(&self) -> bool {
                false
            }
        }
    };
}

/// Another program's records: those of a task that keeps its state elsewhere.
async fn put_foreign(config: &KafkaConfig, table: &Table, rows: &[TextRow]) -> Result<Scenery> {
    let elsewhere = KafkaConfig {
        state_topic: format!("{}.elsewhere", config.state_topic),
        transactional_id_prefix: format!("{}-elsewhere", config.transactional_id_prefix),
        ..config.clone()
    };
    let (target, table) = (KafkaTarget::connect(elsewhere)?, Arc::new(table.clone()));
    target.open(&TaskId::new("foreign")).await?;
    let plan = TablePlan {
        table: Arc::clone(&table),
        if_exists: IfTargetExists::Error,
        deletes: DeletePolicy::Carry,
    };
    target.prepare(&plan).await?;
    let mark = CopyMark { cut: Position::from_lsn(1), stream_start: None };
    target.begin_copy(&table, mark).await?;
    let mut batch = Batch::new(Arc::clone(&table));
    for row in rows {
        batch.start_row(Op::Insert, 0);
        batch.start_new();
        for cell in row {
            match cell {
                Some(text) => batch.push_value(CellFormat::Text, text.as_bytes()),
                None => batch.push_null(),
            }
        }
    }
    let (sender, receiver) = rows_between();
    let chunk = Chunk { table, number: 0, count: 1, range: String::new(), bytes: 0 };
    let count = batch.len() as u64;
    let sending = async move {
        sender.send(batch).await?;
        sender.end(count).await
    };
    let (loaded, sent) = tokio::join!(target.load(ChunkRows { chunk, rows: receiver }), sending);
    loaded?;
    sent?;
    target.close().await?;
    Ok(Scenery::Set)
}

pub(crate) async fn remove_topic(config: &KafkaConfig, table: &Table) -> Result<Scenery> {
    let topic = config
        .topic_rule
        .replace("#{source_schema_name}", &table.target_name.schema)
        .replace("#{source_table_name}", &table.target_name.name);
    let mut client = rdkafka::ClientConfig::new();
    for (key, value) in &config.properties {
        client.set(key, value);
    }
    let admin: rdkafka::admin::AdminClient<_> = client.create()?;
    for answer in admin.delete_topics(&[&topic], &rdkafka::admin::AdminOptions::new()).await? {
        answer.map_err(|(topic, code)| anyhow::anyhow!("{topic}: {code}"))?;
    }
    Ok(Scenery::Set)
}

scene!(ExactlyOnce, |config| config.guarantee = Guarantee::ExactlyOnce);
scene!(AtLeastOnce, |config| config.guarantee = Guarantee::AtLeastOnce);
scene!(PlainJson, |config| {
    config.guarantee = Guarantee::ExactlyOnce;
    config.format = Format::Json;
});
scene!(WithSchemas, |config| {
    config.guarantee = Guarantee::ExactlyOnce;
    config.format = Format::Debezium { schemas: true };
});

scene!(
    InAvro,
    |config| {
        config.guarantee = Guarantee::ExactlyOnce;
        config.format = Format::Avro;
        config.schema_registry = registry();
    },
    true
);

/// The shared schema registry; `None`: it is not installed, and the scene says so.
fn registry() -> Option<RegistryConfig> {
    let registry = SchemaRegistry::shared().ok()?.ok()?;
    Some(RegistryConfig { url: registry.url(), ..RegistryConfig::default() })
}

mod exactly_once {
    pgferry_testkit::target_contract!(super::ExactlyOnce);
}

mod at_least_once {
    pgferry_testkit::target_contract!(super::AtLeastOnce);
}

/// What depends on the form of records, one test per promise.
macro_rules! promises_of_form {
    ($scene:ty: $($name:ident)*) => {
        $(
            #[test]
            fn $name() -> Result<()> {
                pgferry_testkit::target_contract::run::<$scene>(stringify!($name))
            }
        )*
    };
}

/// The same promises for another form.
macro_rules! form {
    ($module:ident, $scene:ident) => {
        mod $module {
            use super::*;

            promises_of_form! { super::$scene:
                a_copy_begun_again_drops_what_the_last_one_left
                a_table_without_a_key_keeps_every_row
                a_truncate_removes_what_was_before_it
                append_keeps_the_rows_of_others
                deletes_that_are_not_carried_leave_every_row
                every_value_of_every_type_arrives_or_is_refused
                inserts_updates_and_deletes
                keys_move_and_swap_with_their_unchanged_cells
                keys_of_several_columns
                odd_names_are_carried
                slices_become_visible_together
                unchanged_cells_are_left_alone
            }
        }
    };
}

form!(plain_json, PlainJson);
form!(with_schemas, WithSchemas);
form!(in_avro, InAvro);
