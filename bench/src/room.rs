//! The control API, as an operator's program uses it.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context as _;
use reqwest::Method;
use serde_json::Value;

use crate::server::{CLIENT_ID, TOKEN};

const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(180);

/// A client with the role admin.
#[derive(Clone)]
pub struct Room {
    base: String,
    http: reqwest::Client,
}

impl Room {
    /// The control room at an address.
    pub fn at(address: SocketAddr) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder().no_proxy().build()?;
        Ok(Self { base: format!("http://{address}/api/v1/panopticon"), http })
    }

    /// The answer to a request, read to its end.
    pub async fn call(&self, method: Method, path: &str, body: Option<Value>) -> anyhow::Result<Value> {
        let mut request = self.http.request(method, format!("{}{path}", self.base)).bearer_auth(TOKEN);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await?;
        let status = answer.status();
        let text = answer.text().await?;
        anyhow::ensure!(status.is_success(), "{path}: {status}: {text}");
        serde_json::from_str(&text).with_context(|| format!("{path}: {text}"))
    }

    /// The answer to a GET request, as it comes.
    pub async fn open(&self, path: &str) -> anyhow::Result<reqwest::Response> {
        let request = self.http.get(format!("{}{path}", self.base)).bearer_auth(TOKEN);
        Ok(request.send().await?.error_for_status()?)
    }

    /// How many traces of the app the usage figures count.
    pub async fn stored(&self) -> anyhow::Result<u64> {
        let usage = self.call(Method::GET, &format!("/apps/{CLIENT_ID}/usage"), None).await?;
        let days = usage["items"].as_array().context("usage without items")?;
        Ok(days.iter().filter_map(|day| day["traces"].as_u64()).sum())
    }

    /// Waits until the usage figures count as many traces as were accepted.
    pub async fn caught_up(&self, accepted: u64) -> anyhow::Result<()> {
        let until = tokio::time::Instant::now() + CATCH_UP_TIMEOUT;
        loop {
            let stored = self.stored().await?;
            anyhow::ensure!(stored <= accepted, "{stored} stored but only {accepted} accepted");
            if stored == accepted {
                return Ok(());
            }
            anyhow::ensure!(
                tokio::time::Instant::now() < until,
                "{stored} of {accepted} stored after {CATCH_UP_TIMEOUT:?}"
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}
