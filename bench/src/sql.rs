//! Plain SQL over ClickHouse's HTTP interface.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;

const QUERY_TIMEOUT: Duration = Duration::from_secs(600);

/// A client of the server.
#[derive(Clone)]
pub struct Sql {
    url: String,
    http: reqwest::Client,
}

impl Sql {
    /// A client of the server at `url`.
    pub fn new(url: &str) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder().no_proxy().timeout(QUERY_TIMEOUT).build()?;
        Ok(Self { url: url.to_owned(), http })
    }

    /// Runs a statement; its answer as bytes.
    pub async fn run(&self, sql: &str) -> anyhow::Result<Bytes> {
        self.send(&[], sql.to_owned().into()).await.with_context(|| sql.to_owned())
    }

    /// The one number that a query answers.
    pub async fn number(&self, sql: &str) -> anyhow::Result<u64> {
        let answer = self.run(sql).await?;
        Ok(std::str::from_utf8(&answer)?.trim().parse()?)
    }

    /// Inserts a block of rows, even if the same block was inserted before.
    pub async fn insert(&self, sql: &str, rows: Bytes) -> anyhow::Result<()> {
        self.send(&[("query", sql), ("async_insert", "0"), ("insert_deduplicate", "0")], rows).await.map(drop)
    }

    async fn send(&self, query: &[(&str, &str)], body: Bytes) -> anyhow::Result<Bytes> {
        let sent = self.http.post(&self.url).query(query).query(&[("wait_end_of_query", "1")]).body(body);
        let answer = sent.send().await.context("ClickHouse does not answer")?;
        let status = answer.status();
        let bytes = answer.bytes().await?;
        ensure!(status.is_success(), "{}", String::from_utf8_lossy(&bytes).trim());
        Ok(bytes)
    }
}
