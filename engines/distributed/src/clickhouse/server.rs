//! The connection: how a statement is sent, how long it may take, and what its errors mean.

use std::{sync::Arc, time::Duration};

use clickhouse::{Client, error::Error, query::Query};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use panopticon_core::{config::ClickhouseConfig, store::StoreError};

use crate::{tls, with_causes};

/// The server closes connections that are idle for longer than three seconds.
const IDLE_TIMEOUT: Duration = Duration::from_secs(2);

/// Time that the server gets beyond a deadline before the client stops waiting for its answer.
const GRACE: Duration = Duration::from_millis(500);

/// Why a statement failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// The server read the rows and does not take one of them: none of the block is in.
    Refused(String),
    /// Does not pass by itself; for an insert, the outcome is not known.
    Broken(String),
    /// Passes by itself; for an insert, the outcome is not known.
    Unavailable(String),
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused(text) | Failure::Broken(text) => Self::Broken(text),
            Failure::Unavailable(text) => Self::Unavailable(text),
        }
    }
}

/// Codes of ClickHouse (`src/Common/ErrorCodes.cpp`) that blame a value.
const REFUSED: &[u32] = &[
    6,   // CANNOT_PARSE_TEXT
    26,  // CANNOT_PARSE_QUOTED_STRING
    27,  // CANNOT_PARSE_INPUT_ASSERTION_FAILED
    33,  // CANNOT_READ_ALL_DATA
    38,  // CANNOT_PARSE_DATE
    41,  // CANNOT_PARSE_DATETIME
    53,  // TYPE_MISMATCH
    69,  // ARGUMENT_OUT_OF_BOUND
    70,  // CANNOT_CONVERT_TYPE
    72,  // CANNOT_PARSE_NUMBER
    117, // INCORRECT_DATA
    128, // TOO_LARGE_ARRAY_SIZE
    131, // TOO_LARGE_STRING_SIZE
    321, // VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE
    349, // CANNOT_INSERT_NULL_IN_ORDINARY_COLUMN
    407, // DECIMAL_OVERFLOW
    469, // VIOLATED_CONSTRAINT
    691, // UNKNOWN_ELEMENT_OF_ENUM
];

/// Codes that a retry does not help against.
const BROKEN: &[u32] = &[
    16,  // NO_SUCH_COLUMN_IN_TABLE
    36,  // BAD_ARGUMENTS
    43,  // ILLEGAL_TYPE_OF_ARGUMENT
    46,  // UNKNOWN_FUNCTION
    47,  // UNKNOWN_IDENTIFIER
    60,  // UNKNOWN_TABLE
    62,  // SYNTAX_ERROR
    81,  // UNKNOWN_DATABASE
    115, // UNKNOWN_SETTING
    164, // READONLY
    452, // SETTING_CONSTRAINT_VIOLATION
    497, // ACCESS_DENIED
];

/// Codes that say that the user or the password is wrong.
const UNKNOWN_USER: &[u32] = &[
    192, // UNKNOWN_USER
    193, // WRONG_PASSWORD
    194, // REQUIRED_PASSWORD
    516, // AUTHENTICATION_FAILED
];

/// A ClickHouse server and the database on it.
#[derive(Clone)]
pub(super) struct Server {
    client: Client,
    url: String,
    pub(super) config: Arc<ClickhouseConfig>,
    pub(super) database: String,
    pub(super) insert_timeout: Duration,
    pub(super) query_timeout: Duration,
}

impl Server {
    pub(super) fn new(config: &ClickhouseConfig) -> Result<Self, Failure> {
        let database = config.database.clone();
        let is_name = |text: &str| text.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_');
        if database.is_empty() || !is_name(&database) {
            return Err(Failure::Broken(
                "`clickhouse.database` must consist of letters, digits and underscores".to_owned(),
            ));
        }
        let client =
            if config.tls() { over_tls(config).map_err(Failure::Broken)? } else { Client::default() };
        let client = client
            .with_url(&config.url)
            .with_user(&config.user)
            .with_password(config.password.expose())
            .with_database(&database)
            .with_product_info("panopticon", env!("CARGO_PKG_VERSION"));
        Ok(Self {
            client,
            url: without_credentials(&config.url),
            config: Arc::new(config.clone()),
            database,
            insert_timeout: Duration::from_millis(config.insert_timeout_ms),
            query_timeout: Duration::from_millis(config.query_timeout_ms),
        })
    }

    /// Whether tables are kept by several replicas.
    pub(super) fn is_cluster(&self) -> bool {
        !self.config.cluster.is_empty()
    }

    /// The same server, without naming a database: for making it.
    pub(super) fn without_database(&self) -> Self {
        Self { client: self.client.clone().with_database("system"), ..self.clone() }
    }

    /// A statement; its parameters are `{name:Type}`.
    pub(super) fn query(&self, sql: &str) -> Query {
        self.client
            .query_raw(sql)
            .with_setting("max_execution_time", self.query_timeout.as_secs_f64().to_string())
    }

    /// Runs a statement that answers nothing.
    pub(super) async fn execute(&self, query: Query) -> Result<(), Failure> {
        self.within(self.query_timeout, query.with_setting("wait_end_of_query", "1").execute()).await
    }

