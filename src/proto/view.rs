//! The parts of a CheckRequest that mapping reads, as a view of the received bytes: nothing is copied, nothing is counted.
//!
//! Decoding is a fifth of a check with envoy-types, an eighth with prost and shared bytes, and next to nothing this way
//! (docs/decisions/0005-hot-path.md). The field numbers are those of [`super::wire`], and so is what they say: a test holds
//! both against each other and against envoy-types, over arbitrary messages. Where prost and the protobuf of C++ differ on
//! broken messages, the message is refused: a field of the wrong wire type, a group, nesting without end.
//!
//! [`super::decode`] reads the fields.

use super::decode::{Encoded, Malformed, Message, Value};

/// `envoy.service.auth.v3.CheckRequest`
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CheckRequest<'a> {
    /// What Envoy knows of the request.
    pub attributes: Option<AttributeContext<'a>>,
}

impl<'a> CheckRequest<'a> {
    /// Reads a message.
    ///
    /// # Errors
    /// If it is none.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, Malformed> {
        Value::message(bytes).read()
    }
}

impl<'a> Message<'a> for CheckRequest<'a> {
    fn field(&mut self, number: u64, value: Value<'a>) -> Result<(), Malformed> {
        match number {
            1 => value.merge(&mut self.attributes),
            _ => Ok(()),
        }
    }
}

/// `envoy.service.auth.v3.AttributeContext`
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AttributeContext<'a> {
    /// The caller's side of the connection.
    pub source: Option<Peer<'a>>,
    /// The service's side of the connection.
    pub destination: Option<Peer<'a>>,
    /// The request.
    pub request: Option<Request<'a>>,
    /// What the operator set for the route.
    pub context_extensions: Vec<Pair<'a>>,
    /// Metadata of filters, by namespace.
    pub metadata_context: Option<Metadata<'a>>,
    /// The TLS session.
    pub tls_session: Option<TlsSession<'a>>,
    /// Metadata of the route, by namespace.
    pub route_metadata_context: Option<Metadata<'a>>,
}

impl<'a> Message<'a> for AttributeContext<'a> {
    fn field(&mut self, number: u64, value: Value<'a>) -> Result<(), Malformed> {
        match number {
            1 => value.merge(&mut self.source)?,
            2 => value.merge(&mut self.destination)?,
            4 => value.merge(&mut self.request)?,
            10 => self.context_extensions.push(Pair::read(value)?),
            11 => value.merge(&mut self.metadata_context)?,
            12 => value.merge(&mut self.tls_session)?,
            13 => value.merge(&mut self.route_metadata_context)?,
            _ => {}
        }
        Ok(())
    }
}

/// One entry of a protobuf map of strings: on the wire a map is a list of these.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pair<'a> {
    /// The key.
    pub key: &'a [u8],
    /// The value.
    pub value: &'a [u8],
}

impl<'a> Pair<'a> {
    /// Reads an entry, which is most of what there is to read: nearly all are a short key and a short value, in this order.
    #[inline]
    fn read(entry: Value<'a>) -> Result<Self, Malformed> {
        const KEY: u8 = 1 << 3 | 2;
        const VALUE: u8 = 2 << 3 | 2;
        if let Value::Bytes(Encoded { bytes: [KEY, length @ ..0x80, rest @ ..], .. }) = entry
            && let Some((key, [VALUE, length @ ..0x80, value @ ..])) = rest.split_at_checked(usize::from(*length))
            && value.len() == usize::from(*length)
        {
            return Ok(Self { key, value });
        }
        entry.read()
    }
}

impl<'a> Message<'a> for Pair<'a> {
    fn field(&mut self, number: u64, value: Value<'a>) -> Result<(), Malformed> {
        match number {
            1 => self.key = value.bytes()?,
            2 => self.value = value.bytes()?,
            _ => {}
        }
        Ok(())
    }
}

/// `AttributeContext.Peer`
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Peer<'a> {
    /// The transport address.
    pub address: Option<Address<'a>>,
    /// Labels of the workload.
    pub labels: Vec<Pair<'a>>,
    /// The authenticated identity: a URI SAN, else a DNS SAN, else the subject.
    pub principal: &'a [u8],
    /// The certificate, PEM, URL-encoded.
    pub certificate: &'a [u8],
}

