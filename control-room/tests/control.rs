//! What the control API promises about apps, policies, kills, webhooks and tokens.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that panics has failed")]

mod support;

use axum::{
    body::Body,
    http::{Request, StatusCode},
};
use panopticon_control_room::ops;
use panopticon_core::{
    config::AppSeed,
    proto::log::{AuditEntry, Delivery, GuardAction},
    topic::Topic,
};
use serde_json::{Value, json};
use support::{ADMIN, House, secret, url};

#[tokio::test]
async fn an_app_is_enabled_with_its_pak_once_changed_disabled_and_enabled_again() {
    let house = House::open().await;
    let made = house.put("/apps/shop", json!({"name": "Shop", "scopes": ["orders:read"]})).await;
    assert_eq!(made.status, StatusCode::CREATED);
    assert!(made.text("pak").starts_with("pano_pak_"));
    assert_eq!((made.json["paks"].as_u64(), made.json.get("pak_secret")), (Some(1), None));
    assert!(house.view.state().pak(made.text("pak"), house.now()).is_some());

    let changed = house.put("/apps/shop", json!({"name": "The shop"})).await;
    assert_eq!((changed.status, changed.text("name")), (StatusCode::OK, "The shop"));
    assert_eq!((&changed.json["scopes"], changed.json.get("pak")), (&json!(["orders:read"]), None));
    // The same again writes nothing.
    let audit = house.messages::<AuditEntry>(Topic::Audit).await.len();
    assert_eq!(house.put("/apps/shop", json!({"name": "The shop"})).await.status, StatusCode::OK);
    assert_eq!(house.messages::<AuditEntry>(Topic::Audit).await.len(), audit);

    for _ in 0..2 {
        assert_eq!(house.delete("/apps/shop").await.status, StatusCode::NO_CONTENT);
    }
    assert_eq!(house.get("/apps/shop").await.json["disabled"], true);
    let again = house.put("/apps/shop", json!({"disabled": false})).await;
    assert_eq!(again.json["disabled"], false);
    assert_eq!(house.get("/apps/none").await.refusal(), (404, "not_found", ""));
    assert_eq!(house.delete("/apps/none").await.refusal(), (404, "not_found", ""));
}

#[tokio::test]
async fn an_app_that_signs_has_a_secret_with_its_pak_and_unsigned_paks_end_when_it_begins() {
    let house = House::open().await;
    let signed = house.put("/apps/signed", json!({"hmac": true})).await;
    assert!(signed.text("pak_secret").starts_with("pano_sec_"));
    let sealed = house.view.state().pak(signed.text("pak"), house.now()).unwrap().sealed_secret.clone();
    assert_eq!(house.sealer.open("app/signed", &sealed).unwrap().expose(), signed.text("pak_secret"));

    let plain = house.enable("plain").await;
    let now_signed = house.put("/apps/plain", json!({"hmac": true})).await;
    assert_eq!(now_signed.status, StatusCode::OK);
    assert!(now_signed.text("pak_secret").starts_with("pano_sec_"));
    assert!(house.view.state().pak(&plain, house.now()).is_none());
    assert!(house.view.state().pak(now_signed.text("pak"), house.now()).is_some());
}

#[tokio::test]
async fn a_client_id_may_be_a_url_and_is_percent_encoded_in_the_path() {
    let house = House::open().await;
    let path = "/apps/https%3A%2F%2Frp.example%2Fclient%3Fx%3D1%23y";
    assert_eq!(house.put(path, json!({})).await.text("client_id"), "https://rp.example/client?x=1#y");
    assert_eq!(house.get(&format!("{path}/policy")).await.status, StatusCode::OK);
    assert_eq!(
        house.put("/apps/caf%C3%A9", json!({})).await.refusal(),
        (400, "invalid_request", "client_id")
    );
}

