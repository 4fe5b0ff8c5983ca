//! Task files, good and bad, and what is said about them.

use std::path::Path;
use std::time::Duration;

use pgferry_model::TableName;
use pgferry_pipeline::{DeletePolicy, IfTargetExists, SyncMode};

use super::{Address, Connection, Manage, Spec, read_text, schema};

const GOOD: &str = r#"
version = 1
[connections.shop_pg]
kind = "postgres"
host = "db.internal"
database = "shop"
user = "lake_cdc"
password = { env = "SHOP_PG_PASSWORD" }
ssl_mode = "verify-full"
ssl_root_cert = "ca.crt"
[connections.lake]
kind = "duckdb"
path = "data/shop.duckdb"
[tasks.orders-2024]
source = "shop_pg"
target = "lake"
sync_mode = "snapshot"
batch_size = 50000
duckdb = { schema = "main" }
[[tasks.orders-2024.tables]]
source = "public.orders"
snapshot_where = "created_at > '2024-01-01'"
target = "orders_2024"
exclude_columns = ["internal_note"]
if_target_exists = "append"
[tasks.live]
source = "shop_pg"
target = "lake"
sync_interval = "500ms"
allow_delete = false
on_table_error = "pause_task"
include = ["public.*", "billing.*"]
exclude = ["*.tmp_*"]
limits = { memory = "1 GiB", retry_for = "2m" }
[tasks.live.replication]
publication = "bend_cdc_pub"
slot = "bend_cdc_slot"
manage = "never"
[[tasks.live.tables]]
source = "public.lines"
primary_key = ["order_id", "line"]
columns.price = { type = "decimal(12,2)" }
"#;

fn good() -> Spec {
    match read_text(Path::new("conf/shop.toml"), GOOD) {
        Ok(spec) => spec,
        Err(faults) => panic!("{:#?}", faults.faults),
    }
}

/// Every fault of a text, one a line, as people see them.
fn faults(text: &str) -> String {
    match read_text(Path::new("bad.toml"), text) {
        Ok(spec) => format!("no fault; warnings {:?}", spec.warnings),
        Err(faults) => {
            let line = |fault: &super::Fault| {
                let cure = fault.cure.as_ref().map_or(String::new(), |cure| format!(" ({cure})"));
                format!("{}: {} at {}: {}{cure}\n", fault.line, fault.code, fault.path, fault.problem)
            };
            faults.faults.iter().map(line).collect()
        }
    }
}

#[test]
fn a_good_file_means_what_it_says() {
    let spec = good();
    assert!(spec.warnings.is_empty(), "{:?}", spec.warnings);
    let Some(Connection::Postgres(postgres)) = spec.connections.get("shop_pg") else { panic!() };
    assert!(matches!(&postgres.address, Address::Parts { port: 5432, host, .. } if host == "db.internal"));
    assert_eq!(postgres.ssl_root_cert.as_deref(), Some(Path::new("conf/ca.crt")));
    let once = spec.task("orders-2024").unwrap();
    assert_eq!(once.settings.sync_mode, SyncMode::Snapshot);
    assert_eq!(once.settings.batch_rows_max, 50_000);
    assert_eq!(once.replication.slot, "pgferry_orders_2024");
    assert_eq!(once.selection.tables[0].target, TableName::new("main", "orders_2024"));
    let orders = TableName::new("public", "orders");
    assert_eq!(once.settings.if_target_exists_for(&orders), IfTargetExists::Append);
    let live = spec.task("live").unwrap();
    assert_eq!(live.settings.sync_mode, SyncMode::SnapshotCdc);
    assert_eq!(live.settings.sync_interval, Duration::from_millis(500));
    assert_eq!(live.settings.deletes, DeletePolicy::Ignore);
    assert_eq!(live.settings.retry_budget, Duration::from_secs(120));
    assert_eq!((live.settings.buffer_bytes_max, live.settings.batch_bytes_max), (1 << 30, 1 << 28));
    assert!(live.settings.stop_on_table_error);
    assert_eq!(live.replication.manage, Manage::Never);
    assert_eq!(live.selection.tables[0].column_types["price"], "decimal(12,2)");
    assert_eq!(live.selection.tables[0].target, TableName::new("public", "lines"));
}

