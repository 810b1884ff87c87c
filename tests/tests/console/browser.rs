//! A headless Chromium, led by ChromeDriver over the WebDriver protocol.

use std::{
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::{sleep, timeout},
};

/// Nothing in a browser takes this long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at a page.
const PAUSE: Duration = Duration::from_millis(100);
const FLAGS: [&str; 9] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
];

/// One browser with one page; closed when it is dropped.
#[derive(Debug)]
pub(crate) struct Browser {
    _driver: Child,
    port: u16,
    http: Client<HttpConnector, Full<Bytes>>,
    /// `/session/…`
    session: String,
    _profile: TempDir,
}

impl Browser {
    /// Starts ChromeDriver, and by it Chromium.
    pub(crate) async fn start() -> Result<Self> {
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("cannot start `chromedriver`: install Debian's package chromium-driver")?;
        let said = driver.stdout.take().context("what it says is piped")?;
        let port = timeout(PATIENCE, port(said)).await.context("chromedriver does not start")??;
        let profile = tempfile::tempdir()?;
        let folder = format!("--user-data-dir={}", profile.path().display());
        let flags: Vec<&str> = FLAGS.into_iter().chain([&*folder]).collect();
        let options =
            json!({"goog:chromeOptions": {"args": flags}, "goog:loggingPrefs": {"browser": "ALL"}});
        let mut browser = Self {
            _driver: driver,
            port,
            http: Client::builder(TokioExecutor::new()).build_http(),
            session: "/session".to_owned(),
            _profile: profile,
        };
        let wish = json!({"capabilities": {"alwaysMatch": options}});
        let session = browser.call(Method::POST, "", wish).await?;
        let id = session["sessionId"].as_str().context("a session has an id")?;
        browser.session = format!("{}/{id}", browser.session);
        Ok(browser)
    }

    async fn call(&self, method: Method, command: &str, body: Value) -> Result<Value> {
        let body = if method == Method::POST { body.to_string() } else { String::new() };
        let request = Request::builder()
            .method(method)
            .uri(format!("http://127.0.0.1:{}{}{command}", self.port, self.session))
            .body(Full::from(body))?;
        let answer = timeout(PATIENCE, self.http.request(request)).await.context("it hangs")??;
        let answer: Value =
            serde_json::from_slice(&answer.into_body().collect().await?.to_bytes())?;
        let value = &answer["value"];
        ensure!(value["error"].is_null(), "{command}: {}", value["message"]);
        Ok(value.clone())
    }

    /// Opens a page.
    pub(crate) async fn open(&self, url: &str) -> Result<()> {
        self.call(Method::POST, "/url", json!({"url": url})).await.map(drop)
    }

    /// The value of an expression in the page.
    pub(crate) async fn value(&self, expression: &str) -> Result<Value> {
        let script = json!({"script": format!("return {expression};"), "args": []});
        self.call(Method::POST, "/execute/sync", script).await
    }

    /// Waits until an expression in the page is true.
    pub(crate) async fn until(&self, expression: &str) -> Result<()> {
        let reached = async {
            while self.value(expression).await? != json!(true) {
                sleep(PAUSE).await;
            }
            Ok(())
        };
        match timeout(PATIENCE, reached).await {
            Ok(reached) => reached,
            Err(_) => {
                let page = self.value("document.body.innerText").await?;
                bail!("the page never comes to {expression}:\n{}", page.as_str().unwrap_or("?"))
            }
        }
    }

    /// Shows the page on a screen of `width` to somebody who likes the `scheme`, dark or light.
    pub(crate) async fn look(&self, scheme: &str, width: u32, height: u32) -> Result<()> {
        let media = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.tools("Emulation.setEmulatedMedia", media).await?;
        let screen =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.tools("Emulation.setDeviceMetricsOverride", screen).await
    }

    async fn tools(&self, command: &str, parameters: Value) -> Result<()> {
        let body = json!({"cmd": command, "params": parameters});
        self.call(Method::POST, "/goog/cdp/execute", body).await.map(drop)
    }

    /// Writes what is to be seen to a file, as PNG.
    pub(crate) async fn picture(&self, file: &Path) -> Result<()> {
        let picture = self.call(Method::GET, "/screenshot", Value::Null).await?;
        let picture = picture.as_str().context("a picture is base64")?;
        Ok(std::fs::write(
            file,
            base64::Engine::decode(&base64::prelude::BASE64_STANDARD, picture)?,
        )?)
    }

    /// What the browser complained of since it was last asked.
    pub(crate) async fn complaints(&self) -> Result<Vec<String>> {
        let log = self.call(Method::POST, "/se/log", json!({"type": "browser"})).await?;
        let entries = log.as_array().into_iter().flatten();
        Ok(entries.map(|entry| entry["message"].to_string()).collect())
    }
}

impl Drop for Browser {
    /// A Chromium outlives a ChromeDriver that is killed, so it is asked first.
    fn drop(&mut self) {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) else { return };
        let session = &self.session;
        let request = format!("DELETE {session} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let asked = stream.set_read_timeout(Some(PATIENCE)).and_then(|()| {
            stream.write_all(request.as_bytes())?;
            // The answer comes when the browser is gone; ChromeDriver keeps the connection.
            stream.read(&mut [0; 64])
        });
        drop(asked);
    }
}

/// Where ChromeDriver says that it listens.
async fn port(said: impl tokio::io::AsyncRead + Unpin) -> Result<u16> {
    let mut lines = BufReader::new(said).lines();
    while let Some(line) = lines.next_line().await? {
        if let Some((_, port)) = line.split_once("started successfully on port ") {
            return Ok(port.trim_end_matches('.').parse()?);
        }
    }
    bail!("chromedriver ends without saying where it listens")
}
