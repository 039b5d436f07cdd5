//! The promises of a stack, on the real servers. They must be installed first, so this runs only in
//! `cargo xtask test`, or with PANOPTICON_TEST_STACK=1.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use xtask::stack::{State, TemporaryStack, clickhouse_query};

fn ask_redis(address: SocketAddr, command: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(format!("{command}\r\n").as_bytes())?;
    let mut answer = [0; 256];
    let length = stream.read(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
}

#[test]
fn data_survives_kill_and_restart_and_nothing_is_left_behind() {
    if std::env::var_os("PANOPTICON_TEST_STACK").is_none() {
        eprintln!("left out: PANOPTICON_TEST_STACK is not set");
        return;
    }
    let stack = TemporaryStack::up().unwrap();
    let status = stack.status().unwrap();
    assert!(status.iter().all(|server| server.state == State::Ready), "{status:?}");
    let pids: Vec<i32> = status.iter().map(|server| server.pid.unwrap()).collect();

    // ClickHouse: an acknowledged row is there after a kill.
    let port = stack.clickhouse.address().port();
    let sql = |statement: &str| clickhouse_query(port, statement).unwrap();
    sql("CREATE DATABASE trial");
    sql("CREATE TABLE trial.rows (n UInt64) ENGINE = MergeTree ORDER BY n");
    sql("INSERT INTO trial.rows SELECT number FROM numbers(1000)");
    stack.clickhouse.kill().unwrap();
    assert_eq!(stack.clickhouse.status().unwrap().state, State::Stopped);
    stack.clickhouse.start().unwrap();
    assert_eq!(sql("SELECT count() FROM trial.rows"), "1000");

    // Redis: the same, and it refuses to evict.
    let address = stack.redis.address();
    let redis = |command: &str| ask_redis(address, command).unwrap();
    assert_eq!(redis("SET mark here"), "+OK\r\n");
    stack.redis.kill().unwrap();
    stack.redis.start().unwrap();
    assert!(redis("GET mark").contains("here"));
    assert!(redis("CONFIG GET maxmemory-policy").contains("noeviction"));

    // A paused server keeps its connections and does not answer; it goes on where it was.
    stack.redis.pause().unwrap();
    assert_eq!(stack.redis.status().unwrap().state, State::Paused);
    stack.redis.resume().unwrap();
    assert!(redis("GET mark").contains("here"));

    // Kafka comes back on its port.
    let brokers = stack.kafka_brokers();
    stack.kafka.kill().unwrap();
    stack.kafka.start().unwrap();
    assert_eq!(stack.kafka_brokers(), brokers);

    // Starting what runs is quick and changes nothing.
    let before = stack.status().unwrap();
    let started = Instant::now();
    for server in stack.servers() {
        server.start().unwrap();
    }
    assert!(started.elapsed() < Duration::from_secs(5));
    let after = stack.status().unwrap();
    assert!(before.iter().zip(&after).all(|(before, after)| before.pid == after.pid));

    let env_file = stack.kafka.log_file().parent().unwrap().parent().unwrap().join("env");
    let env = std::fs::read_to_string(&env_file).unwrap();
    assert!(env.contains(&format!("export PANOPTICON_KAFKA__BROKERS={brokers}\n")), "{env}");

    let pids: Vec<i32> = pids.into_iter().chain(after.iter().filter_map(|server| server.pid)).collect();
    drop(stack);
    assert!(!env_file.exists(), "the folder is gone");
    for pid in pids {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        assert!(stat.is_empty() || stat.contains(") Z "), "process {pid} lives on: {stat}");
    }
}
