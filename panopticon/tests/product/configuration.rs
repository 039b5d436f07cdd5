//! Configuration: what is wrong with it is named, and secrets are not shown.

use crate::support::{
    Engine,
    logi::{Ran, run},
    process::{Program, free_port, new_folder},
    run_alone,
};

/// A command in a folder of its own.
fn panopticon(words: &[&str], settings: &[(&str, &str)]) -> Program {
    Program {
        name: "panopticon".to_owned(),
        path: env!("CARGO_BIN_EXE_panopticon").into(),
        arguments: words.iter().map(ToString::to_string).collect(),
        settings: settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        folder: new_folder("configuration"),
    }
}

async fn check(settings: &[(&str, &str)]) -> Ran {
    run(panopticon(&["config", "check"], settings)).await
}

#[test]
fn what_is_wrong_with_a_setting_is_named() {
    run_alone(Engine::Embedded, async |_| {
        for (name, value, told) in [
            ("PANOPTICON_GATEWAY__MAX_TRACE_BYTES", "many", "gateway.max_trace_bytes"),
            ("PANOPTICON_GATEWAY__QUEUE_TRACES", "-1", "gateway.queue_traces"),
            ("PANOPTICON_GATEWAY__QUEUE_TRACES", "0", "`gateway.queue_traces` must be at least 1"),
            ("PANOPTICON_LISTEN", "here", "listen"),
            ("PANOPTICON_ENGINE", "paper", "engine"),
            ("PANOPTICON_MIGRATE_AT_START", "perhaps", "migrate_at_start"),
            ("PANOPTICON_RETENTION__LOG_HOURS", "1", "`retention.log_hours`"),
            ("PANOPTICON_WEBHOOKS__ALLOW_NETWORKS", "[\"10.0.0.0/33\"]", "10.0.0.0/33"),
            ("PANOPTICON_SECRETS__KEY", "short", "`secrets.key`"),
            ("PANOPTICON_RETENTION__RAW_DAYS", "10001", "`retention.raw_days` must be at most 10000"),
            ("PANOPTICON_KAFKA__SASL_MECHANISM", "ROT13", "kafka.sasl_mechanism"),
            ("PANOPTICON_KAFKA__PASSWORD", "hush", "`kafka.sasl_mechanism`"),
            ("PANOPTICON_KAFKA__CA_FILE", "/nowhere.pem", "`kafka.tls`"),
            ("PANOPTICON_REDIS__URL", "http://:hush@host", "`redis.url`"),
            ("PANOPTICON_REDIS__SENTINELS", "host", "`redis.sentinels`"),
            ("PANOPTICON_CLICKHOUSE__URL", "host:8123", "`clickhouse.url`"),
        ] {
            let error = check(&[(name, value)]).await.failed();
            assert!(error.contains(told), "{name}={value}: {error}");
            assert!(error.starts_with("panopticon: ") && !error.contains("hush"), "{error}");
        }
    });
}

#[test]
fn an_unknown_key_is_named() {
    run_alone(Engine::Embedded, async |_| {
        for (name, told) in [
            ("PANOPTICON_COLOUR", "unknown key `colour`"),
            ("PANOPTICON_KAFKA__BROKER", "unknown key `kafka.broker`"),
        ] {
            let error = check(&[(name, "x")]).await.failed();
            assert!(error.contains(told), "{error}");
        }
        let file = panopticon(&["config", "check", "--config", "mine.toml"], &[]);
        std::fs::write(file.folder.join("mine.toml"), "[gateway]\nqueue = 1\n").unwrap();
        let error = run(file).await.failed();
        assert!(error.contains("unknown key `gateway.queue`"), "{error}");
    });
}

