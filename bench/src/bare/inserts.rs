//! Rows straight into ClickHouse, in RowBinary over HTTP.

use std::time::Instant;

use bytes::Bytes;

use crate::sql::Sql;

/// Rows in a block.
pub const BLOCK_ROWS: u64 = 50_000;

/// The rows of a table, in blocks, as they are inserted again.
pub async fn blocks(sql: &Sql, table: &str, rows: u64) -> anyhow::Result<Vec<Bytes>> {
    let mut blocks = Vec::new();
    for first in (0..rows).step_by(BLOCK_ROWS as usize) {
        // In the order of the log, as the product writes them.
        let select = format!(
            "SELECT * FROM {table} ORDER BY log_partition, log_offset, log_index LIMIT {first}, {BLOCK_ROWS} \
             FORMAT RowBinary"
        );
        blocks.push(sql.run(&select).await?);
    }
    Ok(blocks)
}

/// Inserts blocks one after the other; in how many seconds.
pub async fn insert(sql: &Sql, table: &str, blocks: &[Bytes]) -> anyhow::Result<f64> {
    let (began, statement) = (Instant::now(), format!("INSERT INTO {table} FORMAT RowBinary"));
    for block in blocks {
        sql.insert(&statement, block.clone()).await?;
    }
    Ok(began.elapsed().as_secs_f64())
}
