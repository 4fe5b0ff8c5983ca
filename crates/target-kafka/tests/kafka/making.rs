//! Clusters and targets for the tests.

use std::sync::atomic::{AtomicU32, Ordering};

use pgferry_target_kafka::KafkaConfig;
use pgferry_testkit::kafka::Broker;

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
