//! Frames to append. Making one is cheap compared with storing it. No two bodies are equal, because
//! the store would not store an equal body twice.

use bytes::Bytes;
use xs_engine::{Body, Meta, NewFrame, Topic};

/// Number of metas that frames use in turn; they are validated only once, when they are created.
const METAS: u64 = 1024;

/// A JSON body of 256 bytes; every `0` is replaced by a decimal digit, every `#` by a hexadecimal
/// one.
const BODY: &[u8; 256] = b"{\"request\":\"################\",\"at\":1764108000000,\"host\":\"web\
-00\",\"level\":\"info\",\"message\":\"served\",\"method\":\"GET\",\"path\":\"/api/v\
1/items/000000\",\"status\":204,\"bytes\":1000000,\"micros\":10000,\"user\":\"\
u-0000000\",\"agent\":\"Mozilla/5.5 (X11) Gecko\",\"cached\":false}";

/// What frames look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Meta of about 40 bytes and no body.
    Meta,
    /// The same meta and a JSON body of 256 bytes.
    Body256,
}

impl Shape {
    /// Both shapes.
    pub const ALL: [Self; 2] = [Self::Meta, Self::Body256];

    /// Returns its name in rows.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Meta => "meta only",
            Self::Body256 => "256 B body",
        }
    }
}

/// Makes frames, the same in every run.
#[derive(Debug, Clone)]
pub struct Frames {
    topics: Vec<Topic>,
    metas: Vec<Meta>,
    shape: Shape,
    /// The positions of the bytes of a body that change.
    digits: Vec<u8>,
    random: Random,
    made: u64,
}

/// Returns the topic with this number.
pub fn topic(number: u64) -> Topic {
    Topic::parse(&format!("bench.t{number}")).expect("letters, digits and one dot are a topic")
}

impl Frames {
    /// Makes frames on this many topics in turn.
    pub fn new(shape: Shape, topics: u64) -> Self {
        Self::on((0..topics).map(topic).collect(), shape)
    }

    /// Makes frames on eight topics.
    pub fn common(shape: Shape) -> Self {
        Self::new(shape, 8)
    }

    /// Makes frames on the given topics in turn.
    pub fn on(topics: Vec<Topic>, shape: Shape) -> Self {
        let mut random = Random::default();
        let metas = (0..METAS).map(|n| {
            let text = format!("{{\"n\":{n},\"cpu\":0.{:06}}}", random.next() % 1_000_000);
            Meta::parse(text).expect("this is JSON")
        });
        let metas = metas.collect();
        let changes = |&at: &u8| matches!(BODY[usize::from(at)], b'0' | b'#');
        let digits = (0..=u8::MAX).filter(changes).collect();
        Self { topics, metas, shape, digits, random, made: 0 }
    }

    /// Returns a copy that makes other bodies, for another thread.
    pub fn split(&mut self) -> Self {
        Self { random: Random(self.random.next()), ..self.clone() }
    }

    /// Returns the next frame.
    pub fn frame(&mut self) -> NewFrame {
        let topic = self.topics[(self.made % self.topics.len() as u64) as usize].clone();
        let meta = self.metas[(self.made % METAS) as usize].clone();
        self.made += 1;
        let body = match self.shape {
            Shape::Meta => Body::None,
            Shape::Body256 => Body::Inline(self.body()),
        };
        NewFrame { meta, body, ..NewFrame::new(topic) }
    }

    /// Returns the next `count` frames.
    pub fn take(&mut self, count: usize) -> Vec<NewFrame> {
        (0..count).map(|_| self.frame()).collect()
    }

    /// Returns the next body of [`Shape::Body256`].
    pub fn body(&mut self) -> Bytes {
        let mut body = BODY.to_vec();
        let mut pool = 0;
        for &at in &self.digits {
            if pool < 16 {
                // The set top bit makes each number last for 15 digits.
                pool = self.random.next() | 1 << 63;
            }
            let byte = &mut body[usize::from(at)];
            *byte = match *byte {
                b'#' => b"0123456789abcdef"[(pool % 16) as usize],
                _ => b'0' + (pool % 10) as u8,
            };
            pool /= 16;
        }
        Bytes::from(body)
    }
}

/// Pseudorandom numbers, the same in every run.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Default for Random {
    fn default() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }
}

impl Random {
    /// Returns the next number.
    pub const fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn bodies_are_json_of_256_bytes_and_all_different() {
        let mut frames = Frames::common(Shape::Body256);
        let mut seen = HashSet::new();
        for _ in 0..10_000 {
            let Body::Inline(body) = frames.frame().body else { panic!("a frame without body") };
            assert_eq!(body.len(), 256);
            assert!(serde_json::from_slice::<serde_json::Value>(&body).is_ok(), "{body:?}");
            assert!(seen.insert(body));
        }
    }

    #[test]
    fn frames_of_two_threads_differ() {
        let mut frames = Frames::common(Shape::Body256);
        let (mut one, mut other) = (frames.split(), frames.split());
        assert_ne!(one.frame().body, other.frame().body);
    }

    #[test]
    fn topics_take_turns() {
        let mut frames = Frames::new(Shape::Meta, 3);
        let topics: Vec<_> = frames.take(4).into_iter().map(|frame| frame.topic).collect();
        assert_eq!(topics, [topic(0), topic(1), topic(2), topic(0)]);
    }
}
