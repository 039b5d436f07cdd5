//! The control API: tokens, roles, policies, audit, and its own bad input.

use http::Method;
use serde_json::{Value, json};

use crate::support::{Answer, System, eventually, on_both_engines, refused, system::BASE};

on_both_engines!(
    without_a_token_nothing_is_answered,
    a_role_allows_what_it_names,
    a_token_is_shown_once_and_ends_at_once,
    a_policy_is_changed_only_as_it_was_read,
    a_setting_that_is_not_enforced_is_not_saved,
    every_change_is_in_the_audit_record_without_secrets,
    apps_are_listed_in_pages,
    bad_requests_are_named,
    a_body_that_is_no_object_is_refused,
    there_are_no_dead_letters,
);

/// A request with another token.
async fn ask(s: &System, token: &str, method: Method, path: &str, body: Value) -> Answer {
    let client = crate::support::http_client(None);
    let request = client.request(method, format!("{}{BASE}{path}", s.control)).bearer_auth(token).json(&body);
    Answer::read(request.send().await.unwrap()).await
}

async fn without_a_token_nothing_is_answered(s: &System) {
    let app = s.app().await;
    for path in
        ["/apps".to_owned(), format!("/apps/{}/timeline", app.id), "/tokens".to_owned(), "/audit".to_owned()]
    {
        refused(&s.bare(Method::GET, format!("{}{BASE}{path}", s.control)).await, 401, "invalid_token", None);
        for token in ["", "pano_tok_wrong", &app.pak] {
            refused(&ask(s, token, Method::GET, &path, json!({})).await, 401, "invalid_token", None);
        }
    }
}

async fn a_role_allows_what_it_names(s: &System) {
    let (own, other) = (s.app().await, s.app().await);
    let token =
        async |body: Value| s.post("/tokens", body).await.expect(201)["token"].as_str().unwrap().to_owned();
    let owner = token(json!({"name": "owner", "role": "owner", "apps": [own.id]})).await;
    let reader = token(json!({"name": "reader", "role": "read"})).await;
    let narrow = token(json!({"name": "narrow", "role": "read", "apps": [own.id]})).await;
    let of = |app: &crate::support::App, rest: &str| format!("/apps/{}{rest}", app.id);
    for (token, method, path, body, status) in [
        (&owner, Method::GET, of(&own, "/timeline"), json!({}), 200),
        (&owner, Method::PATCH, of(&own, "/policy"), json!({"rate_limit": {"per_minute": 9}}), 200),
        (&owner, Method::POST, of(&own, "/kill"), json!({}), 200),
        (&owner, Method::GET, of(&other, "/timeline"), json!({}), 403),
        (&owner, Method::POST, of(&other, "/kill"), json!({}), 403),
        (&owner, Method::GET, "/tokens".to_owned(), json!({}), 403),
        (&owner, Method::GET, "/dead-letters".to_owned(), json!({}), 403),
        (&reader, Method::GET, of(&own, "/usage"), json!({}), 200),
        (&reader, Method::GET, of(&other, "/detections"), json!({}), 200),
        (&reader, Method::GET, "/audit".to_owned(), json!({}), 200),
        (&reader, Method::POST, of(&own, "/kill"), json!({}), 403),
        (&reader, Method::PUT, of(&own, ""), json!({}), 403),
        (&reader, Method::POST, of(&own, "/pak"), json!({}), 403),
        (&reader, Method::POST, "/tokens".to_owned(), json!({"name": "x", "role": "admin"}), 403),
        (&narrow, Method::GET, of(&own, ""), json!({}), 200),
        (&narrow, Method::GET, of(&other, ""), json!({}), 403),
    ] {
        let answer = ask(s, token, method.clone(), &path, body).await;
        if status == 403 {
            refused(&answer, 403, "insufficient_scope", None);
            assert!(answer.header("www-authenticate").contains("insufficient_scope"));
        } else {
            assert_eq!(answer.status, status, "{method} {path}: {}", answer.text);
        }
    }
    let listed = ask(s, &owner, Method::GET, "/apps", json!({})).await.expect(200);
    let ids: Vec<&Value> = listed["items"].as_array().unwrap().iter().map(|app| &app["client_id"]).collect();
    assert_eq!(ids, [&json!(own.id)]);
    // What an app of another is called is not told by whether it exists.
    let unknown = ask(s, &owner, Method::GET, "/apps/no-such-app", json!({})).await;
    refused(&unknown, 403, "insufficient_scope", None);
}

