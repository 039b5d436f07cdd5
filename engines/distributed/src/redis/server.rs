//! The connection, and what the server must be like for marks to be safe in it.

use panopticon_core::{config::RedisConfig, seen::SeenError};
use redis::{RedisError, aio::ConnectionManager};

use super::connection::{Access, Primary};

/// The oldest server that has everything in use.
const OLDEST_VERSION: (u32, u32) = (6, 2);

/// What is assumed of a server that does not tell its `hash-max-listpack-entries`: the smallest default
/// that there has been.
const ASSUMED_LISTPACK_ENTRIES: u32 = 128;
/// Hashes are planned to be this full at most: they vary, and one that outgrows the limit becomes wasteful.
const PLANNED_FILL: f64 = 0.75;
/// Nor are they planned to have more marks than this: Redis reads a hash from its start for each mark. With 64 that
/// costs less than the rest of a mark; with 400, four times as much; with 32, a mark takes two bytes more.
const PLANNED_MARKS: u32 = 64;
/// Below this, hashes spend more on their names than they save.
const SMALLEST_LISTPACK_ENTRIES: u32 = 64;
/// A field has 12 bytes, a value at most 25.
const LONGEST_ENTRY_BYTES: u32 = 25;

/// A server that was checked.
pub(super) struct Server {
    pub(super) primary: Primary,
    /// Where it is, without user and password.
    pub(super) address: String,
    /// How many entries a hash may have before it takes several times the memory for each.
    listpack_entries: u32,
}

impl Server {
    pub(super) async fn connect(config: &RedisConfig) -> Result<Self, SeenError> {
        let access = Access::new(config)?;
        let (primary, address) = Primary::connect(&access).await?;
        let mut connection = primary.connection().commands();
        let info: Result<String, _> = redis::cmd("INFO").query_async(&mut connection).await;
        let info = info.map_err(|error| access.explain(&address, &error))?;
        check_info(&info, config.allow_eviction)
            .map_err(|problem| SeenError::Broken(format!("Redis at {address}: {problem}")))?;
        let listpack_entries = listpack_entries(&mut connection, &address).await;
        Ok(Self { primary, address, listpack_entries })
    }

    /// How many marks a hash is planned to have.
    pub(super) fn hash_marks(&self) -> u32 {
        ((f64::from(self.listpack_entries) * PLANNED_FILL) as u32).clamp(1, PLANNED_MARKS)
    }
}

/// Passes by itself.
pub(super) fn unavailable(address: &str, error: &RedisError) -> SeenError {
    SeenError::Unavailable(format!("Redis at {address}: {error}"))
}

/// Tells how much memory the server uses, and how much it may.
pub(super) async fn tell_memory(connection: &mut ConnectionManager, address: &str) -> Result<(), SeenError> {
    let info: String = redis::cmd("INFO")
        .arg("memory")
        .query_async(connection)
        .await
        .map_err(|error| unavailable(address, &error))?;
    let (used, limit) = memory(&info);
    if let Some(used) = used {
        metrics::gauge!("panopticon_redis_used_bytes").set(used);
    }
    if let Some(limit) = limit {
        metrics::gauge!("panopticon_redis_limit_bytes").set(limit);
    }
    Ok(())
}

/// Bytes in use, and how many may be (0: no limit).
fn memory(info: &str) -> (Option<f64>, Option<f64>) {
    let bytes = |name: &str| field(info, name)?.parse().ok();
    (bytes("used_memory"), bytes("maxmemory"))
}

/// What a line of INFO says.
fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

fn check_info(info: &str, allow_eviction: bool) -> Result<(), String> {
    let field = |name: &str| field(info, name);
    let version = field("redis_version").unwrap_or_default();
    let mut numbers = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    if (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) < OLDEST_VERSION {
        let (major, minor) = OLDEST_VERSION;
        return Err(format!("version {version} is too old; it must be at least {major}.{minor}"));
    }
    if field("cluster_enabled") == Some("1") {
        return Err("it runs as a cluster; the seen set needs one primary, with replicas as you like".into());
    }
    let policy = field("maxmemory_policy").unwrap_or("noeviction");
    if field("maxmemory") != Some("0") && policy != "noeviction" && !allow_eviction {
        return Err(format!(
            "maxmemory-policy is {policy}: it may evict marks, and duplicates would then be stored; set it \
             to noeviction, or `redis.allow_eviction` for development"
        ));
    }
    Ok(())
}

async fn listpack_entries(connection: &mut ConnectionManager, address: &str) -> u32 {
    // Managed servers often refuse CONFIG; then the defaults hold.
    let mut limit = async |name: &str| -> Option<u32> {
        let answer: Result<Vec<String>, _> =
            redis::cmd("CONFIG").arg("GET").arg(name).query_async(connection).await;
        answer.ok()?.get(1)?.parse().ok()
    };
    let entries = limit("hash-max-listpack-entries").await;
    let value_bytes = limit("hash-max-listpack-value").await;
    let entries = entries.unwrap_or(ASSUMED_LISTPACK_ENTRIES);
    if entries < SMALLEST_LISTPACK_ENTRIES || value_bytes.is_some_and(|bytes| bytes < LONGEST_ENTRY_BYTES) {
        tracing::warn!(
            %address,
            entries,
            "Redis keeps small hashes in a wasteful way: set hash-max-listpack-entries to 512 and \
             hash-max-listpack-value to 64"
        );
    }
    entries.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_may_evict_marks_is_refused_unless_allowed() {
        let evicting = "redis_version:7.0.15\r\nmaxmemory:100\r\nmaxmemory_policy:allkeys-lru\r\n";
        assert!(check_info(evicting, false).unwrap_err().contains("noeviction"));
        assert!(check_info(evicting, true).is_ok());
        let unlimited = "redis_version:7.0.15\r\nmaxmemory:0\r\nmaxmemory_policy:allkeys-lru\r\n";
        assert!(check_info(unlimited, false).is_ok());
    }

    #[test]
    fn memory_in_use_is_not_mistaken_for_its_peak_or_its_words() {
        let info = "# Memory\r\nused_memory_human:1.2M\r\nused_memory:1258291\r\nused_memory_peak:99\r\n\
                    maxmemory_human:2M\r\nmaxmemory:2097152\r\n";
        assert_eq!(memory(info), (Some(1_258_291.0), Some(2_097_152.0)));
        assert_eq!(memory("# Memory\r\n"), (None, None));
    }

    #[test]
    fn an_old_server_and_a_cluster_are_refused() {
        assert!(check_info("redis_version:5.0.7\r\nmaxmemory:0\r\n", false).is_err());
        assert!(check_info("redis_version:6.2.0\r\nmaxmemory:0\r\n", false).is_ok());
        assert!(check_info("redis_version:7.2.4\r\nmaxmemory:0\r\ncluster_enabled:1\r\n", false).is_err());
    }
}
