//! What a newcomer is told: the commands for a first trace.

/// How this program was called, so that what is printed can be pasted: `cargo run` puts nothing on the PATH.
pub fn program() -> String {
    std::env::args().next().filter(|name| !name.is_empty()).unwrap_or_else(|| "panopticon".to_owned())
}

/// The commands, for a server at `url`.
pub fn text(url: &str) -> String {
    let program = program();
    format!(
        r#"Panopticon serves at {url}

Enable an app; this prints its PAK once:
  {program} logi panopticon enable my-app --name "My app"

Send a first trace, with the PAK that was printed:
  PAK=pano_pak_...
  curl -i {url}/panopticon/trace \
    -H "Authorization: Bearer $PAK" -H 'Content-Type: application/json' \
    -d '{{"event_id":"'"$(cat /proc/sys/kernel/random/uuid 2>/dev/null || uuidgen)"'","client_id":"my-app","user_sub":"user_1","tool":"calendar.read","status":"ok","started_at":"'"$(date -u +%Y-%m-%dT%H:%M:%SZ)"'","duration_ms":120}}'

See it:
  {program} logi panopticon timeline my-app
  {program} logi panopticon status my-app
  {program} logi panopticon timeline my-app --follow
"#
    )
}
