//! Services as GNOME, systemd-logind, NetworkManager and a screen saver offer them, with values that a test sets.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use zbus::{Connection, fdo, interface, object_server::SignalEmitter};

/// A connection that owns a name; the service ends when it is dropped.
async fn serve<I: zbus::object_server::Interface>(address: &str, name: &str, path: &str, service: I) -> Connection {
    let build = || zbus::connection::Builder::address(address)?.serve_at(path, service)?.name(name);
    build().expect("the service is described correctly").build().await.expect("the bus takes it")
}

/// GNOME's idle monitor.
#[derive(Clone)]
pub(crate) struct Mutter {
    last_input: Arc<Mutex<Instant>>,
    pub(crate) hangs: Arc<AtomicBool>,
    pub(crate) questions: Arc<AtomicU32>,
    watches: Arc<Mutex<Vec<u32>>>,
}

const MUTTER_PATH: &str = "/org/gnome/Mutter/IdleMonitor/Core";

impl Mutter {
    pub(crate) fn idle_since(last_input: Instant) -> Self {
        Self {
            last_input: Arc::new(Mutex::new(last_input)),
            hangs: Arc::default(),
            questions: Arc::default(),
            watches: Arc::default(),
        }
    }

    pub(crate) async fn start(&self, address: &str) -> Connection {
        // What the one before was asked for, this one does not know.
        self.watches.lock().unwrap().clear();
        serve(address, "org.gnome.Mutter.IdleMonitor", MUTTER_PATH, self.clone()).await
    }

    /// Somebody touches the keyboard: the counter starts again, and whoever watches is told, once.
    pub(crate) async fn touch(&self, connection: &Connection) {
        *self.last_input.lock().unwrap() = Instant::now();
        let watches: Vec<u32> = self.watches.lock().unwrap().drain(..).collect();
        let emitter = SignalEmitter::new(connection, MUTTER_PATH).unwrap();
        for watch in watches {
            Self::watch_fired(&emitter, watch).await.unwrap();
        }
    }
}

#[interface(name = "org.gnome.Mutter.IdleMonitor")]
impl Mutter {
    async fn get_idletime(&self) -> u64 {
        self.questions.fetch_add(1, Ordering::SeqCst);
        while self.hangs.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.last_input.lock().unwrap().elapsed().as_millis() as u64
    }

    async fn add_user_active_watch(&self) -> u32 {
        let mut watches = self.watches.lock().unwrap();
        let watch = watches.len() as u32 + 1;
        watches.push(watch);
        watch
    }

    #[zbus(signal)]
    async fn watch_fired(emitter: &SignalEmitter<'_>, id: u32) -> zbus::Result<()>;
}

/// An idle monitor that has a counter and nothing else.
pub(crate) struct PlainMonitor(pub(crate) Arc<Mutex<Instant>>);

#[interface(name = "org.gnome.Mutter.IdleMonitor")]
impl PlainMonitor {
    async fn get_idletime(&self) -> u64 {
        self.0.lock().unwrap().elapsed().as_millis() as u64
    }
}

impl PlainMonitor {
    pub(crate) async fn start(self, address: &str) -> Connection {
        serve(address, "org.gnome.Mutter.IdleMonitor", MUTTER_PATH, self).await
    }
}

/// A login session.
#[derive(Clone, Default)]
pub(crate) struct Session {
    pub(crate) idle: bool,
    pub(crate) idle_since_monotonic: u64,
    pub(crate) locked: bool,
}

pub(crate) const SESSION_PATH: &str = "/org/freedesktop/login1/session/auto";

#[interface(name = "org.freedesktop.login1.Session")]
impl Session {
    #[zbus(property)]
    async fn idle_hint(&self) -> bool {
        self.idle
    }

    #[zbus(property)]
    async fn idle_since_hint_monotonic(&self) -> u64 {
        self.idle_since_monotonic
    }

    #[zbus(property)]
    async fn locked_hint(&self) -> bool {
        self.locked
    }
}

impl Session {
    pub(crate) async fn start(self, address: &str) -> Connection {
        serve(address, "org.freedesktop.login1", SESSION_PATH, self).await
    }

    /// Changes the running service and tells it, as systemd-logind does.
    pub(crate) async fn change(connection: &Connection, change: impl FnOnce(&mut Self)) {
        let object = connection.object_server().interface::<_, Self>(SESSION_PATH).await.unwrap();
        let mut session = object.get_mut().await;
        change(&mut session);
        session.idle_hint_changed(object.signal_emitter()).await.unwrap();
        session.locked_hint_changed(object.signal_emitter()).await.unwrap();
    }
}

/// A screen saver.
pub(crate) struct ScreenSaver(pub(crate) Arc<AtomicBool>);

#[interface(name = "org.freedesktop.ScreenSaver")]
impl ScreenSaver {
    async fn get_active(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

impl ScreenSaver {
    pub(crate) async fn start(self, address: &str) -> Connection {
        serve(address, "org.freedesktop.ScreenSaver", "/org/freedesktop/ScreenSaver", self).await
    }
}

/// GNOME's session manager: which flags are inhibited.
#[derive(Clone, Default)]
pub(crate) struct SessionManager {
    pub(crate) inhibited: Arc<AtomicU32>,
    pub(crate) hangs: Arc<AtomicBool>,
}

#[interface(name = "org.gnome.SessionManager")]
impl SessionManager {
    async fn is_inhibited(&self, flags: u32) -> bool {
        while self.hangs.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.inhibited.load(Ordering::SeqCst) & flags != 0
    }
}

impl SessionManager {
    pub(crate) async fn start(self, address: &str) -> Connection {
        serve(address, "org.gnome.SessionManager", "/org/gnome/SessionManager", self).await
    }
}

/// systemd-logind's manager: what is inhibited.
pub(crate) struct LoginManager(pub(crate) String);

#[interface(name = "org.freedesktop.login1.Manager")]
impl LoginManager {
    #[zbus(property)]
    async fn block_inhibited(&self) -> String {
        self.0.clone()
    }
}

impl LoginManager {
    pub(crate) async fn start(self, address: &str) -> Connection {
        serve(address, "org.freedesktop.login1", "/org/freedesktop/login1", self).await
    }
}

/// NetworkManager: the value of NMMetered.
pub(crate) struct NetworkManager(pub(crate) Arc<AtomicU32>);

#[interface(name = "org.freedesktop.NetworkManager")]
impl NetworkManager {
    #[zbus(property)]
    async fn metered(&self) -> fdo::Result<u32> {
        Ok(self.0.load(Ordering::SeqCst))
    }
}

impl NetworkManager {
    pub(crate) async fn start(self, address: &str) -> Connection {
        serve(address, "org.freedesktop.NetworkManager", "/org/freedesktop/NetworkManager", self).await
    }
}