async fn a_token_is_shown_once_and_ends_at_once(s: &System) {
    let made =
        s.post("/tokens", json!({"name": "short", "role": "read", "expires_in_days": 1})).await.expect(201);
    let (id, token) = (made["id"].as_str().unwrap(), made["token"].as_str().unwrap());
    assert!(token.starts_with("pano_tok_"));
    assert!(made["expires_at"].is_string());
    let listed = s.list("/tokens").await;
    let found = listed.iter().find(|row| row["id"] == id).unwrap();
    assert!(found.get("token").is_none() && found["name"] == "short", "{found}");
    ask(s, token, Method::GET, "/apps", json!({})).await.expect(200);
    assert_eq!(s.delete(&format!("/tokens/{id}")).await.status, 204);
    refused(&ask(s, token, Method::GET, "/apps", json!({})).await, 401, "invalid_token", None);
    refused(&s.delete(&format!("/tokens/{id}")).await, 404, "not_found", None);
    for (body, field) in [
        (json!({"role": "read"}), "name"),
        (json!({"name": "x"}), "role"),
        (json!({"name": "x", "role": "king"}), "role"),
        (json!({"name": "x", "role": "owner"}), "apps"),
        (json!({"name": "x", "role": "read", "expires_in_days": 0}), "expires_in_days"),
        (json!({"name": "x", "role": "read", "expires_in_days": 3651}), "expires_in_days"),
    ] {
        refused(&s.post("/tokens", body).await, 400, "invalid_request", Some(field));
    }
}

async fn a_policy_is_changed_only_as_it_was_read(s: &System) {
    let app = s.app().await;
    let path = format!("/apps/{}/policy", app.id);
    let default = s.get(&path).await;
    assert_eq!(default.expect(200)["rate_limit"], json!({"per_minute": 60, "per_tool_per_minute": 20}));
    assert_eq!((default.header("etag"), &default.json()["version"]), ("\"0\"", &json!(0)));
    let patch = async |etag: &str, body: Value| {
        let request = s.request(Method::PATCH, &path).header("if-match", etag).json(&body);
        Answer::read(request.send().await.unwrap()).await
    };
    let changed = patch("\"0\"", json!({"rate_limit": {"per_minute": 30}})).await;
    assert_eq!(changed.expect(200)["rate_limit"], json!({"per_minute": 30, "per_tool_per_minute": 20}));
    assert_eq!(changed.header("etag"), "\"1\"");
    refused(
        &patch("\"0\"", json!({"rate_limit": {"per_minute": 40}})).await,
        412,
        "precondition_failed",
        None,
    );
    assert_eq!(patch("*", json!({"rate_limit": null})).await.expect(200)["rate_limit"]["per_minute"], 60);
    for value in [json!(-1), json!(100_001), json!("30"), json!(1.5)] {
        let answer = s.patch(&path, json!({"rate_limit": {"per_minute": value}})).await;
        refused(&answer, 400, "invalid_request", Some("rate_limit.per_minute"));
    }
}

async fn a_setting_that_is_not_enforced_is_not_saved(s: &System) {
    let app = s.app().await;
    let path = format!("/apps/{}/policy", app.id);
    for setting in ["hitl", "drift", "burst", "off_hour", "failed_auth"] {
        let body = json!({"rate_limit": {"per_minute": 7}, setting: {}});
        refused(&s.patch(&path, body).await, 400, "not_supported", Some(setting));
    }
    assert_eq!(s.get(&path).await.expect(200)["version"], 0, "nothing of it is saved");
}

