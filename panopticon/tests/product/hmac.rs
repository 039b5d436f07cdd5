//! HMAC mode: every request signed over its bytes, and nothing else taken.

use std::io::Write as _;

use panopticon_proto::v1::{IngestBatchRequest, IngestRequest, Outcome, SignedBatch};
use prost::Message as _;
use serde_json::json;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::support::{
    Answer, App, System,
    app::proto_trace,
    eventually, on_both_engines, refused,
    sign::{hmac_hex, now_secs},
};

on_both_engines!(
    a_signed_request_is_taken,
    a_request_that_is_not_rightly_signed_is_refused,
    the_signature_is_over_the_bytes_as_sent,
    grpc_takes_signed_batches_only,
    a_rotated_secret_signs_with_its_own_pak,
    an_app_that_is_switched_to_hmac_gets_a_pak_that_can_sign,
);

const PATHS: [&str; 2] = ["/panopticon/trace", "/panopticon/traces"];

/// A signed request.
async fn send(
    app: &App,
    path: &str,
    timestamp: &str,
    signature: &str,
    body: Vec<u8>,
    encoding: &str,
) -> Answer {
    let request = app
        .post(path)
        .header("content-type", "application/json")
        .header("content-encoding", encoding)
        .header("x-panopticon-timestamp", timestamp)
        .header("x-panopticon-signature", signature);
    Answer::read(request.body(body).send().await.unwrap()).await
}

/// A trace or a batch of one, signed now with `secret`.
async fn send_signed(app: &App, path: &str, secret: &str) -> Answer {
    let body = body_for(app, path);
    let now = now_secs().to_string();
    send(app, path, &now, &hmac_hex(secret.as_bytes(), &now, &body), body, "identity").await
}

fn body_for(app: &App, path: &str) -> Vec<u8> {
    if path == PATHS[0] { app.trace().to_string().into() } else { json!([app.trace()]).to_string().into() }
}

async fn a_signed_request_is_taken(s: &System) {
    let app = s.app_with(json!({"hmac": true})).await;
    assert!(app.secret.starts_with("pano_sec_"));
    assert_eq!(send_signed(&app, PATHS[0], &app.secret).await.status, 202);
    assert_eq!(send_signed(&app, PATHS[1], &app.secret).await.status, 200);
    // Five minutes either way are forgiven, with room for the machine's own slowness.
    for off in [-290, 290] {
        let (body, at) = (body_for(&app, PATHS[0]), (now_secs() + off).to_string());
        let signature = hmac_hex(app.secret.as_bytes(), &at, &body);
        assert_eq!(send(&app, PATHS[0], &at, &signature, body, "identity").await.status, 202, "{off}");
    }
    assert_eq!(s.timeline(&app, 4).await.len(), 4);
}

async fn a_request_that_is_not_rightly_signed_is_refused(s: &System) {
    let app = s.app_with(json!({"hmac": true})).await;
    for path in PATHS {
        let body = body_for(&app, path);
        let unsigned = app.post(path).header("content-type", "application/json").body(body.clone());
        refused(&Answer::read(unsigned.send().await.unwrap()).await, 401, "invalid_signature", None);
        let now = now_secs();
        let sign = |at: i64| hmac_hex(app.secret.as_bytes(), &at.to_string(), &body);
        let right = sign(now);
        for (at, signature) in [
            (now.to_string(), String::new()),
            (now.to_string(), right.to_uppercase()),
            (now.to_string(), format!("sha256={right}")),
            (now.to_string(), right[..62].to_owned()),
            (now.to_string(), "0".repeat(64)),
            (now.to_string(), hmac_hex(app.pak.as_bytes(), &now.to_string(), &body)),
            ((now + 1).to_string(), right.clone()),
            (String::new(), right.clone()),
            ("now".to_owned(), right.clone()),
            (format!("{now}.0"), right.clone()),
            ((now - 310).to_string(), sign(now - 310)),
            ((now + 310).to_string(), sign(now + 310)),
            (i64::MIN.to_string(), sign(i64::MIN)),
        ] {
            let answer = send(&app, path, &at, &signature, body.clone(), "identity").await;
            refused(&answer, 401, "invalid_signature", None);
        }
    }
    s.until_at_rest(&app).await;
    assert!(s.timeline(&app, 0).await.is_empty());
}