#[test]
fn every_wrong_key_and_value_is_told_at_once_with_its_line() {
    insta::assert_snapshot!(faults(
        r#"version = 1
taskz = 1
[connections.shop]
kind = "postgres"
user = "a"
passwrod = "hunter2"
password = 12345
port = 99999
[connections.out]
kind = "duckbd"
[tasks.orders]
source = "shop"
target = "out"
sync_intervall = "3s"
sync_interval = "3 parsecs"
sync_mode = "snapshot_cdd"
batch_size = -1
[[tasks.orders.tables]]
source = "public.orders"
[[tasks.orders.tables]]
source = "public.lines"
primary_keys = ["id"]
"#
    ));
}

#[test]
fn rules_beyond_the_form_are_told_at_once() {
    insta::assert_snapshot!(faults(
        r#"version = 2
[connections.shop]
kind = "postgres"
url = { env = "URL" }
host = "x"
ssl_cert = "a.pem"
[connections.nobody]
kind = "postgres"
[connections.out]
kind = "duckdb"
path = "x.duckdb"
[tasks.a]
source = "shopp"
target = "out"
initial_copy_workers = 0
exclude = ["x"]
[tasks."b c"]
source = "out"
target = "shop"
include = ["public.*"]
[tasks.d]
source = "shop"
target = "out"
sync_mode = "cdc_only"
replication = { slot = "Big-Slot" }
[[tasks.d.tables]]
source = "t"
snapshot_where = "a > 1"
primary_key = []
[[tasks.d.tables]]
source = "public.t"
[[tasks.d.tables]]
source = "sales.t"
target = "public.t"
exclude_columns = ["a", "a"]
columns.a = { type = "decimal(39,2)" }
[tasks.e]
source = "shop"
target = "out"
include = ["*.*"]
replication = { slot = "one" }
duckdb = { schema = "main" }
[tasks.f]
source = "shop"
target = "out"
include = ["*.*"]
replication = { slot = "one" }
"#
    ));
}

#[test]
fn what_a_later_build_will_do_is_refused_by_name() {
    insta::assert_snapshot!(faults(
        r#"version = 1
[connections.shop]
kind = "postgres"
user = "a"
[connections.shop.ssh_tunnel]
host = "bastion"
[connections.bus]
kind = "kafka"
bootstrap_servers = ["k1:9093"]
[connections.lake]
kind = "timescaledb"
[connections.out]
kind = "duckdb"
path = "x.duckdb"
[tasks.a]
source = "shop"
target = "out"
on_table_error = "skip_row"
mode = "history"
schema_changes = { add_column = "apply" }
replication = { plugin = "wal2json", heartbeat = "30s", manage = "create_and_drop" }
kafka = { topic_name_rule = "x" }
[[tasks.a.tables]]
source = "t"
columns.price = { target = "cost" }
columns.born = { out_of_range = "null" }
[tasks.b]
source = "shop"
target = "bus"
mode = "history"
include = ["*.*"]
[tasks.c]
source = "shop"
target = "bus"
mode = "latest"
include = ["*.*"]
replication = { slot = "c" }
[alerts.default]
lag = "1s"
"#
    ));
}

