//! The target's error codes, and what librdkafka's and the brokers' own errors mean.

use pgferry_model::{Class, Code, Cure, Error, TableName, shell_word};
pub use pgferry_pipeline::error::{
    FENCED, NAME_COLLISION, NOT_REPRESENTABLE, ROW_MISSING, SCHEMA_INCOMPATIBLE, SLICES_LOST, TABLE_EXISTS,
    TABLE_GONE,
};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

/// No broker answers.
pub const UNREACHABLE: Code = Code::new("target.kafka_unreachable");
/// The brokers do not accept the user, or not this kind of connection.
pub const AUTHENTICATION: Code = Code::new("target.kafka_authentication");
/// A property that librdkafka does not know, or a value that it does not take.
pub const PROPERTY: Code = Code::new("target.kafka_property");
/// The user may not read, write, make or describe a topic.
pub const TOPIC_DENIED: Code = Code::new("target.kafka_topic_denied");
/// The user may not use the transactional id.
pub const TRANSACTION_DENIED: Code = Code::new("target.kafka_txn_denied");
/// A transaction was open longer than the brokers allow.
pub const TRANSACTION_TIMEOUT: Code = Code::new("target.kafka_txn_timeout");
/// A record is larger than its topic takes.
pub const RECORD_TOO_LARGE: Code = Code::new("target.kafka_record_too_large");
/// A topic refuses a record for its form.
pub const RECORD_REFUSED: Code = Code::new("target.kafka_record_refused");
/// The cluster refuses to make a topic.
pub const TOPIC_REFUSED: Code = Code::new("target.kafka_topic_refused");
/// The state topic holds something else than pgferry writes.
pub const STATE: Code = Code::new("target.kafka_state");
/// The schema registry does not answer.
pub const REGISTRY_UNREACHABLE: Code = Code::new("target.kafka_registry_unreachable");
/// The schema registry does not let the user in.
pub const REGISTRY_DENIED: Code = Code::new("target.kafka_registry_denied");
/// What the task file says of the schema registry does not fit it.
pub const REGISTRY_SETTINGS: Code = Code::new("target.kafka_registry_settings");
/// The schema registry does not take a table's schema.
pub const SCHEMA_REFUSED: Code = Code::new("target.kafka_schema_refused");
/// Another error of the cluster or its client.
pub const REFUSED: Code = Code::new("target.kafka_refused");

/// Whether the error says that another process has raised the epoch of a transactional id.
pub(crate) fn is_fenced(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::Fenced | RDKafkaErrorCode::ProducerFenced | RDKafkaErrorCode::InvalidProducerEpoch
    )
}

/// An error of librdkafka while doing something; `told` is the client's last word on its connections, where there is one.
pub(crate) fn refused(doing: &str, failure: KafkaError, told: Option<String>) -> Error {
    let code = code_of(&failure);
    // What was asked for only timed out; why the connection failed is in the client's words.
    let not_let_in = |told: &String| {
        told.contains("SASL authentication error")
            || told.contains("SSL handshake failed")
            // With TLS 1.3 a missing certificate is said after the handshake.
            || (told.contains("SSL routines") && told.contains(" alert "))
            // Kerberos without a ticket.
            || told.contains("SASL handshake failed (start")
            || told.contains(NO_TOKEN)
    };
    let comes_back = told.as_deref().is_some_and(token_may_come);
    let code = match code {
        Some(code) if is_transient(code) && told.as_ref().is_some_and(not_let_in) => {
            Some(RDKafkaErrorCode::Authentication)
        }
        other => other,
    };
    let error = match code {
        Some(code) => by_code(doing, code),
        None => match &failure {
            KafkaError::ClientConfig(_, problem, key, _) => property(key, problem),
            KafkaError::ClientCreation(problem) => property("", problem),
            _ => other(doing, None),
        },
    };
    let error = match told.filter(|_| matches!(error.code(), UNREACHABLE | AUTHENTICATION)) {
        Some(told) => error.with_cause(told),
        None => error,
    };
    let error = match error.code() {
        AUTHENTICATION if comes_back => error.with_class(Class::Transient),
        _ => error,
    };
    error.with_origin(failure)
}

