//! What seeds of the crash matrix have found, each cause in a test of its own.

use anyhow::{Result, ensure};
use pgferry_testkit::process::{Ferry, binary};
use pgferry_trial::Scene;
use pgferry_trial::scene::expect_code;

/// SIGXFSZ: what a write beyond the limit on file sizes ends the process with.
const FILE_SIZE: i32 = 25;

/// A new DuckDB file is written in several steps. The process ends before its first byte, and after its first header.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_dies_while_it_makes_the_target_file_leaves_nothing_in_the_way() -> Result<()> {
    for blocks in [0, 8] {
        let scene = Scene::new(15, "").await?;
        scene.database.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1), (2)").await?;
        let limited = format!("ulimit -f {blocks}; exec \"$0\" \"$@\"");
        let program = binary()?.to_string_lossy().into_owned();
        let file = scene.task_file();
        let outcome = Ferry::of("/bin/sh")?.args(["-c", &limited, &program, "run", &file]).run().await?;
        ensure!(
            outcome.signal() == Some(FILE_SIZE),
            "{}: {}{}",
            outcome.status,
            outcome.stdout,
            outcome.stderr
        );
        expect_code(&scene.ferry().run().await?, &[0])?;
        ensure!(scene.assert_equal(true).await? == 2);
        scene.assert_clean().await?;
    }
    Ok(())
}