#[test]
fn a_file_is_read_and_the_environment_goes_before_it() {
    run_alone(Engine::Embedded, async |_| {
        let program = panopticon(&["config", "check"], &[("PANOPTICON_KAFKA__PARTITIONS", "7")]);
        std::fs::write(program.folder.join("panopticon.toml"), "[kafka]\npartitions = 5\nreplication = 2\n")
            .unwrap();
        let shown = run(program).await.json();
        assert_eq!((&shown["kafka"]["partitions"], &shown["kafka"]["replication"]), (&7.into(), &2.into()));

        let bad = panopticon(&["config", "check", "--config", "mine.toml"], &[]);
        let error = run(bad.clone()).await.failed();
        assert!(error.contains("mine.toml"), "{error}");
        std::fs::write(bad.folder.join("mine.toml"), "[gateway\n").unwrap();
        let ran = run(bad).await;
        assert!(ran.status == 1 && ran.err.contains("line 1, column 9"), "{ran:?}");
    });
}

#[test]
fn secrets_are_not_shown() {
    run_alone(Engine::Embedded, async |_| {
        let ran = check(&[
            ("PANOPTICON_ADMIN_TOKEN", "hush-1"),
            ("PANOPTICON_CLICKHOUSE__PASSWORD", "hush-2"),
            ("PANOPTICON_REDIS__URL", "redis://:hush-3@localhost"),
            ("PANOPTICON_KAFKA__PROPERTIES", "{\"sasl.password\"=\"hush-4\"}"),
            ("PANOPTICON_KAFKA__SASL_MECHANISM", "PLAIN"),
            ("PANOPTICON_KAFKA__USERNAME", "me"),
            ("PANOPTICON_KAFKA__PASSWORD", "hush-6"),
            ("PANOPTICON_REDIS__PASSWORD", "hush-7"),
            ("PANOPTICON_REDIS__SENTINEL_PASSWORD", "hush-8"),
            ("PANOPTICON_APPS", "[{client_id=\"a\",pak=\"hush-5\"}]"),
        ])
        .await;
        assert!(!ran.err.contains("hush"), "{ran:?}");
        let shown = ran.done();
        assert!(!shown.contains("hush") && shown.contains("[redacted]"), "{shown}");
    });
}

#[test]
fn an_app_and_its_pak_can_be_given_by_configuration() {
    use crate::support::{App, System};
    run_alone(Engine::Embedded, async |engine| {
        let apps = "[{client_id=\"given\",name=\"Given\",pak=\"pano_pak_0123456789012345678901234567890123456789012\"}]";
        let s = System::start(
            engine,
            &[("PANOPTICON_APPS", apps), ("PANOPTICON_ADMIN_TOKEN", "a-token-of-my-own")],
        )
        .await;
        let app =
            App::new(&s.ingest, "given").with_pak("pano_pak_0123456789012345678901234567890123456789012");
        app.accepted(&app.trace()).await;
        assert!(!s.data_dir().join("admin.token").exists(), "where a token is given none is made");
        let client = crate::support::http_client(None);
        let asked = client
            .get(format!("{}/api/v1/panopticon/apps/given", s.control))
            .bearer_auth("a-token-of-my-own");
        let answer = crate::support::Answer::read(asked.send().await.unwrap()).await;
        assert_eq!(answer.expect(200)["name"], "Given");
    });
}

#[test]
fn a_server_that_cannot_be_reached_is_named() {
    run_alone(Engine::Embedded, async |_| {
        let port = free_port();
        let (brokers, metrics) = (format!("127.0.0.1:{port}"), format!("127.0.0.1:{}", free_port()));
        let program = panopticon(
            &["serve"],
            &[
                ("PANOPTICON_ENGINE", "distributed"),
                ("PANOPTICON_KAFKA__BROKERS", &brokers),
                ("PANOPTICON_LISTEN", &format!("127.0.0.1:{}", free_port())),
                ("PANOPTICON_METRICS_LISTEN", &metrics),
            ],
        );
        let mut process = program.start();
        crate::support::eventually("a word about Kafka", async || {
            process.must_be_running();
            let log = process.log();
            if log.contains("Kafka") && log.contains(&brokers) { Ok(()) } else { Err(log) }
        })
        .await;
        // It waits for the server, and says so to whoever asks whether it is ready.
        let ready = reqwest::get(format!("http://{metrics}/readyz")).await.unwrap();
        assert_eq!(ready.status(), 503);
        assert!(process.terminate().await.success(), "it ends in order while it waits");
    });
}