/// What librdkafka logs before the token endpoint's address and its words, and the status in parentheses; below 100 where there was no
/// answer (librdkafka source, `rd_kafka_oidc_token_client_credentials_refresh_cb`).
const NO_TOKEN: &str = "Failed to retrieve OIDC token from ";

/// Whether the token endpoint could not be asked, or failed by itself: unlike a refusal, that may pass.
fn token_may_come(told: &str) -> bool {
    let status =
        told.rsplit_once('(').and_then(|(_, status)| status.trim_end_matches(')').parse::<i32>().ok());
    told.contains(NO_TOKEN) && status.is_some_and(|status| !(100..500).contains(&status))
}

/// The code of an error, also of the kinds that librdkafka's wrapper gives none for.
pub(crate) fn code_of(failure: &KafkaError) -> Option<RDKafkaErrorCode> {
    match failure {
        KafkaError::AdminOp(code) => Some(*code),
        other => other.rdkafka_error_code(),
    }
}

/// What a code means while doing something.
pub(crate) fn by_code(doing: &str, code: RDKafkaErrorCode) -> Error {
    use RDKafkaErrorCode as Is;
    let problem = |what: &str| format!("{doing}: {what}");
    match code {
        code if is_fenced(code) => fenced(),
        Is::SaslAuthenticationFailed
        | Is::UnsupportedSASLMechanism
        | Is::IllegalSASLState
        | Is::Authentication
        | Is::SSL => Error::task_broken(AUTHENTICATION, problem("the brokers do not accept the connection"))
            .with_cure(Cure::advice(
                "check security_protocol, sasl and the certificates of the connection against the brokers' listener; for OAUTHBEARER the token endpoint, too",
            )),
        Is::TopicAuthorizationFailed => topic_denied(doing, None, "PREFIX --resource-pattern-type prefixed"),
        Is::TransactionalIdAuthorizationFailed => transactions_denied(doing, "PREFIX"),
        Is::ClusterAuthorizationFailed => idempotence_denied(doing),
        Is::InvalidTransactionTimeout => {
            Error::task_broken(TRANSACTION_TIMEOUT, problem("the brokers do not let a transaction be open for that long"))
                .with_cause("transaction.timeout.ms is above transaction.max.timeout.ms of the brokers")
                .with_cure(
                    Cure::advice("lower it in the task's section kafka, or raise the other in the settings of every broker")
                        .line("properties = { \"properties.transaction.timeout.ms\" = \"900000\" }"),
                )
        }
        Is::PolicyViolation
        | Is::InvalidReplicationFactor
        | Is::InvalidPartitions
        | Is::InvalidConfig
        | Is::InvalidTopic => Error::task_broken(TOPIC_REFUSED, problem("the cluster refuses the topic"))
            .with_cure(Cure::advice(
                "set partitions_of_new_topic and replication_factor as the cluster allows, or have the topic made by its administrator",
            )),
        code if is_transient(code) => Error::transient(UNREACHABLE, problem("no broker answers in time"))
            .with_cure(Cure::advice(
                "check bootstrap_servers, and that the brokers' advertised listeners can be reached from here",
            )),
        code => other(doing, Some(code)),
    }
}

