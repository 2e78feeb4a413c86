//! Which addresses are public. Everything else (private, local, reserved, translated, a cloud's metadata) is closed.
//!
//! The table is the IANA special-purpose registries (<https://www.iana.org/assignments/iana-ipv4-special-registry>,
//! `iana-ipv6-special-registry`), multicast, and what clouds answer on in public ranges. In IPv6 the default is closed: only
//! `2000::/3`, the global unicast space, is looked at further. Addresses that carry an IPv4 address (mapped, NAT64, 6to4,
//! Teredo, ISATAP and kin) are never public: where their packets end is decided by a translator that the check cannot see.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What an address is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    Public,
    /// Closed unless it is named literally; with the name of its range.
    Local(&'static str),
    /// Closed even if it is named: the host itself, or a cloud's metadata.
    Never(&'static str),
}

/// `(network, prefix length, what it is)`; of several ranges that hold an address the first counts.
const IPV4: &[(Ipv4Addr, u8, Reach)] = &[
    (v4(0, 0, 0, 0), 8, Reach::Never("this host (0.0.0.0/8)")),
    (v4(127, 0, 0, 0), 8, Reach::Never("loopback (127.0.0.0/8)")),
    (
        v4(169, 254, 0, 0),
        16,
        Reach::Never("link-local and cloud metadata (169.254.0.0/16)"),
    ),
    (v4(168, 63, 129, 16), 32, Reach::Never("cloud metadata (168.63.129.16)")),
    (
        v4(100, 100, 100, 200),
        32,
        Reach::Never("cloud metadata (100.100.100.200)"),
    ),
    (v4(192, 0, 0, 192), 32, Reach::Never("cloud metadata (192.0.0.192)")),
    (v4(10, 0, 0, 0), 8, Reach::Local("private (10.0.0.0/8)")),
    (
        v4(100, 64, 0, 0),
        10,
        Reach::Local("shared by carriers (100.64.0.0/10)"),
    ),
    (v4(172, 16, 0, 0), 12, Reach::Local("private (172.16.0.0/12)")),
    (v4(192, 168, 0, 0), 16, Reach::Local("private (192.168.0.0/16)")),
    (
        v4(192, 0, 0, 0),
        24,
        Reach::Local("protocol assignments (192.0.0.0/24)"),
    ),
    (v4(192, 0, 2, 0), 24, Reach::Local("documentation (192.0.2.0/24)")),
    (v4(192, 88, 99, 0), 24, Reach::Local("6to4 relays (192.88.99.0/24)")),
    (v4(198, 18, 0, 0), 15, Reach::Local("benchmarking (198.18.0.0/15)")),
    (v4(198, 51, 100, 0), 24, Reach::Local("documentation (198.51.100.0/24)")),
    (v4(203, 0, 113, 0), 24, Reach::Local("documentation (203.0.113.0/24)")),
    (v4(224, 0, 0, 0), 4, Reach::Never("multicast (224.0.0.0/4)")),
    (
        v4(240, 0, 0, 0),
        4,
        Reach::Never("reserved and broadcast (240.0.0.0/4)"),
    ),
];

const IPV6: &[(Ipv6Addr, u8, Reach)] = &[
    (Ipv6Addr::UNSPECIFIED, 128, Reach::Never("this host (::)")),
    (Ipv6Addr::LOCALHOST, 128, Reach::Never("loopback (::1)")),
    (
        v6(0, 0, 0, 0, 0, 0xffff),
        96,
        Reach::Never("IPv4-mapped (::ffff:0:0/96)"),
    ),
    (
        v6(0, 0, 0, 0, 0xffff, 0),
        96,
        Reach::Never("IPv4-translated (::ffff:0:0:0/96)"),
    ),
    (Ipv6Addr::UNSPECIFIED, 96, Reach::Never("IPv4-compatible (::/96)")),
    (v6(0x64, 0xff9b, 0, 0, 0, 0), 96, Reach::Never("NAT64 (64:ff9b::/96)")),
    (
        v6(0x64, 0xff9b, 1, 0, 0, 0),
        48,
        Reach::Never("local NAT64 (64:ff9b:1::/48)"),
    ),
    (
        v6(0xfd00, 0xec2, 0, 0, 0, 0),
        32,
        Reach::Never("cloud metadata (fd00:ec2::/32)"),
    ),
    (
        v6(0xfd20, 0xce, 0, 0, 0, 0),
        32,
        Reach::Never("cloud metadata (fd20:ce::/32)"),
    ),
    (v6(0xfc00, 0, 0, 0, 0, 0), 7, Reach::Local("unique local (fc00::/7)")),
    (v6(0xfe80, 0, 0, 0, 0, 0), 10, Reach::Never("link-local (fe80::/10)")),
    (v6(0xfec0, 0, 0, 0, 0, 0), 10, Reach::Local("site-local (fec0::/10)")),
    (v6(0xff00, 0, 0, 0, 0, 0), 8, Reach::Never("multicast (ff00::/8)")),
    (v6(0x2001, 0, 0, 0, 0, 0), 32, Reach::Never("Teredo (2001::/32)")),
    (
        v6(0x2001, 0, 0, 0, 0, 0),
        23,
        Reach::Local("protocol assignments (2001::/23)"),
    ),
    (
        v6(0x2001, 0xdb8, 0, 0, 0, 0),
        32,
        Reach::Local("documentation (2001:db8::/32)"),
    ),
    (v6(0x2002, 0, 0, 0, 0, 0), 16, Reach::Never("6to4 (2002::/16)")),
    (v6(0x3fff, 0, 0, 0, 0, 0), 20, Reach::Local("documentation (3fff::/20)")),
    (v6(0x2000, 0, 0, 0, 0, 0), 3, Reach::Public),
];

const fn v4(a: u8, b: u8, c: u8, d: u8) -> Ipv4Addr {
    Ipv4Addr::new(a, b, c, d)
}

const fn v6(a: u16, b: u16, c: u16, d: u16, e: u16, f: u16) -> Ipv6Addr {
    Ipv6Addr::new(a, b, c, d, e, f, 0, 0)
}

/// What the table says about an address. Whether it is one of the host's own is the gate's to know.
pub fn reach(ip: IpAddr) -> Reach {
    match ip {
        IpAddr::V4(ip) => {
            let holds =
                |network: Ipv4Addr, length: u8| (ip.to_bits() ^ network.to_bits()) >> (32 - u32::from(length)) == 0;
            IPV4.iter()
                .find(|&&(network, length, _)| holds(network, length))
                .map_or(Reach::Public, |&(_, _, reach)| reach)
        }
        IpAddr::V6(ip) => {
            if is_isatap(ip) {
                return Reach::Never("ISATAP (an interface id of 5efe)");
            }
            let holds =
                |network: Ipv6Addr, length: u8| (ip.to_bits() ^ network.to_bits()) >> (128 - u32::from(length)) == 0;
            IPV6.iter()
                .find(|&&(network, length, _)| holds(network, length))
                .map_or(Reach::Local("outside of 2000::/3"), |&(_, _, reach)| reach)
        }
    }
}

/// Whatever its prefix, such an address is reached by a tunnel to the IPv4 address at its end (RFC 5214, 6.1).
fn is_isatap(ip: Ipv6Addr) -> bool {
    matches!(ip.segments(), [_, _, _, _, 0 | 0x0200, 0x5efe, _, _])
}

/// The IPv4 address that an IPv6 address carries: what a translator would send its packets to.
pub fn embedded_ipv4(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let bits = ip.to_bits();
    let low = Ipv4Addr::from_bits((bits & 0xffff_ffff) as u32);
    match ip.segments() {
        [0, 0, 0, 0, 0, 0xffff, ..] | [0, 0, 0, 0, 0xffff, 0, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => Some(low),
        [0, 0, 0, 0, 0, 0, high, _] if high != 0 => Some(low),
        [0x2002, ..] => Some(Ipv4Addr::from_bits((bits >> 80) as u32)),
        // Teredo hides the client's address by turning every bit over (RFC 4380, 4).
        [0x2001, 0, ..] => Some(Ipv4Addr::from_bits(!(bits as u32))),
        _ if is_isatap(ip) => Some(low),
        _ => None,
    }
}

/// Reads an IPv4 address in any of the forms of `inet_aton(3)`: one to four parts, decimal, octal or hexadecimal, the last
/// part filling what is left.
pub fn inet_aton(text: &str) -> Option<Ipv4Addr> {
    let parts = text.split('.').map(inet_aton_part).collect::<Option<Vec<u64>>>()?;
    let (&last, first) = parts.split_last()?;
    if first.len() > 3 || first.iter().any(|&part| part > 0xff) {
        return None;
    }
    let left = 32 - 8 * first.len();
    if last >= 1 << left {
        return None;
    }
    let high = first.iter().fold(0, |bits, part| bits << 8 | part);
    u32::try_from(high << left | last).ok().map(Ipv4Addr::from_bits)
}

fn inet_aton_part(text: &str) -> Option<u64> {
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        // Some programs read a lone "0x" as nought.
        Some("") => ("0", 16),
        Some(digits) => (digits, 16),
        None if text.len() > 1 && text.starts_with('0') => (&text[1..], 8),
        None => (text, 10),
    };
    // `from_str_radix` would take a sign.
    digits.bytes().all(|b| b.is_ascii_hexdigit()).then_some(())?;
    u64::from_str_radix(digits, radix)
        .ok()
        .filter(|&part| part <= u64::from(u32::MAX))
}

/// The addresses of the machine's own interfaces, as the kernel's tables list them.
///
/// Read from `/proc/net/fib_trie` and `/proc/net/if_inet6` (see proc(5)): no privilege and no socket is needed, and secondary
/// addresses are listed as well.
pub fn own_addresses() -> std::io::Result<Vec<IpAddr>> {
    let mut own = own_ipv4(&std::fs::read_to_string("/proc/net/fib_trie")?);
    match std::fs::read_to_string("/proc/net/if_inet6") {
        Ok(text) => own.extend(own_ipv6(&text)),
        // A kernel without IPv6 has no IPv6 addresses.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    own.sort_unstable();
    own.dedup();
    Ok(own)
}

fn own_ipv4(fib_trie: &str) -> Vec<IpAddr> {
    let mut leaf = None;
    let mut own = Vec::new();
    for line in fib_trie.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            leaf = address.parse::<Ipv4Addr>().ok();
        } else if line == "/32 host LOCAL" {
            own.extend(leaf.map(IpAddr::V4));
        }
    }
    own
}

