//! Where outgoing connections may lead: nowhere private, unless Channel and configuration both say so.
//!
//! Checked after resolution, and the connection is made to the address that was checked, so that a name that answers
//! differently the second time gains nothing.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Most addresses of one name that are looked at.
const MAX_ADDRESSES: usize = 16;

/// A name that leads nowhere one may go.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The name has no address, or nobody answered.
    #[error("cannot resolve the host name: {source}")]
    Lookup {
        /// What the resolver said.
        source: io::Error,
    },
    /// Every address is one that is refused.
    #[error(
        "the host has {range} address, which is refused: it needs allowPrivateAddresses: true in the Channel and herald local --allow-private-addresses"
    )]
    Refuse {
        /// Which range, with its article.
        range: &'static str,
    },
}

/// The addresses of `host` (a name or an IP address, a version 6 one with or without brackets) that may be spoken to;
/// never empty.
pub async fn resolve(
    host: &str,
    port: u16,
    allow_private: bool,
) -> Result<Vec<SocketAddr>, ResolveError> {
    let bare = host
        .strip_prefix('[')
        .and_then(|h| h.strip_suffix(']'))
        .unwrap_or(host);
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return permitted([SocketAddr::new(ip, port)], allow_private);
    }
    let found = tokio::net::lookup_host((host, port))
        .await
        .map_err(|source| ResolveError::Lookup { source })?;
    permitted(found, allow_private)
}

/// Those of `found` that may be spoken to.
fn permitted(
    found: impl IntoIterator<Item = SocketAddr>,
    allow_private: bool,
) -> Result<Vec<SocketAddr>, ResolveError> {
    let mut refused = None;
    let mut kept = Vec::new();
    for address in found.into_iter().take(MAX_ADDRESSES) {
        match refusal(address.ip()) {
            Some(range) if !allow_private => refused = Some(range),
            _ => kept.push(address),
        }
    }
    match refused {
        _ if !kept.is_empty() => Ok(kept),
        Some(range) => Err(ResolveError::Refuse { range }),
        None => Err(ResolveError::Lookup {
            source: io::Error::from(io::ErrorKind::NotFound),
        }),
    }
}

/// Why `ip` is refused, as a noun with its article; `None` if it is a public address.
///
/// After IANA's registries of special-purpose addresses (RFC 6890 and what amended it). An address that carries a
/// version 4 one (mapped, or the well-known NAT64 prefix of RFC 6052) is judged by what it carries.
pub fn refusal(ip: IpAddr) -> Option<&'static str> {
    match ip {
        IpAddr::V4(ip) => refusal_v4(ip),
        IpAddr::V6(ip) => refusal_v6(ip),
    }
}

fn refusal_v4(ip: Ipv4Addr) -> Option<&'static str> {
    Some(match ip.octets() {
        [0, ..] => "an unspecified",
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => "a private",
        [100, 64..=127, ..] => "a carrier's shared",
        [127, ..] => "a loopback",
        [169, 254, ..] => "a link-local",
        [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => "a documentation",
        [192, 0, 0, _] | [192, 88, 99, _] | [198, 18 | 19, ..] => "a special-purpose",
        [224..=239, ..] => "a multicast",
        [240..=255, ..] => "a reserved",
        _ => return None,
    })
}

fn refusal_v6(ip: Ipv6Addr) -> Option<&'static str> {
    let segments = ip.segments();
    let carried = || Ipv4Addr::from((u32::from(segments[6]) << 16) | u32::from(segments[7]));
    Some(match segments {
        [0, 0, 0, 0, 0, 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => {
            return refusal_v4(carried());
        }
        [0, 0, 0, 0, 0, 0, 0, 0] => "an unspecified",
        [0, 0, 0, 0, 0, 0, 0, 1] => "a loopback",
        [0xfc00..=0xfdff, ..] => "a unique-local",
        [0xfe80..=0xfebf, ..] => "a link-local",
        [0xfec0..=0xfeff, ..] => "a site-local",
        [0xff00..=0xffff, ..] => "a multicast",
        [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => "a documentation",
        // Teredo, benchmarking, ORCHID and 6to4: tunnels and identifiers, not hosts.
        [0x2001, 0..=0x1ff, ..] | [0x2002, ..] => "a special-purpose",
        [0x2000..=0x3fff, ..] => return None,
        _ => "a reserved",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_special_range_is_refused_at_both_ends_and_its_neighbours_are_not() {
        for ip in [
            "0.0.0.0",
            "0.255.255.255",
            "10.0.0.0",
            "10.255.255.255",
            "100.64.0.0",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.255",
            "169.254.169.254",
            "172.16.0.0",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.0.0",
            "192.168.255.255",
            "198.18.0.0",
            "198.19.255.255",
            "198.51.100.7",
            "203.0.113.7",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::7f00:1",
            "::ffff:127.0.0.1",
            "::ffff:10.1.2.3",
            "64:ff9b::10.0.0.1",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:1ff::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "3fff:fff::1",
            "5f00::1",
            "fc00::1",
            "fdff::1",
            "fe80::1",
            "febf::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(refusal(ip.parse().unwrap()).is_some(), "{ip}");
        }
        for ip in [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.1",
            "172.15.255.255",
            "172.32.0.0",
            "192.167.255.255",
            "223.255.255.255",
            "::ffff:8.8.8.8",
            "64:ff9b::8.8.8.8",
            "2001:200::1",
            "2606:4700::1111",
            "3fff:1000::1",
        ] {
            assert_eq!(refusal(ip.parse().unwrap()), None, "{ip}");
        }
    }

    #[test]
    fn a_name_with_a_public_and_a_private_address_leads_to_the_public_one_only() {
        let both = ["10.0.0.1:25", "8.8.8.8:25"].map(|a| a.parse().unwrap());
        assert_eq!(permitted(both, false).unwrap(), [both[1]]);
        assert_eq!(permitted(both, true).unwrap(), both);
        assert!(matches!(
            permitted([both[0]], false),
            Err(ResolveError::Refuse { range: "a private" })
        ));
    }

    #[tokio::test]
    async fn localhost_is_refused_after_resolution_and_as_a_literal() {
        for host in ["localhost", "127.0.0.1", "[::1]", "::1"] {
            assert!(
                matches!(
                    resolve(host, 1, false).await,
                    Err(ResolveError::Refuse { .. })
                ),
                "{host}"
            );
            assert!(resolve(host, 1, true).await.is_ok(), "{host}");
        }
    }
}