async fn the_signature_is_over_the_bytes_as_sent(s: &System) {
    let app = s.app_with(json!({"hmac": true})).await;
    let plain = body_for(&app, PATHS[1]);
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&plain).unwrap();
    let packed = encoder.finish().unwrap();
    let now = now_secs().to_string();
    let of_plain = hmac_hex(app.secret.as_bytes(), &now, &plain);
    let answer = send(&app, PATHS[1], &now, &of_plain, packed.clone(), "gzip").await;
    refused(&answer, 401, "invalid_signature", None);
    let of_packed = hmac_hex(app.secret.as_bytes(), &now, &packed);
    assert_eq!(send(&app, PATHS[1], &now, &of_packed, packed, "gzip").await.status, 200);
}

fn signed(app: &App, timestamp: i64, payload: Vec<u8>) -> SignedBatch {
    let signature = hmac_hex(app.secret.as_bytes(), &timestamp.to_string(), &payload);
    SignedBatch { timestamp, signature, payload: payload.into() }
}

#[track_caller]
fn is_about_the_signature(status: &Status) {
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    assert!(status.message().starts_with("invalid_signature"), "{status:?}");
}

async fn grpc_takes_signed_batches_only(s: &System) {
    let app = s.app_with(json!({"hmac": true})).await;
    let mut client = app.grpc().await;
    let batch = IngestBatchRequest {
        traces: vec![proto_trace(&app.trace()), proto_trace(&app.trace_with(json!({"tool": ""})))],
    };
    let one = IngestRequest { trace: batch.traces.first().cloned() };
    is_about_the_signature(&client.ingest(app.ask(one)).await.unwrap_err());
    is_about_the_signature(&client.ingest_batch(app.ask(batch.clone())).await.unwrap_err());
    let stream = client.ingest_stream(app.ask(futures::stream::iter([batch.clone()]))).await;
    is_about_the_signature(&stream.err().unwrap());

    let right = signed(&app, now_secs(), batch.encode_to_vec());
    let answer = client.ingest_signed(app.ask(right.clone())).await.unwrap().into_inner();
    let outcomes: Vec<Outcome> = answer.results.iter().map(|result| result.outcome()).collect();
    assert_eq!(outcomes, [Outcome::Accepted, Outcome::Rejected]);
    for wrong in [
        SignedBatch { signature: String::new(), ..right.clone() },
        SignedBatch { timestamp: right.timestamp + 1, ..right.clone() },
        SignedBatch { payload: [&right.payload[..], b"\x0a\x00"].concat().into(), ..right.clone() },
        SignedBatch { timestamp: 0, ..right.clone() },
        signed(&app, now_secs() - 310, right.payload.to_vec()),
    ] {
        is_about_the_signature(&client.ingest_signed(app.ask(wrong)).await.unwrap_err());
    }
    let garbage =
        client.ingest_signed(app.ask(signed(&app, now_secs(), b"no batch".to_vec()))).await.unwrap_err();
    assert_eq!(garbage.code(), Code::InvalidArgument);
    assert_eq!(garbage.get_details_bad_request().unwrap().field_violations[0].field, "payload");
    assert_eq!(s.timeline(&app, 1).await.len(), 1);
}

async fn a_rotated_secret_signs_with_its_own_pak(s: &System) {
    let app = s.app_with(json!({"hmac": true})).await;
    let rotated = s.post(&format!("/apps/{}/pak", app.id), json!({"grace_secs": 600})).await.expect(200);
    let (pak, secret) = (rotated["pak"].as_str().unwrap(), rotated["pak_secret"].as_str().unwrap());
    assert_ne!(secret, app.secret);
    let new = app.with_pak(pak);
    eventually("the gateway knows the new PAK", async || {
        let answer = send_signed(&new.elsewhere(), PATHS[0], secret).await;
        if answer.status == 202 { Ok(()) } else { Err(answer.text) }
    })
    .await;
    assert_eq!(
        send_signed(&app, PATHS[0], &app.secret).await.status,
        202,
        "the old pair is valid in its grace"
    );
    refused(&send_signed(&app, PATHS[0], secret).await, 401, "invalid_signature", None);
    refused(&send_signed(&new, PATHS[0], &app.secret).await, 401, "invalid_signature", None);
}

async fn an_app_that_is_switched_to_hmac_gets_a_pak_that_can_sign(s: &System) {
    let app = s.app().await;
    let changed = s.put(&format!("/apps/{}", app.id), json!({"hmac": true})).await.expect(200);
    let (pak, secret) = (changed["pak"].as_str().unwrap(), changed["pak_secret"].as_str().unwrap());
    let signing = app.with_pak(pak);
    eventually("the gateway takes signed requests", async || {
        let answer = send_signed(&signing.elsewhere(), PATHS[0], secret).await;
        if answer.status == 202 { Ok(()) } else { Err(answer.text) }
    })
    .await;
    refused(&app.elsewhere().send(&app.trace()).await, 401, "invalid_token", None);
}