fn own_ipv6(if_inet6: &str) -> impl Iterator<Item = IpAddr> {
    if_inet6
        .lines()
        .filter_map(|line| u128::from_str_radix(line.split_whitespace().next()?, 16).ok())
        .map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_public(text: &str) -> bool {
        reach(text.parse().unwrap()) == Reach::Public
    }

    #[test]
    fn every_range_is_closed_up_to_its_edges() {
        for text in [
            "0.0.0.0",
            "0.255.255.255",
            "10.0.0.0",
            "10.255.255.255",
            "100.64.0.0",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.255",
            "168.63.129.16",
            "169.254.169.254",
            "172.16.0.0",
            "172.31.255.255",
            "192.0.0.0",
            "192.0.0.255",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.255.255",
            "198.18.0.0",
            "198.19.255.255",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::7f00:1",
            "::ffff:8.8.8.8",
            "::ffff:0:8.8.8.8",
            "64:ff9b::808:808",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:1ff:ffff::1",
            "2001:db8::1",
            "2002:808:808::1",
            "2001:470::5efe:a00:1",
            "2606:4700::200:5efe:808:808",
            "3fff::1",
            "3fff:fff::1",
            "5f00::1",
            "fc00::1",
            "fd00:ec2::254",
            "fdff::1",
            "fe80::1",
            "febf::1",
            "fec0::1",
            "ff02::1",
            "4000::1",
        ] {
            assert!(!is_public(text), "{text}");
        }
    }

    #[test]
    fn the_neighbours_of_the_ranges_are_public() {
        for text in [
            "1.0.0.0",
            "8.8.8.8",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "168.63.129.15",
            "169.253.255.255",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.1",
            "192.0.3.0",
            "192.167.255.255",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "2001:200::1",
            "2001:db7::1",
            "2001:db9::1",
            "2003::1",
            "2606:4700::1111",
            "2606:4700::1:5efe:a00:1",
            "3ffe::1",
            "3fff:1000::1",
        ] {
            assert!(is_public(text), "{text}");
        }
    }

    #[test]
    fn carried_ipv4_addresses_are_found() {
        for (text, carried) in [
            ("::ffff:10.0.0.1", Some("10.0.0.1")),
            ("::ffff:0:10.0.0.1", Some("10.0.0.1")),
            ("::10.0.0.1", Some("10.0.0.1")),
            ("64:ff9b::a00:1", Some("10.0.0.1")),
            ("2002:a00:1::", Some("10.0.0.1")),
            ("2001:0:1:2:3:4:f5ff:fffe", Some("10.0.0.1")),
            ("2001:470::5efe:10.0.0.1", Some("10.0.0.1")),
            ("fe80::200:5efe:a00:1", Some("10.0.0.1")),
            ("2001:db8::1", None),
            ("::1", None),
        ] {
            let found = embedded_ipv4(text.parse().unwrap()).map(|ip| ip.to_string());
            assert_eq!(found.as_deref(), carried, "{text}");
        }
    }

    #[test]
    fn old_spellings_are_read_as_inet_aton_reads_them() {
        for (text, ip) in [
            ("127.1", Some("127.0.0.1")),
            ("0x7f.0x1", Some("127.0.0.1")),
            ("0251.0376.0251.0376", Some("169.254.169.254")),
            ("4294967295", Some("255.255.255.255")),
            ("4294967296", None),
            ("1.2.3.256", None),
            ("1.2.65536", None),
            ("256.1", None),
            ("08.1.1.1", None),
            ("1..1", None),
            ("+1.1.1.1", None),
        ] {
            assert_eq!(inet_aton(text).map(|ip| ip.to_string()).as_deref(), ip, "{text}");
        }
    }

    #[test]
    fn own_addresses_are_read_from_the_kernels_tables() {
        let fib = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.0.0.0\n        /24 link UNICAST\nLocal:\n     |-- 10.0.0.5\n        /32 host LOCAL\n     |-- 10.0.0.255\n        /32 link BROADCAST\n     |-- 127.0.0.0\n        /8 host LOCAL\n";
        assert_eq!(own_ipv4(fib), [IpAddr::from([10, 0, 0, 5])]);
        let inet6 = "00000000000000000000000000000001 01 80 10 80       lo\nfd000000000000000000000000000007 02 40 00 80     eth0\n";
        let found: Vec<String> = own_ipv6(inet6).map(|ip| ip.to_string()).collect();
        assert_eq!(found, ["::1", "fd00::7"]);
        assert!(own_addresses().unwrap().contains(&IpAddr::from([127, 0, 0, 1])));
    }
}
