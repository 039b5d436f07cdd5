//! The token endpoint of an authorization server, asked as RFC 6749 has it.

use std::time::Duration;

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use bytes::Bytes;
use http::{
    HeaderValue, Request, StatusCode,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE},
};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use panopticon_core::{
    config::KafkaConfig,
    time::{Clock as _, SystemClock, Time},
};
use serde::Deserialize;
use url::{
    Url,
    form_urlencoded::{Serializer, byte_serialize},
};

use super::error::OpenError;
use crate::{tls, with_causes};

/// How long the endpoint may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// More than this is no answer with a token.
const MAX_ANSWER_BYTES: usize = 256 << 10;
/// How much of an answer that is none an error shows.
const SHOWN_CHARS: usize = 200;
/// The life of a token whose answer does not tell it, and which does not tell it itself.
const UNTOLD_LIFE: Duration = Duration::from_secs(300);

/// A token, as it was got.
#[derive(Debug, Clone)]
pub(super) struct Token {
    pub(super) text: String,
    /// Whose it is.
    pub(super) principal: String,
    pub(super) expires_at: Time,
}

impl Token {
    /// How much of it is left.
    pub(super) fn life(&self) -> Duration {
        self.expires_at.since(SystemClock.now())
    }
}

/// Why there is no token. Each text names the setting to look at.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum TokenError {
    #[error("`kafka.oauth_token_url` cannot be asked: {0}")]
    Unreachable(String),
    #[error("`kafka.oauth_token_url` answers {status}: {said}{advice}")]
    Refused { status: StatusCode, said: String, advice: &'static str },
    #[error("what `kafka.oauth_token_url` answers is no token: {0}")]
    NoToken(String),
    #[error("the driver does not take the token of `kafka.oauth_token_url`: {0}")]
    Unusable(String),
    #[error("`kafka.oauth_token_url` does not answer in time")]
    Late,
}

/// Where tokens come from.
pub(super) struct Endpoint {
    url: Url,
    authorization: HeaderValue,
    form: Bytes,
    /// Whose a token is that does not tell.
    client_id: String,
    http: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl Endpoint {
    /// Asks nobody yet.
    pub(super) fn new(kafka: &KafkaConfig) -> Result<Self, OpenError> {
        let url =
            Url::parse(&kafka.oauth_token_url).map_err(|error| OpenError::TokenUrl(error.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err(OpenError::TokenUrl("it must be https://…, or http://…".to_owned()));
        }
        let mut form = Serializer::new(String::new());
        form.append_pair("grant_type", "client_credentials");
        if !kafka.oauth_scope.is_empty() {
            form.append_pair("scope", &kafka.oauth_scope);
        }
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        let tls = tls::to_the_web(&kafka.tls_files()).map_err(OpenError::TokenUrl)?;
        let https = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1();
        Ok(Self {
            url,
            authorization: basic(&kafka.username, kafka.password.expose())?,
            form: form.finish().into(),
            client_id: kafka.username.clone(),
            // Tokens are asked for so seldom that no connection is kept.
            http: Client::builder(TokioExecutor::new())
                .pool_max_idle_per_host(0)
                .build(https.wrap_connector(tcp)),
        })
    }

    /// Asks for a token, on the calling thread.
    pub(super) fn ask(&self) -> Result<Token, TokenError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| TokenError::Unreachable(error.to_string()))?;
        runtime.block_on(async {
            tokio::time::timeout(TIMEOUT, self.fetch()).await.unwrap_or(Err(TokenError::Late))
        })
    }

    async fn fetch(&self) -> Result<Token, TokenError> {
        let request = Request::post(self.url.as_str())
            .header(AUTHORIZATION, &self.authorization)
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(ACCEPT, "application/json")
            .body(Full::new(self.form.clone()))
            .map_err(|error| TokenError::Unreachable(error.to_string()))?;
        let asked_at = SystemClock.now();
        let answer = self.http.request(request).await;
        let answer = answer.map_err(|error| TokenError::Unreachable(with_causes(&error)))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await;
        let body = body.map_err(|error| TokenError::Unreachable(error.to_string()))?.to_bytes();
        if status == StatusCode::OK { self.read(&body, asked_at) } else { Err(refusal(status, &body)) }
    }

    /// Reads an answer (RFC 6749, 5.1). Its errors do not repeat it: it may be a token all the same.
    fn read(&self, body: &[u8], asked_at: Time) -> Result<Token, TokenError> {
        #[derive(Deserialize)]
        struct Granted {
            access_token: String,
            expires_in: Option<u64>,
        }
        let granted: Granted =
            serde_json::from_slice(body).map_err(|error| TokenError::NoToken(error.to_string()))?;
        let claims = Claims::of(&granted.access_token);
        let expires_at = match (granted.expires_in, claims.exp) {
            (Some(secs), _) => asked_at.plus(Duration::from_secs(secs)),
            (None, Some(exp)) => Time::from_micros((exp * 1e6) as i64),
            (None, None) => asked_at.plus(UNTOLD_LIFE),
        };
        if expires_at <= SystemClock.now() {
            return Err(TokenError::NoToken(
                "it has expired already; is the clock of this machine right?".to_owned(),
            ));
        }
        let principal = claims.sub.unwrap_or_else(|| self.client_id.clone());
        Ok(Token { text: granted.access_token, principal, expires_at })
    }
}

