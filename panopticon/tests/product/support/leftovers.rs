//! What earlier runs have left on the servers: their topics and databases.

use std::time::Duration;

use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer as _},
};
use tokio::sync::OnceCell;

use super::{http_client, process::is_running};

const TIMEOUT: Duration = Duration::from_secs(10);

/// Whether a topic or database is of a run that has ended; the name says which run it is of.
fn is_left(name: &str) -> bool {
    let mut parts = name.split('_');
    parts.next() == Some("product") && parts.next().is_some_and(|pid| !is_running(pid))
}

/// Removes it, once in a run.
pub async fn remove() {
    static DONE: OnceCell<()> = OnceCell::const_new();
    DONE.get_or_init(async || {
        remove_topics().await;
        remove_databases().await;
    })
    .await;
}

async fn remove_topics() {
    let brokers = std::env::var("PANOPTICON_TEST_KAFKA_BROKERS").unwrap();
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers);
    let lister: BaseConsumer = config.create().unwrap();
    let listed = tokio::task::spawn_blocking(move || lister.fetch_metadata(None, TIMEOUT)).await.unwrap();
    let listed = listed.expect("the Kafka of PANOPTICON_TEST_KAFKA_BROKERS does not answer");
    let left: Vec<&str> =
        listed.topics().iter().map(|topic| topic.name()).filter(|name| is_left(name)).collect();
    if !left.is_empty() {
        let admin: AdminClient<DefaultClientContext> = config.create().unwrap();
        admin.delete_topics(&left, &AdminOptions::new()).await.unwrap();
    }
}

async fn remove_databases() {
    let url = std::env::var("PANOPTICON_TEST_CLICKHOUSE_URL").unwrap();
    let client = http_client(None);
    let ask = async |query: String| {
        let answer = client.post(&url).body(query).send().await;
        answer
            .expect("the ClickHouse of PANOPTICON_TEST_CLICKHOUSE_URL does not answer")
            .text()
            .await
            .unwrap()
    };
    let databases = ask("SHOW DATABASES FORMAT TSV".to_owned()).await;
    for database in databases.lines().filter(|name| is_left(name)) {
        ask(format!("DROP DATABASE {database}")).await;
    }
}
