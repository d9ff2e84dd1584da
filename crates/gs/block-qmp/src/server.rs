//! Clients on sockets, and one on standard input and output. Everything here runs on an I/O thread that no node uses.

use crate::session::{Client, Lines};
use crate::stream::Splitter;
use block_common::Errno;
use block_io::IoThreadHandle;
use std::fmt;
use std::io::{self, BufRead as _, Read as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, oneshot};

/// How many bytes are read at a time.
const READ: usize = 16 << 10;

/// Why there is no listener.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The socket's file cannot be made.
    #[error("Failed to bind socket to {path}: {error}", path = path.display())]
    Unix {
        /// Its path.
        path: PathBuf,
        /// What the host answered.
        error: Errno,
    },
    /// The address cannot be listened on.
    #[error("Failed to find an available port: {0}")]
    Tcp(Errno),
    /// The monitor's thread is gone.
    #[error("the monitor's thread has ended")]
    Gone,
}

enum Socket {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// A socket on which clients are waited for. Its file goes with it.
pub struct Listener {
    clients: mpsc::Receiver<Client>,
    /// One who came before anybody wanted to talk.
    first: Option<Client>,
    at: String,
    /// Of a socket that is a file.
    path: Option<PathBuf>,
    _end: oneshot::Sender<()>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // Somebody else may have removed it.
            let _ = rustix::fs::unlink(path);
        }
    }
}

impl Listener {
    /// Listen on a socket at `path`, in the place of one that nobody listens on any more.
    ///
    /// # Errors
    /// What the host answered.
    pub async fn unix(thread: &IoThreadHandle, path: &Path) -> Result<Self, ServerError> {
        let (path, at) = (path.to_owned(), format!("unix:{}", path.display()));
        // The program may be elsewhere when the file has to go.
        let file = std::path::absolute(&path).unwrap_or_else(|_| path.clone());
        let bind = async move {
            bind_unix(&path).map(Socket::Unix).map_err(|error| ServerError::Unix { path, error: errno(&error) })
        };
        Self::start(thread, bind, at, Some(file)).await
    }

    /// Listen on a TCP socket of this host's, at `address`: `127.0.0.1:4444`.
    ///
    /// # Errors
    /// What the host answered.
    pub async fn tcp(thread: &IoThreadHandle, address: &str) -> Result<Self, ServerError> {
        let (address, at) = (address.to_owned(), format!("tcp:{address}"));
        let bind = async move {
            TcpListener::bind(address).await.map(Socket::Tcp).map_err(|error| ServerError::Tcp(errno(&error)))
        };
        Self::start(thread, bind, at, None).await
    }

    async fn start(
        thread: &IoThreadHandle,
        bind: impl Future<Output = Result<Socket, ServerError>> + Send + 'static,
        at: String,
        path: Option<PathBuf>,
    ) -> Result<Self, ServerError> {
        let (tell, clients) = mpsc::channel(1);
        let (end, ended) = oneshot::channel();
        let socket = thread.run(bind).await.ok_or(ServerError::Gone)??;
        thread.spawn(async move {
            tokio::select! {
                () = accept_all(&socket, &tell) => {}
                _ = ended => {}
            }
        });
        Ok(Self { clients, first: None, at, path, _end: end })
    }

    /// The next client. One at a time is connected: the one before has gone by then. `is_pretty` is as for [`Client::set_pretty`]. `None` when the thread has ended.
    pub async fn client(&mut self, is_pretty: bool) -> Option<Client> {
        let mut client = match self.first.take() {
            Some(first) => first,
            None => self.clients.recv().await?,
        };
        client.set_pretty(is_pretty);
        Some(client)
    }

    /// Wait until somebody is there.
    pub async fn connected(&mut self) {
        if self.first.is_none() {
            self.first = self.clients.recv().await;
        }
    }

    /// Where it listens, as messages say it.
    pub fn at(&self) -> &str {
        &self.at
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Listener({})", self.at)
    }
}

/// What the host answered, in its own words.
fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(Errno::EIO.raw()))
}

fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            // As the field does: whoever was there before is asked nothing.
            rustix::fs::unlink(path)?;
            UnixListener::bind(path)
        }
        bound => bound,
    }
}