#[test]
fn every_fault_of_a_databend_connection_is_told() {
    insta::assert_snapshot!(faults(
        r#"version = 1
[connections.shop]
kind = "postgres"
user = "a"
[connections.both]
kind = "databend"
dsn = { env = "DSN" }
host = "lake"
port = 8000
ssl_mode = "disable"
user = "ferry"
private_key = "key.pem"
warehouse = ""
[connections.nowhere]
kind = "databend"
user = "ferry"
[connections.three]
kind = "databend"
host = "https://lake:8000"
ssl_mode = "disable"
ssl_root_cert = "ca.pem"
password = { env = "PASSWORD" }
token = { env = "TOKEN" }
private_key = "key.pem"
[connections.keyless]
kind = "databend"
host = "lake"
private_key = "key.pem"
[connections.somebody]
kind = "databend"
host = "lake"
user = "ferry"
token = { env = "TOKEN" }
private_key_password_file = "word"
[connections.words]
kind = "databend"
host = "lake"
ssl_mode = "require"
upload = "presign"
passwrod = "hunter2"
[connections.kindless]
host = "lake"
[tasks.a]
source = "both"
target = "shop"
include = ["public.*"]
"#
    ));
}

#[test]
fn every_fault_of_a_databend_task_is_told() {
    insta::assert_snapshot!(faults(
        r#"version = 1
[connections.shop]
kind = "postgres"
user = "a"
[connections.lake]
kind = "databend"
host = "lake"
database = "shop"
[connections.open]
kind = "databend"
host = "lake"
[tasks.a]
source = "shop"
target = "lake"
mode = "newest"
sync_interval = "20ms"
duckdb = { schema = "main" }
kafka = { partitions_of_new_topic = 3 }
databend = { staging = "my-own", stage = "x" }
[[tasks.a.tables]]
source = "orders"
target = "analytics.orders"
topic = "orders"
columns.price = { type = "decimal(77,2)" }
columns.wide = { type = "decimal(76,2)" }
columns.total = { type = "decimal(12,2)", out_of_range = "string" }
columns.born = { type = "string", out_of_range = "string" }
columns.sent = { out_of_range = "clamp" }
columns.day = { out_of_range = "null" }
primary_key = ["id", "day"]
[tasks.b]
source = "shop"
target = "lake"
include = ["public.*", "billing.*"]
[tasks.c]
source = "shop"
target = "open"
scenario = "entire_db"
databend = { database = "shop" }
[tasks.d]
source = "shop"
target = "lake"
databend = { database = "analytics", warehouse = "" }
[[tasks.d.tables]]
source = "orders"
target = "shop.orders"
[tasks.e]
source = "shop"
target = "open"
databend = { database = "pgferry" }
[[tasks.e.tables]]
source = "orders"
"#
    ));
}

#[test]
fn a_databend_task_means_what_it_says() {
    let text = GOOD
        .replace("kind = \"duckdb\"\npath = \"data/shop.duckdb\"", "kind = \"databend\"\nhost = \"lake\"");
    let text = text.replace("duckdb = { schema = \"main\" }", "databend = { database = \"analytics\" }");
    let spec = read_text(Path::new("conf/shop.toml"), &text).unwrap();
    let once = spec.task("orders-2024").unwrap();
    assert_eq!(once.selection.target_schema.as_deref(), Some("analytics"));
    assert_eq!(once.selection.tables[0].target, TableName::new("analytics", "orders_2024"));
    assert_eq!(once.settings.sync_interval, Duration::from_secs(1));
    assert_eq!(once.databend.as_ref().unwrap().merge_interval, Duration::from_secs(3));
    let live = spec.task("live").unwrap();
    assert_eq!(live.selection.tables[0].target, TableName::new("public", "lines"));
    assert_eq!(live.settings.sync_interval, Duration::from_millis(500));
    assert_eq!(live.databend.as_ref().unwrap().merge_interval, Duration::from_millis(500));
}

#[test]
fn a_databend_database_of_the_connection_is_every_tasks_but_a_tasks_own_wins() {
    let text = "version = 1\n[connections.shop]\nkind = \"postgres\"\nuser = \"u\"\n[connections.lake]\nkind = \"databend\"\n\
                host = \"lake\"\ndatabase = \"shop\"\nwarehouse = \"small\"\n[tasks.a]\nsource = \"shop\"\ntarget = \"lake\"\n\
                [[tasks.a.tables]]\nsource = \"orders\"\n[tasks.b]\nsource = \"shop\"\ntarget = \"lake\"\n\
                databend = { database = \"analytics\", warehouse = \"etl\" }\n[[tasks.b.tables]]\nsource = \"orders\"\n";
    let spec = read_text(Path::new("a.toml"), text).unwrap();
    let place = |task: &str| {
        let task = spec.task(task).unwrap();
        let warehouse = task.databend.as_ref().unwrap().warehouse.clone();
        (task.selection.tables[0].target.to_string(), warehouse)
    };
    assert_eq!(place("a"), ("shop.orders".to_owned(), Some("small".to_owned())));
    assert_eq!(place("b"), ("analytics.orders".to_owned(), Some("etl".to_owned())));
}

