//! How far merges are behind is told, and a stop merges what is left.

use pgferry_testkit::databend::DatabendSettings;

use crate::scene::{Scene, await_that, rows, server};

const LAG: &str = "pgferry_merge_lag_seconds{task=\"all\",table=\"public.a\"}";

#[tokio::test(flavor = "multi_thread")]
async fn the_age_of_what_is_not_merged_is_told() {
    let Some(server) = server(&DatabendSettings::default()) else { return };
    let scene = Scene::new("CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a VALUES (1)").await;
    let connection = format!("dsn = \"{}\"", server.dsn(""));
    let streaming = "pgferry_task_phase{task=\"all\",phase=\"streaming\"}";
    let ids = || rows(&server, "SELECT id FROM lake.a ORDER BY id");

    scene.task_merging(&connection, "1h", "");
    let running = scene.start();
    await_that(|| match running.scraped(streaming) {
        Some(1.0) => Ok(()),
        phase => Err(format!("streaming is {phase:?}")),
    });
    scene.database.execute("INSERT INTO a VALUES (2)").await.unwrap();
    let mut last = 0.0;
    for more_than in [0.0, 2.0] {
        await_that(|| match running.scraped(LAG) {
            Some(lag) if lag > more_than => {
                last = lag;
                Ok(())
            }
            lag => Err(format!("the lag is {lag:?}, not more than {more_than}")),
        });
    }
    assert!(last < 60.0, "the lag is {last} s");
    assert_eq!(ids(), ["1"], "it was merged before its time");
    running.stop();
    assert_eq!(ids(), ["1", "2"]);

    scene.task(&connection, "");
    let running = scene.start();
    await_that(|| match running.scraped(streaming) {
        Some(1.0) => Ok(()),
        phase => Err(format!("streaming is {phase:?}")),
    });
    scene.database.execute("INSERT INTO a VALUES (3)").await.unwrap();
    await_that(|| match ids().as_slice() {
        [_, _, third] if third == "3" => Ok(()),
        other => Err(format!("{other:?}")),
    });
    await_that(|| match running.scraped(LAG) {
        None | Some(0.0) => Ok(()),
        lag => Err(format!("everything is merged, and the lag is {lag:?}")),
    });
    running.stop();
}