/// Errors that pass by themselves.
pub(crate) fn is_transient(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Is;
    matches!(
        code,
        Is::BrokerTransportFailure
            | Is::AllBrokersDown
            | Is::Resolve
            | Is::MessageTimedOut
            | Is::OperationTimedOut
            | Is::TimedOutQueue
            | Is::RequestTimedOut
            | Is::LeaderNotAvailable
            | Is::NotLeaderForPartition
            | Is::BrokerNotAvailable
            | Is::ReplicaNotAvailable
            | Is::NetworkException
            | Is::CoordinatorLoadInProgress
            | Is::CoordinatorNotAvailable
            | Is::NotCoordinator
            | Is::NotEnoughReplicas
            | Is::NotEnoughReplicasAfterAppend
            | Is::ConcurrentTransactions
            | Is::NotController
            | Is::KafkaStorageError
            | Is::PurgeQueue
            | Is::PurgeInflight
            | Is::State
            | Is::UnknownProducerId
            | Is::InvalidTransactionalState
            | Is::InvalidProducerIdMapping
            | Is::BrokerDestroy
            | Is::Retry
    )
}

/// As [`by_code`], for a topic that the task uses on its own account: the one of its state.
pub(crate) fn by_code_on(doing: &str, topic: &str, code: RDKafkaErrorCode) -> Error {
    match code {
        RDKafkaErrorCode::TopicAuthorizationFailed => {
            topic_denied(doing, Some(topic), &format!("{} --operation Read", shell_word(topic)))
        }
        other => by_code(doing, other),
    }
}

/// A record that belongs to no table, and that a broker did not take: the task's state, or one of a topic that the user names beside
/// the tables' own.
pub(crate) fn own_record_refused(state_topic: &str, topic: &str, code: RDKafkaErrorCode) -> Error {
    use RDKafkaErrorCode as Is;
    if topic == state_topic {
        return by_code_on("storing the task's progress", topic, code);
    }
    let doing = format!("writing to topic {topic}");
    match code {
        Is::TopicAuthorizationFailed => topic_denied(&doing, Some(topic), &shell_word(topic)),
        Is::MessageSizeTooLarge | Is::InvalidMessageSize => Error::task_broken(
            RECORD_TOO_LARGE,
            format!("a record of the task is larger than topic {topic} takes"),
        )
        .with_cause("the topic's max.message.bytes is the limit")
        .with_cure(
            Cure::advice("raise the topic's limit; then start the task again").line(raise_limit(topic)),
        ),
        Is::UnknownTopicOrPartition | Is::UnknownTopic | Is::UnknownPartition | Is::UnknownTopicId => {
            Error::task_broken(REFUSED, format!("{doing}: it is not there any more"))
                .with_cause("the task has made it, or found it, when it began")
                .with_cure(Cure::advice("start the task again: it makes the topic anew"))
        }
        other => by_code(&doing, other),
    }
}

/// As [`by_code`], for a table's topic; what the user may not do with it is the table's error.
pub(crate) fn by_code_of(doing: &str, table: &TableName, topic: &str, code: RDKafkaErrorCode) -> Error {
    match code {
        RDKafkaErrorCode::TopicAuthorizationFailed => {
            let denied = topic_denied(doing, Some(topic), &shell_word(topic));
            let cure = denied.cure().cloned().unwrap_or_default();
            let advice = "let an administrator of the cluster grant it; then copy the table again".to_owned();
            denied
                .with_class(Class::TableBroken)
                .with_table(table.clone())
                .with_cure(Cure { advice, ..cure }.resync_table(table))
        }
        other => by_code(doing, other),
    }
}

/// `rest`: the end of the line that grants it.
fn topic_denied(doing: &str, topic: Option<&str>, rest: &str) -> Error {
    let which = topic.map_or_else(String::new, |topic| format!(" with topic {topic}"));
    Error::task_broken(TOPIC_DENIED, format!("{doing}: the user may not do this{which}"))
        .with_cause(
            "a task describes, makes and writes its tables' topics, and reads the state topic, too; \
             a grant for a prefix (--resource-pattern-type prefixed) holds for every topic that begins with it",
        )
        .with_cure(
            Cure::advice("let an administrator of the cluster grant it; then start the task again").line(format!(
                "kafka-acls.sh --bootstrap-server HOST:9092 --add --allow-principal User:NAME --operation Create \
                 --operation Describe --operation Write --topic {rest}"
            )),
        )
}

