//! Where sockets are bound: by the ext_authz service and by the admin endpoint, over TCP or a Unix socket.
//!
//! Everything that can be wrong is found out before anything is served: an address that nobody may listen on when the
//! configuration is read, a taken port, a live socket or an unusable certificate when it is bound.

mod config;

use std::fmt;
use std::fs::{self, Permissions};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixSocket, UnixStream};
use tokio::sync::watch;
use tokio::time::{Sleep, sleep};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use tracing::warn;

pub use config::{Config, Group, Mode, Tls};

/// Why an address cannot be listened on.
#[derive(Debug)]
pub struct BindError {
    address: String,
    message: String,
    hint: Option<&'static str>,
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot listen on `{}`: {}", self.address, self.message)?;
        self.hint.map_or(Ok(()), |hint| write!(f, " ({hint})"))
    }
}

impl std::error::Error for BindError {}

/// What went wrong while binding; [`bind`] knows where.
struct Failure(String, Option<&'static str>);

impl Failure {
    fn new(message: impl Into<String>, hint: &'static str) -> Self {
        Self(message.into(), Some(hint))
    }
}

/// A bound socket: clients can connect from now on, and wait until it is served.
pub struct Listener {
    socket: Socket,
    local_address: String,
    tls: Option<TlsAcceptor>,
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Listener").field(&self.local_address).finish()
    }
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix {
        listener: UnixListener,
        /// Goes with the listener.
        _file: SocketFile,
    },
}

/// Binds, and reads the files that TLS needs.
///
/// # Errors
/// If the address is taken or not ours to take, or TLS cannot be set up.
pub async fn bind(config: &Config) -> Result<Listener, BindError> {
    let bound = match config {
        Config::Unix { path, mode, group } => bind_unix(path, *mode, group.as_ref()).await,
        Config::Tcp { address, tls, .. } => bind_tcp(*address, tls.as_ref()).await,
    };
    bound.map_err(|Failure(message, hint)| BindError { address: config.to_string(), message, hint })
}

impl Listener {
    /// Where clients connect to: `tcp://127.0.0.1:43215` with the real port, `unix:///path`.
    pub fn local_address(&self) -> &str {
        &self.local_address
    }

    /// The address that it listens on; `None` for a Unix socket.
    pub fn ip(&self) -> Option<IpAddr> {
        match &self.socket {
            Socket::Tcp(listener) => listener.local_addr().ok().map(|address| address.ip()),
            Socket::Unix { .. } => None,
        }
    }

    /// The connections, and what is to be done with each before it is served: they are not TLS yet. Whoever cannot do
    /// TLS must not serve them if it is asked for.
    pub fn into_incoming(self) -> (Incoming, Option<TlsAcceptor>) {
        (Incoming { socket: self.socket, local_address: self.local_address, pause: None }, self.tls)
    }
}

async fn bind_tcp(address: SocketAddr, tls: Option<&Tls>) -> Result<Listener, Failure> {
    let tls = tls.map(load_tls).transpose()?;
    // Sets SO_REUSEADDR, so a restart does not wait for the connections of its predecessor to time out.
    let listener = TcpListener::bind(address).await.map_err(|error| match error.kind() {
        ErrorKind::AddrInUse => Failure::new("another process listens there", "stop it, or choose another port"),
        ErrorKind::PermissionDenied => Failure::new(error.to_string(), "choose a port above 1023"),
        _ => Failure(error.to_string(), None),
    })?;
    let local = listener.local_addr().map_err(|error| Failure(error.to_string(), None))?;
    Ok(Listener { socket: Socket::Tcp(listener), local_address: format!("tcp://{local}"), tls })
}