impl<'a> Message<'a> for Peer<'a> {
    fn field(&mut self, number: u64, value: Value<'a>) -> Result<(), Malformed> {
        match number {
            1 => value.merge(&mut self.address)?,
            3 => self.labels.push(Pair::read(value)?),
            4 => self.principal = value.bytes()?,
            5 => self.certificate = value.bytes()?,
            _ => {}
        }
        Ok(())
    }
}

/// `envoy.config.core.v3.Address`, as far as it can be an IP address.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Address<'a> {
    /// An IP address and a port; pipes have neither.
    pub socket_address: Option<SocketAddress<'a>>,
}

impl<'a> Message<'a> for Address<'a> {
    fn field(&mut self, number: u64, value: Value<'a>) -> Result<(), Malformed> {
        match number {
            1 => value.merge(&mut self.socket_address),
            _ => Ok(()),
        }
    }
}

/// `envoy.config.core.v3.SocketAddress`
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SocketAddress<'a> {
    /// The IP address.
    pub address: &'a [u8],
    /// The port.
    pub port_value: u32,
}

impl<'a> Message<'a> for SocketAddress<'a> {
    fn field(&mut self, number: u64, value: Value<'a>) -> Result<(), Malformed> {
        match number {
            2 => self.address = value.bytes()?,
            #[expect(clippy::cast_possible_truncation, reason = "protobuf cuts numbers down to the type of the field")]
            3 => self.port_value = value.number()? as u32,
            _ => {}
        }
        Ok(())
    }
}

/// `AttributeContext.Request`
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Request<'a> {
    /// When Envoy received its first byte.
    pub time: Option<Timestamp>,
    /// The HTTP request.
    pub http: Option<HttpRequest<'a>>,
}

impl<'a> Message<'a> for Request<'a> {
    fn field(&mut self, number: u64, value: Value<'a>) -> Result<(), Malformed> {
        match number {
            1 => value.merge(&mut self.time),
            2 => value.merge(&mut self.http),
            _ => Ok(()),
        }
    }
}

/// `google.protobuf.Timestamp`
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Timestamp {
    /// Seconds since the epoch.
    pub seconds: i64,
    /// Nanoseconds of the second.
    pub nanos: i32,
}

impl<'a> Message<'a> for Timestamp {
    fn field(&mut self, number: u64, value: Value<'a>) -> Result<(), Malformed> {
        match number {
            1 => self.seconds = value.number()?.cast_signed(),
            #[expect(clippy::cast_possible_truncation, reason = "protobuf cuts numbers down to the type of the field")]
            2 => self.nanos = value.number()?.cast_signed() as i32,
            _ => {}
        }
        Ok(())
    }
}

/// `AttributeContext.HttpRequest`
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HttpRequest<'a> {
    /// The method.
    pub method: &'a [u8],
    /// Headers, repetitions joined with `,`.
    pub headers: Vec<Pair<'a>>,
    /// Path and query.
    pub path: &'a [u8],
    /// `Host` or `:authority`.
    pub host: &'a [u8],
    /// The scheme.
    pub scheme: &'a [u8],
    /// The size of the body; -1 if unknown.
    pub size: i64,
    /// The protocol.
    pub protocol: &'a [u8],
    /// The body, as Envoy sends it by default.
    pub body: &'a [u8],
    /// The body, with `pack_as_bytes`.
    pub raw_body: &'a [u8],
    /// Headers one by one, with `encode_raw_headers`.
    pub header_map: Option<HeaderMap<'a>>,
}

impl<'a> Message<'a> for HttpRequest<'a> {
    fn field(&mut self, number: u64, value: Value<'a>) -> Result<(), Malformed> {
        match number {
            2 => self.method = value.bytes()?,
            3 => push(&mut self.headers, Pair::read(value)?),
            4 => self.path = value.bytes()?,
            5 => self.host = value.bytes()?,
            6 => self.scheme = value.bytes()?,
            9 => self.size = value.number()?.cast_signed(),
            10 => self.protocol = value.bytes()?,
            11 => self.body = value.bytes()?,
            12 => self.raw_body = value.bytes()?,
            13 => value.merge(&mut self.header_map)?,
            _ => {}
        }
        Ok(())
    }
}

