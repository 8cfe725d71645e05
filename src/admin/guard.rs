//! Who may ask the admin endpoint: nobody by the way of a web page in an operator's browser, which reaches what is on loopback
//! as the operator does.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use deserr::Deserr;
use serde::{Serialize, Serializer};

use crate::yaml::{Faults, Invalid};

/// A name as it stands in `host`, without a port, in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Deserr)]
#[deserr(error = Faults, try_from(String) = HostName::parse -> Invalid)]
pub struct HostName(String);

impl HostName {
    fn parse(text: String) -> Result<Self, Invalid> {
        let name = text.trim_end_matches('.').to_ascii_lowercase();
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if name.is_empty() || !(name.bytes().all(is_name) || name.parse::<IpAddr>().is_ok()) {
            let hint = "a name or an IP address, without a port, like `stockade.shop.svc`";
            return Err(Invalid::new(format!("`{text}` is not the name of a host")).hint(hint));
        }
        Ok(Self(name))
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for HostName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What requests may call us.
#[derive(Debug)]
pub struct Hosts {
    /// The address that we listen on; `None` for a Unix socket, which no browser gets to.
    address: Option<IpAddr>,
    named: Vec<HostName>,
}

impl Hosts {
    /// That address, and these names.
    pub fn new(address: Option<IpAddr>, named: &[HostName]) -> Self {
        Self { address, named: named.to_vec() }
    }

    /// Whether we are meant by `host` of a request, which may have a port. A page that was loaded from a name keeps that name when
    /// the name is made to lead to our address.
    fn mean_us(&self, host: &str) -> bool {
        let Some(own) = self.address else { return true };
        let host = without_port(host).trim_end_matches('.').to_ascii_lowercase();
        if host == "localhost" || self.named.iter().any(|name| name.0 == host) {
            return true;
        }
        let Ok(ip) = host.parse::<IpAddr>() else { return false };
        let (ip, own) = (ip.to_canonical(), own.to_canonical());
        // An address cannot be made to lead elsewhere; which one of ours it is does not matter, if we listen on all.
        ip.is_loopback() || ip == own || own.is_unspecified()
    }
}

/// `[::1]:9192`, `localhost:9192`, `localhost`
fn without_port(host: &str) -> &str {
    if let Some((v6, _)) = host.strip_prefix('[').and_then(|host| host.split_once(']')) {
        return v6;
    }
    let port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    host.rsplit_once(':').filter(|(_, after)| port(after)).map_or(host, |(name, _)| name)
}

/// Refuses requests for another host, and those by which a web page would change something.
pub async fn check(State(hosts): State<Arc<Hosts>>, request: Request, next: Next) -> Response {
    let mut named = request.headers().get_all(header::HOST).iter().map(|host| host.to_str().unwrap_or("?"));
    // HTTP/1.0 has none; every browser sends one.
    if !named.all(|host| hosts.mean_us(host)) || !request.uri().host().is_none_or(|host| hosts.mean_us(host)) {
        let why = "not for this host: `host` is not an address of this endpoint (list the name in `admin.hosts`)\n";
        return (StatusCode::MISDIRECTED_REQUEST, why).into_response();
    }
    // Any page that an operator looks at can send a POST to a loopback address. Browsers say so
    // (https://fetch.spec.whatwg.org/#origin-header, https://w3c.github.io/webappsec-fetch-metadata/); nobody else does.
    let is_safe = matches!(*request.method(), Method::GET | Method::HEAD);
    let of_a_page = [header::ORIGIN.as_str(), "sec-fetch-site"];
    if let Some(name) = of_a_page.into_iter().find(|name| !is_safe && request.headers().contains_key(*name)) {
        return (StatusCode::FORBIDDEN, format!("not for web pages: there is `{name}`\n")).into_response();
    }
    next.run(request).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_that_mean_us() {
        let named = [HostName::parse("Stockade.Shop.svc.".to_owned()).expect("a name")];
        let at = |address: &str| Hosts::new(Some(address.parse().expect("an address")), &named);
        for (own, host, expected) in [
            ("127.0.0.1", "localhost:9192", true),
            ("127.0.0.1", "LOCALHOST.", true),
            ("127.0.0.1", "127.0.0.1", true),
            ("127.0.0.1", "127.1.2.3:1", true),
            ("127.0.0.1", "[::1]:9192", true),
            ("127.0.0.1", "[::ffff:127.0.0.1]", true),
            ("127.0.0.1", "10.0.0.7:9192", false),
            ("127.0.0.1", "stockade.shop.svc:9192", true),
            ("127.0.0.1", "shop.svc", false),
            ("127.0.0.1", "attacker.example", false),
            ("127.0.0.1", "localhost.attacker.example", false),
            ("127.0.0.1", "127.0.0.1.attacker.example:9192", false),
            ("127.0.0.1", "localhost:9192@attacker.example", false),
            ("127.0.0.1", "", false),
            ("127.0.0.1", "?", false),
            ("10.0.0.7", "10.0.0.7:9192", true),
            ("10.0.0.7", "10.0.0.8", false),
            ("0.0.0.0", "10.0.0.8", true),
            ("::", "[fd00::1]:9192", true),
            ("0.0.0.0", "attacker.example", false),
        ] {
            assert_eq!(at(own).mean_us(host), expected, "{own}: {host}");
        }
        assert!(Hosts::new(None, &[]).mean_us("anything"));
    }

    #[test]
    fn names_that_no_request_could_have_are_refused() {
        for text in ["", ".", "http://x", "x:9192", "a b", "*.example", "x/"] {
            assert!(HostName::parse(text.to_owned()).is_err(), "{text}");
        }
        assert!(HostName::parse("fd00::1".to_owned()).is_ok());
    }
}