/// Records are to be removed from a table's topic, or the topic itself.
pub(crate) fn removal_denied(doing: &str, table: &TableName, topic: &str) -> Error {
    Error::table_broken(
        TOPIC_DENIED,
        table.clone(),
        format!("{doing}: the user may not remove records of topic {topic}"),
    )
    .with_cause("if_target_exists is truncate or replace, which wants the operation Delete")
    .with_cure(
        Cure::advice("let an administrator of the cluster grant it, or choose append; then copy the table again")
            .line(format!(
                "kafka-acls.sh --bootstrap-server HOST:9092 --add --allow-principal User:NAME --operation Delete --topic {}",
                shell_word(topic)
            ))
            .resync_table(table),
    )
}

/// How large records may be is not told.
pub(crate) fn settings_denied() -> Error {
    let denied = topic_denied(
        "asking for settings of topics",
        None,
        "PREFIX --resource-pattern-type prefixed --operation DescribeConfigs",
    );
    denied.with_cause("with a dead letter topic the largest record that each topic takes has to be known: the operation DescribeConfigs")
}

/// A transactional id that the user may not use; it begins with `prefix`, like the other ids of the task.
pub(crate) fn transactions_denied(doing: &str, prefix: &str) -> Error {
    Error::task_broken(
        TRANSACTION_DENIED,
        format!("{doing}: the user may not use transactional ids that begin with {prefix}"),
    )
    .with_cause("the ids are `transactional_id_prefix`, the task's name and a number; the task's state is always written with one")
    .with_cure(
        Cure::advice("let an administrator of the cluster grant it; then start the task again").line(format!(
            "kafka-acls.sh --bootstrap-server HOST:9092 --add --allow-principal User:NAME --operation Write --operation Describe \
             --transactional-id {} --resource-pattern-type prefixed",
            shell_word(prefix)
        )),
    )
}

fn idempotence_denied(doing: &str) -> Error {
    Error::task_broken(TRANSACTION_DENIED, format!("{doing}: the user may not write with an idempotent producer"))
        .with_cause("brokers before 2.8 want the operation IdempotentWrite on the cluster for it")
        .with_cure(
            Cure::advice("let an administrator of the cluster grant it; then start the task again").line(
                "kafka-acls.sh --bootstrap-server HOST:9092 --add --allow-principal User:NAME --operation IdempotentWrite --cluster",
            ),
        )
}

fn property(key: &str, problem: &str) -> Error {
    let named = if key.is_empty() { String::new() } else { format!(" `{key}`") };
    Error::task_broken(PROPERTY, format!("librdkafka does not take the property{named}: {problem}")).with_cure(
        Cure::advice("correct it in the task file; librdkafka's own list of properties is CONFIGURATION.md of its documentation"),
    )
}

fn other(doing: &str, code: Option<RDKafkaErrorCode>) -> Error {
    let why = code.map_or_else(String::new, |code| format!(" ({code})"));
    Error::task_broken(REFUSED, format!("{doing}: the cluster refused it{why}"))
        .with_cure(Cure::advice("see the cause; where it does not help, report it with the log"))
}

fn raise_limit(topic: &str) -> String {
    format!(
        "kafka-configs.sh --bootstrap-server HOST:9092 --alter --topic {} --add-config max.message.bytes=10485760",
        shell_word(topic)
    )
}

