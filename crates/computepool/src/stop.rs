//! SIGINT and SIGTERM, and the end of the parent.

use std::{io, thread};

use tokio_util::sync::CancellationToken;

/// Cancelled by the first SIGINT or SIGTERM. Call inside a runtime.
pub(crate) fn on_signal() -> io::Result<CancellationToken> {
    let token = CancellationToken::new();
    let stop = token.clone();
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        tokio::spawn(async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            stop.cancel();
        });
    }
    #[cfg(not(unix))]
    tokio::spawn(async move {
        let _ = tokio::signal::ctrl_c().await;
        stop.cancel();
    });
    Ok(token)
}

/// Cancels `token` when standard input closes, which it does when the parent ends, however it ends.
pub(crate) fn with_parent(token: CancellationToken) {
    thread::spawn(move || {
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        token.cancel();
    });
}
