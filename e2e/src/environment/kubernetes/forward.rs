//! A port of 127.0.0.1 that leads into the node's network.
//!
//! A socket stays in the network in which it was opened. So the process that forwards is given one that listens out
//! here, and connects in there.

use std::io;
use std::net::{SocketAddr, TcpListener as Listener};
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::Stdio;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

use super::super::group::Group;
use super::node::Node;
use crate::process;

/// A port, and the process behind it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Forward {
    /// Where to connect out here.
    pub address: SocketAddr,
    group: Group,
}

impl Forward {
    /// Leads a free port to an address as the node knows it, say `10.88.0.1:6443`. Nobody need listen there yet.
    ///
    /// It ends with the node.
    pub fn start(node: &Node, to: &str) -> anyhow::Result<Self> {
        let listener = Listener::bind("127.0.0.1:0").context("no port is free")?;
        let address = listener.local_addr().context("it has no address")?;
        let mut command = node.within(process::own()?);
        command.args(["forward", to]);
        let input = Stdio::from(OwnedFd::from(listener));
        let group = Group::start_with(&mut command, input, &node.log("forward.log"), false)?;
        Ok(Self { address, group })
    }

    /// Ends it, and every connection through it.
    pub fn kill(&mut self) {
        self.group.kill();
    }
}

/// What the process does: connects each who comes to its standard input, a socket that listens, with `to`.
///
/// Returns when nobody can come any more.
pub async fn serve(to: &str) -> anyhow::Result<()> {
    let input = io::stdin().as_fd().try_clone_to_owned();
    let listener = Listener::from(input.context("there is no standard input")?);
    listener
        .set_nonblocking(true)
        .context("the standard input is no socket that listens")?;
    let listener = TcpListener::from_std(listener)?;
    loop {
        let (mut outer, _) = listener.accept().await.context("nobody can come")?;
        let to = to.to_owned();
        tokio::spawn(async move {
            // Whoever came learns by his own connection's end that there is none behind it.
            if let Ok(mut inner) = TcpStream::connect(to).await {
                let _ = outer.set_nodelay(true);
                let _ = inner.set_nodelay(true);
                let _ = copy_bidirectional(&mut outer, &mut inner).await;
            }
        });
    }
}
