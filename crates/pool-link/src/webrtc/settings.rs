use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use serde::{Deserialize, Serialize};

/// A STUN or TURN server.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IceServer {
    /// `stun:host:port` or `turn:host:port?transport=udp`.
    pub urls: Vec<String>,
    /// TURN only.
    #[serde(default)]
    pub username: String,
    /// TURN only.
    #[serde(default)]
    pub credential: String,
}

/// Names the server, never the credential.
impl fmt::Debug for IceServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IceServer").field("urls", &self.urls).finish_non_exhaustive()
    }
}

/// One-byte messages sent while something is unacknowledged, so that a lost last packet is reported missing by the
/// peer instead of waiting for SCTP's retransmission timer, which never fires before a second has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TailProbes {
    /// From the last message to the first probe.
    pub first: Duration,
    /// By how much each further wait is longer than the one before; also the second wait.
    pub growth: Duration,
    /// Probes after one message.
    pub most: u32,
}

impl Default for TailProbes {
    fn default() -> Self {
        Self { first: Duration::from_millis(25), growth: Duration::from_millis(5), most: 8 }
    }
}

/// How a link is made and kept. [`LinkSettings::loopback`] and [`LinkSettings::wide_area`] are starting points.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkSettings {
    /// Only peers on this machine: binds 127.0.0.1 alone and uses the loopback interface's large packets.
    pub loopback_only: bool,
    /// Local addresses to bind; port 0 takes any. Empty: 127.0.0.1, and every other interface unless `loopback_only`.
    pub bind: Vec<SocketAddr>,
    /// STUN and TURN servers.
    pub ice_servers: Vec<IceServer>,
    /// Take no way but through TURN.
    pub relay_only: bool,
    /// The kernel's send and receive buffer of each UDP socket, in bytes. Its own default (208 KiB on Linux) drops
    /// packets even on loopback, and each loss may cost a second.
    pub socket_buffer: usize,
    /// What the peer may have in flight towards us, in bytes; `None` is 1 MiB. Never under [`crate::MAX_MESSAGE`]:
    /// a message larger than the window would never arrive.
    pub receive_window: Option<u32>,
    /// What may wait on each lane, unacknowledged by the peer, before `send` waits; in bytes.
    pub send_buffer: usize,
    /// The size of outgoing SCTP packets in bytes; `None`: 1191 (fits any path), or large ones if `loopback_only`.
    pub packet_size: Option<u32>,
    /// How long `send` waits for room.
    pub send_deadline: Duration,
    /// How long each step of connecting may take: gathering candidates; and from the answer to three open lanes.
    pub connect_deadline: Duration,
    /// How long an offer or answer is valid, in seconds.
    pub description_lifetime: u64,
    /// Between signs of life.
    pub heartbeat: Duration,
    /// Without any sign of life for this long, the peer is lost.
    pub silent_after: Duration,
    /// `None` turns them off.
    pub probes: Option<TailProbes>,
    /// 0: packets are handled on the runtime that made the link. Otherwise on this many threads of their own; the
    /// first link of a process decides for all.
    pub reactor_threads: usize,
}

impl LinkSettings {
    /// For peers on this machine.
    pub fn loopback() -> Self {
        Self { loopback_only: true, receive_window: None, ..Self::wide_area(Vec::new()) }
    }

    /// For peers anywhere, found with the help of these servers.
    pub fn wide_area(ice_servers: Vec<IceServer>) -> Self {
        Self {
            loopback_only: false,
            bind: Vec::new(),
            ice_servers,
            relay_only: false,
            socket_buffer: 4 << 20,
            receive_window: Some(400_000),
            send_buffer: 1 << 20,
            packet_size: None,
            send_deadline: Duration::from_secs(10),
            connect_deadline: Duration::from_secs(10),
            description_lifetime: 60,
            heartbeat: Duration::from_millis(250),
            silent_after: Duration::from_secs(1),
            probes: Some(TailProbes::default()),
            reactor_threads: 0,
        }
    }

    /// The addresses to bind.
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        match (self.bind.is_empty(), self.loopback_only) {
            (false, _) => self.bind.clone(),
            (true, true) => vec![loopback],
            (true, false) => vec![(Ipv4Addr::UNSPECIFIED, 0).into(), (Ipv6Addr::UNSPECIFIED, 0).into(), loopback],
        }
    }
}

impl Default for LinkSettings {
    /// [`LinkSettings::wide_area`] without servers: finds peers on this machine and in the same network.
    fn default() -> Self {
        Self::wide_area(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_survive_json_and_never_show_a_credential() {
        let server = IceServer {
            urls: vec!["turn:turn.example:3478".into()],
            username: "u".into(),
            credential: "hunter2".into(),
        };
        let settings = LinkSettings::wide_area(vec![server]);
        let read: LinkSettings = serde_json::from_str(&serde_json::to_string(&settings).unwrap()).unwrap();
        assert_eq!(read, settings);
        assert!(!format!("{settings:?}").contains("hunter2"), "settings end up in logs");
    }
}