#[test]
fn a_plain_secret_of_databend_is_warned_of() {
    for (keys, warned) in [
        ("dsn = \"databend://me:hunter2@lake/\"", Some("connections.b.dsn")),
        ("dsn = \"databend://root:@lake/\"", None),
        ("host = \"lake\"\nuser = \"me\"\npassword = \"hunter2\"", Some("connections.b.password")),
        ("host = \"lake\"\ntoken = \"hunter2\"", Some("connections.b.token")),
        ("host = \"lake\"\ntoken = { env = \"hunter2_is_no_secret\" }", None),
    ] {
        let text = format!(
            "version = 1\n[connections.a]\nkind = \"postgres\"\nuser = \"u\"\n[connections.b]\nkind = \"databend\"\n{keys}\n\
             [tasks.t]\nsource = \"a\"\ntarget = \"b\"\nscenario = \"entire_db\"\n"
        );
        let spec = read_text(Path::new("a.toml"), &text).unwrap();
        assert_eq!(spec.warnings.first().map(|fault| fault.path.as_str()), warned, "{keys}");
        assert!(!format!("{spec:?}").replace("hunter2_is", "").contains("hunter2"), "{keys}");
    }
}

#[test]
fn text_that_is_not_toml_tells_its_line_and_not_its_content() {
    let told = faults("version = 1\n[connections.a]\npassword = hunter2\n");
    assert!(told.starts_with("3: config.syntax"), "{told}");
    assert!(!told.contains("hunter2"), "{told}");
    assert!(faults("version = 1\nversion = 2\n").starts_with("2: config.syntax"));
}

#[test]
fn a_secret_never_reaches_a_message_and_a_plain_one_is_warned_of() {
    let text = GOOD.replace("{ env = \"SHOP_PG_PASSWORD\" }", "\"hunter2\"");
    let spec = read_text(Path::new("a.toml"), &text).unwrap();
    assert_eq!(spec.warnings.len(), 1);
    assert_eq!((spec.warnings[0].line, spec.warnings[0].path.as_str()), (8, "connections.shop_pg.password"));
    assert!(!format!("{spec:?}").contains("hunter2"));
    let text = GOOD.replace("{ env = \"SHOP_PG_PASSWORD\" }", "{ enf = \"hunter2\" }");
    assert!(!faults(&text).contains("hunter2"), "{}", faults(&text));
}

#[test]
fn the_url_of_a_server_is_warned_of_only_with_a_password_in_it() {
    for (url, warned) in [
        ("postgres://me@db/shop", false),
        ("postgres://me:pw@db/shop", true),
        ("postgres://db/shop?user=me&password=pw", true),
        ("postgres://[::1]:5432/shop", false),
    ] {
        let text = format!(
            "version = 1\n[connections.a]\nkind = \"postgres\"\nurl = \"{url}\"\n[connections.b]\nkind = \"duckdb\"\n\
             path = \"b\"\n[tasks.t]\nsource = \"a\"\ntarget = \"b\"\nscenario = \"entire_db\"\n"
        );
        let spec = read_text(Path::new("a.toml"), &text).unwrap();
        assert_eq!(!spec.warnings.is_empty(), warned, "{url}");
    }
}

#[test]
fn default_names_are_legal_for_a_slot() {
    assert_eq!(super::validated::default_name("Orders-2024"), "pgferry_orders_2024");
    assert_eq!(super::validated::default_name(&"x".repeat(63)).len(), 63);
}

