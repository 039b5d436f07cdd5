//! Tables are made once, and their absence is said.

use std::sync::Arc;

use clickhouse::Client;
use panopticon_core::{
    ids::LogId,
    store::{Attempt, BatchRange, Rows, StoreError, TraceStore},
    time::SystemClock,
    topic::Topic,
};
use panopticon_distributed::clickhouse::{ClickhouseStore, migrate};

use crate::fixture::{config, now, rows};

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
async fn a_cluster_that_the_server_does_not_know_is_named() {
    let Some(mut config) = config() else { return };
    config.clickhouse.cluster = "nowhere".to_owned();
    let error = migrate(&config).await.unwrap_err().to_string();
    assert!(error.contains("`clickhouse.cluster`: `nowhere` is not known"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_makes_its_tables_at_the_first_insert_starts_without_the_server() {
    let Some(mut config) = config() else { return };
    let url = std::mem::replace(&mut config.clickhouse.url, "http://127.0.0.1:9".to_owned());
    let rows = rows(0, 3, now());
    let range = BatchRange { topic: Topic::Traces, log_id: LogId(1), partition: 0, from: 0, to: 1 };
    let insert = async |store: &ClickhouseStore| {
        store.insert(range, Rows::of_traces(rows.clone()), Attempt::First).await
    };
    let away = ClickhouseStore::later_with_tables(&config, Arc::new(SystemClock)).unwrap();
    assert!(matches!(insert(&away).await, Err(StoreError::Unavailable(_))));
    config.clickhouse.url = url;
    let store = ClickhouseStore::later_with_tables(&config, Arc::new(SystemClock)).unwrap();
    assert_eq!(insert(&store).await.unwrap(), []);
    assert_eq!(store.find(rows[0].value.trace.event_id).await.unwrap().len(), 1);
    let client = Client::default().with_url(&config.clickhouse.url);
    client.query_raw(&format!("DROP DATABASE {} SYNC", config.clickhouse.database)).execute().await.unwrap();

    config.migrate_at_start = false;
    let forbidden = ClickhouseStore::later_with_tables(&config, Arc::new(SystemClock)).unwrap();
    assert!(matches!(insert(&forbidden).await, Err(StoreError::Broken(_))), "it may not make any");
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
