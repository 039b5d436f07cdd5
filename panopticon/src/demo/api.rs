//! The control API, as a client sees it.

use anyhow::Context as _;
use panopticon_core::{
    api::{BASE, StatusAnswer},
    config::Secret,
};
use serde_json::{Value, json};

/// A client with the admin token.
pub struct Api {
    client: reqwest::Client,
    base: String,
    token: Secret,
}

impl Api {
    /// A client of the server at `url`.
    pub fn new(url: &str, token: &Secret) -> anyhow::Result<Self> {
        panopticon_cli::install_tls();
        let client = reqwest::Client::builder().no_proxy().build()?;
        Ok(Self { client, base: format!("{url}{BASE}"), token: token.clone() })
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> anyhow::Result<Value> {
        let answer = request.bearer_auth(self.token.expose()).send().await?;
        let status = answer.status();
        let body: Value = answer.json().await?;
        anyhow::ensure!(status.is_success(), "{status}: {}", body["error_description"]);
        Ok(body)
    }

    /// Enables an app; answers its PAK.
    pub async fn enable(&self, client_id: &str, name: &str) -> anyhow::Result<String> {
        let url = format!("{}/apps/{client_id}", self.base);
        let app = self.send(self.client.put(url).json(&json!({"name": name}))).await?;
        Ok(app["pak"].as_str().context("no PAK in the answer")?.to_owned())
    }

    /// Adds an endpoint; answers its secret.
    pub async fn add_webhook(&self, client_id: &str, to: &str) -> anyhow::Result<String> {
        let url = format!("{}/apps/{client_id}/webhooks", self.base);
        let endpoint = self.send(self.client.post(url).json(&json!({"url": to}))).await?;
        Ok(endpoint["secret"].as_str().context("no secret in the answer")?.to_owned())
    }

    /// The rows of a list.
    pub async fn list(&self, path: &str) -> anyhow::Result<Vec<Value>> {
        let answer = self.send(self.client.get(format!("{}{path}", self.base))).await?;
        Ok(answer["items"].as_array().cloned().unwrap_or_default())
    }

    /// How many traces the usage figures of the last 30 days count.
    pub async fn stored(&self, client_id: &str) -> anyhow::Result<u64> {
        let days = self.list(&format!("/apps/{client_id}/usage")).await?;
        Ok(days.iter().filter_map(|day| day["traces"].as_u64()).sum())
    }

    /// Whether every stage has read to its end and no webhook is under way.
    pub async fn is_idle(&self, client_id: &str) -> anyhow::Result<bool> {
        let answer = self.send(self.client.get(format!("{}/apps/{client_id}/status", self.base))).await?;
        let status: StatusAnswer = serde_json::from_value(answer)?;
        Ok(status.stages.iter().all(|stage| stage.lag_records == 0)
            && status.webhooks.iter().all(|webhook| webhook.pending == 0))
    }
}