/// Prepares the socket under a temporary name and listens only when its permissions are right; then moves it to its
/// place. At no moment can somebody connect who may not.
async fn bind_unix(path: &Path, mode: Mode, group: Option<&Group>) -> Result<Listener, Failure> {
    let group = group.map(group_id).transpose()?;
    make_sure_it_is_free(path).await?;
    let failure = |doing: &str, error: io::Error| Failure(format!("cannot {doing}: {error}"), None);

    let temporary = path.with_file_name(temporary_name());
    let socket = UnixSocket::new_stream().map_err(|error| failure("make a socket", error))?;
    socket.bind(&temporary).map_err(|error| match error.kind() {
        ErrorKind::NotFound => Failure::new("its directory does not exist", "create it or mount a volume there"),
        ErrorKind::PermissionDenied => Failure::new("its directory is not writable for this user", "change its owner"),
        _ => failure("bind it", error),
    })?;
    let mut file = SocketFile::new(temporary).map_err(|error| failure("look at it", error))?;
    fs::set_permissions(&file.path, Permissions::from_mode(mode.0)).map_err(|error| failure("set its mode", error))?;
    if let Some(group) = group {
        chown(&file.path, None, Some(group)).map_err(|error| {
            Failure::new(format!("cannot give it to group {group}: {error}"), "the process must belong to the group")
        })?;
    }
    let listener = socket.listen(1024).map_err(|error| failure("listen on it", error))?;
    fs::rename(&file.path, path).map_err(|error| failure("move it into place", error))?;
    file.path = path.to_owned();
    let local_address = format!("unix://{}", path.display());
    Ok(Listener { socket: Socket::Unix { listener, _file: file }, local_address, tls: None })
}

/// Nothing is in the way of a socket, or only one that its process left behind.
async fn make_sure_it_is_free(path: &Path) -> Result<(), Failure> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Failure(error.to_string(), None)),
        Ok(metadata) if metadata.file_type().is_socket() => {}
        Ok(_) => return Err(Failure::new("there is a file that is not a socket", "remove it, or choose another path")),
    }
    match UnixStream::connect(path).await {
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => Ok(()),
        // Whoever is too busy to accept is alive.
        Err(error) if error.kind() != ErrorKind::WouldBlock => Err(Failure::new(
            format!("there is a socket, and whether a process listens there cannot be told: {error}"),
            "remove it if none does",
        )),
        _ => Err(Failure::new("another process listens there", "stop it, or choose another path")),
    }
}

/// Unguessable, so that nobody can wait for it; of [`TEMPORARY_NAME_LEN`].
fn temporary_name() -> String {
    format!(".{:016x}", RandomState::new().hash_one("stockade"))
}

fn group_id(group: &Group) -> Result<u32, Failure> {
    match group {
        Group::Id(id) => Ok(*id),
        Group::Name(name) => {
            let groups = match fs::read_to_string("/etc/group") {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(Failure::new(format!("cannot read `/etc/group`: {error}"), "give the group's number"));
                }
                groups => groups.unwrap_or_default(),
            };
            find_group(&groups, name).ok_or_else(|| {
                Failure::new(format!("there is no group `{name}` in /etc/group"), "correct it, or give its number")
            })
        }
    }
}

/// `name:password:id:members`, one a line (group(5)).
fn find_group(groups: &str, name: &str) -> Option<u32> {
    let mut lines = groups.lines().map(|line| line.split(':'));
    lines.find_map(|mut fields| (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok()).flatten())
}

