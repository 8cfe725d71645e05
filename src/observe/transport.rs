//! What is counted of connections, and of messages on their way.

use metrics::{Counter, Gauge};

use super::catalogue::{
    CONNECTIONS, CONNECTIONS_CLOSED, MESSAGES_SHED, MESSAGES_WAITING, MESSAGES_WAITING_BYTES, Registry,
};
use crate::waiting::Usage;

/// What a listener is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Checks.
    ExtAuthz,
    /// The operator's endpoint.
    Admin,
    /// The kubelet's probes.
    Probes,
}

impl Role {
    const ALL: [Self; 3] = [Self::ExtAuthz, Self::Admin, Self::Probes];

    /// The word for it in metrics and in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ExtAuthz => "ext_authz",
            Self::Admin => "admin",
            Self::Probes => "probes",
        }
    }
}

/// Why we closed a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Closed {
    /// Another one was called on when as many as may be were open, and the last call of this one was longest ago.
    Displaced,
    /// Too many had not been called on yet, and this one had waited longest.
    Shed,
    /// Its handshake took too long, or its first call did not come.
    HandshakeTimeout,
    /// Its TLS handshake failed.
    Tls,
    /// It does not speak HTTP/2.
    NotHttp2,
    /// It did not answer when it was asked whether it is still there.
    KeepAliveTimeout,
    /// Its request took too long.
    RequestTimeout,
}

impl Closed {
    const ALL: [Self; 7] = [
        Self::Displaced,
        Self::Shed,
        Self::HandshakeTimeout,
        Self::Tls,
        Self::NotHttp2,
        Self::KeepAliveTimeout,
        Self::RequestTimeout,
    ];

    /// The word for it in metrics and in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Displaced => "displaced",
            Self::Shed => "shed",
            Self::HandshakeTimeout => "handshake_timeout",
            Self::Tls => "tls",
            Self::NotHttp2 => "not_http2",
            Self::KeepAliveTimeout => "keep_alive_timeout",
            Self::RequestTimeout => "request_timeout",
        }
    }
}

/// What is counted of the connections of one kind of listener.
#[derive(Debug, Clone)]
pub struct ConnectionMetrics {
    role: Role,
    open: Gauge,
    closed: [(Closed, Counter); Closed::ALL.len()],
}

impl ConnectionMetrics {
    fn new(registry: &Registry, role: Role) -> Self {
        let label = ("listener", role.as_str());
        let closed =
            |reason: Closed| (reason, registry.counter(CONNECTIONS_CLOSED, &[label, ("reason", reason.as_str())]));
        Self { role, open: registry.gauge(CONNECTIONS, &[label]), closed: Closed::ALL.map(closed) }
    }

    /// What the listener is for.
    pub fn role(&self) -> Role {
        self.role
    }

    /// A connection, until it is dropped.
    pub fn open(&self) -> Open {
        self.open.increment(1.0);
        Open(self.open.clone())
    }

    /// We closed one.
    pub fn closed(&self, why: Closed) {
        if let Some((_, counter)) = self.closed.iter().find(|(reason, _)| *reason == why) {
            counter.increment(1);
        }
    }
}

/// A connection that counts as open until this is dropped.
#[derive(Debug)]
#[must_use = "the connection counts as closed once this is dropped"]
pub struct Open(Gauge);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

#[derive(Debug)]
pub(super) struct TransportHandles {
    connections: [ConnectionMetrics; Role::ALL.len()],
    waiting: Gauge,
    waiting_bytes: Gauge,
    shed: Counter,
}

impl TransportHandles {
    pub(super) fn new(registry: &Registry) -> Self {
        Self {
            connections: Role::ALL.map(|role| ConnectionMetrics::new(registry, role)),
            waiting: registry.gauge(MESSAGES_WAITING, &[]),
            waiting_bytes: registry.gauge(MESSAGES_WAITING_BYTES, &[]),
            shed: registry.counter(MESSAGES_SHED, &[]),
        }
    }

    pub(super) fn connections(&self, role: Role) -> ConnectionMetrics {
        let [ext_authz, admin, probes] = &self.connections;
        match role {
            Role::ExtAuthz => ext_authz,
            Role::Admin => admin,
            Role::Probes => probes,
        }
        .clone()
    }

    pub(super) fn message_shed(&self) {
        self.shed.increment(1);
    }

    pub(super) fn messages(&self, usage: Usage) {
        self.waiting.set(usage.entries as f64);
        self.waiting_bytes.set(usage.weight as f64);
    }
}
