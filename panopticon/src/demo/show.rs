//! What the demo prints.

use std::path::Path;

use comfy_table::{Table, presets};
use serde_json::Value;

use super::receiver::Received;

fn table(title: &str, header: &[&str], rows: impl Iterator<Item = Vec<String>>) {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(header);
    for row in rows {
        table.add_row(row);
    }
    println!("{title}\n{table}\n");
}

/// A field as text; times to the second.
fn text(row: &Value, field: &str) -> String {
    match &row[field] {
        Value::Null => String::new(),
        Value::String(text) if field.ends_with("_at") => {
            text.split('.').next().unwrap_or(text).replace('T', " ")
        }
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn columns(rows: &[Value], fields: &[&str]) -> impl Iterator<Item = Vec<String>> {
    rows.iter().map(|row| fields.iter().map(|field| text(row, field)).collect())
}

/// The newest calls.
pub fn timeline(rows: &[Value]) {
    let fields = ["started_at", "user_sub", "tool", "status", "error_code", "duration_ms"];
    let header = ["started (UTC)", "user", "tool", "status", "error", "ms"];
    table("Timeline, newest first:", &header, columns(rows, &fields));
}

/// Figures per date.
pub fn usage(rows: &[Value]) {
    let fields = ["date", "traces", "errors", "hitl_requests", "kills"];
    table("Usage:", &fields, columns(rows, &fields));
}

/// What rules found.
pub fn detections(rows: &[Value]) {
    let fields = ["detected_at", "rule", "severity", "explanation"];
    table("Detections:", &["at (UTC)", "rule", "severity", "what"], columns(rows, &fields));
}

/// What the receiver got.
pub fn webhooks(received: &[Received]) {
    let rows = received.iter().map(|webhook| {
        let about = &webhook.body["data"]["explanation"];
        vec![
            text(&webhook.body, "type"),
            about.as_str().unwrap_or_default().to_owned(),
            if webhook.valid { "valid".to_owned() } else { "INVALID".to_owned() },
        ]
    });
    table("Guard actions, received as webhooks:", &["type", "about", "signature"], rows);
}

/// What to try next.
pub fn next_commands(url: &str, client_id: &str, token_file: &Path) {
    let (token_file, program) = (token_file.display(), crate::welcome::program());
    println!(
        "Still serving. Try, in another terminal:\n\n  \
         export LOGI_URL={url} LOGI_TOKEN=$(cat {token_file})\n  \
         {program} logi panopticon timeline {client_id} --follow\n  \
         {program} logi panopticon status {client_id}\n  \
         {program} logi panopticon kill {client_id} --user user_f577f1a0 --reason \"runaway loop\"\n  \
         {program} logi panopticon enable my-app\n  \
         curl {url}/\n\nCtrl-C ends it; its data is deleted."
    );
}