/// The name of a Unix socket in the file system, removed with the listener unless somebody else has taken it.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl SocketFile {
    fn new(path: PathBuf) -> io::Result<Self> {
        Ok(Self { identity: identity(&path)?, path })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|identity| identity == self.identity) {
            // If it stays, the next start finds that nobody listens there, and replaces it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

// === TLS ===

fn load_tls(tls: &Tls) -> Result<TlsAcceptor, Failure> {
    let certificate = load_pem(&tls.certificate, "CERTIFICATE-----")?;
    let key = load_pem(&tls.private_key, "PRIVATE KEY-----")?;
    let client_ca = tls.client_ca.as_ref().map(|path| load_pem(path, "CERTIFICATE-----")).transpose()?;
    let config = server_config(&certificate, &key, client_ca.as_deref()).map_err(|error| {
        let files = [Some(&tls.certificate), Some(&tls.private_key), tls.client_ca.as_ref()];
        let files = files.iter().flatten().map(|file| format!("`{file}`")).collect::<Vec<_>>().join(", ");
        Failure::new(format!("{files} cannot be used together: {error}"), "the key must be that of the certificate")
    })?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// What gRPC asks of TLS: HTTP/2, agreed on in the handshake.
fn server_config(
    certificate: &str,
    key: &str,
    client_ca: Option<&str>,
) -> Result<ServerConfig, Box<dyn std::error::Error + Send + Sync>> {
    let chain = CertificateDer::pem_slice_iter(certificate.as_bytes()).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes())?;
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(client_ca) => {
            let mut roots = RootCertStore::empty();
            for authority in CertificateDer::pem_slice_iter(client_ca.as_bytes()) {
                roots.add(authority?)?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

fn load_pem(path: &str, label: &str) -> Result<String, Failure> {
    let text = fs::read(path).map_err(|error| {
        Failure::new(format!("cannot read `{path}`: {error}"), "correct the path, or mount the file and let us read it")
    })?;
    let text = String::from_utf8(text).ok().filter(|text| text.contains("-----BEGIN ") && text.contains(label));
    text.ok_or_else(|| {
        Failure::new(format!("`{path}` holds no PEM block `{}`", label.trim_end_matches('-')), "convert it to PEM")
    })
}

// === accepting ===

/// The connections of a listener. It never ends and never fails; dropping it closes the socket and removes its file.
#[derive(Debug)]
pub struct Incoming {
    socket: Socket,
    local_address: String,
    /// The rest after an error that will not pass by itself at once.
    pause: Option<Pin<Box<Sleep>>>,
}

/// Out of file descriptors, say: trying again at once would only burn the processor that could close some.
const PAUSE: Duration = Duration::from_millis(50);

impl Incoming {
    /// The next connection.
    pub async fn accept(&mut self) -> Connection {
        std::future::poll_fn(|cx| self.poll_accept(cx)).await
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Connection> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            let accepted = match &self.socket {
                Socket::Tcp(listener) => ready!(listener.poll_accept(cx)).map(|(stream, _)| Connection::from(stream)),
                Socket::Unix { listener, .. } => {
                    ready!(listener.poll_accept(cx)).map(|(stream, _)| Connection::Unix(stream))
                }
            };
            match accepted {
                Ok(accepted) => return Poll::Ready(accepted),
                // The client's doing, and over.
                Err(error) if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset) => {}
                Err(error) => {
                    let address = &self.local_address;
                    warn!(%error, address, "cannot accept a connection; trying again");
                    self.pause = Some(Box::pin(sleep(PAUSE)));
                }
            }
        }
    }
}

/// Serves each connection in a task of its own until `draining` is over, then waits for those that are open.
pub async fn serve<S>(
    mut incoming: Incoming,
    draining: impl Future<Output = ()>,
    each: impl Fn(Connection, Draining) -> S,
) where
    S: Future<Output = ()> + Send + 'static,
{
    let begun = watch::Sender::new(false);
    let mut draining = pin!(draining);
    loop {
        let connection = tokio::select! {
            connection = incoming.accept() => connection,
            () = &mut draining => break,
        };
        tokio::spawn(each(connection, Draining(begun.subscribe())));
    }
    // The socket is closed before what is in flight is waited for: nobody is to queue up at it.
    drop(incoming);
    begun.send_replace(true);
    begun.closed().await;
}

/// Held by the task of a connection for as long as the connection is open: the drain waits until the last one is dropped.
#[derive(Debug)]
pub struct Draining(watch::Receiver<bool>);

impl Draining {
    /// Waits until nothing new is to be taken.
    pub async fn begun(&mut self) {
        // An error means that nobody is left to say so, which says it.
        let _ = self.0.wait_for(|begun| *begun).await;
    }
}

/// An accepted connection.
#[derive(Debug)]
pub enum Connection {
    /// Over TCP, without delay.
    Tcp(TcpStream),
    /// Over a Unix socket.
    Unix(UnixStream),
}

impl Connection {
    /// Who is at the other end, as far as the kernel knows: `10.0.0.7:41234`, or `pid 17 of user 1337` on a Unix socket.
    pub fn peer(&self) -> Option<String> {
        match self {
            Self::Tcp(stream) => stream.peer_addr().ok().map(|address| address.to_string()),
            Self::Unix(stream) => {
                let peer = stream.peer_cred().ok()?;
                // A process of another namespace has no number here.
                let pid = peer.pid().filter(|pid| *pid > 0).map(|pid| format!("pid {pid} of ")).unwrap_or_default();
                Some(format!("{pid}user {}", peer.uid()))
            }
        }
    }
}

impl From<TcpStream> for Connection {
    fn from(stream: TcpStream) -> Self {
        // Answers are small and waited for. If it fails, the connection is gone, and reading it will tell.
        let _ = stream.set_nodelay(true);
        Self::Tcp(stream)
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Neither kind of socket keeps anything back.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;
    use tokio::time::timeout;

    use super::*;

    // An authority, a certificate of it for `localhost` and its key, made for these tests and good for nothing else.
    const CA: &str = "MIIBTTCB9KADAgECAgEBMAoGCCqGSM49BAMCMA8xDTALBgNVBAMMBHRlc3QwIBcNMjAwMTAxMDAwMDAwWhgPMjEyMDAxMDEwMDAwMDBaMA8x\
         DTALBgNVBAMMBHRlc3QwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAASuDa8OoTlnSHYD6DGA/tOFPaJ0g8crGRFFqyY0X3M8tUUs+MJkQm7d\
         Gf3P1tVNyrRCHTL69COzLZdmFo9ikR+Xoz8wPTAPBgNVHRMBAf8EBTADAQH/MAsGA1UdDwQEAwICBDAdBgNVHQ4EFgQUxFYa0QoWhwRyK2UJ\
         T8m2z6Re6r8wCgYIKoZIzj0EAwIDSAAwRQIgMIlPzWBp7XfJSafwUy+8bOSgx+eIjNAPZVRXRnmNia4CIQDdOwEU0bws4wb8oL+NOzA9csbY\
         1YDVfiSAiBGHS6767g==";
    const CERTIFICATE: &str = "MIIBdzCCAR2gAwIBAgIBAjAKBggqhkjOPQQDAjAPMQ0wCwYDVQQDDAR0ZXN0MCAXDTIwMDEwMTAwMDAwMFoYDzIxMjAwMTAxMDAwMDAwWjAU\
         MRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAASgyVgZlfjb0+zs0JeAK80VKAQnHmrskqCqs4xHnT4FdJ3U\
         Iuw0HABOOAkkIBKtwylqV2s0MqZkUhENnz8HJniso2MwYTAUBgNVHREEDTALgglsb2NhbGhvc3QwCQYDVR0TBAIwADAdBgNVHQ4EFgQUZ19V\
         FsX+EG+S3iJNEszFl72W4kswHwYDVR0jBBgwFoAUxFYa0QoWhwRyK2UJT8m2z6Re6r8wCgYIKoZIzj0EAwIDSAAwRQIgYiDkXijtpTLJHf+Y\
         V3U1ijPVVaraVLF8pbBsIxc+6x8CIQCyVh2x7JYzB3VgTq/kEfVqETOZQcIDHN0qEA1IpVFBMg==";
    const KEY: &str = "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg0wufAyB1DaFahG1hgTEtXX/zZDB7d1qoQYjHtBRoOKqhRANCAASgyVgZlfjb\
         0+zs0JeAK80VKAQnHmrskqCqs4xHnT4FdJ3UIuw0HABOOAkkIBKtwylqV2s0MqZkUhENnz8HJnis";

    fn pem(label: &str, body: &str) -> String {
        format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
    }

    /// A configuration as it is written, and its problems, each as `line:column: message (hint)`.
    fn unix(path: &Path) -> Config {
        Config::parse(&format!("unix://{}", path.display())).expect("a good address")
    }

    async fn refused(config: &Config) -> String {
        bind(config).await.expect_err("an error").to_string()
    }

    #[tokio::test]
    async fn a_taken_port_is_named() {
        for address in ["tcp://127.0.0.1:0", "tcp://[::1]:0"] {
            let listener = bind(&Config::parse(address).expect("a good address")).await.expect("bound");
            let taken = listener.local_address().to_owned();
            let expected =
                format!("cannot listen on `{taken}`: another process listens there (stop it, or choose another port)");
            assert_eq!(refused(&Config::parse(&taken).expect("a good address")).await, expected);
        }
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = TempDir::new().expect("a directory");
        let path = dir.path().join("s");
        // std does not remove the file, as a process that was killed does not.
        drop(std::os::unix::net::UnixListener::bind(&path).expect("bound"));
        let listener = bind(&unix(&path)).await.expect("bound");
        assert_eq!(listener.local_address(), format!("unix://{}", path.display()));
        let message = refused(&unix(&path)).await;
        assert!(message.ends_with("/s`: another process listens there (stop it, or choose another path)"), "{message}");
        UnixStream::connect(&path).await.expect("still served");
        drop(listener);
        assert_eq!(fs::read_dir(dir.path()).expect("a directory").count(), 0, "nothing is left behind");
    }

    #[tokio::test]
    async fn only_our_own_socket_is_removed() {
        let dir = TempDir::new().expect("a directory");
        let path = dir.path().join("s");
        let listener = bind(&unix(&path)).await.expect("bound");
        fs::remove_file(&path).expect("removed");
        let successor = bind(&unix(&path)).await.expect("bound");
        drop(listener);
        UnixStream::connect(&path).await.expect("the successor's");
        drop(successor);
    }

    #[tokio::test]
    async fn what_is_not_a_socket_is_left_alone() {
        let dir = TempDir::new().expect("a directory");
        let path = dir.path().join("s");
        fs::write(&path, "precious").expect("a file");
        let message = refused(&unix(&path)).await;
        assert!(message.contains("there is a file that is not a socket"), "{message}");
        assert_eq!(fs::read_to_string(&path).expect("the file"), "precious");
        let message = refused(&unix(&dir.path().join("missing/s"))).await;
        assert!(message.contains("its directory does not exist (create it"), "{message}");
    }

    #[tokio::test]
    async fn mode_and_group_are_applied() {
        let dir = TempDir::new().expect("a directory");
        let path = dir.path().join("s");
        // The only group that every user may give a file to.
        let own = fs::metadata(dir.path()).expect("metadata").gid();
        for (mode, octal) in [(Mode(0o600), 0o600), (Mode(0o666), 0o666)] {
            let config = Config::Unix { path: path.clone(), mode, group: Some(Group::Id(own)) };
            let _listener = bind(&config).await.expect("bound");
            let metadata = fs::symlink_metadata(&path).expect("metadata");
            assert_eq!((metadata.mode() & 0o7777, metadata.gid()), (octal, own));
        }
        let config =
            Config::Unix { path: path.clone(), mode: Mode(0o660), group: Some(Group::Name("no such".to_owned())) };
        assert!(refused(&config).await.contains("there is no group `no such` in /etc/group"));
        assert_eq!(find_group("root:x:0:\nenvoy:x:1337:a,b\nbad", "envoy"), Some(1337));
        assert_eq!(find_group("root:x:0:\nenvoy:x:1337:a,b\nbad", "bad"), None);
    }

    /// Runs in a process of its own, started by the test below: no other test would survive it.
    #[tokio::test]
    #[ignore = "takes away file descriptors"]
    async fn out_of_files() {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

        let listener = bind(&Config::parse("tcp://127.0.0.1:0").expect("a good address")).await.expect("bound");
        let _client = TcpStream::connect(listener.local_address().trim_start_matches("tcp://")).await.expect("queued");
        let (mut incoming, _) = listener.into_incoming();
        let before = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: Some(3), ..before }).expect("less");
        assert!(timeout(PAUSE * 3, incoming.accept()).await.is_err(), "there is no descriptor for it");
        setrlimit(Resource::Nofile, before).expect("as before");
        timeout(PAUSE * 40, incoming.accept()).await.expect("accepted after all");
    }

    #[test]
    fn running_out_of_files_passes() {
        let status = std::process::Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "listener::tests::out_of_files", "--ignored"])
            .status();
        assert!(status.expect("run").success());
    }

    /// PEM files in a directory, and a TLS listener on a free port that uses three of them.
    fn tls(dir: &Path, [certificate, private_key, client_ca]: [&str; 3]) -> Config {
        let other = KEY.replace("0wufAyB1DaFahG1h", "0wufAyB1DaFahG1i");
        for (name, text) in [
            ("ca", pem("CERTIFICATE", CA)),
            ("certificate", pem("CERTIFICATE", CERTIFICATE)),
            ("key", pem("PRIVATE KEY", KEY)),
            ("broken key", pem("PRIVATE KEY", &other)),
            ("der", "\u{30}\u{82}".to_owned()),
        ] {
            fs::write(dir.join(name), text).expect("a file");
        }
        let path = |name: &str| dir.join(name).display().to_string();
        let (certificate, private_key, client_ca) = (path(certificate), path(private_key), Some(path(client_ca)));
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        Config::Tcp { address, allow_remote: false, tls: Some(Tls { certificate, private_key, client_ca }) }
    }

    #[tokio::test]
    async fn tls_files_that_do_not_do_are_named() {
        let dir = TempDir::new().expect("a directory");
        for (files, expected) in [
            (["missing", "key", "ca"], "missing`: No such file"),
            (["der", "key", "ca"], "der` holds no PEM block `CERTIFICATE` (convert it to PEM)"),
            (["certificate", "ca", "ca"], "ca` holds no PEM block `PRIVATE KEY`"),
            (["certificate", "key", "key"], "key` holds no PEM block `CERTIFICATE`"),
            (["ca", "key", "ca"], "cannot be used together: "),
            (["certificate", "broken key", "ca"], "cannot be used together: "),
        ] {
            let message = refused(&tls(dir.path(), files)).await;
            assert!(message.contains(expected), "{files:?}: {message}");
        }
    }
}
