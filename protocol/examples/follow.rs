//! `follow ADDRESS [TOPICS] [POINT]` prints the frames of some topics as they are appended, and
//! keeps following when the server is stopped, killed and started again. At the end of its input it
//! exits and prints its position, which another run accepts as POINT.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it is a program of its own")]

use std::error::Error;

use tokio::io::AsyncReadExt as _;
use xs_protocol::{
    Address, Follow, FollowEvent, FollowOptions, ReadOptions, ResumePoint, SubscribeOptions,
    TopicPatterns,
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let address = words.next().ok_or("follow ADDRESS [TOPICS] [POINT]")?;
    let topics = TopicPatterns::parse(&words.next().unwrap_or_else(|| "*".to_owned()))?;
    let from = words.next().map(|text| point(&text)).transpose()?;
    let options = FollowOptions {
        read: ReadOptions { topics, ..ReadOptions::default() },
        how: SubscribeOptions { bodies_up_to: 64 * 1024, ..SubscribeOptions::default() },
        from,
        ..FollowOptions::default()
    };
    let mut follow = Follow::open(&Address::parse(&address)?, options).await?;
    let mut input = tokio::io::stdin();
    loop {
        let event = tokio::select! {
            event = follow.next() => event,
            // Any byte, or the end of the input.
            _ = input.read_u8() => break,
        };
        match event.transpose()? {
            Some(FollowEvent::Frame(one)) => {
                let body = one.body.unwrap_or_default();
                let offset = one.frame.offset();
                println!("{offset:?} {} {}", one.frame.topic(), String::from_utf8_lossy(&body));
            }
            Some(FollowEvent::CaughtUp { head }) => eprintln!("{head} were there"),
            Some(FollowEvent::Gap(gap)) => eprintln!("missing: {gap:?}"),
            Some(FollowEvent::Resumed { offset, lost }) => eprintln!("{lost}; on at {offset:?}"),
            Some(_) => {}
            None => break,
        }
    }
    if let Some(ResumePoint { store: Some(store), epoch, offset }) = follow.point() {
        println!("point {store}:{epoch}:{offset}");
    }
    Ok(())
}

/// Parses a point in the form in which it is printed.
fn point(text: &str) -> Result<ResumePoint, Box<dyn Error>> {
    let parts: Vec<&str> = text.split(':').collect();
    let [store, epoch, offset] = parts[..] else {
        return Err("a point is STORE:EPOCH:OFFSET".into());
    };
    let store = Some(store.parse()?);
    Ok(ResumePoint { store, epoch: epoch.parse()?, offset: offset.parse()? })
}
