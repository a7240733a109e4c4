//! IP addresses and ranges as fields of objects: strict rules for what is new, and upstream's words.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use yare_schema::field::Path;

use crate::check::{Check, Errors};

/// Parses an address; its parts may have leading zeros, as in old objects.
pub fn parse_ip_sloppy(value: &str) -> Option<IpAddr> {
    if value.contains(':') {
        return parse_v6_sloppy(value).map(IpAddr::V6);
    }
    parse_v4_sloppy(value).map(IpAddr::V4)
}

/// The same of IPv6: with all the zeros that parts may have, it is an ordinary one.
fn parse_v6_sloppy(value: &str) -> Option<Ipv6Addr> {
    if let Ok(ip) = value.parse() {
        return Some(ip);
    }
    let plain = |part: &str| match part.trim_start_matches('0') {
        "" if !part.is_empty() => "0".to_owned(),
        rest => rest.to_owned(),
    };
    let mut parts: Vec<String> = value.split(':').map(plain).collect();
    if let (Some(last), Some((_, v4))) = (parts.last_mut(), value.rsplit_once(':'))
        && v4.contains('.')
    {
        *last = parse_v4_sloppy(v4)?.to_string();
    }
    parts.join(":").parse().ok()
}

fn parse_v4_sloppy(value: &str) -> Option<Ipv4Addr> {
    let mut octets = [0u8; 4];
    let mut parts = value.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        if part.is_empty() || !part.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        *octet = part
            .trim_start_matches('0')
            .parse()
            .or_else(|e| if part.bytes().all(|b| b == b'0') { Ok(0) } else { Err(e) })
            .ok()?;
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets))
}

/// Parses a range; see [`parse_ip_sloppy`].
pub fn parse_cidr_sloppy(value: &str) -> Option<(IpAddr, u8)> {
    let (ip, bits) = value.split_once('/')?;
    let ip = parse_ip_sloppy(ip)?;
    if !bits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let bits: u8 = bits.parse().ok()?;
    (bits <= if ip.is_ipv4() { 32 } else { 128 }).then_some((ip, bits))
}

/// Whether `value` is an IPv6 address.
pub fn is_ipv6(value: &str) -> bool {
    matches!(parse_ip_sloppy(value), Some(IpAddr::V6(ip)) if ip.to_ipv4_mapped().is_none())
}

/// Whether `value` is an IPv4 address.
pub fn is_ipv4(value: &str) -> bool {
    match parse_ip_sloppy(value) {
        Some(IpAddr::V4(_)) => true,
        Some(IpAddr::V6(ip)) => ip.to_ipv4_mapped().is_some(),
        None => false,
    }
}

/// The address as Go writes it: IPv4-mapped addresses in dotted form.
pub fn canonical(ip: IpAddr) -> String {
    match ip {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or_else(|| v6.to_string(), |v4| v4.to_string()),
        IpAddr::V4(v4) => v4.to_string(),
    }
}

/// The network address of a range.
pub fn masked(ip: IpAddr, bits: u8) -> IpAddr {
    match ip {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from(u32::from(v4) & mask))
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from(u128::from(v6) & mask))
        }
    }
}

fn is_mapped(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some())
}

/// The rule of fields that have always held addresses: new values strictly, values in `old` as they are.
pub fn check_legacy_ip(errs: &mut Errors, path: &Path<'_>, value: &str, old: &[&str]) {
    check_old_ip(errs, path, value, old, true);
}

/// [`check_legacy_ip`], where only `strict` (the gate `StrictIPCIDRValidation`) refuses forms that read differently
/// in different programs.
pub fn check_old_ip(errs: &mut Errors, path: &Path<'_>, value: &str, old: &[&str], strict: bool) {
    if old.contains(&value) {
        return;
    }
    if parse_ip_sloppy(value).is_none() {
        errs.invalid(path, value, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)");
    } else if strict {
        check_strict_ip(errs, path, value);
    }
}

/// What [`check_old_ip`] refuses beyond what is no address at all.
pub fn check_strict_ip(errs: &mut Errors, path: &Path<'_>, value: &str) {
    let Some(ip) = parse_ip_sloppy(value) else { return };
    if value.parse::<IpAddr>().is_err() {
        errs.invalid(path, value, "must not have leading 0s");
    }
    if is_mapped(ip) {
        errs.invalid(path, value, "must not be an IPv4-mapped IPv6 address");
    }
}

/// The rule of newer fields: the canonical form only.
pub fn check_ip(errs: &mut Errors, path: &Path<'_>, value: &str) {
    let before = errs.len();
    check_legacy_ip(errs, path, value, &[]);
    if errs.len() == before
        && let Ok(ip) = value.parse::<IpAddr>()
        && canonical(ip) != value
    {
        errs.invalid(path, value, format!("must be in canonical form ({:?})", canonical(ip)));
    }
}

/// [`check_legacy_ip`] for ranges.
pub fn check_legacy_cidr(errs: &mut Errors, path: &Path<'_>, value: &str, old: &[&str]) {
    check_old_cidr(errs, path, value, old, true);
}

