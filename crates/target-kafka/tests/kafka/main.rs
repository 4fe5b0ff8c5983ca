//! The Kafka target on a real broker. Where none is installed, each test says that it did not run, and why.

mod contract;
mod debezium;
mod documents;
mod extras;
mod failures;
mod making;
mod secured;