async fn accept_all(socket: &Socket, tell: &mpsc::Sender<Client>) {
    loop {
        let accepted = match socket {
            Socket::Unix(socket) => socket.accept().await.map(|(stream, _)| {
                let (read, write) = stream.into_split();
                (
                    Box::new(read) as Box<dyn AsyncRead + Send + Unpin>,
                    Box::new(write) as Box<dyn AsyncWrite + Send + Unpin>,
                )
            }),
            Socket::Tcp(socket) => socket.accept().await.map(|(stream, _)| {
                let (read, write) = stream.into_split();
                (
                    Box::new(read) as Box<dyn AsyncRead + Send + Unpin>,
                    Box::new(write) as Box<dyn AsyncWrite + Send + Unpin>,
                )
            }),
        };
        match accepted {
            Ok((read, write)) => {
                let (client, texts, lines) = Client::new();
                if tell.send(client).await.is_err() {
                    return;
                }
                carry(read, write, texts, lines).await;
            }
            Err(error) => {
                tracing::warn!(%error, "a monitor's client could not be let in");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

/// A client on this process's standard input and output.
pub fn stdio(thread: &IoThreadHandle, is_pretty: bool) -> Client {
    let (mut client, texts, lines) = Client::new();
    client.set_pretty(is_pretty);
    thread.spawn(async move { carry(Stdin::new(), tokio::io::stdout(), texts, lines).await });
    client
}

/// This process's standard input. A thread that nobody waits for reads it: one of the runtime's would keep the process from ending until somebody
/// writes something.
struct Stdin {
    parts: mpsc::Receiver<Vec<u8>>,
    /// What was not asked for yet.
    rest: io::Cursor<Vec<u8>>,
}

impl Stdin {
    fn new() -> Self {
        let (tell, parts) = mpsc::channel(1);
        let read_all = move || {
            let mut buf = vec![0; READ];
            loop {
                match io::stdin().lock().read(&mut buf) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Ok(0) | Err(_) => return,
                    Ok(count) if tell.blocking_send(buf[..count].to_vec()).is_err() => return,
                    Ok(_) => {}
                }
            }
        };
        if let Err(error) = std::thread::Builder::new().name("stdin".into()).spawn(read_all) {
            // As if there were nothing to read.
            tracing::error!(%error, "standard input cannot be read");
        }
        Self { parts, rest: io::Cursor::default() }
    }
}

impl AsyncRead for Stdin {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut left = self.rest.fill_buf()?.len();
        if left == 0 {
            match std::task::ready!(self.parts.poll_recv(cx)) {
                None => return Poll::Ready(Ok(())),
                Some(part) => {
                    left = part.len();
                    self.rest = io::Cursor::new(part);
                }
            }
        }
        let count = left.min(buf.remaining());
        buf.put_slice(&self.rest.fill_buf()?[..count]);
        self.rest.consume(count);
        Poll::Ready(Ok(()))
    }
}

/// Bring texts in and lines out, until one side is done: the client has gone, or nobody talks to it any more and all lines are out.
async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    texts: mpsc::Sender<crate::stream::Text>,
    mut lines: Lines,
) {
    let incoming = async move {
        let (mut splitter, mut buf) = (Splitter::new(), vec![0; READ]);
        loop {
            let count = match from.read(&mut buf).await {
                Ok(0) | Err(_) => return,
                Ok(count) => count,
            };
            let mut found = Vec::new();
            splitter.push(&buf[..count], |text| found.push(text));
            for text in found {
                if texts.send(text).await.is_err() {
                    // Nobody listens any more; what was answered goes out all the same.
                    std::future::pending::<()>().await;
                }
            }
        }
    };
    let outgoing = async {
        while let Some(line) = lines.next().await {
            if to.write_all(line.as_bytes()).await.is_err() || to.flush().await.is_err() {
                return;
            }
        }
    };
    let mut incoming = std::pin::pin!(incoming);
    let mut outgoing = std::pin::pin!(outgoing);
    tokio::select! {
        () = &mut outgoing => {}
        () = &mut incoming => {
            // The end of what comes in: what is under way is still answered.
            outgoing.await;
        }
    }
}
