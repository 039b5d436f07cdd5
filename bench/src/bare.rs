//! Bare engines, measured in the same run.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use axum::{Router, http::StatusCode, routing::post};

/// An axum handler that answers at once; returns its address.
pub async fn axum_handler() -> anyhow::Result<SocketAddr> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let router = Router::new().route(
        "/panopticon/trace",
        post(|_body: bytes::Bytes| async { (StatusCode::ACCEPTED, r#"{"status":"accepted"}"#) }),
    );
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(address)
}

/// Rows of 200 bytes into a bare SQLite table, 500 a transaction, each transaction synced; rows a second.
pub fn sqlite_rows(span: Duration) -> anyhow::Result<f64> {
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
