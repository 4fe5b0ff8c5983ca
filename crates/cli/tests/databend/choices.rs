//! What a user says of columns whose values Databend's types do not hold, through a whole task.

use pgferry_testkit::databend::DatabendSettings;

use crate::scene::{Scene, await_that, rows, server};

const TABLE: &str = "CREATE TABLE days (id int PRIMARY KEY, born date, at timestamptz, price numeric(10,2), wide numeric, n int)";
const FIRST: &str = "INSERT INTO days VALUES (1, 'infinity', 'infinity', 'NaN', '0.005', 1), (2, '2024-02-29', '2024-02-29 12:00+00', 1.50, 7, 2),
     (3, '0044-03-15 BC', '0044-03-15 12:00:00+00 BC', 'NaN', 'NaN', 3)";
const CHANGES: &str =
    "UPDATE days SET n = 20 WHERE id = 2; UPDATE days SET born = 'infinity', n = 30 WHERE id = 3;
     INSERT INTO days VALUES (4, '10000-01-01', '294276-12-31 23:59:59.999999+00', '9.99', '1e49', 4)";

/// What the tables hold after a copy and changes: NULL for what does not fit `born`, `price` and `wide`, text for `at`.
const EXPECTED: [&str; 4] = [
    "1|<null>|infinity|<null>|<null>|1",
    "2|2024-02-29|2024-02-29 12:00:00+00|1.50|7.00|20",
    "3|<null>|0044-03-15 12:00:00+00 BC|<null>|<null>|30",
    "4|<null>|294276-12-31 23:59:59.999999+00|9.99|<null>|4",
];

const CHOICES: &str = "[[tasks.all.tables]]\nsource = \"public.days\"\n\
    columns.born = { out_of_range = \"null\" }\ncolumns.at = { out_of_range = \"string\" }\n\
    columns.price = { out_of_range = \"null\" }\ncolumns.wide = { type = \"decimal(50,2)\", out_of_range = \"null\" }\n";

#[tokio::test(flavor = "multi_thread")]
async fn values_that_do_not_fit_become_null_or_text_and_are_counted() {
    let Some(server) = server(&DatabendSettings::default()) else { return };
    let scene = Scene::new(&format!("{TABLE}; {FIRST}")).await;
    let connection = format!("dsn = \"{}\"", server.dsn(""));
    scene.task(&connection, CHOICES);
    let running = scene.start();
    let asked = "SELECT id, born, at, price, wide, n FROM lake.days ORDER BY id";
    // The table is made by the run.
    let shown = || if server.query(asked).is_ok() { rows(&server, asked) } else { Vec::new() };
    let counted = || running.scraped("pgferry_values_nulled_total{task=\"all\",table=\"public.days\"}");
    let await_rows = |wanted: &dyn Fn(&[String]) -> bool| {
        await_that(|| {
            let found = shown();
            if wanted(&found) { Ok(()) } else { Err(format!("{found:#?}")) }
        });
    };
    await_rows(&|found| found.len() == 3);
    assert_eq!(counted(), Some(6.0), "values of the copy");
    scene.database.execute(CHANGES).await.unwrap();
    await_rows(&|found| found == EXPECTED);
    // Two of row 4, and of row 3 the three that its change brings again.
    assert_eq!(counted(), Some(11.0), "values of the changes, too");
    running.stop();
}
