//! Who may do what, and how the API says no.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that panics has failed")]

mod support;

use axum::{body::Body, http::Request};
use serde_json::json;
use support::{ADMIN, House, url};
use tower::ServiceExt as _;

#[tokio::test]
async fn without_a_valid_token_everything_is_401_with_a_challenge() {
    let house = House::open().await;
    for header in [None, Some("Basic abc"), Some("Bearer"), Some("Bearer "), Some("Bearer the-admin-tokeN")] {
        let mut request = Request::get(url("/apps"));
        if let Some(header) = header {
            request = request.header("authorization", header);
        }
        let refused = house.send(request.body(Body::empty()).unwrap()).await;
        assert_eq!(refused.refusal(), (401, "invalid_token", ""), "{header:?}");
        let challenge = refused.headers["www-authenticate"].to_str().unwrap();
        assert_eq!(challenge, "Bearer realm=\"panopticon\", error=\"invalid_token\"");
    }
    let taken = Request::get(url("/apps")).header("authorization", format!("bearer {ADMIN}"));
    assert_eq!(house.send(taken.body(Body::empty()).unwrap()).await.status, 200);
}

#[tokio::test]
async fn every_answer_has_a_request_id_and_every_error_the_same_in_its_body() {
    let house = House::open().await;
    let good = house.get("/apps").await;
    let bad = house.get("/apps/none").await;
    let id = |answer: &support::Answer| answer.headers["x-logi-request-id"].to_str().unwrap().to_owned();
    assert_ne!(id(&good), id(&bad));
    assert_eq!(bad.text("request_id"), id(&bad));
    assert_eq!(bad.text("error_uri"), "http://127.0.0.1:7420/docs/errors#not_found");
    assert_eq!(good.headers["cache-control"], "no-store");
}

#[tokio::test]
async fn each_role_may_do_what_it_is_for_and_no_more() {
    let house = House::open().await;
    house.enable("shop").await;
    house.enable("bank").await;
    let owner = house.token("shop-owner", "owner", &["shop", "new"]).await;
    let reader = house.token("shop-reader", "read", &["shop"]).await;
    let all_reader = house.token("reader", "read", &[]).await;
    let (hook, kill) = (json!({"url": "https://rp.example/"}), json!({"user_sub": "u"}));
    // What is asked, and the status for an owner of shop, a reader of shop, and a reader of everything.
    let table = [
        ("GET", "/apps", None, [200, 200, 200]),
        ("GET", "/apps/shop", None, [200, 200, 200]),
        ("GET", "/apps/bank", None, [403, 403, 200]),
        ("PUT", "/apps/shop", Some(json!({"name": "x"})), [200, 403, 403]),
        ("PUT", "/apps/bank", Some(json!({"name": "x"})), [403, 403, 403]),
        ("PUT", "/apps/new", Some(json!({})), [201, 403, 403]),
        ("PUT", "/apps/other", Some(json!({})), [403, 403, 403]),
        ("POST", "/apps/shop/pak", None, [200, 403, 403]),
        ("POST", "/apps/bank/pak", None, [403, 403, 403]),
        ("GET", "/apps/shop/policy", None, [200, 200, 200]),
        ("PATCH", "/apps/shop/policy", Some(json!({})), [200, 403, 403]),
        ("POST", "/apps/shop/kill", Some(kill.clone()), [200, 403, 403]),
        ("POST", "/apps/bank/kill", Some(kill.clone()), [403, 403, 403]),
        ("DELETE", "/apps/shop/kill", Some(kill), [200, 403, 403]),
        ("POST", "/apps/shop/erase", Some(json!({"user_sub": "u"})), [200, 403, 403]),
        ("POST", "/apps/bank/erase", Some(json!({"user_sub": "u"})), [403, 403, 403]),
        ("GET", "/apps/shop/usage", None, [200, 200, 200]),
        ("GET", "/apps/bank/usage", None, [403, 403, 200]),
        ("GET", "/apps/shop/timeline", None, [200, 200, 200]),
        ("GET", "/apps/bank/timeline", None, [403, 403, 200]),
        ("GET", "/apps/bank/live", None, [403, 403, 0]),
        ("GET", "/apps/shop/detections", None, [200, 200, 200]),
        ("GET", "/apps/shop/actions", None, [200, 200, 200]),
        ("GET", "/apps/shop/status", None, [200, 200, 200]),
        ("GET", "/apps/shop/webhooks", None, [200, 200, 200]),
        ("POST", "/apps/shop/webhooks", Some(hook.clone()), [201, 403, 403]),
        ("POST", "/apps/bank/webhooks", Some(hook), [403, 403, 403]),
        ("GET", "/traces/0190b0a0-7b1a-7c3e-9d2a-000000000001", None, [200, 200, 200]),
        ("GET", "/audit", None, [200, 200, 200]),
        ("GET", "/audit?client_id=bank", None, [403, 403, 200]),
        ("GET", "/dead-letters", None, [403, 403, 200]),
        ("POST", "/dead-letters/x/replay", None, [403, 403, 403]),
        ("GET", "/tokens", None, [403, 403, 403]),
        ("POST", "/tokens", Some(json!({"name": "x", "role": "admin"})), [403, 403, 403]),
        ("DELETE", "/tokens/x", None, [403, 403, 403]),
        ("DELETE", "/apps/bank", None, [403, 403, 403]),
        ("DELETE", "/apps/shop", None, [204, 403, 403]),
    ];
    for (method, path, body, wanted) in table {
        for (token, wanted) in [(&owner, wanted[0]), (&reader, wanted[1]), (&all_reader, wanted[2])] {
            if wanted == 0 {
                continue;
            }
            let answer = house.call(token, method, path, body.clone()).await;
            assert_eq!(answer.status.as_u16(), wanted, "{method} {path}: {}", answer.json);
            if wanted == 403 {
                assert_eq!(answer.text("error"), "insufficient_scope");
                let challenge = answer.headers["www-authenticate"].to_str().unwrap();
                assert!(challenge.contains("error=\"insufficient_scope\""), "{challenge}");
            }
        }
    }
    let seen: Vec<String> = house
        .call(&owner, "GET", "/apps", None)
        .await
        .items()
        .iter()
        .map(|app| app["client_id"].to_string())
        .collect();
    assert_eq!(seen, ["\"new\"", "\"shop\""]);
}

