//! TCP sockets as both sides want them: what is written goes at once, and a peer whose machine
//! vanished without a word is noticed by the system. TCP alone tells nobody who only waits, and
//! takes a quarter of an hour to tell who sends.

use std::io;
use std::time::Duration;

use rustix::net::sockopt;
use tokio::net::TcpStream;

/// Silence after which the peer's system is asked whether it is there. Less than the time after
/// which a server sends PING: nothing is asked while bytes are on their way.
const ASK_AFTER: Duration = Duration::from_secs(30);
/// Between one such question and the next.
const ASK_EVERY: Duration = Duration::from_secs(15);
/// Time in which the peer's system answers, takes what was sent, or is given up.
const ANSWERS_WITHIN: Duration = Duration::from_secs(90);

/// Sets up a socket that was connected or accepted.
///
/// # Errors
/// The system's, for example when the peer has closed it already.
pub(crate) fn set_up(stream: &TcpStream) -> io::Result<()> {
    // Messages are written whole: there is nothing to wait for.
    stream.set_nodelay(true)?;
    sockopt::set_tcp_keepidle(stream, ASK_AFTER)?;
    sockopt::set_tcp_keepintvl(stream, ASK_EVERY)?;
    sockopt::set_tcp_user_timeout(stream, ANSWERS_WITHIN.as_millis() as u32)?;
    sockopt::set_socket_keepalive(stream, true)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_peer_that_vanished_is_asked_for_and_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        set_up(&stream).unwrap();
        assert!(stream.nodelay().unwrap() && sockopt::socket_keepalive(&stream).unwrap());
        let asked = sockopt::tcp_keepidle(&stream).unwrap();
        assert!(asked < crate::limits::PING_AFTER, "a PING on its way stops the questions");
        assert_eq!(sockopt::tcp_user_timeout(&stream).unwrap(), 90_000);
    }
}