#[tokio::test]
async fn rotation_keeps_the_old_pak_for_the_grace_period_and_ends_it_at_once_with_zero() {
    let house = House::open().await;
    let first = house.enable("shop").await;
    let valid = |pak: &str| house.view.state().pak(pak, house.now()).is_some();
    let second = house.post("/apps/shop/pak", json!({})).await;
    assert_eq!(second.text("previous_valid_until"), "2026-06-30T12:10:00.000000Z");
    assert!(valid(&first) && valid(second.text("pak")));
    house.pass_secs(600);
    assert!(!valid(&first) && valid(second.text("pak")));

    let third = house.post("/apps/shop/pak", json!({"grace_secs": 0})).await;
    assert!(!valid(second.text("pak")) && valid(third.text("pak")));
    let refused = house.post("/apps/shop/pak", json!({"grace_secs": 604_801})).await;
    assert_eq!(refused.refusal(), (400, "invalid_request", "grace_secs"));
    for _ in 0..ops::apps::MAX_PAKS - 1 {
        assert_eq!(house.post("/apps/shop/pak", json!({})).await.status, StatusCode::OK);
    }
    assert_eq!(house.post("/apps/shop/pak", json!({})).await.refusal(), (409, "limit_reached", ""));
    assert_eq!(house.post("/apps/none/pak", json!({})).await.refusal(), (404, "not_found", ""));
}

#[tokio::test]
async fn a_policy_is_changed_only_by_who_has_read_it() {
    let house = House::open().await;
    house.enable("shop").await;
    let default = house.get("/apps/shop/policy").await;
    assert_eq!((default.headers["etag"].to_str().unwrap(), &default.json["version"]), ("\"0\"", &json!(0)));
    let default_limit = default.json["rate_limit"].clone();

    let patch = |if_match: &'static str, body: Value| {
        let request = Request::patch(url("/apps/shop/policy"))
            .header("authorization", format!("Bearer {ADMIN}"))
            .header("content-type", "application/json")
            .header("if-match", if_match);
        house.send(request.body(Body::from(body.to_string())).unwrap())
    };
    let set = patch("\"0\"", json!({"rate_limit": {"per_minute": 7}})).await;
    assert_eq!((set.status, set.headers["etag"].to_str().unwrap()), (StatusCode::OK, "\"1\""));
    assert_eq!(set.json["rate_limit"]["per_minute"], 7);
    assert_eq!(set.json["rate_limit"]["per_tool_per_minute"], default_limit["per_tool_per_minute"]);
    for stale in ["\"0\"", "W/\"1\"", "\"x\""] {
        let refused = patch(stale, json!({"rate_limit": null})).await;
        assert_eq!(refused.refusal(), (412, "precondition_failed", ""), "{stale}");
    }
    for fresh in ["\"0\", \"1\"", "*"] {
        assert_eq!(patch(fresh, json!({})).await.json["version"], 1, "nothing changed, {fresh}");
    }
    let reset = house.patch("/apps/shop/policy", json!({"rate_limit": null})).await;
    assert_eq!((&reset.json["version"], &reset.json["rate_limit"]), (&json!(2), &default_limit));
    assert_eq!(house.get("/apps/shop/policy").await.json, reset.json);
}

#[tokio::test]
async fn settings_of_the_rules_are_merged_and_reset() {
    let house = House::open().await;
    house.enable("shop").await;
    let default = house.get("/apps/shop/policy").await.json["detection"].clone();
    let whole = json!({"burst": true, "off_hour": true, "failed_auth": true, "alarms_a_month": 5.0,
        "quiet_users": []});
    assert_eq!(default, whole);
    let set = async |detection: Value| {
        house.patch("/apps/shop/policy", json!({"detection": detection})).await.json.clone()
    };
    set(json!({"off_hour": false, "quiet_users": ["loadtest", "a scanner"]})).await;
    let both = set(json!({"alarms_a_month": 0.5})).await;
    let merged = json!({"burst": true, "off_hour": false, "failed_auth": true, "alarms_a_month": 0.5,
        "quiet_users": ["a scanner", "loadtest"]});
    assert_eq!((&both["detection"], &both["version"]), (&merged, &json!(2)));
    assert_eq!(house.patch("/apps/shop/policy", json!({"rate_limit": null})).await.json["version"], 2);
    assert_eq!(set(json!({"off_hour": null})).await["detection"]["off_hour"], true);
    let back = set(json!(null)).await;
    assert_eq!((&back["detection"], &back["version"]), (&default, &json!(4)));
}

