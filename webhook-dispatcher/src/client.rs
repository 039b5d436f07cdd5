//! The HTTP client: connects only to addresses that the [`Egress`] policy admitted, follows no redirect,
//! knows no proxy and no cookie, and keeps connections for the next message.

use std::{error::Error as _, net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header::RETRY_AFTER};
use panopticon_core::config::WebhooksConfig;
use reqwest::{
    Client,
    dns::{Addrs, Name, Resolve, Resolving},
    redirect,
};
use tracing::warn;

use crate::egress::{Egress, EgressError, Scheme};

/// What a receiver answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its HTTP status.
    pub status: StatusCode,
    /// Its `Retry-After`, as it was written.
    pub retry_after: Option<String>,
}

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The URL or the address that it leads to is not one that webhooks go to.
    #[error(transparent)]
    Egress(EgressError),
    /// None came in time.
    #[error("timeout: no answer within {0:?}")]
    Timeout(Duration),
    /// No connection came about.
    #[error("connect: {0}")]
    Connect(String),
    /// The connection broke, or what came back was not HTTP.
    #[error("broken: {0}")]
    Broken(String),
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
#[error("the webhook client cannot be made: {0}")]
pub struct ClientError(#[from] reqwest::Error);

/// Sends messages.
#[derive(Debug, Clone)]
pub struct WebhookClient {
    egress: Egress,
    /// One for each scheme, since what a name may lead to depends on it.
    https: Client,
    http: Client,
    timeout: Duration,
    max_response_bytes: usize,
}

impl WebhookClient {
    /// A client with the limits of `config`.
    pub fn new(egress: Egress, config: &WebhooksConfig) -> Result<Self, ClientError> {
        // An error says that the process has a provider already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Ok(Self {
            https: connector(&egress, Scheme::Https, config)?,
            http: connector(&egress, Scheme::Http, config)?,
            egress,
            timeout: Duration::from_millis(config.timeout_ms),
            max_response_bytes: config.max_response_bytes,
        })
    }

    /// Posts `body` and returns the answer; the time limit holds for all of it.
    pub async fn post(&self, url: &str, headers: HeaderMap, body: Bytes) -> Result<Answer, SendError> {
        let (url, scheme) = self.egress.target(url).map_err(SendError::Egress)?;
        let client = match scheme {
            Scheme::Https => &self.https,
            Scheme::Http => &self.http,
        };
        let deadline = tokio::time::Instant::now() + self.timeout;
        let sending = client.post(url).headers(headers).body(body).send();
        let mut response = match tokio::time::timeout_at(deadline, sending).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(self.explain(error)),
            Err(_) => return Err(SendError::Timeout(self.timeout)),
        };
        let answer = Answer {
            status: response.status(),
            retry_after: response
                .headers()
                .get(RETRY_AFTER)
                .and_then(|value| value.to_str().ok())
                .map(str::to_owned),
        };
        // The answer stands by now. Its body is read so that the connection can be used again, unless it
        // is too long or too slow for that.
        let mut left = self.max_response_bytes;
        let rest = async {
            while let Ok(Some(chunk)) = response.chunk().await {
                left = left.saturating_sub(chunk.len());
                if left == 0 {
                    metrics::counter!("panopticon_webhook_long_answers_total").increment(1);
                    break;
                }
            }
        };
        let _ = tokio::time::timeout_at(deadline, rest).await;
        Ok(answer)
    }

    fn explain(&self, error: reqwest::Error) -> SendError {
        let mut cause = error.source();
        let mut innermost = error.to_string();
        while let Some(inner) = cause {
            if let Some(refused) = inner.downcast_ref::<EgressError>() {
                return SendError::Egress(refused.clone());
            }
            innermost = inner.to_string();
            cause = inner.source();
        }
        if error.is_timeout() {
            SendError::Timeout(self.timeout)
        } else if error.is_connect() {
            SendError::Connect(innermost)
        } else {
            SendError::Broken(innermost)
        }
    }
}

fn connector(egress: &Egress, scheme: Scheme, config: &WebhooksConfig) -> Result<Client, reqwest::Error> {
    let builder = || {
        Client::builder()
            .dns_resolver(CheckedResolver { egress: egress.clone(), scheme })
            .redirect(redirect::Policy::none())
            .no_proxy()
            .referer(false)
            .pool_max_idle_per_host(config.in_flight_per_endpoint)
    };
    if scheme == Scheme::Http {
        // Never speaks TLS, so it needs no certificates.
        return builder().tls_certs_only([]).build();
    }
    builder().build().or_else(|error| {
        warn!(%error, "no certificate authorities were found, so https endpoints will fail; install ca-certificates or set SSL_CERT_FILE");
        builder().tls_certs_only([]).build()
    })
}

/// Looks a name up and lets only admitted addresses through: there is no second look-up between the check
/// and the connection.
struct CheckedResolver {
    egress: Egress,
    scheme: Scheme,
}

impl Resolve for CheckedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (egress, scheme) = (self.egress.clone(), self.scheme);
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let admitted = egress.admit(scheme, found)?;
            Ok(Box::new(admitted.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use panopticon_core::config::Config;

    use super::*;

    fn client(loopback: bool) -> WebhookClient {
        let mut config = Config::default();
        config.webhooks.allow_loopback = Some(loopback);
        WebhookClient::new(Egress::new(&config).unwrap(), &config.webhooks).unwrap()
    }

    #[tokio::test]
    async fn a_name_is_judged_by_the_addresses_that_it_leads_to() {
        // Past the check of the URL, as a name of one's own that points at this machine would be.
        let strict = client(false);
        for client in [&strict.https, &strict.http] {
            let error = client.get("https://localhost:9/").send().await.unwrap_err();
            assert!(matches!(
                strict.explain(error),
                SendError::Egress(EgressError::Blocked { why: "loopback", .. })
            ),);
        }
    }

    #[tokio::test]
    async fn a_receiver_without_tls_is_not_spoken_to_in_clear_text() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}/", listener.local_addr().unwrap());
        let serve = async {
            use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut hello = [0; 1];
            stream.read_exact(&mut hello).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            hello[0]
        };
        let client = client(true);
        let (hello, sent) = tokio::join!(serve, client.post(&url, HeaderMap::new(), Bytes::new()));
        assert_eq!(hello, 0x16, "a TLS handshake");
        assert!(matches!(sent, Err(SendError::Connect(_))), "{sent:?}");
    }
}
