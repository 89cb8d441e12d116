//! Where a store is, and which places it cannot be.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use url::{Host, Url};

/// Scheme, host and port of a store, always in the same words.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Origin {
    text: String,
    https: bool,
    ip: Option<IpAddr>,
}

impl Origin {
    /// Reads `https://host[:port][/]`. The problem completes a sentence about the text.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        if text.starts_with("unix:") {
            return Err("is a socket of the node, and a store is asked over the network");
        }
        let url =
            Url::parse(text).map_err(|_| "is not a URL such as https://vault.example:8200")?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err("must not hold a user or a password");
        }
        if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            return Err("must end after the host and its port");
        }
        Self::of(&url).ok_or("must start with https:// and name a host")
    }

    /// The origin of a URL that may have a path.
    pub(crate) fn of(url: &Url) -> Option<Self> {
        let https = match url.scheme() {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let ip = match url.host()? {
            Host::Domain(_) => None,
            Host::Ipv4(ip) => Some(IpAddr::V4(ip)),
            Host::Ipv6(ip) => Some(IpAddr::V6(ip)),
        };
        Some(Self {
            text: url.origin().ascii_serialization(),
            https,
            ip,
        })
    }

    /// Without a slash at its end.
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    pub(crate) fn is_https(&self) -> bool {
        self.https
    }

    /// The address, where the host is one: no resolver is asked about it.
    pub(crate) fn ip(&self) -> Option<IpAddr> {
        self.ip
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

/// Why nobody's token may go to `ip`, unless the administrator names the store. `own` are the
/// addresses of the node that its interfaces do not show.
pub(crate) fn refused(ip: IpAddr, own: &[IpAddr]) -> Option<&'static str> {
    let ip = without_mapping(ip);
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    if ip.is_loopback() || ip.is_unspecified() {
        Some("a loopback address")
    } else if link_local || ip == AWS_METADATA {
        Some("a link-local address")
    } else if ip.is_multicast() {
        Some("a multicast address")
    } else if own.contains(&ip) || interfaces_have(ip) {
        Some("an address of the node")
    } else {
        None
    }
}

/// The IPv4 address that an IPv6 one stands for: on this machine, or behind a NAT64 gateway.
fn without_mapping(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V6(v6) if v6.segments()[..6] == [0x64, 0xff9b, 0, 0, 0, 0] => {
            let [.., a, b, c, d] = v6.octets();
            Ipv4Addr::new(a, b, c, d).into()
        }
        ip => ip.to_canonical(),
    }
}

/// Where EC2 has its metadata service beside 169.254.169.254.
const AWS_METADATA: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254));

fn interfaces_have(ip: IpAddr) -> bool {
    let Ok(mut addresses) = nix::ifaddrs::getifaddrs() else {
        return false;
    };
    addresses.any(|interface| {
        let Some(address) = interface.address else {
            return false;
        };
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        let v6 = address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip()));
        v4.or(v6) == Some(ip)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_has_one_text() {
        for (text, origin) in [
            ("https://vault.example:8200", "https://vault.example:8200"),
            ("HTTPS://Vault.Example:443/", "https://vault.example"),
            ("http://127.0.0.1:8200", "http://127.0.0.1:8200"),
            ("https://0x7f.1:8200", "https://127.0.0.1:8200"),
            ("https://[::1]:8200", "https://[::1]:8200"),
        ] {
            let parsed = Origin::parse(text).map(|origin| origin.to_string());
            assert_eq!(parsed.as_deref(), Ok(origin), "{text}");
        }
        for text in [
            "",
            "vault:8200",
            "ftp://vault",
            "unix:///run/agent.sock",
            "https://user@vault",
            "https://vault/v1",
            "https://vault/?a",
            "https://vault/#a",
            "https://",
        ] {
            assert!(Origin::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn places_that_no_store_is_at_are_known_in_every_spelling() {
        for ip in [
            "127.0.0.1",
            "127.8.8.8",
            "0.0.0.0",
            "169.254.169.254",
            "169.254.170.23",
            "224.0.0.1",
            "::1",
            "::",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::169.254.169.254",
            "64:ff9b::127.0.0.1",
            "fe80::1",
            "fd00:ec2::254",
            "ff02::1",
            "203.0.113.7",
            "::ffff:203.0.113.7",
        ] {
            let own = ["203.0.113.7".parse().expect("an address")];
            let ip = ip.parse().expect("an address");
            assert!(refused(ip, &own).is_some(), "{ip}");
        }
        for ip in ["10.0.0.1", "203.0.113.8", "2001:db8::1", "fd00::1"] {
            let ip = ip.parse().expect("an address");
            assert_eq!(refused(ip, &[]), None, "{ip}");
        }
    }
}
