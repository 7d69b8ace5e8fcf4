//! A link to a server that can be cut: silently, as when a router dies, or with a reset, as when a firewall refuses.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use common::clock::sleep;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Bytes that are passed on at once.
const PIECE: usize = 16 * 1024;

/// What a link does with bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Passing {
    /// Passes them on.
    Open,
    /// Keeps them. Connections stay, new ones are made, and nobody is told; what was kept is passed on once the link is open again, so
    /// that a request may arrive long after its sender has given it up.
    Silent,
    /// Passes them on so much later, what has come meanwhile with them.
    Slow(Duration),
    /// Ends its connections with a reset, and new ones too.
    Reset,
}

/// A link to one server.
pub struct Link {
    address: SocketAddr,
    passing: watch::Sender<Passing>,
}

impl Link {
    /// An open link to `server`.
    ///
    /// # Errors
    /// When no port can be listened on.
    pub async fn to(server: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (passing, states) = watch::channel(Passing::Open);
        tokio::spawn(async move {
            while let Ok((inside, _)) = listener.accept().await {
                tokio::spawn(connection(inside, server, states.clone()));
            }
        });
        Ok(Self { address, passing })
    }

    /// Where it takes connections.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes what it does from now on.
    pub fn set(&self, passing: Passing) {
        self.passing.send_replace(passing);
    }
}

async fn connection(mut inside: TcpStream, server: SocketAddr, mut states: watch::Receiver<Passing>) {
    if *states.borrow() == Passing::Reset {
        return reset(&inside);
    }
    let Ok(mut outside) = TcpStream::connect(server).await else { return reset(&inside) };
    // Small requests must not wait for each other's acknowledgements.
    let _gone = inside.set_nodelay(true).and_then(|()| outside.set_nodelay(true));
    let (back, forth) = (states.clone(), states.clone());
    let cut = {
        let (inside_read, inside_write) = inside.split();
        let (outside_read, outside_write) = outside.split();
        tokio::select! {
            _ended = async {
                tokio::try_join!(pump(inside_read, outside_write, forth), pump(outside_read, inside_write, back))
            } => false,
            cut = states.wait_for(|state| *state == Passing::Reset) => cut.is_ok(),
        }
    };
    if cut {
        reset(&inside);
        reset(&outside);
    }
}

/// The connection's end is a reset as soon as it is dropped.
fn reset(stream: &TcpStream) {
    let _gone = stream.set_zero_linger();
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut states: watch::Receiver<Passing>,
) -> io::Result<()> {
    let mut bytes = vec![0; PIECE];
    loop {
        let read = from.read(&mut bytes).await?;
        let passes = |state: &Passing| matches!(state, Passing::Open | Passing::Slow(_));
        let pause = match states.wait_for(passes).await.map(|state| *state) {
            Ok(Passing::Slow(pause)) => pause,
            Ok(_) => Duration::ZERO,
            // A link that is gone with its test passes nothing either.
            Err(_gone) => return Ok(()),
        };
        if pause > Duration::ZERO {
            sleep(pause).await;
        }
        if read == 0 {
            return to.shutdown().await;
        }
        to.write_all(&bytes[..read]).await?;
    }
}
