//! The runtime that webrtc runs on: tokio, with larger socket buffers, batches that fit our messages, and a note of
//! when something last came in.

use std::{
    future::Future,
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use webrtc::runtime::{
    AsyncInterval, AsyncTcpListener, AsyncTcpStream, AsyncUdpSocket, JoinHandle, RecvMeta, Runtime, TokioRuntime,
    Transmit,
};

/// Packets handed to the kernel at once, where it can segment them. The stack uses segmentation only for runs of 16 or
/// of as many as the socket takes, whichever is less; a 16 KiB hidden state is a run of 14 ordinary packets.
const SEND_RUN: usize = 7;
/// The stack sizes its receive buffer by this many packets of 1500 bytes, 96 kB, or else by one of 2000 bytes. We always
/// want the former: it takes the largest packet there is.
const RECEIVE_RUN: usize = 64;

type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What came in at the sockets of one connection, whether or not the stack has made anything of it.
///
/// Not authenticated: whoever knows the port can make it look alive. It only ever lengthens a patience that has an end.
#[derive(Debug)]
pub(super) struct Arrivals {
    begun: Instant,
    /// When the stack last read a datagram, in microseconds since `begun`.
    latest: AtomicU64,
    sockets: Mutex<Vec<std::net::UdpSocket>>,
}

impl Arrivals {
    pub(super) fn new() -> Self {
        Self { begun: Instant::now(), latest: AtomicU64::new(0), sockets: Mutex::default() }
    }

    fn note(&self) {
        self.latest.store(self.begun.elapsed().as_micros() as u64, Ordering::Relaxed);
    }

    fn sockets(&self) -> MutexGuard<'_, Vec<std::net::UdpSocket>> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long the stack has read nothing.
    pub(super) fn quiet_for(&self) -> Duration {
        self.begun.elapsed().saturating_sub(Duration::from_micros(self.latest.load(Ordering::Relaxed)))
    }

    /// Whether something lies in a socket that the stack has not read yet: it had no time to.
    pub(super) fn unread(&self) -> bool {
        use io::ErrorKind::{ConnectionRefused, ConnectionReset, WouldBlock};
        // A datagram longer than the room for it is an error on some systems, and a datagram all the same. That nobody
        // listens at the other end is told as an error too, and is no sign of life.
        let silent = |error: io::Error| matches!(error.kind(), WouldBlock | ConnectionRefused | ConnectionReset);
        let waits = |result: io::Result<_>| !result.is_err_and(silent);
        self.sockets().iter().any(|socket| waits(socket.peek_from(&mut [0; 1])))
    }

    /// Lets go of the sockets, so that their ports are free once the stack has closed them.
    pub(super) fn end(&self) {
        self.sockets().clear();
    }
}

/// Tokio, except that every UDP socket gets kernel buffers of `buffer` bytes (as far as the kernel allows) and tells
/// `arrivals` of what comes in.
#[derive(Debug)]
pub(super) struct BufferedRuntime {
    pub(super) buffer: usize,
    pub(super) arrivals: Arc<Arrivals>,
}

impl Runtime for BufferedRuntime {
    fn spawn(&self, future: Boxed<'static, ()>) -> Box<dyn JoinHandle> {
        TokioRuntime.spawn(future)
    }

    fn spawn_reactor(&self, pool_size: usize, future: Boxed<'static, ()>) -> Box<dyn JoinHandle> {
        TokioRuntime.spawn_reactor(pool_size, future)
    }

    fn wrap_udp_socket(&self, socket: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        enlarge(&socket, self.buffer);
        let twin = socket.try_clone()?;
        let inner = TokioRuntime.wrap_udp_socket(socket)?;
        self.arrivals.sockets().push(twin);
        Ok(Arc::new(BatchedSocket { inner, arrivals: self.arrivals.clone() }))
    }

    fn wrap_tcp_listener(&self, listener: std::net::TcpListener) -> io::Result<Arc<dyn AsyncTcpListener>> {
        TokioRuntime.wrap_tcp_listener(listener)
    }

    fn connect_tcp<'a>(&'a self, address: SocketAddr) -> Boxed<'a, io::Result<Arc<dyn AsyncTcpStream>>> {
        TokioRuntime.connect_tcp(address)
    }

    fn resolve_host<'a>(&'a self, host: &'a str) -> Boxed<'a, io::Result<Vec<SocketAddr>>> {
        Box::pin(async move { Ok(tokio::net::lookup_host(host).await?.collect()) })
    }

    fn sleep(&self, duration: Duration) -> Boxed<'static, ()> {
        TokioRuntime.sleep(duration)
    }

    fn interval(&self, period: Duration) -> Box<dyn AsyncInterval> {
        TokioRuntime.interval(period)
    }

    fn block_on(&self, future: Pin<Box<dyn Future<Output = ()> + '_>>) {
        TokioRuntime.block_on(future);
    }

    fn yield_now(&self) -> Boxed<'static, ()> {
        TokioRuntime.yield_now()
    }

    fn name(&self) -> &'static str {
        "tokio with large socket buffers"
    }
}

