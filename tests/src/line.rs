//! A line to a server, as through a gateway that may forget the connections it has.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Passes connections on to one server and counts them.
pub struct Line {
    address: SocketAddr,
    generation: watch::Sender<u32>,
    connections: Arc<AtomicUsize>,
    swallowed: Arc<AtomicUsize>,
}

impl Line {
    /// A line to `server`.
    ///
    /// # Panics
    /// When no port can be listened on.
    pub async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (generation, generations) = watch::channel(0);
        let connections = Arc::new(AtomicUsize::new(0));
        let swallowed = Arc::new(AtomicUsize::new(0));
        let (count, lost) = (Arc::clone(&connections), Arc::clone(&swallowed));
        tokio::spawn(async move {
            while let Ok((mut inside, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let mut forgotten = generations.clone();
                forgotten.mark_unchanged();
                let lost = Arc::clone(&lost);
                tokio::spawn(async move {
                    let Ok(mut outside) = TcpStream::connect(server).await else { return };
                    tokio::select! {
                        _ended = copy_bidirectional(&mut inside, &mut outside) => {}
                        // Both ends stay open, and nothing passes.
                        _ = forgotten.changed() => swallow(&mut inside, &lost).await,
                    }
                });
            }
        });
        Self { address, generation, connections, swallowed }
    }

    /// Where it takes connections.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections it has taken.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// How many bytes were sent to the server on connections that had fallen silent.
    #[must_use]
    pub fn swallowed(&self) -> usize {
        self.swallowed.load(Ordering::SeqCst)
    }

    /// Nothing passes any more on the connections there are, and nobody is told; new ones are as good as ever.
    pub fn fall_silent(&self) {
        self.generation.send_modify(|generation| *generation += 1);
    }
}

/// Takes what comes and answers nothing, for ever.
async fn swallow(inside: &mut TcpStream, lost: &AtomicUsize) {
    let mut bytes = [0; 4096];
    while let Ok(read @ 1..) = inside.read(&mut bytes).await {
        lost.fetch_add(read, Ordering::SeqCst);
    }
    std::future::pending().await
}
