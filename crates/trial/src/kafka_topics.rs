//! A Kafka task's topics under trial, on a broker that all trials of this process share.
//!
//! Invariant: what is compared is what a consumer of committed records rebuilds.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Result, bail};
use async_trait::async_trait;
use pgferry_model::{TableName, TableState};
use pgferry_testkit::kafka::Broker;

use crate::duckdb_file::text_overrides;
use crate::target_place::{TargetPlace, held};

/// Topics with a prefix of their own.
pub struct KafkaTopics {
    broker: Broker,
    prefix: String,
}

impl KafkaTopics {
    /// On the shared broker; fails where none is installed.
    pub fn new() -> Result<KafkaTopics> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        match Broker::shared()? {
            Ok(broker) => {
                let prefix = format!("trial{}", NEXT.fetch_add(1, Ordering::Relaxed));
                Ok(KafkaTopics { broker, prefix })
            }
            Err(missing) => bail!("{}", missing.0),
        }
    }
}

#[async_trait]
impl TargetPlace for KafkaTopics {
    fn connection(&self) -> String {
        format!("kind = \"kafka\"\nbootstrap_servers = [\"{}\"]\n", self.broker.bootstrap_servers())
    }

    fn sections(&self, major: u32) -> String {
        let prefix = &self.prefix;
        let settings = format!(
            "[tasks.all.kafka]\ndelivery_guarantee = \"exactly-once\"\ndecimal_handling_mode = \"string\"\n\
             topic_name_rule = \"{prefix}.#{{source_schema_name}}.#{{source_table_name}}\"\n\
             transactional_id_prefix = \"{prefix}\"\nstate_topic = \"{prefix}.state\"\n"
        );
        text_overrides(major) + &settings
    }

    async fn leftovers(&self, folder: &Path, _tables: &[TableName]) -> Result<Vec<String>> {
        let mut left = Vec::new();
        for table in held(&folder.join("task.toml")).await?.into_iter().flat_map(|held| held.tables) {
            if !matches!(table.state, TableState::Waiting | TableState::Copying)
                && !table.chunks_done.is_empty()
            {
                left.push(format!("{} records of chunks of {}", table.chunks_done.len(), table.name));
            }
        }
        Ok(left)
    }
}