/// Headers come by the dozen; room for them is made once.
fn push<T>(list: &mut Vec<T>, item: T) {
    if list.capacity() == 0 {
        list.reserve(16);
    }
    list.push(item);
}

/// `envoy.config.core.v3.HeaderMap`
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HeaderMap<'a> {
    /// In the order in which they came.
    pub headers: Vec<HeaderValue<'a>>,
}

impl<'a> Message<'a> for HeaderMap<'a> {
    fn field(&mut self, number: u64, value: Value<'a>) -> Result<(), Malformed> {
        if number == 1 {
            push(&mut self.headers, value.read()?);
        }
        Ok(())
    }
}

/// `envoy.config.core.v3.HeaderValue`
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct HeaderValue<'a> {
    /// The name, in lower case.
    pub key: &'a [u8],
    /// The value, if it was sent as text.
    pub value: &'a [u8],
    /// The value, as it came.
    pub raw_value: &'a [u8],
}

impl<'a> Message<'a> for HeaderValue<'a> {
    fn field(&mut self, number: u64, value: Value<'a>) -> Result<(), Malformed> {
        match number {
            1 => self.key = value.bytes()?,
            2 => self.value = value.bytes()?,
            3 => self.raw_value = value.bytes()?,
            _ => {}
        }
        Ok(())
    }
}

/// `AttributeContext.TLSSession`
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct TlsSession<'a> {
    /// The server name that the client asked for.
    pub sni: &'a [u8],
}

impl<'a> Message<'a> for TlsSession<'a> {
    fn field(&mut self, number: u64, value: Value<'a>) -> Result<(), Malformed> {
        if number == 1 {
            self.sni = value.bytes()?;
        }
        Ok(())
    }
}

/// A protobuf map whose values are messages, in the order of the wire.
#[derive(Debug, Clone, PartialEq)]
pub struct Map<'a, T>(Vec<(&'a str, T)>);

impl<T> Default for Map<'_, T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Map<'_, T> {
    /// The value of a key. Where the wire repeats one, the last counts.
    pub fn get(&self, key: &str) -> Option<&T> {
        self.0.iter().rfind(|(own, _)| *own == key).map(|(_, value)| value)
    }

    /// All entries, in the order of the wire.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &T)> {
        self.0.iter().map(|(key, value)| (*key, value))
    }
}

/// Takes in one entry of a map.
fn insert<'a, T: Message<'a>>(map: &mut Map<'a, T>, entry: Value<'a>) -> Result<(), Malformed> {
    let Entry(key, value) = entry.read()?;
    map.0.push((key, value));
    Ok(())
}

#[derive(Default)]
struct Entry<'a, T>(&'a str, T);

impl<'a, T: Message<'a>> Message<'a> for Entry<'a, T> {
    fn field(&mut self, number: u64, value: Value<'a>) -> Result<(), Malformed> {
        match number {
            1 => self.0 = value.text()?,
            2 => value.merge_into(&mut self.1)?,
            _ => {}
        }
        Ok(())
    }
}

/// `envoy.config.core.v3.Metadata`
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metadata<'a> {
    /// By namespace, which is the name of the filter that wrote it.
    pub filter_metadata: Map<'a, Struct<'a>>,
}

impl<'a> Message<'a> for Metadata<'a> {
    fn field(&mut self, number: u64, value: Value<'a>) -> Result<(), Malformed> {
        if number == 1 { insert(&mut self.filter_metadata, value) } else { Ok(()) }
    }
}

/// `google.protobuf.Struct`
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Struct<'a> {
    /// Its fields.
    pub fields: Map<'a, StructValue<'a>>,
}

impl<'a> Message<'a> for Struct<'a> {
    fn field(&mut self, number: u64, value: Value<'a>) -> Result<(), Malformed> {
        if number == 1 { insert(&mut self.fields, value) } else { Ok(()) }
    }
}