async fn every_change_is_in_the_audit_record_without_secrets(s: &System) {
    let app = s.app_with(json!({"name": "Audited"})).await;
    let of_app = |rest: &str| format!("/apps/{}{rest}", app.id);
    let rotated = s.post(&of_app("/pak"), json!({})).await.expect(200);
    s.patch(&of_app("/policy"), json!({"rate_limit": {"per_minute": 7}})).await.expect(200);
    let kill = s.post(&of_app("/kill"), json!({"user_sub": "alice"})).await;
    s.call(Method::DELETE, &of_app("/kill"), json!({"user_sub": "alice"})).await.expect(200);
    let hook = s.post(&of_app("/webhooks"), json!({"url": "http://127.0.0.1:9/"})).await.expect(201);
    assert_eq!(
        s.delete(&format!("{}/{}", of_app("/webhooks"), hook["id"].as_str().unwrap())).await.status,
        204
    );
    assert_eq!(s.delete(&of_app("")).await.status, 204);
    // What changes nothing is not in it.
    assert_eq!(s.delete(&of_app("")).await.status, 204);
    let expected = [
        "app.disable",
        "webhook.remove",
        "webhook.add",
        "unkill",
        "kill",
        "policy.update",
        "app.rotate",
        "app.enable",
    ];
    let path = format!("/audit?client_id={}", app.id);
    let rows = eventually("the audit record", async || {
        let rows = s.list(&path).await;
        let actions: Vec<&str> = rows.iter().map(|row| row["action"].as_str().unwrap()).collect();
        if actions == expected { Ok(rows) } else { Err(rows) }
    })
    .await;
    assert!(rows.iter().all(|row| row["actor"] == "admin" && row["client_id"] == app.id));
    let of_kill = rows.iter().find(|row| row["action"] == "kill").unwrap();
    assert_eq!(of_kill["request_id"], kill.header("x-logi-request-id"));
    let text = json!(rows).to_string();
    for secret in [&app.pak, rotated["pak"].as_str().unwrap(), hook["secret"].as_str().unwrap()] {
        assert!(!text.contains(secret));
    }
}

async fn apps_are_listed_in_pages(s: &System) {
    let mut made = Vec::new();
    for _ in 0..5 {
        made.push(s.app().await.id);
    }
    let (mut ids, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = s.get(&format!("/apps?limit=2{cursor}")).await.expect(200);
        let items = page["items"].as_array().unwrap();
        assert!(items.len() <= 2);
        ids.extend(items.iter().map(|app| app["client_id"].as_str().unwrap().to_owned()));
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert!(ids.is_sorted(), "by client id");
    assert!(made.iter().all(|id| ids.contains(id)));
}

async fn bad_requests_are_named(s: &System) {
    let app = s.app().await;
    let of_app = format!("/apps/{}", app.id);
    for (body, field) in [
        (json!({"name": 7}), Some("name")),
        (json!({"name": "x".repeat(256)}), Some("name")),
        (json!({"name": "line\nbreak"}), Some("name")),
        (json!({"scopes": "all"}), Some("scopes")),
        (json!({"scopes": ["two words"]}), Some("scopes[0]")),
        (json!({"colour": "red"}), Some("colour")),
        (json!("text"), None),
    ] {
        refused(&s.put(&of_app, body).await, 400, "invalid_request", field);
    }
    let raw = async |kind: &str, body: Vec<u8>| {
        let request = s.request(Method::PUT, &of_app).header("content-type", kind).body(body);
        Answer::read(request.send().await.unwrap()).await
    };
    refused(&raw("application/json", b"{".to_vec()).await, 400, "invalid_request", None);
    refused(&raw("text/plain", b"{}".to_vec()).await, 415, "unsupported_media_type", None);
    refused(&raw("application/json", vec![b' '; (64 << 10) + 1]).await, 413, "request_too_large", None);
    for path in ["/nothing", "/apps/x/nothing", "/apps/x/y/z"] {
        refused(&s.get(path).await, 404, "not_found", None);
    }
    let me = s.bare(Method::GET, format!("{}/api/v1/me/panopticon", s.control)).await;
    refused(&me, 404, "not_found", None);
    let wrong = s.post("/apps", json!({})).await;
    refused(&wrong, 405, "method_not_allowed", None);
    // The address that an error names explains it.
    let uri = wrong.json()["error_uri"].as_str().unwrap().to_owned();
    let page = s.bare(Method::GET, uri).await;
    assert!(page.status == 200 && page.text.contains("id=\"method_not_allowed\""), "{page:?}");
}

async fn a_body_that_is_no_object_is_refused(s: &System) {
    let app = s.app().await;
    for body in [json!([]), json!(["A name by its position"]), json!(["A name", ["a"], true, true])] {
        refused(&s.put(&format!("/apps/{}", app.id), body.clone()).await, 400, "invalid_request", None);
        refused(&s.post(&format!("/apps/{}/kill", app.id), body).await, 400, "invalid_request", None);
    }
    assert_eq!(s.get(&format!("/apps/{}", app.id)).await.expect(200)["kills"], json!([]));
}

async fn there_are_no_dead_letters(s: &System) {
    assert_eq!(s.list("/dead-letters").await, Vec::<Value>::new());
}