/// A record that a broker did not take, and the table that it belongs to.
pub(crate) fn record_refused(table: &TableName, topic: &str, code: RDKafkaErrorCode) -> Error {
    use RDKafkaErrorCode as Is;
    match code {
        Is::MessageSizeTooLarge | Is::InvalidMessageSize => Error::table_broken(
            RECORD_TOO_LARGE,
            table.clone(),
            format!("a record of {table} is larger than topic {topic} takes"),
        )
        .with_cause("the topic's max.message.bytes is the limit; the row stays at the source")
        .with_cure(
            Cure::advice("raise the topic's limit, or leave the large column out (exclude_columns); then copy the table again")
                .line(raise_limit(topic))
                .resync_table(table),
        ),
        Is::UnknownTopicOrPartition | Is::UnknownTopic | Is::UnknownPartition => topic_gone(table, topic),
        Is::InvalidRecord | Is::InvalidMessage | Is::InvalidTimestamp => Error::table_broken(
            RECORD_REFUSED,
            table.clone(),
            format!("topic {topic} refuses a record of {table}"),
        )
        .with_cause("a compacted topic takes no record without a key, such as a truncate, and some topics only timestamps near now")
        .with_cure(
            Cure::advice("change the topic's cleanup.policy or its limits on timestamps, then copy the table again")
                .resync_table(table),
        ),
        other => by_code_of(&format!("writing to topic {topic}"), table, topic, other),
    }
}

/// A topic that the task has written to is not there any more.
pub(crate) fn topic_gone(table: &TableName, topic: &str) -> Error {
    Error::table_broken(
        TABLE_GONE,
        table.clone(),
        format!("topic {topic} of {table} was removed from the cluster"),
    )
    .with_cause("the task had written to it, and changes since its copy would have nowhere to go")
    .with_cure(Cure::advice("stop the task, copy the table again, start it").resync_table(table))
}

/// A topic that the task has neither made nor been told to take over holds records.
pub(crate) fn topic_exists(table: &TableName, topic: &str) -> Error {
    Error::table_broken(TABLE_EXISTS, table.clone(), format!("topic {topic} holds records already"))
        .with_cause("records that the task writes would follow those of something else")
        .with_cure(
            Cure::advice(
                "say what to do with it, in the table's entry of the task file: append, truncate or replace; or give the table another topic",
            )
            .line("if_target_exists = \"append\""),
        )
}

/// Another task, or another table of this one, writes to the topic.
pub(crate) fn topic_taken(table: &TableName, topic: &str, holder: &str) -> Error {
    Error::table_broken(NAME_COLLISION, table.clone(), format!("topic {topic} of {table} is {holder}'s already"))
        .with_cause("a topic holds one table, unless the topic rule leaves the table out")
        .with_cure(Cure::advice(
            "add #{source_schema_name} or #{source_table_name} to topic_name_rule, or give the table a topic of its own",
        ))
}

/// The columns are not those that the task has written so far.
pub(crate) fn columns_differ(table: &TableName, topic: &str) -> Error {
    Error::table_broken(
        SCHEMA_INCOMPATIBLE,
        table.clone(),
        format!("the columns of {table} are not those of the records in {topic}"),
    )
    .with_cause(
        "they changed while the task did not run; rows that are in the topic already may lack the new values",
    )
    .with_cure(Cure::advice("copy the table again").resync_table(table))
}

/// A value that the form of records cannot hold.
pub(crate) fn unfit(table: &TableName, column: &str, target_type: &str, reason: &str) -> Error {
    Error::table_broken(
        NOT_REPRESENTABLE,
        table.clone(),
        format!("a value of {table}.{column} {reason}, and does not fit {target_type}"),
    )
    .with_cause("values are never changed to make them fit")
    .with_cure(
        Cure::advice("carry the column as text: add the line to the table's entry under [[tasks.NAME.tables]], then copy the table again")
            .line(format!("columns.{column:?} = {{ type = \"string\" }}"))
            .resync_table(table),
    )
}

/// The format needs schemas, and there is no registry.
pub(crate) fn registry_missing() -> Error {
    registry_settings("records of format avro need a schema registry")
}

/// What is said of the registry does not fit it.
pub(crate) fn registry_settings(problem: &str) -> Error {
    Error::task_broken(REGISTRY_SETTINGS, problem).with_cure(
        Cure::advice("correct it in the task file, in the Kafka connection")
            .line("schema_registry = { url = \"https://registry.example.com\" }"),
    )
}