/// Name and password as RFC 6749, 2.3.1 has them: encoded as in a form, then as in HTTP's basic scheme.
fn basic(client_id: &str, secret: &str) -> Result<HeaderValue, OpenError> {
    let encoded = |text: &str| byte_serialize(text.as_bytes()).collect::<String>();
    let both = STANDARD.encode(format!("{}:{}", encoded(client_id), encoded(secret)));
    let mut value = HeaderValue::try_from(format!("Basic {both}"))
        .map_err(|error| OpenError::TokenUrl(error.to_string()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// What an error answer says (RFC 6749, 5.2), or its beginning where it is none of this form.
fn refusal(status: StatusCode, body: &[u8]) -> TokenError {
    #[derive(Deserialize)]
    struct Refused {
        error: String,
        #[serde(default)]
        error_description: String,
    }
    let refused: Option<Refused> = serde_json::from_slice(body).ok();
    let advice = match refused.as_ref().map(|refused| refused.error.as_str()) {
        Some("invalid_scope") => "; check `kafka.oauth_scope`",
        Some("invalid_client" | "unauthorized_client") => "; check `kafka.username` and `kafka.password`",
        _ if status == StatusCode::UNAUTHORIZED => "; check `kafka.username` and `kafka.password`",
        _ => "",
    };
    let said = match refused {
        Some(Refused { error, error_description }) if error_description.is_empty() => error,
        Some(Refused { error, error_description }) => format!("{error} ({error_description})"),
        None => String::from_utf8_lossy(body).into_owned(),
    };
    let said = said.chars().filter(|c| !c.is_control()).take(SHOWN_CHARS).collect();
    TokenError::Refused { status, said, advice }
}

/// What a token says of itself, if it is a JWT (RFC 7519); nobody relies on it but to tell the driver.
#[derive(Debug, Default, Deserialize)]
struct Claims {
    sub: Option<String>,
    exp: Option<f64>,
}

impl Claims {
    fn of(token: &str) -> Self {
        let claims = token.split('.').nth(1).and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
        claims.and_then(|claims| serde_json::from_slice(&claims).ok()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use panopticon_core::config::{Config, Secret};

    use super::*;

    fn endpoint() -> Endpoint {
        let mut kafka = Config::default().kafka;
        kafka.oauth_token_url = "https://id.example/token".to_owned();
        kafka.username = "client".to_owned();
        Endpoint::new(&kafka).unwrap()
    }

    #[test]
    fn a_token_tells_whose_it_is_and_how_long_it_lives() {
        let read = |body: &str| endpoint().read(body.as_bytes(), SystemClock.now());
        let near = |token: &Token, secs: u64| token.life().as_secs().abs_diff(secs) <= 5;
        let opaque = read(r#"{"access_token": "abc", "token_type": "Bearer", "expires_in": 60}"#).unwrap();
        assert_eq!((opaque.text.as_str(), opaque.principal.as_str()), ("abc", "client"));
        assert!(near(&opaque, 60), "{opaque:?}");
        let exp = SystemClock.now().micros() / 1_000_000 + 900;
        let claims = URL_SAFE_NO_PAD.encode(format!(r#"{{"sub": "service-7", "exp": {exp}}}"#));
        let jwt = read(&format!(r#"{{"access_token": "e30.{claims}."}}"#)).unwrap();
        assert_eq!(jwt.principal, "service-7");
        assert!(near(&jwt, 900), "{jwt:?}");
        let error = read(r#"{"access_token": 1, "secret": "hush"}"#).unwrap_err().to_string();
        assert!(error.contains("`kafka.oauth_token_url`") && !error.contains("hush"), "{error}");
        assert!(read(r#"{"access_token": "abc", "expires_in": 0}"#).is_err(), "a token without a life");
    }

    #[test]
    fn a_refusal_says_what_to_check() {
        let of = |status: u16, body: &str| {
            refusal(StatusCode::from_u16(status).unwrap(), body.as_bytes()).to_string()
        };
        let wrong = of(401, r#"{"error": "invalid_client", "error_description": "no such secret"}"#);
        assert!(
            wrong.contains("401") && wrong.contains("no such secret") && wrong.contains("`kafka.password`")
        );
        assert!(of(400, r#"{"error": "invalid_scope"}"#).contains("`kafka.oauth_scope`"));
        let page = of(502, &format!("<html>\r\n{}", "x".repeat(10_000)));
        assert!(page.contains("502") && page.len() < 400, "{page}");
    }

    #[test]
    fn name_and_password_survive_characters_of_their_own_encoding() {
        let value = basic("a:b", "p w+ü").unwrap();
        let text = value.to_str().unwrap().strip_prefix("Basic ").unwrap();
        assert_eq!(STANDARD.decode(text).unwrap(), b"a%3Ab:p+w%2B%C3%BC");
        assert!(value.is_sensitive());
    }

    #[test]
    fn a_token_url_that_is_none_is_refused_by_name() {
        let mut kafka = Config::default().kafka;
        kafka.password = Secret::new("hush");
        for url in ["id.example/token", "ftp://id.example", "https://"] {
            url.clone_into(&mut kafka.oauth_token_url);
            let error = Endpoint::new(&kafka).err().unwrap().to_string();
            assert!(error.contains("`kafka.oauth_token_url`") && !error.contains("hush"), "{url}: {error}");
        }
    }
}
