//! What the control room says about traces, detections, actions, changes and what could not be taken.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that panics has failed")]

mod support;

use bytes::Bytes;
use panopticon_core::{
    log::Record,
    proto::log::{DeadLetter, Delivery, Detection, GuardAction},
    topic::Topic,
    trace::{Status, encode_envelope},
};
use prost::Message as _;
use serde_json::{Value, json};
use support::House;

/// Goes through all pages of a list.
async fn all_pages(house: &House, path: &str, limit: u32) -> Vec<Value> {
    let (mut rows, mut cursor) = (Vec::new(), String::new());
    loop {
        let separator = if path.contains('?') { '&' } else { '?' };
        let answer = house.get(&format!("{path}{separator}limit={limit}{cursor}")).await;
        assert_eq!(answer.status, 200, "{}", answer.json);
        assert!(answer.items().len() <= limit as usize);
        rows.extend(answer.items().to_vec());
        match answer.json["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return rows,
        }
    }
}

#[tokio::test]
async fn a_timeline_shows_each_trace_once_over_all_pages_newest_first() {
    let house = House::open().await;
    house.enable("shop").await;
    for number in 0..25_u128 {
        if number % 3 == 0 {
            house.pass_secs(1);
        }
        let mut trace = house.a_trace("shop", &format!("user-{}", number % 2), number);
        trace.trace.status = if number == 7 { Status::Denied } else { Status::Ok };
        house.trace_all(vec![trace]).await;
    }
    house.settle().await;
    let rows = all_pages(&house, "/apps/shop/timeline", 4).await;
    let ids: std::collections::HashSet<&str> =
        rows.iter().map(|row| row["event_id"].as_str().unwrap()).collect();
    assert_eq!((rows.len(), ids.len()), (25, 25));
    assert!(rows.windows(2).all(|w| w[0]["started_at"].as_str() >= w[1]["started_at"].as_str()));
    assert_eq!(all_pages(&house, "/apps/shop/timeline?status=denied", 10).await.len(), 1);
    assert_eq!(all_pages(&house, "/apps/shop/timeline?user_sub=user-1", 5).await.len(), 12);
    assert_eq!(
        all_pages(&house, "/apps/shop/timeline?since=2026-06-30&until=2026-06-30", 100).await.len(),
        25
    );
    assert_eq!(all_pages(&house, "/apps/shop/timeline?since=2026-07-01", 100).await.len(), 0);
    assert_eq!(all_pages(&house, "/apps/shop/timeline?until=2026-06-30T12:00:01Z", 100).await.len(), 3);
    assert_eq!(house.get("/apps/none/timeline").await.refusal(), (404, "not_found", ""));
}

#[tokio::test]
async fn usage_counts_by_days_of_the_zone_asked_for() {
    let house = House::open().await;
    house.enable("shop").await;
    house.trace_all(vec![house.a_trace("shop", "u", 1)]).await;
    house.pass_secs(4 * 3600);
    let mut failed = house.a_trace("shop", "u", 2);
    failed.trace.status = Status::Error;
    house.trace_all(vec![failed]).await;
    house.post("/apps/shop/kill", json!({})).await;
    house.settle().await;
    let utc = house.get("/apps/shop/usage").await;
    assert_eq!(
        utc.json,
        json!({"items": [{"date": "2026-06-30", "traces": 2, "errors": 1, "hitl_requests": 0, "kills": 1}], "next_cursor": null})
    );
    // 12:00 and 16:00 UTC are 21:00 of the same and 01:00 of the next day in Seoul.
    let seoul = house.get("/apps/shop/usage?tz=Asia/Seoul&since=2026-06-30&until=2026-07-01").await;
    let dates: Vec<_> = seoul
        .items()
        .iter()
        .map(|row| (row["date"].as_str().unwrap(), row["traces"].as_u64().unwrap()))
        .collect();
    assert_eq!(dates, [("2026-06-30", 1), ("2026-07-01", 1)]);
    assert_eq!(house.get("/apps/shop/usage?until=2026-06-29").await.items().len(), 0);
}

