//! Plain SQL over ClickHouse's HTTP interface, straight to the server.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde::de::DeserializeOwned;

const QUERY_TIMEOUT: Duration = Duration::from_secs(60);

/// A client of one database.
#[derive(Clone)]
pub struct Sql {
    url: String,
    database: String,
    http: reqwest::Client,
}

impl Sql {
    /// A client of `database` at `url`.
    pub fn new(url: &str, database: &str) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder().no_proxy().timeout(QUERY_TIMEOUT).build()?;
        Ok(Self { url: url.to_owned(), database: database.to_owned(), http })
    }

    /// The rows of a query, read as JSON objects.
    pub async fn rows<T: DeserializeOwned>(&self, sql: &str) -> anyhow::Result<Vec<T>> {
        let query = [("database", self.database.as_str()), ("output_format_json_quote_64bit_integers", "0")];
        let sent = self.http.post(&self.url).query(&query).body(format!("{sql} FORMAT JSONEachRow"));
        let answer = sent.send().await.context("ClickHouse does not answer")?;
        let status = answer.status();
        let text = answer.text().await?;
        ensure!(status.is_success(), "{sql}: {}", text.trim());
        text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
    }
}
