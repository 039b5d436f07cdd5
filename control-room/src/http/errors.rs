//! `/docs/errors`: where the `error_uri` of every error leads, the gateway's included.

use axum::response::Html;

/// The path; an error's code is the fragment.
pub(crate) const PATH: &str = "/docs/errors";

/// Every code with its status, what it means and what to do.
pub(crate) const CODES: &[(&str, u16, &str)] = &[
    (
        "invalid_request",
        400,
        "Malformed JSON, an unknown field or parameter, or a bad value. `field` names it, `error_description` says what is expected. Sending the same again does not help.",
    ),
    (
        "not_supported",
        400,
        "A setting that this version does not enforce. It is refused rather than saved without effect.",
    ),
    (
        "invalid_token",
        401,
        "The PAK or API token is missing, unknown, expired or revoked. Send `Authorization: Bearer …`; a rotated PAK ends after its grace period.",
    ),
    (
        "invalid_signature",
        401,
        "The app signs its requests, and the signature is missing or wrong, or its timestamp is more than five minutes off. Sign the bytes as they are sent, before compression is undone.",
    ),
    ("client_mismatch", 403, "The trace's client_id is not the app that the PAK belongs to."),
    ("app_disabled", 403, "The app is disabled; its traces are refused until it is enabled again."),
    ("insufficient_scope", 403, "The API token's role does not allow this, or the token is for other apps."),
    ("not_found", 404, "There is nothing at this path, or no such app, endpoint, delivery, token or kill."),
    ("method_not_allowed", 405, "The header `Allow` lists the methods of this path."),
    ("request_timeout", 408, "The body did not arrive in time."),
    (
        "conflict",
        409,
        "The thing is in a state in which this cannot be done; `error_description` says which.",
    ),
    ("limit_reached", 409, "There are as many as there may be; remove one first."),
    (
        "precondition_failed",
        412,
        "Somebody changed it since it was read: `If-Match` names another version. Read it again and decide anew.",
    ),
    ("request_too_large", 413, "The body, or the batch after decompression, is larger than is read here."),
    (
        "unsupported_media_type",
        415,
        "The content type or encoding is not one that is read here. The control API reads `application/json`.",
    ),
    (
        "too_many_requests",
        429,
        "Too many bad credentials came from this address. Wait as long as `Retry-After` says.",
    ),
    ("internal_error", 500, "Something is broken on the server. Its log has the cause under the request id."),
    (
        "unavailable",
        503,
        "Not confirmed: the system is busy, or a part of it is away. Send again after `Retry-After`; a trace with the same event_id is never stored twice.",
    ),
];

/// The page.
pub(super) async fn page() -> Html<String> {
    let mut html = String::from(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Panopticon: errors</title>\
         <style>body{font:16px/1.5 system-ui;max-width:46rem;margin:2rem auto;padding:0 1rem}:target{background:#ffd}</style>\
         <h1>Errors</h1>",
    );
    for (code, status, text) in CODES {
        html.push_str(&format!("<section id=\"{code}\"><h2>{code} ({status})</h2><p>{text}</p></section>"));
    }
    Html(html)
}
