//! PAKs: their form, rotation, and what is kept of them.

use std::{collections::HashSet, path::Path, time::Duration};

use serde_json::{Value, json};

use crate::support::{App, Engine, System, eventually, on_both_engines, refused, within};

on_both_engines!(
    a_pak_is_shown_once_and_has_its_form,
    a_rotated_pak_is_valid_for_its_grace,
    without_grace_the_old_pak_ends_at_once,
    at_most_ten_paks_are_valid_at_a_time,
    a_disabled_app_is_refused_until_it_is_enabled_again,
    no_secret_is_kept_in_the_clear,
);

async fn rotate(s: &System, app: &App, grace: Value) -> Value {
    s.post(&format!("/apps/{}/pak", app.id), grace).await.expect(200)
}

/// Whether the gateway takes traces with this PAK.
async fn is_valid(app: &App, pak: &str) -> bool {
    let answer = app.elsewhere().with_pak(pak).send(&app.trace()).await;
    match answer.status {
        202 => true,
        401 => {
            refused(&answer, 401, "invalid_token", None);
            false
        }
        _ => panic!("{answer:?}"),
    }
}

async fn until_valid(app: &App, pak: &str, valid: bool) {
    // A change reaches every gateway within a second.
    within(Duration::from_secs(10), "the gateway knows the PAKs", async || {
        if is_valid(app, pak).await == valid { Ok(()) } else { Err(valid) }
    })
    .await;
}

async fn a_pak_is_shown_once_and_has_its_form(s: &System) {
    let app = s.app_with(json!({"name": "My app"})).await;
    let random = app.pak.strip_prefix("pano_pak_").unwrap();
    assert_eq!(random.len(), 43, "32 bytes in base 62");
    assert!(random.bytes().all(|c| c.is_ascii_alphanumeric()));
    let again = s.put(&format!("/apps/{}", app.id), json!({"name": "My app"})).await.expect(200);
    for answer in [again, s.get(&format!("/apps/{}", app.id)).await.expect(200)] {
        assert!(answer.get("pak").is_none() && answer.get("pak_secret").is_none(), "{answer}");
        assert_eq!((&answer["paks"], &answer["name"]), (&json!(1), &json!("My app")));
    }
}

async fn a_rotated_pak_is_valid_for_its_grace(s: &System) {
    let app = s.app().await;
    let answer = rotate(s, &app, json!({"grace_secs": 4})).await;
    let new = answer["pak"].as_str().unwrap();
    let end: jiff::Timestamp = answer["previous_valid_until"].as_str().unwrap().parse().unwrap();
    until_valid(&app, new, true).await;
    if jiff::Timestamp::now() < end {
        assert!(
            is_valid(&app, &app.pak).await || jiff::Timestamp::now() >= end,
            "the old PAK ended before its time"
        );
    }
    until_valid(&app, &app.pak, false).await;
    assert!(jiff::Timestamp::now() >= end, "the old PAK ended before its time");
    assert!(is_valid(&app, new).await);

    let default = rotate(s, &app, json!({})).await;
    let end: jiff::Timestamp = default["previous_valid_until"].as_str().unwrap().parse().unwrap();
    let secs = end.as_second() - jiff::Timestamp::now().as_second();
    assert!((590..=600).contains(&secs), "ten minutes unless asked otherwise: {secs}");
    let too_long = s.post(&format!("/apps/{}/pak", app.id), json!({"grace_secs": 604_801})).await;
    refused(&too_long, 400, "invalid_request", Some("grace_secs"));
}

async fn without_grace_the_old_pak_ends_at_once(s: &System) {
    let app = s.app().await;
    let new = rotate(s, &app, json!({"grace_secs": 0})).await["pak"].as_str().unwrap().to_owned();
    until_valid(&app, &app.pak, false).await;
    until_valid(&app, &new, true).await;
}

async fn at_most_ten_paks_are_valid_at_a_time(s: &System) {
    let app = s.app().await;
    let mut paks = HashSet::from([app.pak.clone()]);
    for _ in 1..10 {
        assert!(paks.insert(rotate(s, &app, json!({"grace_secs": 600})).await["pak"].to_string()));
    }
    let one_more = s.post(&format!("/apps/{}/pak", app.id), json!({})).await;
    refused(&one_more, 409, "limit_reached", None);
    // A leaked PAK can always be ended.
    rotate(s, &app, json!({"grace_secs": 0})).await;
    assert_eq!(s.get(&format!("/apps/{}", app.id)).await.expect(200)["paks"], 1);
}

async fn a_disabled_app_is_refused_until_it_is_enabled_again(s: &System) {
    let app = s.app().await;
    assert_eq!(s.delete(&format!("/apps/{}", app.id)).await.status, 204);
    let refusal = eventually("the refusal of the app", async || {
        let answer = app.send(&app.trace()).await;
        if answer.status == 202 { Err(answer.status) } else { Ok(answer) }
    })
    .await;
    refused(&refusal, 403, "app_disabled", None);
    refused(&app.send_batch(&[app.trace()]).await, 403, "app_disabled", None);
    s.put(&format!("/apps/{}", app.id), json!({"disabled": false})).await.expect(200);
    app.until_admitted().await;
    app.accepted(&app.trace()).await;
}

async fn no_secret_is_kept_in_the_clear(s: &System) {
    let app = s.app_with(json!({"hmac": true})).await;
    let hook = s
        .post(&format!("/apps/{}/webhooks", app.id), json!({"url": "http://127.0.0.1:1/hook"}))
        .await
        .expect(201);
    let token = s.post("/tokens", json!({"name": "secret-keeper", "role": "read"})).await.expect(201);
    let secrets = [
        app.pak.clone(),
        app.secret.clone(),
        hook["secret"].as_str().unwrap().to_owned(),
        token["token"].as_str().unwrap().to_owned(),
    ];
    let audit = s.get("/audit?limit=1000").await.text;
    let log = s.log();
    for secret in &secrets {
        let random = secret.rsplit('_').next().unwrap();
        assert!(random.len() > 20);
        assert!(!audit.contains(random), "the audit record tells a secret");
        assert!(!log.contains(random), "a log line tells a secret");
        if s.engine == Engine::Embedded {
            files(&s.data_dir(), &mut |path, bytes| {
                let found = bytes.windows(random.len()).any(|window| window == random.as_bytes());
                assert!(!found, "{} keeps a secret in the clear", path.display());
            });
        }
    }
    assert!(!log.contains(&s.token()), "a log line tells the admin's token");
}

fn files(folder: &Path, look: &mut impl FnMut(&Path, &[u8])) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files(&path, look)
        } else {
            look(&path, &std::fs::read(&path).unwrap_or_default())
        }
    }
}
