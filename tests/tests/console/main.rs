//! The console in a browser and in the terminal, against a live cluster under load.

mod browser;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::{
    client::{Ask, Client, get},
    long_ask,
    processes::Processes,
};
use tokio::{sync::watch, try_join};

use browser::Browser;

/// Requests that run at a time.
const AT_ONCE: usize = 12;
/// Every expert node holds every expert.
const EVERYWHERE: [(&str, &str); 1] = [("PLACEMENT__FILL_SPARE_SLOTS", "true")];
/// Screens by their width.
const SCREENS: [(&str, u32); 2] = [("wide", 1440), ("narrow", 390)];

/// Keeps the cluster busy until `done`.
async fn load(client: &Client, done: &watch::Sender<bool>) -> Result<()> {
    let asks: Vec<Ask> = (0..AT_ONCE as u32).map(long_ask).collect();
    while !*done.borrow() {
        client.ask_all(&asks, AT_ONCE).await?;
    }
    Ok(())
}

fn door(cluster: &Processes, name: &str) -> Result<String> {
    let mut doors = cluster.admin_doors();
    doors.find(|(door, _)| *door == name).map(|(_, url)| url).context("every role has a door")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_cluster_is_seen_in_a_browser_and_in_a_terminal() -> Result<()> {
    let mut cluster = Processes::cluster_with(2, 3, &EVERYWHERE).await?;
    let url = format!("{}/console", door(&cluster, "coordinator")?);
    let browser = Browser::start().await?;
    let client = cluster.client()?;
    let done = watch::Sender::new(false);
    let watched = async {
        browser.open(&url).await?;
        shows_the_cluster(&browser).await?;
        fits_every_screen(&browser).await?;
        answers_to_the_pointer(&browser).await?;
        assert_eq!(browser.complaints().await?, [""; 0], "the browser has complaints");
        terminal_shows_it(&cluster, &url).await?;
        done.send_replace(true);
        anyhow::Ok(())
    };
    try_join!(load(&client, &done), watched)?;

    cluster.kill("expert-2").await?;
    browser.until(&journal("expert-2 is lost")).await?;
    browser.until(&journal("expert nodes changed: -expert-2")).await?;
    cluster.kill("coordinator").await?;
    browser
        .until(&shows("#notice", "The coordinator does not answer. What is shown is of"))
        .await?;
    browser.until("document.body.classList.contains('stale')").await?;
    cluster.start("coordinator")?;
    browser.until("document.querySelector('#notice').hidden").await?;
    browser.until(&shows("#pulse", "live")).await
}

/// Whether an element has this in its text, as an expression.
fn shows(element: &str, text: &str) -> String {
    format!("document.querySelector({}).innerText.includes({})", json!(element), json!(text))
}

fn journal(text: &str) -> String {
    shows("#journal", text)
}

async fn shows_the_cluster(browser: &Browser) -> Result<()> {
    browser.until(&shows("#pulse", "live")).await?;
    browser.until(&shows("#headline", "serves")).await?;
    browser.until(&shows("#headline", "1 gateway, 2 attention, 3 expert")).await?;
    browser.until("document.querySelectorAll('#nodes tbody tr').length === 6").await?;
    for node in ["gateway-0", "attention-0", "attention-1", "expert-0", "expert-1", "expert-2"] {
        browser.until(&shows("#nodes", node)).await?;
        browser.until(&journal(&format!("{node} has joined"))).await?;
    }
    browser.until(&shows("#flow-hint", "6 links in use")).await?;
    browser.until(&shows("#plans", "enough expert nodes are here")).await?;
    browser.until(&shows("#placement-hint", "held by several")).await?;
    browser.until(&shows("#standing-decisions", "tokens wanted lately")).await?;
    browser.until("parseFloat(document.querySelector('.tile .value').innerText) > 0").await?;
    // Drawn is what has more than one color.
    for canvas in ["layers", "holders", "depths"] {
        browser
            .until(&format!(
                "(() => {{ const c = document.getElementById('{canvas}'); \
                 const data = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; \
                 return new Set(new Uint32Array(data.buffer)).size > 8; }})()"
            ))
            .await?;
    }
    Ok(())
}

/// Nothing is wider than the screen; with AMOE_SCREENSHOTS, a folder, there are pictures to look at.
async fn fits_every_screen(browser: &Browser) -> Result<()> {
    let pictures = std::env::var_os("AMOE_SCREENSHOTS").map(PathBuf::from);
    for scheme in ["dark", "light"] {
        for (screen, width) in SCREENS {
            browser.look(scheme, width, 1000).await?;
            browser.until(&format!("innerWidth === {width}")).await?;
            browser.until(&format!("document.documentElement.scrollWidth === {width}")).await?;
            if let Some(folder) = &pictures {
                let height = browser.value("document.documentElement.scrollHeight").await?;
                let height = height.as_u64().and_then(|height| height.try_into().ok());
                browser.look(scheme, width, height.unwrap_or(1000)).await?;
                // Drawn anew at the next second at the latest.
                tokio::time::sleep(std::time::Duration::from_millis(1_500)).await;
                browser.picture(&folder.join(format!("{screen}-{scheme}.png"))).await?;
            }
        }
    }
    browser.look("dark", 1440, 1000).await
}

async fn answers_to_the_pointer(browser: &Browser) -> Result<()> {
    let point = |kind: &str| {
        format!(
            "(() => {{ const c = document.getElementById('layers'), r = c.getBoundingClientRect(); \
             c.dispatchEvent(new MouseEvent('{kind}', {{clientX: r.left + r.width / 2, \
             clientY: r.top + 8, bubbles: true}})); return true; }})()"
        )
    };
    // Again and again, as a hand does: the page may just have been given another width.
    let tip = shows("#tip", "tokens/s");
    browser.until(&format!("{} && {tip}", point("mousemove"))).await?;
    browser.until(&point("click")).await?;
    let first = browser.value("document.querySelector('#holders-title').innerText").await?;
    let down = "(() => document.getElementById('layers').dispatchEvent(\
                new KeyboardEvent('keydown', {key: 'ArrowDown', cancelable: true})))()";
    browser.value(down).await?;
    let second = browser.value("document.querySelector('#holders-title').innerText").await?;
    ensure!(first != second, "the arrow key chooses another layer than {first}");
    Ok(())
}

/// The page's JSON and the terminal are made from one message.
async fn terminal_shows_it(cluster: &Processes, url: &str) -> Result<()> {
    let (_, state) = get(&format!("{url}/state"), None).await?;
    let state: Value = serde_json::from_str(&state)?;
    assert_eq!(state["standing"], "leading");
    let at = cluster.listens("coordinator")?.to_string();
    let top = async |more: &str| {
        let args = ["top", "--once", "--coordinator", &at, more].map(str::to_owned);
        Processes::amoe(&args).await
    };
    let overview: Value = serde_json::from_str(&top("--json").await?)?;
    let names = |overview: &Value| -> Vec<_> {
        let nodes = overview["nodes"].as_array().into_iter().flatten();
        nodes.map(|node| (node["id"].clone(), node["name"].clone())).collect()
    };
    assert_eq!(names(&overview), names(&state["overview"]));
    assert_eq!(overview["model"], state["overview"]["model"]);
    let text = top("--width=120").await?;
    for part in ["serves", "attention-1", "expert-2", "tokens/s", "layer 0", "routing"] {
        ensure!(text.contains(part), "{part} is missing in\n{text}");
    }
    Ok(())
}
