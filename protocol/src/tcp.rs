//! TCP socket options for both sides: messages are sent without delay, and the system detects a
//! peer whose machine vanished. By default TCP never reports that to a side that only waits, and
//! takes a quarter of an hour to report it to a sender.

use std::io;

use rustix::net::sockopt;
use tokio::net::TcpStream;

use crate::limits::{TCP_ANSWER_MAX, TCP_ASK_AFTER, TCP_ASK_EVERY};

/// Sets the options of a socket that was connected or accepted.
///
/// # Errors
/// The system's error, for example when the peer has closed it already.
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