/// [`check_old_ip`] for ranges.
pub fn check_old_cidr(errs: &mut Errors, path: &Path<'_>, value: &str, old: &[&str], strict: bool) {
    if old.contains(&value) {
        return;
    }
    let Some((ip, bits)) = parse_cidr_sloppy(value) else {
        errs.invalid(path, value, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)");
        return;
    };
    if !strict {
        return;
    }
    let (address, length) = value.split_once('/').unwrap_or((value, ""));
    if address.parse::<IpAddr>().is_err() || (length.len() > 1 && length.starts_with('0')) {
        errs.invalid(path, value, "must not have leading 0s in IP or prefix length");
    } else if is_mapped(ip) {
        errs.invalid(path, value, "must not have an IPv4-mapped IPv6 address");
    } else if masked(ip, bits) != ip {
        errs.invalid(path, value, "must not have bits set beyond the prefix length");
    }
}

/// An address of an interface with the length of its network's prefix, in canonical form.
pub fn check_interface_address(errs: &mut Errors, path: &Path<'_>, value: &str) {
    let Some((ip, bits)) = parse_cidr_sloppy(value) else {
        let detail = "must be a valid address in CIDR form, (e.g. 10.9.8.7/24 or 2001:db8::1/64)";
        return errs.invalid(path, value, detail);
    };
    // "::ffff:192.168.0.1/120" is "192.168.0.1/24".
    let bits = if is_mapped(ip) && bits > 32 { bits.saturating_sub(96) } else { bits };
    let form = format!("{}/{bits}", canonical(ip));
    if value != form {
        errs.invalid(path, value, format!("must be in canonical form ({form:?})"));
    }
}

/// [`check_ip`] for ranges.
pub fn check_cidr(errs: &mut Errors, path: &Path<'_>, value: &str) {
    let before = errs.len();
    check_legacy_cidr(errs, path, value, &[]);
    if errs.len() == before
        && let Some((ip, bits)) = parse_cidr_sloppy(value)
    {
        let form = format!("{}/{bits}", canonical(masked(ip, bits)));
        if form != value {
            errs.invalid(path, value, format!("must be in canonical form ({form:?})"));
        }
    }
}

/// Warnings about an address that is valid but unusual.
pub fn ip_warnings(path: &Path<'_>, value: &str) -> Option<String> {
    let ip = parse_ip_sloppy(value)?;
    let form = canonical(ip);
    if value.parse::<IpAddr>().is_err() || is_mapped(ip) {
        return Some(format!("{path}: non-standard IP address {value:?} is invalid: use {form:?}"));
    }
    (ip.is_ipv6() && form != value)
        .then(|| format!("{path}: IPv6 address {value:?} should be in RFC 5952 canonical format ({form:?})"))
}

/// Warnings about a range that is valid but unusual.
pub fn cidr_warnings(path: &Path<'_>, value: &str) -> Vec<String> {
    let Some((ip, bits)) = parse_cidr_sloppy(value) else { return Vec::new() };
    let network = format!("{}/{bits}", canonical(masked(ip, bits)));
    let mut warnings = Vec::new();
    if masked(ip, bits) != ip {
        let single = format!("{}/{}", canonical(ip), if ip.is_ipv4() { 32 } else { 128 });
        warnings.push(format!(
            "{path}: CIDR value {value:?} is ambiguous in this context (should be {network:?} or {single:?}?)"
        ));
    }
    let (address, length) = value.split_once('/').unwrap_or((value, ""));
    if address.parse::<IpAddr>().is_err() || (length.len() > 1 && length.starts_with('0')) || is_mapped(ip) {
        warnings.push(format!("{path}: non-standard CIDR value {value:?} is invalid: use {network:?}"));
    }
    let form = format!("{}/{bits}", canonical(ip));
    if warnings.is_empty() && ip.is_ipv6() && form != value {
        warnings.push(format!(
            "{path}: IPv6 CIDR value {value:?} should be in RFC 5952 canonical format ({form:?})"
        ));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let check = |f: fn(&mut Errors, &Path<'_>, &str), value: &str| {
            let mut errs = Errors::new();
            f(&mut errs, &Path::new("ip"), value);
            errs.iter().map(|e| e.detail.clone()).collect::<Vec<_>>().join("; ")
        };
        assert_eq!(check(check_ip, "10.0.0.1"), "");
        assert_eq!(check(check_ip, "10.0.0.01"), "must not have leading 0s");
        assert_eq!(check(check_ip, "2001:DB8::1"), "must be in canonical form (\"2001:db8::1\")");
        assert_eq!(check(check_ip, "::ffff:1.2.3.4"), "must not be an IPv4-mapped IPv6 address");
        assert!(check(check_ip, "x").starts_with("must be a valid IP"));
        assert_eq!(check(check_cidr, "10.0.0.0/8"), "");
        assert_eq!(check(check_cidr, "10.0.0.1/8"), "must not have bits set beyond the prefix length");
        assert_eq!(check(check_cidr, "10.0.0.0/08"), "must not have leading 0s in IP or prefix length");
        assert!(check(check_cidr, "10.0.0.0/33").starts_with("must be a valid CIDR"));
        assert_eq!(check(check_cidr, "0.0.0.0/0"), "");
        for (sloppy, ip) in [
            ("010.0.0.01", Some("10.0.0.1")),
            ("::00001", Some("::1")),
            ("00::0", Some("::")),
            ("::ffff:01.2.3.4", Some("1.2.3.4")),
            ("1::2::3", None),
            (":::", None),
            (":1", None),
            ("::1.2.3", None),
        ] {
            assert_eq!(parse_ip_sloppy(sloppy).map(canonical).as_deref(), ip, "{sloppy}");
        }
        assert_eq!(parse_cidr_sloppy("::/00001").map(|(_, bits)| bits), Some(1));
        assert_eq!(parse_cidr_sloppy("::/").or(parse_cidr_sloppy("::/+1")), None);
    }
}
