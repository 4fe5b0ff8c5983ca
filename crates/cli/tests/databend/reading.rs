//! What a task has carried, read by Databend's official driver for Python: values of the language, not texts.

use std::process::Command;

use pgferry_testkit::databend::DatabendSettings;

use crate::scene::{Scene, driver, server};

const TABLE: &str = "CREATE TYPE colour AS ENUM ('red', 'green');
    CREATE TABLE everything (
        id int PRIMARY KEY, small smallint, big bigint, object oid, price numeric(12,2), wide numeric(60,5), any_size numeric,
        real_one real, double_one double precision, ok boolean, name text, code char(5), long varchar(20), raw bytea,
        day date, clock time, at timestamp, seen timestamptz, took interval, who uuid, note json, doc jsonb, shade colour,
        tags text[], numbers int[], amounts numeric(8,3)[], grid int[][], address inet, bits bit(3), body text);
    ALTER TABLE everything ALTER body SET STORAGE EXTERNAL";

/// Row 1 is at one end of the types, row 2 at the other, row 3 is NULL; 4 to 6 are to be changed.
const ROWS: &str = r#"INSERT INTO everything VALUES
    (1, -32768, -9223372036854775808, 0, -9999999999.99, -9999999999999999999999999999999999999999999999999999999.99999,
     '0.00000000000000000000000000000000000000000000000001', '-Infinity', 5e-324, true, E'it''s "text" \\ NULL\n\tä😀', 'ab', '',
     '\x0001275cff', '0001-01-01', '24:00', '0001-01-01 00:00:00', '9999-12-30 22:00:00+00', '1 year 2 mons -3 days 04:05:06.7',
     'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '{"b": 1, "a": 1.10, "a": 2}', '{"b": [1.10, null], "a": "ä"}', 'green',
     '{it''s,"a \"b\"","c\\d","",NULL,"NULL"}', '{1,NULL,-2147483648}', '{1.100,NULL,-99999.999}', '{{1,2},{3,4}}',
     '10.0.0.1/8', B'101', repeat('x', 100000)),
    (2, 32767, 9223372036854775807, 4294967295, 0.01, 0.00001, 12345678901234567890, 'NaN', '1e308', false, '', '', 'ü', '',
     '9999-12-31', '00:00:00.000001', '2024-02-29 23:59:59.999999', '0001-01-01 00:00:00+00', '0', NULL, 'null', 'null', 'red',
     '{}', '{}', '{}', '{}', '::1', B'000', 'short');
    INSERT INTO everything (id) VALUES (3), (5), (6);
    INSERT INTO everything (id, name, price, body) VALUES (4, 'old', 1.00, repeat('y', 100000))"#;

/// One keeps a large value that the stream does not send, one gets the values of row 1, one moves to another key, one goes.
const CHANGES: &str = "UPDATE everything SET name = 'new', price = 2.50, doc = '[1]' WHERE id = 4;
    UPDATE everything SET (small, big, price, wide, raw, day, seen, doc, tags, amounts)
        = (SELECT small, big, price, wide, raw, day, seen, doc, tags, amounts FROM everything WHERE id = 1) WHERE id = 5;
    UPDATE everything SET id = 7 WHERE id = 1; DELETE FROM everything WHERE id = 6;
    UPDATE everything SET wide = 1.5, tags = '{a}' WHERE id = 2; UPDATE everything SET tags = NULL WHERE id = 2";

const READ: &str = r#"
import datetime, json, math, sys
from decimal import Decimal
from databend_driver import BlockingDatabendClient

connection = BlockingDatabendClient(sys.argv[1]).get_conn()
names = [row.values()[0] for row in connection.query_all("SELECT name FROM system.columns WHERE database = 'lake' AND table = 'everything'")]
assert len(names) == 30, names
rows = [dict(zip(names, row.values())) for row in connection.query_all(f"SELECT {', '.join(names)} FROM lake.everything ORDER BY id")]
assert [row["id"] for row in rows] == [2, 3, 4, 5, 7], rows
second, empty, fourth, fifth, first = rows
utc = datetime.timezone.utc

def same(row, **expected):
    for name, value in expected.items():
        found = row[name]
        assert type(found) is type(value) and found == value, (row["id"], name, found, value)
        # Decimals of one value and another scale are equal, and so are zeros of both signs.
        assert str(found) == str(value), (row["id"], name, found, value)

wide = Decimal("-9999999999999999999999999999999999999999999999999999999.99999")
changed = dict(
    small=-32768, big=-9223372036854775808, price=Decimal("-9999999999.99"), wide=wide, raw=bytes([0, 1, 39, 92, 255]),
    day=datetime.date(1, 1, 1), seen=datetime.datetime(9999, 12, 30, 22, tzinfo=utc),
    tags=["it's", 'a "b"', "c\\d", "", None, "NULL"], amounts=[Decimal("1.100"), None, Decimal("-99999.999")],
)
same(
    first, **changed, object=0, any_size="0.00000000000000000000000000000000000000000000000001", real_one=-math.inf,
    double_one=5e-324, ok=True, name="it's \"text\" \\ NULL\n\tä😀", code="ab   ", long="", clock="24:00:00",
    at=datetime.datetime(1, 1, 1, tzinfo=utc), took="1 year 2 mons -3 days +04:05:06.7",
    who="a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", note='{"b": 1, "a": 1.10, "a": 2}', shade="green",
    numbers=[1, None, -2147483648], grid="{{1,2},{3,4}}", address="10.0.0.1/8", bits="101", body="x" * 100000,
)
same(fifth, **changed, name=None, numbers=None, ok=None)
assert json.loads(first["doc"], parse_float=Decimal) == {"a": "ä", "b": [Decimal("1.10"), None]}, first["doc"]
assert "1.10" in first["doc"] and first["doc"] == fifth["doc"], (first["doc"], fifth["doc"])
same(
    second, small=32767, big=9223372036854775807, object=4294967295, price=Decimal("0.01"), wide=Decimal("1.50000"),
    any_size="12345678901234567890", double_one=1e308, ok=False, name="", code="     ", long="ü", raw=b"",
    day=datetime.date(9999, 12, 31), clock="00:00:00.000001", at=datetime.datetime(2024, 2, 29, 23, 59, 59, 999999, utc),
    seen=datetime.datetime(1, 1, 1, tzinfo=utc), took="00:00:00", who=None, note="null", doc="null", shade="red", tags=None,
    numbers=[], amounts=[], grid="{}", address="::1", bits="000", body="short",
)
assert math.isnan(second["real_one"]), second
assert [value for name, value in empty.items() if name != "id"] == [None] * 29, empty
same(fourth, name="new", price=Decimal("2.50"), doc="[1]", body="y" * 100000, wide=None, raw=None, tags=None)
"#;

#[tokio::test(flavor = "multi_thread")]
async fn the_driver_of_another_language_reads_what_a_task_has_carried() {
    let (Some(server), Some(python)) = (server(&DatabendSettings::default()), driver()) else { return };
    let scene = Scene::new(&format!("{TABLE}; {ROWS}")).await;
    scene.task(&format!("dsn = \"{}\"", server.dsn("")), "");
    assert_eq!(scene.run(&[], 0)["rows_copied"], 6);
    scene.database.execute(CHANGES).await.unwrap();
    scene.run(&[], 0);
    let dsn = server.dsn("default") + "&timezone=UTC";
    let read = Command::new(python).arg("-c").arg(READ).arg(dsn).output().unwrap();
    assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
}
