//! What kind of place an IP address is. Pure; the tables are the IANA special-purpose address registries
//! (RFC 6890 and its successors), judged strictly: what is not known to be public is not public.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What kind of place an address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Reachable from anywhere.
    Public,
    /// This machine.
    Loopback,
    /// Not public, and why.
    Special(&'static str),
    /// Answers with a cloud machine's credentials; refused whatever is allowed.
    Metadata,
}

/// Addresses at which clouds tell a machine its own secrets, in whichever range they lie.
const METADATA_V4: [Ipv4Addr; 5] = [
    Ipv4Addr::new(169, 254, 169, 254),
    Ipv4Addr::new(169, 254, 170, 2),
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(168, 63, 129, 16),
    Ipv4Addr::new(192, 0, 0, 192),
];
const METADATA_V6: [Ipv6Addr; 2] = [
    Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254),
    Ipv6Addr::new(0xfd20, 0x00ce, 0, 0, 0, 0, 0, 0x0254),
];

/// First address, length of the prefix, what it is for. The first match counts.
const SPECIAL_V4: &[(Ipv4Addr, u32, &str)] = &[
    (Ipv4Addr::UNSPECIFIED, 8, "of this network (0.0.0.0/8)"),
    (Ipv4Addr::new(10, 0, 0, 0), 8, "private (10.0.0.0/8)"),
    (Ipv4Addr::new(100, 64, 0, 0), 10, "behind a carrier's NAT (100.64.0.0/10)"),
    (Ipv4Addr::new(169, 254, 0, 0), 16, "link-local (169.254.0.0/16)"),
    (Ipv4Addr::new(172, 16, 0, 0), 12, "private (172.16.0.0/12)"),
    (Ipv4Addr::new(192, 0, 0, 0), 24, "for protocols (192.0.0.0/24)"),
    (Ipv4Addr::new(192, 0, 2, 0), 24, "for documentation (192.0.2.0/24)"),
    (Ipv4Addr::new(192, 88, 99, 0), 24, "a former 6to4 relay (192.88.99.0/24)"),
    (Ipv4Addr::new(192, 168, 0, 0), 16, "private (192.168.0.0/16)"),
    (Ipv4Addr::new(198, 18, 0, 0), 15, "for benchmarks (198.18.0.0/15)"),
    (Ipv4Addr::new(198, 51, 100, 0), 24, "for documentation (198.51.100.0/24)"),
    (Ipv4Addr::new(203, 0, 113, 0), 24, "for documentation (203.0.113.0/24)"),
    (Ipv4Addr::new(224, 0, 0, 0), 4, "multicast (224.0.0.0/4)"),
    (Ipv4Addr::BROADCAST, 32, "broadcast"),
    (Ipv4Addr::new(240, 0, 0, 0), 4, "reserved (240.0.0.0/4)"),
];

/// Inside 2000::/3, beyond which nothing is public.
const SPECIAL_V6: &[(Ipv6Addr, u32, &str)] = &[
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23, "for protocols (2001::/23)"),
    (Ipv6Addr::new(0x2001, 0x0db8, 0, 0, 0, 0, 0, 0), 32, "for documentation (2001:db8::/32)"),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20, "for documentation (3fff::/20)"),
];

/// Outside of 2000::/3, for the message only.
const NEVER_PUBLIC_V6: &[(Ipv6Addr, u32, &str)] = &[
    (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7, "private (fc00::/7)"),
    (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10, "link-local (fe80::/10)"),
    (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8, "multicast (ff00::/8)"),
    (Ipv6Addr::UNSPECIFIED, 128, "unspecified"),
    (Ipv6Addr::UNSPECIFIED, 0, "outside of the public range (2000::/3)"),
];

/// The address that a packet to `address` ends at: IPv6 forms that carry an IPv4 address stand for that one.
pub fn destination(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => carried_v4(v6).map_or(address, IpAddr::V4),
        IpAddr::V4(_) => address,
    }
}

/// The IPv4 address inside a mapped (::ffff:0:0/96), NAT64 (64:ff9b::/96, RFC 6052), 6to4 (2002::/16,
/// RFC 3056) or Teredo (2001::/32, RFC 4380: the client's, inverted) address.
fn carried_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let bits = address.to_bits();
    let low = Ipv4Addr::from_bits(bits as u32);
    match address.segments() {
        [0, 0, 0, 0, 0, 0xffff, ..] | [0x0064, 0xff9b, 0, 0, 0, 0, ..] => Some(low),
        [0x2002, high, next, ..] => Some(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(next))),
        [0x2001, 0, ..] => Some(Ipv4Addr::from_bits(!low.to_bits())),
        _ => None,
    }
}

/// Where `address` leads.
pub fn place(address: IpAddr) -> Place {
    match destination(address) {
        IpAddr::V4(v4) => place_v4(v4),
        IpAddr::V6(v6) => place_v6(v6),
    }
}

fn place_v4(address: Ipv4Addr) -> Place {
    if METADATA_V4.contains(&address) {
        return Place::Metadata;
    }
    if address.is_loopback() {
        return Place::Loopback;
    }
    let bits = address.to_bits();
    SPECIAL_V4
        .iter()
        .find(|(network, length, _)| (bits ^ network.to_bits()).leading_zeros() >= *length)
        .map_or(Place::Public, |(_, _, why)| Place::Special(why))
}

