//! Rows into a plain SQLite table.

use std::time::{Duration, Instant};

/// Rows of 200 bytes into a bare SQLite table, 500 a transaction, each transaction synced; rows a second.
pub fn rows(span: Duration) -> anyhow::Result<f64> {
    let folder = tempfile::tempdir()?;
    let mut connection = rusqlite::Connection::open(folder.path().join("bare.db"))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, body BLOB)", [])?;
    let (body, began, mut rows) = ([7_u8; 200], Instant::now(), 0_u64);
    while began.elapsed() < span {
        let transaction = connection.transaction()?;
        {
            let mut insert = transaction.prepare_cached("INSERT INTO rows (body) VALUES (?1)")?;
            for _ in 0..500 {
                insert.execute([&body[..]])?;
            }
        }
        transaction.commit()?;
        rows += 500;
    }
    Ok(rows as f64 / began.elapsed().as_secs_f64())
}