#[tokio::test]
async fn an_owner_sees_the_audit_record_of_its_apps_only_over_all_pages() {
    let house = House::open().await;
    let owner = house.token("o", "owner", &["shop", "cafe"]).await;
    for number in 0..5 {
        for app in ["shop", "bank", "cafe"] {
            house.pass_secs(1);
            house.put(&format!("/apps/{app}"), json!({"name": format!("{number}")})).await;
        }
    }
    house.settle().await;
    assert_eq!(all_pages(&house, "/audit", 4).await.len(), 16, "with the token's");
    assert_eq!(all_pages(&house, "/audit?client_id=bank", 2).await.len(), 5);
    let (mut rows, mut cursor) = (Vec::new(), String::new());
    loop {
        let answer = house.call(&owner, "GET", &format!("/audit?limit=3{cursor}"), None).await;
        rows.extend(answer.items().to_vec());
        match answer.json["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    let ids: std::collections::HashSet<String> = rows.iter().map(|row| row["audit_id"].to_string()).collect();
    assert_eq!((rows.len(), ids.len()), (10, 10));
    assert!(rows.iter().all(|row| row["client_id"] == "shop" || row["client_id"] == "cafe"));
    assert!(rows.windows(2).all(|w| w[0]["at"].as_str() >= w[1]["at"].as_str()), "newest first");
}

#[tokio::test]
async fn lists_in_memory_are_paged_too() {
    let house = House::open().await;
    for app in ["a", "b", "c", "d", "e"] {
        house.enable(app).await;
        house.token(app, "read", &[]).await;
        house.post("/apps/a/webhooks", json!({"url": "https://rp.example/"})).await;
    }
    let names: Vec<_> =
        all_pages(&house, "/apps", 2).await.iter().map(|app| app["client_id"].to_string()).collect();
    assert_eq!(names, ["\"a\"", "\"b\"", "\"c\"", "\"d\"", "\"e\""]);
    assert_eq!(all_pages(&house, "/tokens", 2).await.len(), 5);
    assert_eq!(all_pages(&house, "/apps/a/webhooks", 2).await.len(), 5);
}

fn detection(house: &House, decided_by: &str) -> Detection {
    Detection {
        detection_id: "det-1".to_owned(),
        rule: "rate_limit".to_owned(),
        client_id: "shop".to_owned(),
        user_sub: "u".to_owned(),
        severity: "high".to_owned(),
        detected_at: house.now().micros(),
        emitted_at: house.now().micros(),
        deciding_event_id: decided_by.to_owned(),
        explanation: "61 calls in a minute.".to_owned(),
        phase: "started".to_owned(),
        ..Detection::default()
    }
}

#[tokio::test]
async fn the_road_of_a_trace_goes_from_its_acceptance_to_the_delivery() {
    let house = House::open().await;
    house.enable("shop").await;
    let trace = house.a_trace("shop", "u", 42);
    let id = trace.trace.event_id.to_string();
    let path = format!("/traces/{id}");

    // Nowhere, then in the raw log only, then stored.
    let nowhere = house.get(&path).await;
    assert_eq!(
        (nowhere.json["steps"][0]["step"].as_str(), &nowhere.json["trace"]),
        (Some("hint"), &Value::Null)
    );
    let record = Record::message(encode_envelope([trace.clone()]));
    house.log.append(Topic::TracesRaw, 1, record).await.unwrap();
    let waiting = house.get(&path).await;
    assert_eq!(waiting.json["steps"][0]["step"], "accepted", "{}", waiting.json);
    assert!(waiting.json["steps"][1]["summary"].as_str().unwrap().contains("`dedupe`"));

    house.trace_all(vec![trace]).await;
    let found = detection(&house, &id);
    house.append(Topic::Detections, &["shop", "u"], &found).await;
    let action = GuardAction {
        action_id: "act-1".to_owned(),
        r#type: "panopticon.anomaly_detected".to_owned(),
        client_id: "shop".to_owned(),
        user_sub: "u".to_owned(),
        created_at: house.now().micros(),
        detection: Some(found),
        ..GuardAction::default()
    };
    house.append(Topic::GuardActions, &["shop", "u"], &action).await;
    let delivery = Delivery {
        delivery_id: "del-1".to_owned(),
        webhook_id: "act-1".to_owned(),
        endpoint_id: "hook".to_owned(),
        client_id: "shop".to_owned(),
        state: "delivered".to_owned(),
        attempts: 1,
        created_at: house.now().micros(),
        updated_at: house.now().micros(),
        last_status: 204,
        ..Delivery::default()
    };
    house.deliver(&delivery).await;
    house.settle().await;
    let road = house.get(&path).await;
    let steps: Vec<&str> =
        road.json["steps"].as_array().unwrap().iter().map(|step| step["step"].as_str().unwrap()).collect();
    assert_eq!(steps, ["accepted", "stored", "detection", "action", "delivery"], "{}", road.json);
    assert_eq!(road.json["trace"]["event_id"], id.as_str());
    assert!(road.json["steps"][4]["summary"].as_str().unwrap().contains("HTTP status 204"));

    assert_eq!(house.get("/apps/shop/detections?user_sub=u").await.items()[0]["detection_id"], "det-1");
    assert_eq!(house.get("/apps/shop/detections?user_sub=x").await.items().len(), 0);
    assert_eq!(house.get("/apps/shop/actions").await.items()[0]["action_id"], "act-1");
    let stranger = house.token("bank", "owner", &["bank"]).await;
    let hidden = house.call(&stranger, "GET", &path, None).await;
    assert_eq!(
        (hidden.json["steps"][0]["step"].as_str(), &hidden.json["trace"]),
        (Some("hint"), &Value::Null)
    );
}

#[tokio::test]
async fn the_status_says_what_to_look_at() {
    let house = House::open().await;
    house.enable("shop").await;
    house.post("/apps/shop/webhooks", json!({"url": "https://rp.example/"})).await;
    let status = house.get("/apps/shop/status").await;
    assert_eq!((status.text("client_id"), &status.json["last_received_at"]), ("shop", &Value::Null));
    assert!(status.json["hints"][0].as_str().unwrap().contains("/panopticon/trace"), "{}", status.json);
    assert_eq!(status.json["stages"][1], json!({"stage": "store", "topic": "traces", "lag_records": 0}));

    house.trace_all(vec![house.a_trace("shop", "u", 1)]).await;
    house.settle().await;
    house.post("/apps/shop/kill", json!({"user_sub": "u"})).await;
    let status = house.get("/apps/shop/status").await;
    assert_eq!(status.text("last_received_at"), "2026-06-30T12:00:00.000000Z");
    let hints = status.json["hints"].to_string();
    assert!(
        hints.contains("User `u` is under a kill") && hints.contains("`store` has never worked"),
        "{hints}"
    );
    assert_eq!(house.get("/apps/none/status").await.refusal(), (404, "not_found", ""));
}

#[tokio::test]
async fn dead_letters_are_listed_newest_first_with_their_bytes() {
    let house = House::open().await;
    for number in 0..40_u64 {
        let letter = DeadLetter {
            dead_letter_id: format!("{number}"),
            topic: "traces".to_owned(),
            offset: number,
            stage: "store".to_owned(),
            error: "no".to_owned(),
            payload: Bytes::from_static(&[0xff, 0x00]),
            at: house.now().micros(),
            ..DeadLetter::default()
        };
        let record = Record::message(letter.encode_to_vec());
        house.log.append(Topic::DeadLetters, 0, record).await.unwrap();
    }
    let first = house.get("/dead-letters?limit=1").await;
    assert_eq!(
        (&first.items()[0]["dead_letter_id"], &first.items()[0]["payload"]),
        (&json!("39"), &json!("/wA="))
    );
    let ids: Vec<u64> = all_pages(&house, "/dead-letters", 7)
        .await
        .iter()
        .map(|letter| letter["dead_letter_id"].as_str().unwrap().parse().unwrap())
        .collect();
    assert_eq!(ids, (0..40).rev().collect::<Vec<_>>());
}
