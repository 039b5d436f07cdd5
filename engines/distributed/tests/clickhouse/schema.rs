//! Tables are made once, and their absence is said.

use std::sync::Arc;

use clickhouse::Client;
use panopticon_core::{store::StoreError, time::SystemClock};
use panopticon_distributed::clickhouse::{ClickhouseStore, migrate};

use crate::fixture::config;

#[tokio::test(flavor = "multi_thread")]
async fn migrating_again_and_from_several_processes_changes_nothing() {
    let Some(mut config) = config() else { return };
    let all = futures::future::join_all((0..4).map(|_| migrate(&config))).await;
    assert!(all.iter().all(Result::is_ok), "{all:?}");
    let again = migrate(&config).await.unwrap();
    assert_eq!((again.applied, again.retention_changed), (vec![], vec![]));
    config.retention.raw_days = 30;
    assert_eq!(migrate(&config).await.unwrap().retention_changed, ["traces", "webhook_deliveries"]);
    assert!(migrate(&config).await.unwrap().retention_changed.is_empty());
    let client = Client::default().with_url(&config.clickhouse.url);
    client.query_raw(&format!("DROP DATABASE {} SYNC", config.clickhouse.database)).execute().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_without_its_tables_or_server_says_what_to_do() {
    let Some(mut config) = config() else { return };
    let Err(StoreError::Broken(text)) = ClickhouseStore::connect(&config, Arc::new(SystemClock)).await else {
        panic!("must be broken")
    };
    assert!(text.contains("panopticon migrate"), "{text}");
    config.clickhouse.url = "http://127.0.0.1:9".to_owned();
    let Err(StoreError::Unavailable(text)) = ClickhouseStore::connect(&config, Arc::new(SystemClock)).await
    else {
        panic!("must be unavailable")
    };
    assert!(text.contains("127.0.0.1:9") && text.contains("refused"), "{text}");
}
