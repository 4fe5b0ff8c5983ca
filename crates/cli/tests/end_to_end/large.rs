//! Values of megabytes, which stay in the memory in which they came: in the snapshot, in changes, in a transaction that is streamed.

use anyhow::{Context, Result};

use crate::scene::{MAJORS, Scene};

/// Larger than what is kept in memory of transactions in progress, so that it goes to a file.
const BYTES: u32 = 9_000_000;

fn values(seed: u32) -> String {
    format!(
        "repeat(md5('{seed}'), {text}), decode(repeat(md5('{seed}'), {bytea}), 'hex'), \
         jsonb_build_object('value', repeat(md5('{seed}'), {jsonb})), ARRAY[repeat('{seed}', 2000000), NULL, 'ä']",
        text = BYTES / 32,
        bytea = BYTES / 64,
        jsonb = BYTES / 128,
    )
}

async fn large(major: u32) -> Result<()> {
    let scene = Scene::new(major, "").await?;
    let client = scene.database.client().await?;
    let create =
        "CREATE TABLE public.large (id int PRIMARY KEY, small text, t text, b bytea, j jsonb, a text[])";
    client.batch_execute(create).await?;
    // Not compressed: the server's limit for transactions that it streams is for what the log holds.
    client
        .batch_execute("ALTER TABLE public.large ALTER t SET STORAGE EXTERNAL, ALTER b SET STORAGE EXTERNAL")
        .await?;
    if major >= 13 {
        let streamed =
            format!("ALTER DATABASE \"{}\" SET logical_decoding_work_mem = '64kB'", scene.database.name());
        client.batch_execute(&streamed).await?;
    }
    let insert = |id: u32| format!("INSERT INTO public.large SELECT {id}, 'small', {}", values(id));
    client.batch_execute(&insert(1)).await?;
    client
        .batch_execute("INSERT INTO public.large SELECT g, 'only small' FROM generate_series(10, 20) g")
        .await?;
    client.batch_execute(&insert(30)).await?;
    scene.run().await?;
    scene.assert_equal(true).await?;
    client.batch_execute(&insert(2)).await?;
    client.batch_execute("UPDATE public.large SET small = 'unchanged beside' WHERE id IN (1, 30)").await?;
    client
        .batch_execute(&format!(
            "BEGIN; {}; INSERT INTO public.large VALUES (21, 'between'); SAVEPOINT s; {}; ROLLBACK TO s; {}; \
             UPDATE public.large SET (t, b, j, a) = (SELECT {}) WHERE id = 10; DELETE FROM public.large WHERE id = 30; COMMIT",
            insert(3),
            insert(4),
            insert(5),
            values(6),
        ))
        .await?;
    scene.run().await?;
    scene.assert_equal(true).await?;
    scene.assert_clean().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_of_megabytes_arrive_on_each_major() -> Result<()> {
    for major in MAJORS {
        large(major).await.with_context(|| format!("PostgreSQL {major}"))?;
    }
    Ok(())
}
