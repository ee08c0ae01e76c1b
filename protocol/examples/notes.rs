//! The program of README.md: `notes ADDRESS` appends a note, then prints all stored notes and each
//! new one. A test compares it with the page and runs it.
#![expect(clippy::print_stdout, reason = "it is a program of its own")]

use xs_protocol::{Address, AppendRequest, Body, Client, ClientOptions, Follow, FollowEvent};
use xs_protocol::{FollowOptions, NewFrame, SubscribeOptions, Topic};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = Address::parse(&std::env::args().nth(1).unwrap_or_default())?;
    let mut note = NewFrame::new(Topic::parse("notes")?);
    note.body = Body::Inline("buy milk".into());
    let xs = Client::connect(&address, ClientOptions::default()).await?;
    xs.append(&AppendRequest::frames(vec![note])).await?;

    let how = SubscribeOptions { bodies_up_to: 4096, ..Default::default() };
    let mut notes = Follow::open(&address, FollowOptions { how, ..Default::default() }).await?;
    while let Some(event) = notes.next().await {
        if let FollowEvent::Frame(note) = event? {
            println!("{} {:?}", note.frame.topic(), note.body);
        }
    }
    Ok(())
}