/// A socket that tells the stack batch sizes that fit our messages.
#[derive(Debug)]
struct BatchedSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    arrivals: Arc<Arrivals>,
}

impl AsyncUdpSocket for BatchedSocket {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn poll_send(&self, context: &mut Context<'_>, transmit: &Transmit<'_>) -> Poll<io::Result<usize>> {
        self.inner.poll_send(context, transmit)
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let read = self.inner.poll_recv(context, buffers, meta);
        if matches!(read, Poll::Ready(Ok(_))) {
            self.arrivals.note();
        }
        read
    }

    fn max_gso_segments(&self) -> usize {
        self.inner.max_gso_segments().min(SEND_RUN)
    }

    fn max_gro_segments(&self) -> usize {
        RECEIVE_RUN
    }
}

/// Asks for larger kernel buffers. A kernel that refuses (or clamps) leaves a working, slower socket.
#[cfg(unix)]
#[allow(unsafe_code, reason = "std has no way to set SO_RCVBUF and SO_SNDBUF")]
fn enlarge(socket: &std::net::UdpSocket, bytes: usize) {
    use std::os::fd::AsRawFd;
    let value = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    for option in [libc::SO_RCVBUF, libc::SO_SNDBUF] {
        // SAFETY: the descriptor is open for as long as `socket` is borrowed; the pointer and length describe
        // `value`, a live c_int, which is what both options take.
        let refused = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                (&raw const value).cast(),
                size_of_val(&value) as libc::socklen_t,
            )
        };
        if refused != 0 {
            tracing::debug!(error = %io::Error::last_os_error(), option, "the kernel refused larger socket buffers");
        }
    }
}

/// Other systems keep their defaults until they are measured.
#[cfg(not(unix))]
fn enlarge(_: &std::net::UdpSocket, _: usize) {}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::os::fd::AsRawFd;

    #[test]
    fn a_datagram_that_nobody_read_is_seen_and_stays_there() {
        let (socket, sender) =
            (std::net::UdpSocket::bind("127.0.0.1:0").unwrap(), std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
        socket.set_nonblocking(true).unwrap();
        let arrivals = super::Arrivals::new();
        arrivals.sockets().push(socket.try_clone().unwrap());
        assert!(!arrivals.unread(), "nothing was sent yet");
        sender.send_to(&[7; 1200], socket.local_addr().unwrap()).unwrap();
        assert!(arrivals.unread() && arrivals.unread(), "looking does not take it away");
        assert_eq!(socket.recv(&mut [0; 1500]).unwrap(), 1200, "whole for whoever reads it");
        assert!(!arrivals.unread());
    }

    #[test]
    #[allow(unsafe_code, reason = "std has no way to read SO_RCVBUF")]
    fn buffers_grow_as_far_as_the_kernel_allows() {
        let size = |socket: &std::net::UdpSocket| {
            let (mut value, mut length): (libc::c_int, libc::socklen_t) = (0, 4);
            // SAFETY: the descriptor is open; the pointers describe a live c_int and its length.
            let failed = unsafe {
                let value = (&raw mut value).cast();
                libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, value, &mut length)
            };
            assert_eq!(failed, 0);
            value as usize
        };
        let allowed = std::fs::read_to_string("/proc/sys/net/core/rmem_max").unwrap();
        let allowed: usize = allowed.trim().parse().unwrap();
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        super::enlarge(&socket, 4 << 20);
        // Linux doubles what it is asked for (socket(7)).
        assert_eq!(size(&socket), 2 * allowed.min(4 << 20), "the kernel must have taken the size");
    }
}
