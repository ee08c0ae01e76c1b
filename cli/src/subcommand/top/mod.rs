//! `top`: topics, modules and the server, refreshed periodically. `sample` collects the data,
//! `view` handles keys, `picture` lays out the text, `screen` owns the terminal; this module
//! connects them.

mod keys;
mod picture;
mod sample;
mod screen;
mod view;

use serde_json::json;
use tokio::time::{MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;
use xs_engine::TopicPatterns;

use self::picture::Scene;
use self::sample::{Look, Sampler};
use self::screen::{Event, Screen};
use self::view::{Asked, View};
use super::modules::Asked as Store;
use crate::args::TopArgs;
use crate::clock::now_ms;
use crate::exit::{Exit, ExitError};
use crate::output::Output;

pub(super) async fn run(
    store: Store<'_>,
    address: &str,
    top: &TopArgs,
    stop: &CancellationToken,
    out: &mut Output,
) -> anyhow::Result<Exit> {
    if !top.once && !out.is_person() {
        let text = "top needs a terminal; xs top --once prints the same data once";
        return ExitError::fail(Exit::Usage, text);
    }
    let mut sampler = Sampler::new(store, top.patterns.or(TopicPatterns::all())?);
    let mut look = sampler.look().await?;
    let mut view = View::new(top.sort, top.filter.clone());
    if top.once {
        // A rate needs two samples.
        tokio::select! {
            () = tokio::time::sleep(top.every) => {}
            () = stop.cancelled() => return Ok(Exit::Interrupted),
        }
        print(&sampler.look().await?, &view, out)?;
        return Ok(Exit::Ok);
    }
    let mut screen = Screen::open()?;
    let mut ticks = interval_at(tokio::time::Instant::now() + top.every, top.every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let scene = Scene { address, look: &look, now_ms: now_ms(), colour: screen.colour };
        screen.show(&scene.lines(&mut view, Screen::size()));
        tokio::select! {
            event = screen.event() => match event {
                Event::Key(key) => match view.press(key) {
                    Asked::Nothing => {}
                    Asked::End => return Ok(Exit::Ok),
                    Asked::Interrupt => return Ok(Exit::Interrupted),
                },
                Event::Resized => {}
                // The terminal was closed.
                Event::Closed => return Ok(Exit::Ok),
            },
            _ = ticks.tick() => look = sampler.look().await?,
            () = stop.cancelled() => return Ok(Exit::Interrupted),
        }
    }
}

/// Prints three tables: the server, the modules, the topics. A program recognises each line's
/// subject by its first key.
fn print(look: &Look, view: &View, out: &mut Output) -> std::io::Result<()> {
    let server = &look.server;
    let names =
        ["server", "health", "head", "rate", "connections", "subscriptions", "behind", "in", "out"];
    let row = vec![
        json!(server.uuid),
        json!(server.health),
        json!(server.head),
        json!(server.rate),
        json!(server.connections),
        json!(server.subscriptions),
        json!(server.behind),
        json!(server.bytes_in),
        json!(server.bytes_out),
    ];
    out.table(&names, &[row])?;
    let modules: Vec<_> = view
        .modules(look)
        .map(|module| {
            vec![
                json!(module.name),
                json!(module.kind),
                json!(module.state),
                json!(module.behind),
                json!(module.error),
            ]
        })
        .collect();
    let gap = |out: &mut Output| if out.is_person() { out.line("") } else { Ok(()) };
    if !modules.is_empty() {
        gap(out)?;
        out.table(&["module", "kind", "state", "behind", "error"], &modules)?;
    }
    let topics: Vec<_> = view
        .topics(look)
        .iter()
        .map(|topic| {
            vec![
                json!(topic.name),
                json!(topic.count),
                json!(topic.rate),
                json!(topic.bytes),
                json!(out.time(topic.seen_ms)),
            ]
        })
        .collect();
    gap(out)?;
    out.table(&["topic", "count", "rate", "bytes", "seen"], &topics)
}
