//! What goes on until it is stopped: `timeline --follow` and `webhook listen`.

#![allow(missing_docs, clippy::unwrap_used)]

mod stub;

use std::{
    io::{BufRead as _, BufReader, Read as _},
    process::{Child, Command, Stdio},
};

use serde_json::{Value, json as value};
use stub::{Stub, json};

fn trace(n: u32) -> Value {
    value!({"event_id": format!("0190b0a0-7b1a-7c3e-9d2a-00000000000{n}"), "client_id": "my-app",
        "user_sub": if n == 3 { "bob" } else { "alice" }, "tool": "t", "scope_used": "", "status": "ok",
        "started_at": format!("2026-06-30T12:00:0{n}.000000Z"), "duration_ms": 5, "session_id": "", "agent": "",
        "source_ip": "", "error_code": "", "attributes": {}, "received_at": "2026-06-30T12:00:09.000000Z",
        "late": false})
}

/// Sends a signal by the system's own command.
fn stop(child: &Child, signal: &str) {
    let status = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

#[tokio::test]
async fn following_goes_on_after_a_break_where_it_was_and_ctrl_c_ends_it_with_0() {
    let stub = Stub::start(|asked, _| {
        if asked.line.contains("/timeline") {
            // Newest first; trace 2 also comes live.
            return json(200, &value!({"items": [trace(2), trace(1)], "next_cursor": null}).to_string());
        }
        // Each connection breaks in the middle of an event that then comes again.
        let event = |n: u32| format!("id: pos-{n}\nevent: trace\ndata: {}\n\n", trace(n));
        let body = match asked.header("last-event-id") {
            "" => format!(": hello\n\n{}{}{}id: pos-5\nevent: tra", event(2), event(3), event(4)),
            "pos-4" => format!("event: missed\ndata: {{\"count\":12}}\n\n{}", event(5)),
            _ => "event: ping\ndata: {}\n\n".to_owned(),
        };
        axum::response::Response::builder()
            .header("content-type", "text/event-stream")
            .body(axum::body::Body::from(body))
            .unwrap()
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let words = ["panopticon", "timeline", "my-app", "--follow", "--user", "alice", "--json"];
    let mut logi = stub.command(folder.path(), &words);
    let mut child = logi.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    stub.wait_for(|asked| asked.header("last-event-id") == "pos-5").await;
    let out = child.stdout.take().unwrap();
    let shown = blocking(move || {
        let lines = BufReader::new(out).lines().take(4).map(Result::unwrap);
        lines.map(|line| serde_json::from_str::<Value>(&line).unwrap()).collect::<Vec<_>>()
    })
    .await;
    assert_eq!(shown, [trace(1), trace(2), trace(4), trace(5)]);
    stop(&child, "-INT");
    let mut err = child.stderr.take().unwrap();
    let (status, said) = blocking(move || {
        let mut said = String::new();
        err.read_to_string(&mut said).unwrap();
        (child.wait().unwrap(), said)
    })
    .await;
    assert_eq!(status.code(), Some(0), "{said}");
    assert!(said.contains("12 traces missed here"), "{said}");
}

#[tokio::test]
async fn a_stream_that_is_refused_ends_with_1() {
    let stub = Stub::start(|_, _| stub::error(404, "not_found", "app `x` does not exist")).await;
    let folder = tempfile::tempdir().unwrap();
    let ran = stub.logi(folder.path(), &["panopticon", "timeline", "x", "--follow"]).await;
    assert!(ran.status == 1 && ran.err.contains("logi panopticon enable x"), "{ran:?}");
}

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

fn signed(http: &reqwest::Client, url: &str, body: &str, secret: &str) -> reqwest::RequestBuilder {
    use base64::Engine as _;
    use hmac::{KeyInit as _, Mac as _};
    let at = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
    let standard = standardwebhooks::Webhook::new(secret).unwrap();
    let key = base64::engine::general_purpose::STANDARD.decode(&secret[6..]).unwrap();
    let mut mac = hmac::Hmac::<sha2::Sha256>::new_from_slice(&key).unwrap();
    mac.update(format!("{at}.{body}").as_bytes());
    let logi = format!("t={at},kid=k1,v1={}", hex::encode(mac.finalize().into_bytes()));
    http.post(url)
        .header("webhook-id", "msg_1")
        .header("webhook-timestamp", at)
        .header("webhook-signature", standard.sign("msg_1", at, body.as_bytes()).unwrap())
        .header("x-logi-signature", logi)
        .body(body.to_owned())
}

#[tokio::test]
async fn a_listener_verifies_prints_and_takes_its_endpoint_away_with_it() {
    let stub = Stub::start(|asked, _| match asked.line.starts_with("DELETE") {
        true => json(204, ""),
        false => {
            let endpoint = value!({"id": "ep_1", "client_id": "my-app", "url": asked.json()["url"], "types": [],
                "disabled": false, "disabled_reason": "", "created_at": "2026-06-30T12:00:00.000000Z",
                "secret": SECRET, "kid": "k1"});
            json(201, &endpoint.to_string())
        }
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let mut logi = stub.command(folder.path(), &["panopticon", "webhook", "listen", "my-app", "--json"]);
    let child = logi.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let registered = stub.wait_for(|asked| asked.line.ends_with("/apps/my-app/webhooks")).await;
    let url = registered.json()["url"].as_str().unwrap().to_owned();

    panopticon_cli::install_tls();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let body = r#"{"type":"panopticon.test","timestamp":"2026-06-30T12:00:00Z","data":{"note":"hello"}}"#;
    let forged = signed(&http, &url, body, "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA").send().await.unwrap();
    assert_eq!(forged.status(), 401);
    let taken = signed(&http, &url, body, SECRET).send().await.unwrap();
    assert_eq!(taken.status(), 204);

    stop(&child, "-TERM");
    let output = blocking(move || child.wait_with_output().unwrap()).await;
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(0), "{err}");
    let messages: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(messages.len(), 1, "{out}");
    assert_eq!(
        (&messages[0]["webhook_id"], &messages[0]["data"]["note"]),
        (&"msg_1".into(), &"hello".into())
    );
    assert!(err.contains("refused a message"), "{err}");
    let last = stub.asked().pop().unwrap();
    assert_eq!(last.line, "DELETE /api/v1/panopticon/apps/my-app/webhooks/ep_1");
}
