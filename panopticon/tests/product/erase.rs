//! A person is taken out of an app's records.

use http::Method;
use serde_json::{Value, json};

use crate::support::{App, Receiver, System, eventually, logi, on_both_engines, refused};

on_both_engines!(
    an_erased_person_is_found_nowhere_and_the_figures_stay,
    an_erasure_that_makes_no_sense_is_refused,
);

const PERSON: &str = "auth0|Zoë O'Hara /?&\\";
const OF_PERSON: usize = 25;

async fn send(app: &App, user: &str, traces: usize) {
    let traces: Vec<Value> = (0..traces).map(|_| app.trace_with(json!({"user_sub": user}))).collect();
    app.send_batch(&traces).await.expect(200);
}

async fn erase(s: &System, app: &App) -> Value {
    logi(s, &["erase", &app.id, "--user", PERSON, "--json"]).await.json()
}

async fn an_erased_person_is_found_nowhere_and_the_figures_stay(s: &System) {
    let (app, other) = (s.app().await, s.app().await);
    let (receiver, hook) = Receiver::of(s, &app).await;
    // More calls than the limit allows are a detection, an action and a delivery; a kill is another action.
    send(&app, PERSON, OF_PERSON - 4).await;
    s.post(&format!("/apps/{}/kill", app.id), json!({"user_sub": PERSON, "reason": "loop"}))
        .await
        .expect(200);
    receiver.until(2).await;
    s.until_at_rest(&app).await;
    send(&app, "bob", 3).await;
    send(&other, PERSON, 2).await;
    s.timeline(&other, 2).await;
    // These are on their way.
    send(&app, PERSON, 4).await;

    let answer = erase(s, &app).await;
    assert_eq!(answer["complete"], true, "{answer}");
    let erased = &answer["erased"];
    assert_eq!((&erased["traces"], &erased["usage"]), (&json!(OF_PERSON), &json!(OF_PERSON)), "{answer}");
    assert_eq!((&erased["detections"], &erased["actions"]), (&json!(1), &json!(2)), "{answer}");
    assert!(erased["deliveries"].as_u64().unwrap() >= 2, "{answer}");
    assert!(answer["notes"].to_string().contains("under a kill"), "{answer}");
    assert!(answer["log_copies_gone_by"].as_str() < answer["delivery_copies_gone_by"].as_str(), "{answer}");

    let timeline = s.timeline(&app, 3).await;
    assert_eq!(timeline.len(), 3);
    assert_eq!(s.usage(&app).await, [OF_PERSON as u64 + 3, 0, 0, 1]);
    for list in [
        format!("/apps/{}/timeline", app.id),
        format!("/apps/{}/detections", app.id),
        format!("/apps/{}/actions", app.id),
        format!("/apps/{}/webhooks/{}/deliveries", app.id, hook.id),
    ] {
        let rows = Value::from(s.list(&list).await);
        assert!(!rows.to_string().contains("O'Hara"), "{list}: {rows}");
    }
    let detections = s.list(&format!("/apps/{}/detections", app.id)).await;
    let name = detections[0]["user_sub"].as_str().unwrap();
    assert!(name.starts_with("erased-") && !answer.to_string().contains(name), "{name} is told to nobody");
    // The same person in another app is not concerned.
    assert_eq!(s.timeline(&other, 2).await[0]["user_sub"], PERSON);

    eventually("the audit record of it", async || {
        let audit = s.list(&format!("/audit?client_id={}", app.id)).await;
        let of_it: Vec<&Value> =
            audit.iter().filter(|entry| entry["target"] == answer["erasure_id"]).collect();
        assert!(of_it.iter().all(|entry| !entry.to_string().contains("O'Hara")), "{of_it:?}");
        let actions: Vec<_> = of_it.iter().map(|entry| entry["action"].as_str().unwrap()).collect();
        if actions == ["user.erased", "user.erase"] { Ok(()) } else { Err(audit) }
    })
    .await;
    let again = erase(s, &app).await;
    assert_eq!((&again["complete"], &again["erased"]["traces"]), (&json!(true), &json!(0)), "{again}");
    assert_eq!(s.usage(&app).await, [OF_PERSON as u64 + 3, 0, 0, 1]);
}

async fn an_erasure_that_makes_no_sense_is_refused(s: &System) {
    let app = s.app().await;
    let path = format!("/apps/{}/erase", app.id);
    refused(&s.post(&path, json!({"user_sub": ""})).await, 400, "invalid_request", Some("user_sub"));
    refused(&s.post("/apps/no-such-app/erase", json!({"user_sub": "x"})).await, 404, "not_found", None);
    assert_eq!(s.call(Method::POST, &path, json!({"user_sub": "nobody"})).await.status, 200);
}