#[tokio::test]
async fn what_is_not_there_is_a_404_and_a_wrong_method_a_405_in_the_form_of_all_errors() {
    let house = House::open().await;
    for path in [
        "/nothing",
        "/apps/shop/nothing",
        "/apps/",
        "",
        "/",
        "/api/v1/me/panopticon",
        "/api/v1/me/panopticon/x",
    ] {
        let answer = house.get(path).await;
        assert_eq!((answer.status.as_u16(), &answer.json["error"]), (404, &json!("not_found")), "{path}");
    }
    for (method, path) in [("POST", "/apps"), ("DELETE", "/audit"), ("PUT", "/apps/shop/kill")] {
        let refused = house.call(ADMIN, method, path, None).await;
        assert_eq!(refused.refusal(), (405, "method_not_allowed", ""), "{method} {path}");
        assert!(refused.headers.contains_key("allow"), "{method} {path}");
        assert_eq!(refused.text("request_id"), refused.headers["x-logi-request-id"].to_str().unwrap());
    }
}

#[tokio::test]
async fn a_body_that_cannot_be_taken_is_refused_for_what_it_is() {
    let house = House::open().await;
    let put = |content_type: &'static str, body: String| {
        let request = Request::put(url("/apps/shop"))
            .header("authorization", format!("Bearer {ADMIN}"))
            .header("content-type", content_type);
        house.send(request.body(Body::from(body)).unwrap())
    };
    for (content_type, body, wanted) in [
        ("application/x-www-form-urlencoded", "{}".to_owned(), (415, "unsupported_media_type", "")),
        ("text/plain", "{}".to_owned(), (415, "unsupported_media_type", "")),
        ("application/json", "{".to_owned(), (400, "invalid_request", "")),
        ("application/json", r#"{"colour":1}"#.to_owned(), (400, "invalid_request", "colour")),
        ("application/json", r#"{"name":7}"#.to_owned(), (400, "invalid_request", "name")),
        ("application/json", r#"{"name":"a\u0007"}"#.to_owned(), (400, "invalid_request", "name")),
        ("application/json", r#"{"scopes":["a b"]}"#.to_owned(), (400, "invalid_request", "scopes[0]")),
        (
            "application/json",
            format!(r#"{{"name":"{}"}}"#, "x".repeat(256)),
            (400, "invalid_request", "name"),
        ),
        (
            "application/json",
            format!(r#"{{"name":"{}"}}"#, "x".repeat(65_536)),
            (413, "request_too_large", ""),
        ),
    ] {
        assert_eq!(put(content_type, body.clone()).await.refusal(), wanted, "{content_type} {:.40}", body);
    }
    assert!(house.view.state().apps().is_empty());
    assert_eq!(put("application/json; charset=utf-8", "{}".to_owned()).await.status, 201);
}

#[tokio::test]
async fn a_parameter_that_cannot_be_taken_is_named() {
    let house = House::open().await;
    house.enable("shop").await;
    for (query, field) in [
        ("timeline?limit=0", "limit"),
        ("timeline?limit=1001", "limit"),
        ("timeline?limit=x", "limit"),
        ("timeline?cursor=x", "cursor"),
        ("timeline?status=bad", "status"),
        ("timeline?since=yesterday", "since"),
        ("timeline?since=2026-06-30&until=2026-06-29", "since"),
        ("timeline?colour=red", "colour"),
        ("timeline?limit=1&limit=2", "limit"),
        ("usage?since=2026-13-01", "since"),
        ("usage?since=2026-06-30T00:00:00Z", "since"),
        ("usage?since=2026-07-01&until=2026-06-30", "since"),
        ("usage?since=2001-01-01", "since"),
        ("usage?tz=Mars/Olympus", "tz"),
        ("detections?since=x", "since"),
        ("actions?tool=x", "tool"),
    ] {
        let refused = house.get(&format!("/apps/shop/{query}")).await;
        assert_eq!(refused.refusal(), (400, "invalid_request", field), "{query}");
    }
    assert_eq!(house.get("/traces/nonsense").await.refusal(), (400, "invalid_request", "event_id"));
}

#[tokio::test]
async fn the_address_in_an_error_leads_to_its_explanation_and_so_does_the_documentation() {
    let house = House::open().await;
    let refused = house.get("/nothing").await;
    let (page, code) = refused.text("error_uri").split_once('#').unwrap();
    let path = page.strip_prefix("http://127.0.0.1:7420").unwrap();
    let response =
        house.router.clone().oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
    let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
    let html = String::from_utf8(bytes.to_vec()).unwrap();
    assert!(html.contains(&format!("id=\"{code}\"")), "{html}");
    let documented = include_str!("../../docs/api.md");
    for code in html.split("id=\"").skip(1).filter_map(|rest| rest.split_once('"')).map(|(code, _)| code) {
        assert!(documented.contains(&format!("| `{code}` |")), "docs/api.md does not explain {code}");
    }
}
