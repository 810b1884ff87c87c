//! A client of OpenAI's HTTP API.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response, StatusCode,
    body::Incoming,
    header::{AUTHORIZATION, CONTENT_TYPE},
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value;

/// The header by which a request that is sent again is known as the same.
const REQUEST_ID: &str = "x-request-id";

/// What a server answers that does not do what it was asked to.
#[derive(Debug, thiserror::Error)]
#[error("{url} answers {status}: {said}")]
struct Refused {
    url: String,
    status: StatusCode,
    said: String,
}

/// A server and the connections to it, which are kept.
#[derive(Debug)]
pub(crate) struct Server {
    url: String,
    key: Option<String>,
    client: Client<HttpConnector, Full<Bytes>>,
}

// === impl Server ===

impl Server {
    /// A server at `http://host:port`. Requests carry the key, if there is one, as a bearer token.
    pub(crate) fn new(url: &str, key: Option<String>) -> Result<Self> {
        ensure!(url.starts_with("http://"), "{url}: expected a URL such as http://127.0.0.1:8000");
        let mut connector = HttpConnector::new();
        // Tokens are small, and when they come is what is measured.
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Ok(Self { url: url.trim_end_matches('/').to_owned(), key, client })
    }

    /// Posts a body and reads the whole answer.
    pub(crate) async fn answer(&self, path: &str, body: &Value) -> Result<Value> {
        let body = self.post(path, body).await?.into_body();
        Ok(serde_json::from_slice(&body.collect().await?.to_bytes())?)
    }

    /// Posts a body; the head of the answer, if it is a good one.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> Result<Response<Incoming>> {
        self.post_as(None, path, body).await
    }

    /// Posts a body under a request id.
    pub(crate) async fn post_as(
        &self,
        id: Option<&str>,
        path: &str,
        body: &Value,
    ) -> Result<Response<Incoming>> {
        let url = format!("{}{path}", self.url);
        let mut request = Request::post(&url).header(CONTENT_TYPE, "application/json");
        if let Some(id) = id {
            request = request.header(REQUEST_ID, id);
        }
        if let Some(key) = &self.key {
            request = request.header(AUTHORIZATION, format!("Bearer {key}"));
        }
        let request = request.body(Full::new(Bytes::from(body.to_string())))?;
        let response = self.client.request(request).await.with_context(|| url.clone())?;
        let status = response.status();
        if status != StatusCode::OK {
            let bytes = response.into_body().collect().await.context(url.clone())?.to_bytes();
            let said = String::from_utf8_lossy(&bytes).trim().to_owned();
            return Err(Refused { url, status, said }.into());
        }
        Ok(response)
    }
}

/// Gets a page of any server, over a connection of its own.
pub(crate) async fn get(url: &str) -> Result<(StatusCode, Bytes)> {
    let client: Client<HttpConnector, Full<Bytes>> =
        Client::builder(TokioExecutor::new()).build_http();
    let response = client.request(Request::get(url).body(Full::default())?).await?;
    Ok((response.status(), response.into_body().collect().await?.to_bytes()))
}

/// Whether the server said that it is full.
pub(crate) fn was_full(error: &anyhow::Error) -> bool {
    let refused = error.downcast_ref::<Refused>();
    refused.is_some_and(|refused| refused.status == StatusCode::TOO_MANY_REQUESTS)
}

/// Whether the connection failed, and not what was asked or answered.
pub(crate) fn broke_off(error: &anyhow::Error) -> bool {
    error
        .chain()
        .any(|cause| cause.is::<hyper::Error>() || cause.is::<hyper_util::client::legacy::Error>())
}