#[tokio::test]
async fn a_setting_that_is_not_enforced_is_refused_by_its_name_and_not_saved() {
    let house = House::open().await;
    house.enable("shop").await;
    for name in ["hitl", "drift", "burst", "off_hour", "failed_auth", "colour"] {
        let body = json!({"rate_limit": {"per_minute": 1}, name: {}});
        assert_eq!(house.patch("/apps/shop/policy", body).await.refusal(), (400, "not_supported", name));
    }
    for (field, body) in [
        ("rate_limit", json!({"rate_limit": 5})),
        ("rate_limit.per_minute", json!({"rate_limit": {"per_minute": -1}})),
        ("rate_limit.per_minute", json!({"rate_limit": {"per_minute": 100_001}})),
        ("rate_limit.per_hour", json!({"rate_limit": {"per_hour": 1}})),
        ("detection", json!({"detection": true})),
        ("detection.off_hours", json!({"detection": {"off_hours": false}})),
        ("detection.burst", json!({"detection": {"burst": "off"}})),
        ("detection.alarms_a_month", json!({"detection": {"alarms_a_month": 0}})),
        ("detection.alarms_a_month", json!({"detection": {"alarms_a_month": "5"}})),
        ("detection.quiet_users", json!({"detection": {"quiet_users": "loadtest"}})),
        ("detection.quiet_users[1]", json!({"detection": {"quiet_users": ["a", 2]}})),
        ("detection.quiet_users[0]", json!({"detection": {"quiet_users": [""]}})),
        ("version", json!({"version": 4})),
        ("client_id", json!({"client_id": "other"})),
    ] {
        let refused = house.patch("/apps/shop/policy", body).await;
        assert_eq!(refused.refusal(), (400, "invalid_request", field));
    }
    assert_eq!(house.get("/apps/shop/policy").await.json["version"], 0);
    assert_eq!(house.patch("/apps/none/policy", json!({})).await.refusal(), (404, "not_found", ""));
}

