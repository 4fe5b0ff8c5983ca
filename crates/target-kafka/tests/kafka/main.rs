//! The Kafka target on a real broker. Where none is installed, each test says that it did not run, and why.

mod contract;
mod debezium;
mod denied;
mod documents;
mod extras;
mod failures;
mod leader;
mod making;
mod reading;
mod registry;
mod secured;
#[cfg(feature = "gssapi")]
mod tickets;
mod timeout;
mod tokens;