/// Compares a checked-in page with what the program makes; `PGFERRY_UPDATE=1` writes it.
fn is_current(name: &str, made: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference").join(name);
    if std::env::var_os("PGFERRY_UPDATE").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, made).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        there == made,
        "docs/reference/{name} is out of date: PGFERRY_UPDATE=1 cargo test -p pgferry-task spec"
    );
}

#[test]
fn the_schema_and_the_reference_page_are_current() {
    is_current("task-file.schema.json", &schema::json_schema());
    is_current("task-file.md", &schema::reference_page());
    let page = schema::reference_page();
    let undocumented: Vec<&str> =
        page.lines().filter(|line| line.starts_with("| `") && line.ends_with("|  |")).collect();
    assert_eq!(undocumented, [] as [&str; 0]);
    for section in page.split("\n## ").skip(1) {
        assert!(section.contains("\n| `"), "a section without keys: {section}");
    }
}

fn bus(sasl: &str) -> String {
    format!(
        "version = 1\n[connections.pg]\nkind = \"postgres\"\nhost = \"db\"\ndatabase = \"shop\"\nuser = \"u\"\n\
         [connections.bus]\nkind = \"kafka\"\nbootstrap_servers = [\"k1:9093\"]\nsecurity_protocol = \"sasl_ssl\"\n\
         sasl = {{ {sasl} }}\n[tasks.a]\nsource = \"pg\"\ntarget = \"bus\"\ninclude = [\"public.*\"]\n"
    )
}

#[test]
fn each_mechanism_of_sasl_has_its_keys() {
    let token = "mechanism = \"OAUTHBEARER\", token_endpoint = \"https://t/token\", client_id = \"me\"";
    let text = bus(&format!("{token}, client_secret = {{ env = \"S\" }}, scope = \"kafka\""));
    let spec = read_text(Path::new("a.toml"), &text).unwrap();
    let Some(Connection::Kafka(connection)) = spec.connections.get("bus") else { panic!("{spec:?}") };
    for pair in [
        ("sasl.mechanism", "OAUTHBEARER"),
        ("sasl.oauthbearer.method", "oidc"),
        ("sasl.oauthbearer.token.endpoint.url", "https://t/token"),
        ("sasl.oauthbearer.client.id", "me"),
        ("sasl.oauthbearer.scope", "kafka"),
    ] {
        let has = connection.properties.iter().any(|(key, value)| (key.as_str(), value.as_str()) == pair);
        assert!(has, "{pair:?}: {:?}", connection.properties);
    }
    assert_eq!(connection.secrets[0].0, "sasl.oauthbearer.client.secret");

    let told = faults(&bus(&format!("{token}, user = \"me\"")));
    assert!(told.contains("OAUTHBEARER needs `client_secret`"), "{told}");
    assert!(told.contains("`user` belongs to another mechanism than OAUTHBEARER"), "{told}");
    let told = faults(&bus("user = \"me\", scope = \"kafka\""));
    assert!(told.contains("SCRAM-SHA-512 needs `password`"), "{told}");
    assert!(told.contains("`scope` belongs to another mechanism"), "{told}");
    let text = bus(&format!("{token}, client_secret = \"hunter2\""));
    let spec = read_text(Path::new("a.toml"), &text).unwrap();
    assert_eq!(spec.warnings[0].path, "connections.bus.sasl.client_secret");
    assert!(!format!("{spec:?}").contains("hunter2"));
}

#[test]
fn kerberos_is_refused_by_name_where_the_build_does_not_speak_it() {
    let text = bus("mechanism = \"GSSAPI\", principal = \"ferry@SHOP\", keytab = \"ferry.keytab\"");
    if pgferry_target_kafka::HAS_GSSAPI {
        assert!(read_text(Path::new("a.toml"), &text).is_ok());
    } else {
        let told = faults(&text);
        assert!(told.contains("config.unsupported") && told.contains("does not speak GSSAPI"), "{told}");
    }
}