#[tokio::test]
async fn a_kill_is_idempotent_and_comes_with_its_audit_entry_and_its_message_in_one_commit() {
    let house = House::open().await;
    house.enable("shop").await;
    let kill = json!({"user_sub": "user/1", "reason": "leaked key"});
    let first = house.post("/apps/shop/kill", kill.clone()).await;
    assert_eq!((first.status, first.text("state"), first.text("actor")), (StatusCode::OK, "killed", "admin"));
    house.pass_secs(5);
    let second = house.post("/apps/shop/kill", json!({"user_sub": "user/1", "reason": "other"})).await;
    assert_eq!((second.status, &second.json), (StatusCode::OK, &first.json));

    let actions: Vec<GuardAction> = house.messages(Topic::GuardActions).await;
    let [action] = &actions[..] else { panic!("{} actions", actions.len()) };
    let told = action.kill.as_ref().unwrap();
    assert_eq!((action.r#type.as_str(), told.state.as_str()), ("panopticon.kill_switch", "killed"));
    assert_eq!((told.user_sub.as_str(), told.reason.as_str()), ("user/1", "leaked key"));
    let audit: Vec<AuditEntry> = house.messages(Topic::Audit).await;
    let last = audit.last().unwrap();
    assert_eq!(
        (last.action.as_str(), last.actor.as_str(), last.target.as_str()),
        ("kill", "admin", "user/1")
    );
    assert_eq!(last.request_id, first.headers["x-logi-request-id"].to_str().unwrap());
    assert_eq!(house.get("/apps/shop").await.json["kills"][0], first.json);

    assert_eq!(house.delete("/apps/shop/kill").await.refusal(), (404, "not_found", ""));
    let lifted = house.delete("/apps/shop/kill?user_sub=user/1").await;
    assert_eq!((lifted.status, lifted.text("state")), (StatusCode::OK, "lifted"));
    assert_eq!(house.view.state().guard("shop", "user/1"), None);
    let body = Some(json!({"user_sub": "user/1"}));
    assert_eq!(house.call(ADMIN, "DELETE", "/apps/shop/kill", body).await.status, StatusCode::NOT_FOUND);
    let states: Vec<String> = house
        .messages::<GuardAction>(Topic::GuardActions)
        .await
        .into_iter()
        .map(|action| action.kill.unwrap().state)
        .collect();
    assert_eq!(states, ["killed", "lifted"]);
}

#[tokio::test]
async fn an_empty_user_never_kills_the_whole_app() {
    let house = House::open().await;
    house.enable("shop").await;
    let refused = house.post("/apps/shop/kill", json!({"user_sub": ""})).await;
    assert_eq!(refused.refusal(), (400, "invalid_request", "user_sub"));
    assert_eq!(
        house.post("/apps/shop/kill", json!({"user": "x"})).await.refusal(),
        (400, "invalid_request", "user")
    );
    assert!(house.view.state().kills("shop").is_empty());
    assert_eq!(house.post("/apps/none/kill", json!({})).await.refusal(), (404, "not_found", ""));
    // No body at all is the whole app.
    assert_eq!(house.call(ADMIN, "POST", "/apps/shop/kill", None).await.json["user_sub"], Value::Null);
}

#[tokio::test]
async fn a_webhook_endpoint_is_checked_and_its_secret_shown_once_and_rotated_with_both_valid() {
    let house = House::open().await;
    house.enable("shop").await;
    let hooks = "/apps/shop/webhooks";
    assert_eq!(house.post(hooks, json!({})).await.refusal(), (400, "invalid_request", "url"));
    let refused = house.post(hooks, json!({"url": "http://10.0.0.1/"})).await;
    assert!(refused.text("error_description").contains("ssrf_blocked"));
    let refused =
        house.post(hooks, json!({"url": "https://rp.example/", "types": ["panopticon.test", "x"]})).await;
    assert_eq!(refused.refusal(), (400, "invalid_request", "types[1]"));

    let made = house.post(hooks, json!({"url": "https://rp.example/hook"})).await;
    assert_eq!(made.status, StatusCode::CREATED);
    assert!(made.text("secret").starts_with("whsec_"));
    let one = format!("{hooks}/{}", made.text("id"));
    assert_eq!(house.get(&one).await.json.get("secret"), None);
    assert_eq!(house.get(hooks).await.items()[0].get("secret"), None);

    let rotated = house.call(ADMIN, "POST", &format!("{one}/secret"), None).await;
    assert_ne!((rotated.text("secret"), rotated.text("kid")), (made.text("secret"), made.text("kid")));
    {
        let state = house.view.state();
        let secrets = &state.webhook(made.text("id")).unwrap().secrets;
        let about = format!("webhook/{}", made.text("id"));
        let texts: Vec<_> = secrets.iter().map(|s| house.sealer.open(&about, &s.sealed).unwrap()).collect();
        assert_eq!(
            texts.iter().map(|t| t.expose()).collect::<Vec<_>>(),
            [made.text("secret"), rotated.text("secret")]
        );
        let grace = i64::try_from(house.config.webhooks.secret_grace_secs).unwrap();
        assert_eq!(
            (secrets[0].expires_at, secrets[1].expires_at),
            (house.now().micros() + grace * 1_000_000, 0)
        );
    }
    let changed = house.patch(&one, json!({"types": ["panopticon.kill_switch"], "disabled": true})).await;
    assert_eq!(
        (&changed.json["types"], &changed.json["disabled"]),
        (&json!(["panopticon.kill_switch"]), &json!(true))
    );
    assert_eq!(house.patch(&one, json!({"url": "ftp://x"})).await.refusal(), (400, "invalid_request", "url"));
    assert_eq!(house.post(&format!("{one}/test"), json!({})).await.refusal(), (409, "conflict", ""));
    house.patch(&one, json!({"disabled": false})).await;
    let tested = house.call(ADMIN, "POST", &format!("{one}/test"), None).await;
    assert_eq!(tested.status, StatusCode::ACCEPTED);
    let actions: Vec<GuardAction> = house.messages(Topic::GuardActions).await;
    assert_eq!(
        (actions[0].r#type.as_str(), actions[0].action_id.as_str()),
        ("panopticon.test", tested.text("webhook_id"))
    );
    assert_eq!(actions[0].test.as_ref().unwrap().endpoint_id, made.text("id"));

    assert_eq!(house.delete(&one).await.status, StatusCode::NO_CONTENT);
    assert_eq!(house.delete(&one).await.refusal(), (404, "not_found", ""));
    assert_eq!(house.get(&one).await.refusal(), (404, "not_found", ""));
}

#[tokio::test]
async fn an_app_has_at_most_so_many_endpoints_and_never_sees_those_of_another() {
    let house = House::open_with(|config| config.webhooks.max_endpoints_per_app = 2).await;
    house.enable("shop").await;
    house.enable("bank").await;
    let body = json!({"url": "https://rp.example/"});
    let first = house.post("/apps/shop/webhooks", body.clone()).await;
    assert_eq!(house.post("/apps/shop/webhooks", body.clone()).await.status, StatusCode::CREATED);
    assert_eq!(house.post("/apps/shop/webhooks", body).await.refusal(), (409, "limit_reached", ""));
    let foreign = format!("/apps/bank/webhooks/{}", first.text("id"));
    assert_eq!(house.get(&foreign).await.refusal(), (404, "not_found", ""));
    assert_eq!(house.delete(&foreign).await.refusal(), (404, "not_found", ""));
}

#[tokio::test]
async fn a_finished_delivery_is_made_again_in_the_partition_of_its_action() {
    let house = House::open().await;
    house.enable("shop").await;
    let made = house.post("/apps/shop/webhooks", json!({"url": "https://rp.example/hook"})).await;
    let at = house.now().micros();
    let delivery = Delivery {
        delivery_id: "d-1".to_owned(),
        webhook_id: "w-1".to_owned(),
        endpoint_id: made.text("id").to_owned(),
        client_id: "shop".to_owned(),
        user_sub: "user-9".to_owned(),
        r#type: "panopticon.kill_switch".to_owned(),
        body: bytes::Bytes::from_static(br#"{"type":"panopticon.kill_switch"}"#),
        state: "dead".to_owned(),
        created_at: at,
        updated_at: at,
        last_status: 500,
        ..Delivery::default()
    };
    house.deliver(&delivery).await;
    house.settle().await;
    let listed = house.get(&format!("/apps/shop/webhooks/{}/deliveries", made.text("id"))).await;
    assert_eq!(listed.items()[0]["body"], r#"{"type":"panopticon.kill_switch"}"#);
    assert_eq!(house.get(&format!("/webhooks/{}/deliveries", made.text("id"))).await.json, listed.json);

    let replayed = house.call(ADMIN, "POST", "/deliveries/d-1/replay", None).await;
    assert_eq!(replayed.status, StatusCode::ACCEPTED, "{}", replayed.json);
    let actions: Vec<GuardAction> = house.messages(Topic::GuardActions).await;
    let replay = actions[0].replay.as_ref().unwrap();
    assert_eq!((actions[0].r#type.as_str(), actions[0].user_sub.as_str()), ("panopticon.replay", "user-9"));
    assert_eq!((replay.delivery_id.as_str(), replay.endpoint_id.as_str()), ("d-1", made.text("id")));
    assert_eq!(
        house.call(ADMIN, "POST", "/deliveries/none/replay", None).await.refusal(),
        (404, "not_found", "")
    );
    let foreign = house.token("bank", "owner", &["bank"]).await;
    assert_eq!(
        house.call(&foreign, "POST", "/deliveries/d-1/replay", None).await.refusal(),
        (404, "not_found", "")
    );

    let pending = Delivery { delivery_id: "d-2".to_owned(), state: "pending".to_owned(), ..delivery };
    house.deliver(&pending).await;
    house.settle().await;
    assert_eq!(
        house.call(ADMIN, "POST", "/deliveries/d-2/replay", None).await.refusal(),
        (409, "conflict", "")
    );
}

#[tokio::test]
async fn tokens_are_shown_once_expire_and_can_be_revoked() {
    let house = House::open().await;
    let made = house.post("/tokens", json!({"name": "ci", "role": "read", "expires_in_days": 1})).await;
    let token = made.text("token").to_owned();
    assert!(token.starts_with("pano_tok_"));
    assert_eq!(house.call(&token, "GET", "/apps", None).await.status, StatusCode::OK);
    assert!(!house.get("/tokens").await.json.to_string().contains(&token));
    house.pass_secs(86_400);
    assert_eq!(house.call(&token, "GET", "/apps", None).await.refusal(), (401, "invalid_token", ""));

    let other = house.post("/tokens", json!({"name": "ci", "role": "admin"})).await;
    assert_eq!(other.text("expires_at"), "2026-09-29T12:00:00.000000Z", "90 days");
    assert_eq!(house.delete(&format!("/tokens/{}", other.text("id"))).await.status, StatusCode::NO_CONTENT);
    assert_eq!(house.call(other.text("token"), "GET", "/apps", None).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(house.delete("/tokens/none").await.refusal(), (404, "not_found", ""));
    for (field, body) in [
        ("name", json!({"name": "", "role": "read"})),
        ("name", json!({"role": "read"})),
        ("role", json!({"name": "x", "role": "god"})),
        ("apps", json!({"name": "x", "role": "owner"})),
        ("apps", json!({"name": "x", "role": "admin", "apps": ["shop"]})),
        ("apps[0]", json!({"name": "x", "role": "read", "apps": [""]})),
        ("expires_in_days", json!({"name": "x", "role": "read", "expires_in_days": 0})),
        ("expires_in_days", json!({"name": "x", "role": "read", "expires_in_days": "9"})),
    ] {
        assert_eq!(house.post("/tokens", body).await.refusal(), (400, "invalid_request", field));
    }
}

#[tokio::test]
async fn no_secret_is_ever_in_a_list_the_audit_record_or_the_log() {
    let house = House::open().await;
    let mut secrets = Vec::new();
    let app = house.put("/apps/shop", json!({"hmac": true})).await;
    secrets.extend([app.text("pak").to_owned(), app.text("pak_secret").to_owned()]);
    let rotated = house.post("/apps/shop/pak", json!({})).await;
    secrets.extend([rotated.text("pak").to_owned(), rotated.text("pak_secret").to_owned()]);
    let hook = house.post("/apps/shop/webhooks", json!({"url": "https://rp.example/"})).await;
    secrets.push(hook.text("secret").to_owned());
    secrets.push(house.token("ci", "admin", &[]).await);
    house.settle().await;

    let mut shown = String::new();
    for path in ["/apps", "/apps/shop", "/apps/shop/webhooks", "/tokens", "/audit", "/apps/shop/status"] {
        let answer = house.get(path).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}: {}", answer.json);
        shown.push_str(&answer.json.to_string());
    }
    for topic in [Topic::Control, Topic::Audit, Topic::GuardActions] {
        for partition in 0..house.log.topic(topic).await.unwrap().partitions {
            for stored in house.log.read(topic, partition, 0, u64::MAX >> 1, 1 << 24).await.unwrap() {
                shown.push_str(&String::from_utf8_lossy(stored.record.bytes()));
            }
        }
    }
    for secret in secrets {
        assert!(!shown.contains(&secret), "{}… is shown", &secret[..12]);
    }
}

#[tokio::test]
async fn configured_apps_are_made_once_and_their_paks_work() {
    let pak = format!("pano_pak_{}", "a".repeat(43));
    let house = House::open_with(|config| {
        let seed = |client_id: &str, pak: &str| AppSeed {
            client_id: client_id.to_owned(),
            name: "Seeded".to_owned(),
            pak: secret(pak),
        };
        config.apps = vec![seed("shop", &pak), seed("bank", "")];
    })
    .await;
    for _ in 0..2 {
        ops::seed(&house.config, &house.writer).await.unwrap();
    }
    assert_eq!(house.messages::<AuditEntry>(Topic::Audit).await.len(), 2);
    assert_eq!(house.view.state().pak(&pak, house.now()).unwrap().app.client_id, "shop");
    assert_eq!(house.get("/apps/bank").await.json["paks"], 0);
    // A configured PAK is in force again after a restart, even if it was rotated away.
    house.post("/apps/shop/pak", json!({"grace_secs": 0})).await;
    assert!(house.view.state().pak(&pak, house.now()).is_none());
    ops::seed(&house.config, &house.writer).await.unwrap();
    assert!(house.view.state().pak(&pak, house.now()).is_some());

    for (client_id, pak) in [("", ""), ("x", "short"), ("bank", pak.as_str())] {
        let bad = AppSeed { client_id: client_id.to_owned(), name: String::new(), pak: secret(pak) };
        let config = panopticon_core::config::Config { apps: vec![bad], ..(*house.config).clone() };
        let error = ops::seed(&config, &house.writer).await.unwrap_err().to_string();
        assert!(error.contains("`apps[0]`"), "{error}");
        assert!(pak.is_empty() || !error.contains(pak) || pak == "short", "{error}");
    }
}