/// `google.protobuf.Value`
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StructValue<'a> {
    /// What it holds.
    pub kind: Option<Kind<'a>>,
}

/// The kinds of a [`StructValue`].
#[derive(Debug, Clone, PartialEq)]
pub enum Kind<'a> {
    /// `null`
    Null,
    /// All numbers are doubles.
    Number(f64),
    /// A text.
    String(&'a str),
    /// A boolean.
    Bool(bool),
    /// A struct.
    Struct(Struct<'a>),
    /// A list.
    List(ListValue<'a>),
}

impl<'a> Message<'a> for StructValue<'a> {
    fn field(&mut self, number: u64, value: Value<'a>) -> Result<(), Malformed> {
        let kind = match (number, self.kind.take()) {
            (1, _) => value.number().map(|_| Kind::Null)?,
            (2, _) => match value {
                Value::Double(number) => Kind::Number(number),
                _ => return Err(Malformed::Type),
            },
            (3, _) => Kind::String(value.text()?),
            (4, _) => Kind::Bool(value.number()? != 0),
            (5, Some(Kind::Struct(mut own))) => value.merge_into(&mut own).map(|()| Kind::Struct(own))?,
            (5, _) => Kind::Struct(value.read()?),
            (6, Some(Kind::List(mut own))) => value.merge_into(&mut own).map(|()| Kind::List(own))?,
            (6, _) => Kind::List(value.read()?),
            (_, kind) => {
                self.kind = kind;
                return Ok(());
            }
        };
        self.kind = Some(kind);
        Ok(())
    }
}

/// `google.protobuf.ListValue`
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ListValue<'a> {
    /// Its members.
    pub values: Vec<StructValue<'a>>,
}

impl<'a> Message<'a> for ListValue<'a> {
    fn field(&mut self, number: u64, value: Value<'a>) -> Result<(), Malformed> {
        if number == 1 {
            self.values.push(value.read()?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message with this message as a field.
    fn within(field: u8, bytes: &[u8]) -> Vec<u8> {
        let length = crate::proto::varint::Varint::of(bytes.len() as u64);
        [&[field << 3 | 2], &*length, bytes].concat()
    }

    #[test]
    fn what_is_no_message_is_refused_by_name() {
        // A request whose HTTP request has these bytes.
        let http = |bytes: &[u8]| within(1, &within(4, &within(2, bytes)));
        for (bytes, expected) in [
            (b"\x12\x03GET".as_slice(), None),
            (b"\x12\x04GET", Some(Malformed::Truncated)),
            (b"\x12", Some(Malformed::Truncated)),
            (b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", Some(Malformed::Truncated)),
            (b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", Some(Malformed::Number)),
            (b"\x48\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", Some(Malformed::Number)),
            (b"\x48\x80", Some(Malformed::Truncated)),
            (b"\x10\x01", Some(Malformed::Type)),
            (b"\x4a\x01x", Some(Malformed::Type)),
            (b"\x02\x01x", Some(Malformed::Number)),
            (b"\x82\x80\x80\x80\x80\x01\x01x", Some(Malformed::Number)),
            // A group, and what ends one.
            (b"\xf3\x01", Some(Malformed::Type)),
            (b"\xf4\x01", Some(Malformed::Type)),
            // Fields that are not known, of each type.
            (b"\xf0\x01\x01\xf1\x0112345678\xf2\x01\x01x\xf5\x011234", None),
        ] {
            assert_eq!(CheckRequest::decode(&http(bytes)).err(), expected, "{bytes:?}");
        }
    }

    #[test]
    fn nesting_ends() {
        let nested = |lists: usize| {
            let value = (0..lists).fold(b"\x20\x01".to_vec(), |value, _| within(6, &within(1, &value)));
            let fields = within(1, &within(2, &value));
            within(1, &within(11, &within(1, &within(2, &fields))))
        };
        assert_eq!(CheckRequest::decode(&nested(40)).err(), None);
        assert_eq!(CheckRequest::decode(&nested(50)).err(), Some(Malformed::Depth));
        assert_eq!(CheckRequest::decode(&nested(2000)).err(), Some(Malformed::Depth));
    }
}
