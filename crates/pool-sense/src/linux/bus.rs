//! Questions to D-Bus services, each with a deadline.

use std::time::Duration;

use serde::Serialize;
use thiserror::Error;
use tokio::{
    runtime::{Builder, Runtime},
    time::timeout,
};
use tokio_stream::StreamExt;
use zbus::{
    Connection, MatchRule, MessageStream, Proxy,
    message::Type,
    proxy::{self, CacheProperties, MethodFlags},
    zvariant::{DynamicDeserialize, DynamicType, OwnedValue},
};

use crate::surroundings::Surroundings;

/// How long a service is waited for.
const DEADLINE: Duration = Duration::from_millis(250);

/// Signals that may wait to be looked at; those that we ask for come one at a time.
const MOST_SIGNALS: usize = 8;

const DBUS: &str = "org.freedesktop.DBus";

/// A service's object.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) service: &'static str,
    pub(super) path: &'static str,
    pub(super) interface: &'static str,
}

/// Why a service gave no answer.
#[derive(Debug, Error)]
pub(super) enum BusError {
    /// No address is known.
    #[error("there is no {0} here")]
    NoBus(&'static str),
    /// The runtime that drives connections could not be made.
    #[error("the connection to the {0} cannot be driven")]
    Runtime(&'static str, #[source] std::io::Error),
    /// Nobody listens at the address, or who listens does not speak D-Bus.
    #[error("the {0} cannot be reached")]
    Connect(&'static str, #[source] Box<zbus::Error>),
    /// The service is not running; it is not started for us.
    #[error("{0} is not running")]
    NotRunning(&'static str),
    /// It is there and says nothing.
    #[error("{0} has not answered within 250 ms")]
    Silent(&'static str),
    /// It refused, or answered something else than was asked for.
    #[error("{service} gave no usable answer to {method}")]
    Refused {
        /// Who.
        service: &'static str,
        /// What it was asked.
        method: &'static str,
        /// What it or the connection said.
        #[source]
        source: Box<zbus::Error>,
    },
}

impl BusError {
    /// Whether nobody is there to be asked; else somebody is and gave no answer.
    pub(super) fn is_absence(&self) -> bool {
        matches!(self, Self::NoBus(_) | Self::Connect(..) | Self::NotRunning(_))
    }
}

/// What was heard of a service that is listened to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    Nothing,
    /// What was asked for.
    Signal,
    /// The service has ended or has been started again: it has forgotten what it was asked for.
    Restart,
}

/// A connection to a bus, made when it is first needed and again when it was lost.
pub(super) struct Bus {
    name: &'static str,
    address: Option<String>,
    /// Driven only while a question waits for its answer.
    runtime: Option<Runtime>,
    connection: Option<Connection>,
    listens: Option<Listens>,
}

/// Signals of a service, and the bus's word on who that service is.
struct Listens {
    signals: MessageStream,
    owners: MessageStream,
}

impl Bus {
    pub(super) fn session(surroundings: &Surroundings) -> Self {
        Self::new("session bus", surroundings.session_bus.clone())
    }

    pub(super) fn system(surroundings: &Surroundings) -> Self {
        Self::new("system bus", surroundings.system_bus.clone())
    }

    fn new(name: &'static str, address: Option<String>) -> Self {
        Self { name, address, runtime: None, connection: None, listens: None }
    }

    /// Calls `method`. Blocks for as long as [`DEADLINE`], twice that when the connection must be made first.
    pub(super) fn call<B, R>(&mut self, place: Place, method: &'static str, body: &B) -> Result<R, BusError>
    where
        B: Serialize + DynamicType,
        R: for<'d> DynamicDeserialize<'d>,
    {
        let Place { service, path, interface } = place;
        self.connect()?;
        let (Some(runtime), Some(connection)) = (&self.runtime, &self.connection) else {
            return Err(BusError::NoBus(self.name));
        };
        let ask = async {
            let proxy = proxy::Builder::<Proxy<'_>>::new(connection)
                .destination(service)?
                .path(path)?
                .interface(interface)?
                .cache_properties(CacheProperties::No)
                .build()
                .await?;
            proxy.call_with_flags::<_, _, R>(method, MethodFlags::NoAutoStart.into(), body).await
        };
        match runtime.block_on(async { timeout(DEADLINE, ask).await }) {
            Ok(Ok(Some(answer))) => Ok(answer),
            Ok(Ok(None)) => Err(BusError::Refused { service, method, source: Box::new(zbus::Error::InvalidReply) }),
            Ok(Err(zbus::Error::MethodError(name, ..))) if is_absence(name.as_str()) => {
                Err(BusError::NotRunning(service))
            }
            Ok(Err(source)) => {
                let answered = matches!(source, zbus::Error::MethodError(..) | zbus::Error::Variant(_));
                if !answered {
                    self.disconnect();
                }
                Err(BusError::Refused { service, method, source: Box::new(source) })
            }
            Err(_) => Err(BusError::Silent(service)),
        }
    }

    /// Reads a property.
    pub(super) fn property<T>(&mut self, place: Place, name: &'static str) -> Result<T, BusError>
    where
        T: TryFrom<OwnedValue, Error = zbus::zvariant::Error>,
    {
        let properties = Place { interface: "org.freedesktop.DBus.Properties", ..place };
        let value: OwnedValue = self.call(properties, "Get", &(place.interface, name))?;
        T::try_from(value).map_err(|source| BusError::Refused {
            service: place.service,
            method: name,
            source: Box::new(zbus::Error::Variant(source)),
        })
    }

    /// Asks for the signal `member` of a service's interface, with `about` as its first argument where one is given. Any
    /// of the service's objects may send it: systemd-logind names a session otherwise than who asks for it.
    pub(super) fn listen(
        &mut self,
        place: Place,
        member: &'static str,
        about: Option<&'static str>,
    ) -> Result<(), BusError> {
        self.connect()?;
        let (Some(runtime), Some(connection)) = (&self.runtime, &self.connection) else {
            return Err(BusError::NoBus(self.name));
        };
        let ask = async {
            let signals = signal(place.service, place.interface, member, about)?;
            let owners = signal(DBUS, DBUS, "NameOwnerChanged", Some(place.service))?;
            Ok(Listens {
                signals: MessageStream::for_match_rule(signals, connection, Some(MOST_SIGNALS)).await?,
                owners: MessageStream::for_match_rule(owners, connection, Some(MOST_SIGNALS)).await?,
            })
        };
        let asked: Result<zbus::Result<Listens>, _> = runtime.block_on(async { timeout(DEADLINE, ask).await });
        match asked {
            Ok(Ok(listens)) => {
                self.listens = Some(listens);
                Ok(())
            }
            Ok(Err(source)) => {
                self.disconnect();
                Err(BusError::Connect(self.name, Box::new(source)))
            }
            Err(_) => Err(BusError::Silent(self.name)),
        }
    }

    /// Whether it listens; a connection that was lost takes that with it.
    pub(super) fn listens(&self) -> bool {
        self.listens.is_some()
    }

    /// Waits for what was asked for.
    pub(super) fn wait(&mut self, at_most: Duration) -> Heard {
        let (Some(runtime), Some(Listens { signals, owners })) = (&self.runtime, &mut self.listens) else {
            std::thread::sleep(at_most);
            return Heard::Nothing;
        };
        let next = async {
            tokio::select! {
                biased;
                message = owners.next() => (message, Heard::Restart),
                message = signals.next() => (message, Heard::Signal),
            }
        };
        match runtime.block_on(async { timeout(at_most, next).await }) {
            Ok((Some(Ok(_)), heard)) => heard,
            Ok((None, _)) => {
                // The bus is gone; the next question says so.
                self.disconnect();
                std::thread::sleep(at_most);
                Heard::Nothing
            }
            Ok((Some(Err(_)), _)) | Err(_) => Heard::Nothing,
        }
    }

    fn connect(&mut self) -> Result<(), BusError> {
        if self.connection.is_some() {
            return Ok(());
        }
        let Some(address) = self.address.as_deref() else { return Err(BusError::NoBus(self.name)) };
        let runtime = match self.runtime.take() {
            Some(runtime) => runtime,
            None => {
                let made = Builder::new_current_thread().enable_all().build();
                made.map_err(|source| BusError::Runtime(self.name, source))?
            }
        };
        let connect = async { zbus::connection::Builder::address(address)?.build().await };
        let connected = runtime.block_on(async { timeout(DEADLINE, connect).await });
        self.runtime = Some(runtime);
        match connected {
            Ok(Ok(connection)) => {
                self.connection = Some(connection);
                Ok(())
            }
            Ok(Err(source)) => Err(BusError::Connect(self.name, Box::new(source))),
            Err(_) => Err(BusError::Silent(self.name)),
        }
    }

    fn disconnect(&mut self) {
        // Both tell the bus in a task of the runtime when they are dropped.
        let _inside = self.runtime.as_ref().map(Runtime::enter);
        self.listens = None;
        self.connection = None;
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        self.disconnect();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn signal(
    sender: &'static str,
    interface: &'static str,
    member: &'static str,
    about: Option<&'static str>,
) -> zbus::Result<MatchRule<'static>> {
    let rule = MatchRule::builder().msg_type(Type::Signal).sender(sender)?.interface(interface)?.member(member)?;
    Ok(if let Some(about) = about { rule.arg(0, about)? } else { rule }.build())
}

fn is_absence(error: &str) -> bool {
    ["org.freedesktop.DBus.Error.ServiceUnknown", "org.freedesktop.DBus.Error.NameHasNoOwner"].contains(&error)
}
