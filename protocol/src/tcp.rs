//! TCP sockets as both sides want them: what is written goes at once, and a peer whose machine
//! vanished without a word is noticed by the system. TCP alone tells nobody who only waits, and
//! takes a quarter of an hour to tell who sends.

use std::io;

use rustix::net::sockopt;
use tokio::net::TcpStream;

use crate::limits::{TCP_ANSWER_MAX, TCP_ASK_AFTER, TCP_ASK_EVERY};

/// Sets up a socket that was connected or accepted.
///
/// # Errors
/// The system's, for example when the peer has closed it already.
pub(crate) fn set_up(stream: &TcpStream) -> io::Result<()> {
    // Messages are written whole: there is nothing to wait for.
    stream.set_nodelay(true)?;
    sockopt::set_tcp_keepidle(stream, TCP_ASK_AFTER)?;
    sockopt::set_tcp_keepintvl(stream, TCP_ASK_EVERY)?;
    sockopt::set_tcp_user_timeout(stream, TCP_ANSWER_MAX.as_millis() as u32)?;
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
