//! A line to a server, as through a gateway that may forget the connections it has.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Passes connections on to one server and counts them.
pub struct Line {
    address: SocketAddr,
    generation: watch::Sender<u32>,
    connections: Arc<AtomicUsize>,
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
        let count = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((mut inside, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let mut forgotten = generations.clone();
                forgotten.mark_unchanged();
                tokio::spawn(async move {
                    let Ok(mut outside) = TcpStream::connect(server).await else { return };
                    tokio::select! {
                        _ended = copy_bidirectional(&mut inside, &mut outside) => {}
                        // Both ends stay open, and nothing passes.
                        _ = forgotten.changed() => std::future::pending::<()>().await,
                    }
                });
            }
        });
        Self { address, generation, connections }
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

    /// Nothing passes any more on the connections there are, and nobody is told; new ones are as good as ever.
    pub fn fall_silent(&self) {
        self.generation.send_modify(|generation| *generation += 1);
    }
}