    /// Runs a statement that changes rows that are there; it may take as long as an insert.
    pub(super) async fn change(&self, query: Query) -> Result<(), Failure> {
        let query = query
            .with_setting("max_execution_time", self.insert_timeout.as_secs_f64().to_string())
            .with_setting("wait_end_of_query", "1");
        self.within(self.insert_timeout, query.execute()).await
    }

    /// Fetches all rows of a query.
    pub(super) async fn rows<T>(&self, query: Query) -> Result<Vec<T>, Failure>
    where
        T: clickhouse::RowOwned + clickhouse::RowRead,
    {
        self.within(self.query_timeout, query.fetch_all()).await
    }

    /// Sends rows in RowBinary to `table`, as one block.
    pub(super) async fn insert(&self, insert: &Insert<'_>) -> Result<(), Failure> {
        let Insert { table, columns, rows, query_id, token, body } = insert;
        let rows_at_most = (*rows).max(1_048_449).to_string();
        let send = async {
            let mut sending = self
                .client
                .insert_formatted_with(format!("INSERT INTO {table} ({columns}) FORMAT RowBinary"))
                .with_setting("query_id", *query_id)
                .with_setting("insert_deduplication_token", *token)
                .with_setting("insert_deduplicate", "1")
                .with_setting("deduplicate_blocks_in_dependent_materialized_views", "1")
                .with_setting("async_insert", "0")
                // One block in, and one block out of each view: a block becomes one part a partition, which
                // is there as a whole or not at all.
                .with_setting("max_insert_block_size", &rows_at_most)
                .with_setting("max_block_size", &rows_at_most)
                .with_setting("max_insert_threads", "1")
                .with_setting("max_partitions_per_insert_block", "0")
                .with_setting("materialized_views_ignore_errors", "0")
                .with_setting("max_execution_time", self.insert_timeout.as_secs_f64().to_string())
                // The status line then tells the end, not the beginning.
                .with_setting("wait_end_of_query", "1");
            if self.is_cluster() {
                // What is committed must not go with one replica.
                sending = sending.with_setting("insert_quorum", "auto");
            }
            sending.send(body.clone()).await?;
            sending.end().await
        };
        self.within(self.insert_timeout, send).await
    }

    pub(super) async fn within<T>(
        &self,
        timeout: Duration,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Failure> {
        match tokio::time::timeout(timeout + GRACE, work).await {
            Ok(result) => result.map_err(|error| self.explain(&error)),
            Err(_) => Err(Failure::Unavailable(format!(
                "ClickHouse at {}: no answer within {} ms",
                self.url,
                timeout.as_millis()
            ))),
        }
    }

    pub(super) fn explain(&self, error: &Error) -> Failure {
        let text = format!("ClickHouse at {}: {}", self.url, shortened(&with_causes(error)));
        if let Some(advice) = tls::advice(&text, &self.config.tls_files()) {
            return Failure::Broken(format!("{text}; {advice}"));
        }
        match error {
            Error::BadResponse(answer) => match code(answer) {
                Some(code) if UNKNOWN_USER.contains(&code) => {
                    Failure::Broken(format!("{text}; check `clickhouse.user` and `clickhouse.password`"))
                }
                Some(code) if REFUSED.contains(&code) => Failure::Refused(text),
                Some(code) if BROKEN.contains(&code) => Failure::Broken(text),
                _ => Failure::Unavailable(text),
            },
            Error::Network(_) | Error::TimedOut => Failure::Unavailable(text),
            // What is left is a misunderstanding between this build and the server.
            _ => Failure::Broken(text),
        }
    }
}

/// A client for https.
fn over_tls(config: &ClickhouseConfig) -> Result<Client, String> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    let https = HttpsConnectorBuilder::new()
        .with_tls_config(tls::client(&config.tls_files())?)
        .https_only()
        .enable_http1()
        .wrap_connector(tcp);
    let http = HttpClient::builder(TokioExecutor::new()).pool_idle_timeout(IDLE_TIMEOUT).build(https);
    Ok(Client::with_http_client(http))
}

/// One block on its way.
pub(super) struct Insert<'a> {
    pub(super) table: &'a str,
    pub(super) columns: &'a str,
    pub(super) rows: usize,
    pub(super) query_id: &'a str,
    pub(super) token: &'a str,
    pub(super) body: bytes::Bytes,
}

/// The number in `Code: 241. DB::Exception: …`.
fn code(answer: &str) -> Option<u32> {
    let after = answer.split_once("Code: ")?.1;
    after.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// The server repeats whole statements in its errors.
const ERROR_CHARS: usize = 600;

fn shortened(text: &str) -> String {
    match text.char_indices().nth(ERROR_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// The URL as it may be printed.
fn without_credentials(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://{host}"),
        _ => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_tells_its_code() {
        assert_eq!(code("Code: 252. DB::Exception: Too many parts"), Some(252));
        assert_eq!(code("502 Bad Gateway"), None);
    }

    #[test]
    fn a_url_is_printed_without_its_password() {
        assert_eq!(without_credentials("http://u:p@host:8123"), "http://host:8123");
        assert_eq!(without_credentials("http://host:8123"), "http://host:8123");
    }
}