/// The registry does not answer, or not yet.
pub(crate) fn registry_unreachable(url: &str, told: &str) -> Error {
    Error::transient(REGISTRY_UNREACHABLE, format!("schema registry {url}: no answer"))
        .with_cause(told.to_owned())
        .with_cure(Cure::advice(
            "check the url, that it can be reached from here, and ssl_root_cert where its authority is not the system's",
        ))
}

/// The registry does not let the user in.
pub(crate) fn registry_denied(url: &str, told: &str) -> Error {
    Error::task_broken(REGISTRY_DENIED, format!("schema registry {url}: the user may not do this"))
        .with_cause(told.to_owned())
        .with_cure(Cure::advice(
            "check user and password, or token, of schema_registry; the task reads and writes subjects that begin with its topics' names",
        ))
}

/// The registry does not take a schema.
pub(crate) fn schema_refused(table: &TableName, subject: &str, told: &str) -> Error {
    Error::table_broken(
        SCHEMA_REFUSED,
        table.clone(),
        format!("the schema registry does not take the schema of {table} for {subject}"),
    )
    .with_cause(told.to_owned())
    .with_cure(
        Cure::advice(
            "give the table another topic, or let the registry's administrator change the subject's rule for compatibility; then copy the \
             table again",
        )
        .resync_table(table),
    )
}

/// Two columns would be one field.
pub(crate) fn names_collide(table: &TableName, one: &str, two: &str, field: &str) -> Error {
    Error::table_broken(
        NAME_COLLISION,
        table.clone(),
        format!("columns {one:?} and {two:?} of {table} are both {field:?} as names of Avro"),
    )
    .with_cause("names of Avro have letters, digits and `_` only; every other character becomes `_`")
    .with_cure(Cure::advice("leave one of them out (exclude_columns), rename it, or take another format"))
}

/// A change does not say which row it means.
pub(crate) fn key_unknown(table: &TableName) -> Error {
    Error::table_broken(
        pgferry_pipeline::error::ROW_MALFORMED,
        table.clone(),
        format!("{table}: a change does not say which row it means"),
    )
    .with_cause("a column of its key is NULL, or the source did not send it")
    .with_cure(
        Cure::advice("take columns that are never NULL as the key, then copy the table again")
            .resync_table(table),
    )
}

/// Another process has raised the epoch.
pub(crate) fn fenced() -> Error {
    Error::task_broken(FENCED, "another process runs this task: nothing of this one is written any more")
        .with_cause(
            "the other one was started later and has taken the task over, so that no row is written twice",
        )
        .with_cure(Cure::advice("let one process run a task; stop one of the two"))
}

/// A transaction was open for longer than the brokers wait.
pub(crate) fn transaction_timeout(seconds: u64) -> Error {
    Error::task_broken(
        TRANSACTION_TIMEOUT,
        format!("the brokers gave up a transaction that was open for {seconds} s"),
    )
    .with_cause("all changes of one transaction of the source are one Kafka transaction, and it took longer than transaction.timeout.ms")
    .with_cure(
        Cure::advice(
            "raise it, and transaction.max.timeout.ms of the brokers with it; the line belongs to the task's section kafka",
        )
        .line("properties = { \"properties.transaction.timeout.ms\" = \"3600000\" }"),
    )
}

/// Slices were dropped after an error of their transaction.
pub(crate) fn slices_lost() -> Error {
    Error::transient(SLICES_LOST, "a transaction's earlier parts were dropped after an error")
        .with_cause("its parts become visible together or not at all")
        .with_cure(Cure::advice("nothing to do: the stream starts over at the last position"))
}

/// The state topic holds something that does not make sense.
pub(crate) fn state_damaged(topic: &str, what: &str) -> Error {
    Error::task_broken(STATE, format!("topic {topic}: {what}")).with_cure(Cure::advice(
        "use a pgferry of the version that wrote it, or name another state_topic: every table is copied again",
    ))
}
