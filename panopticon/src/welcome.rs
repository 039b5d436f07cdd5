//! What a newcomer is told: the commands for a first trace.

/// The commands, for a server at `url`.
pub fn text(url: &str) -> String {
    format!(
        r#"Panopticon serves at {url}

Enable an app; this prints its PAK once:
  panopticon logi panopticon enable my-app --name "My app"

Send a first trace:
  curl -i {url}/panopticon/trace \
    -H "Authorization: Bearer $PAK" -H 'Content-Type: application/json' \
    -d '{{"event_id":"'"$(cat /proc/sys/kernel/random/uuid 2>/dev/null || uuidgen)"'","client_id":"my-app","user_sub":"user_1","tool":"calendar.read","status":"ok","started_at":"'"$(date -u +%Y-%m-%dT%H:%M:%SZ)"'","duration_ms":120}}'

See it:
  panopticon logi panopticon timeline my-app
  panopticon logi panopticon status my-app
  panopticon logi panopticon timeline my-app --follow
"#
    )
}
