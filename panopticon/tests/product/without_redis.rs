//! Redis is away when the processes start, and comes later.

use http::Method;
use serde_json::Value;

use crate::support::{
    Engine, System, eventually,
    process::{Program, free_port, new_folder},
    run_alone,
};

/// A Redis server that nobody has started yet.
fn redis(port: u16) -> Program {
    let arguments = ["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", ""];
    Program {
        name: "redis".to_owned(),
        path: "redis-server".into(),
        arguments: arguments.map(str::to_owned).to_vec(),
        settings: Vec::new(),
        folder: new_folder("redis"),
    }
}

#[test]
fn without_redis_traces_are_taken_in_and_stores_work_and_traces_are_marked_once_redis_is_there() {
    run_alone(Engine::Distributed, async |engine| {
        let port = free_port();
        let url = format!("redis://127.0.0.1:{port}");
        let s = System::prepare(engine, &[("PANOPTICON_REDIS__URL", &url)])
            .await
            .with_arguments("dedupe", &["--role", "dedupe,store"]);
        s.start_programs();
        s.until_ready_but(&["dedupe"]).await;
        let app = s.app().await;
        let trace = app.trace();
        app.accepted(&trace).await;
        // Nobody knows yet that it was there before.
        app.accepted(&trace).await;
        let gateway = s.condition("ingest-gateway");
        let metrics = s.bare(Method::GET, format!("{gateway}/metrics")).await.text;
        assert!(metrics.contains("panopticon_gateway_unmarked_total 2"), "{metrics}");

        let dedupe = s.condition("dedupe");
        assert_eq!(s.bare(Method::GET, format!("{dedupe}/healthz")).await.status, 200);
        eventually("a dedupe that waits for Redis, and a store that does not", async || {
            let ready = s.bare(Method::GET, format!("{dedupe}/readyz")).await.expect(503);
            let stores = |part: &Value| part["name"] == "store/traces" && part["state"] == "running";
            let waits = |part: &Value| {
                let reason = part["reason"].as_str().unwrap_or_default();
                part["name"] == "Redis"
                    && part["state"] == "waiting"
                    && reason.contains(&format!("Redis at 127.0.0.1:{port}"))
            };
            let parts = ready["parts"].as_array().unwrap();
            if parts.iter().any(waits) && parts.iter().any(stores) { Ok(()) } else { Err(ready) }
        })
        .await;

        let _redis = redis(port).start();
        s.until_ready().await;
        eventually("a resend that is known", async || {
            let answer = app.send(&trace).await;
            if answer.status == 200 { Ok(answer) } else { Err(answer.text) }
        })
        .await;
        s.until_at_rest(&app).await;
        assert_eq!(s.timeline(&app, 1).await.len(), 1);
        assert_eq!(s.usage(&app).await[0], 1);
    });
}