fn place_v6(address: Ipv6Addr) -> Place {
    if METADATA_V6.contains(&address) {
        return Place::Metadata;
    }
    if address.is_loopback() {
        return Place::Loopback;
    }
    let bits = address.to_bits();
    let is_global_unicast = bits >> 125 == 0b001;
    let table = if is_global_unicast { SPECIAL_V6 } else { NEVER_PUBLIC_V6 };
    table
        .iter()
        .find(|(network, length, _)| (bits ^ network.to_bits()).leading_zeros() >= *length)
        .map_or(Place::Public, |(_, _, why)| Place::Special(why))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_special_range_ends_where_its_registry_says() {
        let table: &[(&str, bool)] = &[
            ("0.0.0.0", false),
            ("0.255.255.255", false),
            ("1.0.0.0", true),
            ("9.255.255.255", true),
            ("10.0.0.0", false),
            ("10.255.255.255", false),
            ("11.0.0.0", true),
            ("100.63.255.255", true),
            ("100.64.0.0", false),
            ("100.127.255.255", false),
            ("100.128.0.0", true),
            ("126.255.255.255", true),
            ("127.0.0.1", false),
            ("127.255.255.255", false),
            ("128.0.0.0", true),
            ("168.63.129.16", false),
            ("169.253.255.255", true),
            ("169.254.169.254", false),
            ("169.255.0.0", true),
            ("172.15.255.255", true),
            ("172.16.0.0", false),
            ("172.31.255.255", false),
            ("172.32.0.0", true),
            ("192.0.0.1", false),
            ("192.0.1.0", true),
            ("192.0.2.1", false),
            ("192.88.99.1", false),
            ("192.167.255.255", true),
            ("192.168.0.0", false),
            ("192.169.0.0", true),
            ("198.17.255.255", true),
            ("198.18.0.0", false),
            ("198.19.255.255", false),
            ("198.20.0.0", true),
            ("198.51.100.7", false),
            ("203.0.113.7", false),
            ("223.255.255.255", true),
            ("224.0.0.1", false),
            ("239.255.255.255", false),
            ("240.0.0.0", false),
            ("255.255.255.255", false),
            ("::", false),
            ("::1", false),
            ("::7f00:1", false),
            ("::ffff:10.0.0.1", false),
            ("::ffff:127.0.0.1", false),
            ("::ffff:8.8.8.8", true),
            ("64:ff9b::10.0.0.1", false),
            ("64:ff9b::8.8.8.8", true),
            ("64:ff9b:1::8.8.8.8", false),
            ("100::1", false),
            ("1fff:ffff::1", false),
            ("2001::1", false),
            ("2001::f7f7:f7f7", true),
            ("2001:0:1::f5ff:fffe", false),
            ("2001:2::1", false),
            ("2001:10::1", false),
            ("2001:200::1", true),
            ("2001:db8::1", false),
            ("2002:a00:1::1", false),
            ("2002:808:808::1", true),
            ("2606:4700:4700::1111", true),
            ("3fff::1", false),
            ("3fff:1000::1", true),
            ("4000::1", false),
            ("5f00::1", false),
            ("fc00::1", false),
            ("fd00:ec2::254", false),
            ("fe80::1", false),
            ("fec0::1", false),
            ("ff02::1", false),
        ];
        for (address, public) in table {
            let found = place(address.parse().unwrap());
            assert_eq!(found == Place::Public, *public, "{address}: {found:?}");
        }
    }

    proptest! {
        #[test]
        fn no_ipv6_form_makes_an_ipv4_address_any_better(bits: u32) {
            let v4 = Ipv4Addr::from_bits(bits);
            let inside = u128::from(bits);
            let forms = [
                v4.to_ipv6_mapped(),
                Ipv6Addr::from_bits(0x0064_ff9b_u128 << 96 | inside),
                Ipv6Addr::from_bits(0x2002_u128 << 112 | inside << 80 | 1),
                Ipv6Addr::from_bits(0x2001_0000_u128 << 96 | u128::from(!bits)),
            ];
            for form in forms {
                prop_assert_eq!(place(form.into()), place(v4.into()), "{} of {}", form, v4);
            }
        }

        #[test]
        fn what_the_standard_library_knows_to_be_special_is_never_public(bits: u32, high: u64, low: u64) {
            let v4 = Ipv4Addr::from_bits(bits);
            if v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_multicast()
                || v4.is_broadcast() || v4.is_documentation() || v4.is_unspecified() {
                prop_assert_ne!(place(v4.into()), Place::Public);
            }
            let v6 = Ipv6Addr::from_bits(u128::from(high) << 64 | u128::from(low));
            if v6.is_multicast() || v6.is_unique_local() || v6.is_unicast_link_local() || high >> 61 != 1 {
                prop_assert!(place(v6.into()) != Place::Public || carried_v4(v6).is_some(), "{}", v6);
            }
        }

        #[test]
        fn private_ranges_are_refused_throughout(low: u32) {
            for (network, length, _) in SPECIAL_V4 {
                let mask = u32::MAX.checked_shr(*length).unwrap_or(0);
                let address = Ipv4Addr::from_bits(network.to_bits() | (low & mask));
                prop_assert_ne!(place(address.into()), Place::Public, "{}", address);
            }
        }
    }
}
