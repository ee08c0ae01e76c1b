//! `consume ADDRESS CURSOR [TOPICS]` handles each frame of some topics and saves its position in a
//! cursor of the store. Both it and the server can be killed at any moment: when started again, it
//! resumes at that position, and repeats the frames whose handling was not saved. It exits at the
//! end of its input.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it is a program of its own")]

use std::error::Error;
use std::io::Read as _;

use xs_protocol::{
    Address, Class, Client, ClientError, ClientOptions, CursorChange, CursorName, CursorValue,
    Delivered, ExpectRevision, Follow, FollowEvent, FollowOptions, ReadOptions, Resume,
    TopicPatterns,
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let usage = "consume ADDRESS CURSOR [TOPICS]";
    let address = Address::parse(&words.next().ok_or(usage)?)?;
    let name = CursorName::parse(&words.next().ok_or(usage)?)?;
    let topics = TopicPatterns::parse(&words.next().unwrap_or_else(|| "*".to_owned()))?;

    // Where to resume. The offset goes with the epoch in which the cursor was changed: if frames
    // that were handled are lost, the server reports that instead of sending others in their place.
    let client = Client::connect(&address, ClientOptions::default()).await?;
    let kept = client.cursor_get(&name).await?;
    let store = client.server().uuid;
    let from = kept.as_ref().map(|at| Resume { store, epoch: at.epoch }.point(at.offset));
    let mut place = Place { name, revision: kept.map_or(0, |at| at.revision), asked: None };
    drop(client);

    let read = ReadOptions { topics, ..ReadOptions::default() };
    let options = FollowOptions { read, from, ..FollowOptions::default() };
    let mut follow = Follow::open(&address, options).await?;
    let mut saved = from.map(|point| point.offset);
    // On a separate thread, which nothing waits for: the runtime could not shut down during a read
    // of tokio stdin.
    let (hold, mut input) = tokio::sync::oneshot::channel::<()>();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read(&mut [0]);
        drop(hold);
    });
    loop {
        let event = tokio::select! {
            event = follow.next() => event,
            // Any byte, or the end of the input.
            _ = &mut input => break,
        };
        match event.transpose()? {
            Some(FollowEvent::Frame(one)) => handle(&one),
            Some(FollowEvent::Gap(gap)) => eprintln!("missing: {gap:?}"),
            Some(FollowEvent::Resumed { lost, .. }) => eprintln!("connected again after: {lost}"),
            Some(_) => {}
            None => break,
        }
        // Everything before it is handled. A busy consumer would save once for many frames.
        let Some(reached) = follow.point().map(|point| point.offset) else { continue };
        if saved != Some(reached) {
            match place.save(follow.client(), reached).await {
                Ok(()) => saved = Some(reached),
                // The follow reconnects and yields an event, after which the save is tried again.
                Err(error) if matches!(error.class(), Class::Unknown | Class::Busy) => {}
                // Class::Condition: another consumer has the cursor.
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

fn handle(one: &Delivered) {
    println!("{:?} {}", one.frame.offset(), one.frame.topic());
}

/// The cursor.
struct Place {
    name: CursorName,
    /// The revision that was last seen.
    revision: u64,
    /// The offset of a change that has no answer.
    asked: Option<u64>,
}

impl Place {
    /// Records that everything before `offset` is handled.
    async fn save(&mut self, client: &Client, offset: u64) -> Result<(), ClientError> {
        // A change without an answer may have been made. If the cursor is anywhere else, another
        // consumer moved it, and the next change reports that.
        if let Some(asked) = self.asked
            && let Some(at) = client.cursor_get(&self.name).await?
            && (at.revision, at.offset) == (self.revision + 1, asked)
        {
            (self.revision, self.asked) = (at.revision, None);
            if asked == offset {
                return Ok(());
            }
        }
        let set = Some(CursorValue { offset, ..CursorValue::default() });
        let expect = ExpectRevision::Is(self.revision);
        self.asked = Some(offset);
        let change = CursorChange { name: self.name.clone(), expect, set };
        self.revision = client.cursor_set(change).await?;
        self.asked = None;
        Ok(())
    }
}
