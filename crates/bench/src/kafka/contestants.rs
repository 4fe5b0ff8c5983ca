//! Who writes a slot's changes into topics: pgferry with either guarantee, and Debezium in a Kafka Connect worker of its own.

use std::env::current_exe;
use std::fs;
use std::path::PathBuf;

use anyhow::Result;

use crate::contestant::{Contestant, Folder};
use crate::server::Scene;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    AtLeastOnce,
    ExactlyOnce,
    Debezium,
    DebeziumTuned,
}

impl Kind {
    pub(super) const ALL: [Kind; 4] =
        [Kind::AtLeastOnce, Kind::ExactlyOnce, Kind::Debezium, Kind::DebeziumTuned];

    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::AtLeastOnce => "pgferry, at least once",
            Kind::ExactlyOnce => "pgferry, exactly once",
            Kind::Debezium => "Debezium 3.6.0, defaults",
            Kind::DebeziumTuned => "Debezium 3.6.0, tuned",
        }
    }
}

/// Where one run writes.
pub(super) struct Setting<'a> {
    pub(super) servers: &'a str,
    /// The topics' names begin with it; no other run has the same.
    pub(super) prefix: &'a str,
    pub(super) folder: &'a Folder,
    /// Of Debezium and Kafka Connect.
    pub(super) jars: &'a PathBuf,
}

/// What `connect-standalone.sh` and `kafka-run-class.sh` of Apache Kafka give a worker.
const JVM: [&str; 6] = [
    "-Xms256M",
    "-server",
    "-XX:+UseG1GC",
    "-XX:MaxGCPauseMillis=20",
    "-XX:InitiatingHeapOccupancyPercent=35",
    "-XX:+ExplicitGCInvokesConcurrent",
];
const HEAP_MAX: &str = "-Xmx2G";
const HEAP_MAX_TUNED: &str = "-Xmx1G";

const WORKER: &str = "key.converter=org.apache.kafka.connect.json.JsonConverter\n\
    value.converter=org.apache.kafka.connect.json.JsonConverter\n\
    key.converter.schemas.enable=false\n\
    value.converter.schemas.enable=false\n\
    listeners=http://127.0.0.1:0\n";
const WORKER_TUNED: &str = "producer.batch.size=524288\n\
    producer.linger.ms=5\n\
    producer.compression.type=lz4\n\
    producer.buffer.memory=134217728\n\
    producer.max.in.flight.requests.per.connection=5\n";
const SOURCE: &str = "name=bench\n\
    connector.class=io.debezium.connector.postgresql.PostgresConnector\n\
    tasks.max=1\n\
    plugin.name=pgoutput\n\
    slot.name=contestant\n\
    publication.name=bench\n\
    publication.autocreate.mode=disabled\n\
    snapshot.mode=no_data\n\
    database.user=postgres\n\
    database.password=trusted\n";
const SOURCE_TUNED: &str = "max.batch.size=20480\nmax.queue.size=81920\npoll.interval.ms=10\n";

impl Kind {
    pub(super) fn contestant(self, scene: &Scene, setting: &Setting<'_>) -> Result<Contestant> {
        match self {
            Kind::AtLeastOnce => self.ferry(scene, setting, &[]),
            Kind::ExactlyOnce => self.ferry(scene, setting, &["--exactly-once"]),
            Kind::Debezium => self.debezium(scene, setting, HEAP_MAX, "", ""),
            Kind::DebeziumTuned => self.debezium(scene, setting, HEAP_MAX_TUNED, WORKER_TUNED, SOURCE_TUNED),
        }
    }

    /// It follows the stream until it is ended, as Debezium does.
    fn ferry(self, scene: &Scene, setting: &Setting<'_>, more: &[&str]) -> Result<Contestant> {
        let mut arguments = vec!["ferry".to_owned()];
        arguments.extend(scene.place(false));
        let fixed = ["--include", "public.*", "--slot", "contestant", "--follow", "3600"];
        let topics = ["--kafka", setting.servers, "--topics", setting.prefix];
        arguments.extend(fixed.iter().chain(&topics).chain(more).map(|argument| (*argument).to_owned()));
        Ok(Contestant { name: self.name().to_owned(), program: current_exe()?, arguments })
    }

    fn debezium(
        self,
        scene: &Scene,
        setting: &Setting<'_>,
        heap: &str,
        worker: &str,
        source: &str,
    ) -> Result<Contestant> {
        let file = |part: &str| setting.folder.file(&format!("{}.{part}", setting.prefix));
        let offsets = file("offsets");
        let place =
            format!("bootstrap.servers={}\noffset.storage.file.filename={offsets}\n", setting.servers);
        fs::write(file("worker"), format!("{place}{WORKER}{worker}"))?;
        let place = format!(
            "database.hostname=127.0.0.1\ndatabase.port={}\ndatabase.dbname={}\ntopic.prefix={}\n",
            scene.server.port(),
            scene.database.name(),
            setting.prefix
        );
        fs::write(file("source"), format!("{place}{SOURCE}{source}"))?;
        let mut arguments = JVM.map(str::to_owned).to_vec();
        arguments.extend([
            heap.to_owned(),
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn".to_owned(),
            "-cp".to_owned(),
            setting.jars.join("*").display().to_string(),
            "org.apache.kafka.connect.cli.ConnectStandalone".to_owned(),
            file("worker"),
            file("source"),
        ]);
        Ok(Contestant { name: self.name().to_owned(), program: "java".into(), arguments })
    }
}
