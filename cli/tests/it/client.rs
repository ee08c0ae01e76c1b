//! The protocol's client against a server of these tests.

use std::path::Path;

use tokio::runtime::Runtime;
use xs_engine::{Body, Meta, NewFrame, Topic};
use xs_protocol::{Address, Client, ClientOptions};

pub(crate) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

pub(crate) async fn connect(store: &Path) -> Client {
    Client::connect(&Address::of_path(store), ClientOptions::default()).await.unwrap()
}

pub(crate) fn frame(topic: &str, meta: &serde_json::Value, body: &[u8]) -> NewFrame {
    let body = if body.is_empty() { Body::None } else { Body::Inline(body.to_vec().into()) };
    NewFrame {
        meta: Meta::parse(meta.to_string()).unwrap(),
        body,
        ..NewFrame::new(Topic::parse(topic).unwrap())
    }
}
