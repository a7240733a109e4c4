//! Addresses and networks.

use std::{any::Any, net::IpAddr};

use super::{Cost, Function, constant, row, standard::never};
use crate::{
    error::EvalError,
    value::{OpaqueValue, Value},
};

type Res<'a> = Result<Value<'a>, EvalError>;

const PARSE: Cost = Cost::Walk { times: 1.0, sized: false };

pub(super) const IP: &[Function] = &[
    constant("ip", PARSE, ip, &[("string_to_ip", "string -> #net.IP")]),
    row("family", Cost::Unit, family, &[("ip_family", ".#net.IP -> int")]),
    row(
        "ip.isCanonical",
        Cost::Walk { times: 2.0, sized: false },
        is_canonical,
        &[("ip_is_canonical", "string -> bool")],
    ),
    row("isUnspecified", Cost::Unit, is_unspecified, &[("ip_is_unspecified", ".#net.IP -> bool")]),
    row("isLoopback", Cost::Unit, is_loopback, &[("ip_is_loopback", ".#net.IP -> bool")]),
    row(
        "isLinkLocalMulticast",
        Cost::Unit,
        is_link_local_multicast,
        &[("ip_is_link_local_multicast", ".#net.IP -> bool")],
    ),
    row(
        "isLinkLocalUnicast",
        Cost::Unit,
        is_link_local_unicast,
        &[("ip_is_link_local_unicast", ".#net.IP -> bool")],
    ),
    row("isGlobalUnicast", Cost::Unit, is_global_unicast, &[("ip_is_global_unicast", ".#net.IP -> bool")]),
    row("isIP", PARSE, is_ip, &[("is_ip", "string -> bool")]),
    row("string", Cost::Standard, to_string, &[("ip_to_string", "#net.IP -> string")]),
];

pub(super) const CIDR: &[Function] = &[
    constant("cidr", PARSE, cidr, &[("string_to_cidr", "string -> #net.CIDR")]),
    row(
        "containsIP",
        Cost::ContainsIp,
        contains_ip,
        &[
            ("cidr_contains_ip_string", ".#net.CIDR, string -> bool"),
            ("cidr_contains_ip_ip", ".#net.CIDR, #net.IP -> bool"),
        ],
    ),
    row(
        "containsCIDR",
        Cost::ContainsCidr,
        contains_cidr,
        &[
            ("cidr_contains_cidr_string", ".#net.CIDR, string -> bool"),
            ("cidr_contains_cidr", ".#net.CIDR, #net.CIDR -> bool"),
        ],
    ),
    row("ip", Cost::Unit, network_ip, &[("cidr_ip", ".#net.CIDR -> #net.IP")]),
    row("prefixLength", Cost::Unit, prefix_length, &[("cidr_prefix_length", ".#net.CIDR -> int")]),
    row("masked", Cost::Unit, masked, &[("cidr_masked", ".#net.CIDR -> #net.CIDR")]),
    row("isCIDR", PARSE, is_cidr, &[("is_cidr", "string -> bool")]),
    row("string", Cost::Standard, to_string, &[("cidr_to_string", "#net.CIDR -> string")]),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Address(IpAddr);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Network {
    address: IpAddr,
    bits: u8,
}

impl OpaqueValue for Address {
    fn type_name(&self) -> &'static str {
        "net.IP"
    }
    fn equals(&self, other: &dyn OpaqueValue) -> Option<bool> {
        other.as_any().downcast_ref::<Address>().map(|other| self == other)
    }
    fn size(&self) -> u64 {
        u64::from(width(self.0)) / 8
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl OpaqueValue for Network {
    fn type_name(&self) -> &'static str {
        "net.CIDR"
    }
    fn equals(&self, other: &dyn OpaqueValue) -> Option<bool> {
        other.as_any().downcast_ref::<Network>().map(|other| self == other)
    }
    fn size(&self) -> u64 {
        u64::from(self.bits).div_ceil(8)
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

impl Network {
    fn mask(self) -> u128 {
        let host = width(self.address) - self.bits;
        if host == 128 { 0 } else { u128::MAX << host }
    }

    fn contains(self, address: IpAddr) -> bool {
        self.address.is_ipv4() == address.is_ipv4()
            && (number(self.address) ^ number(address)) & self.mask() & low_bits(width(address)) == 0
    }
}

fn low_bits(count: u8) -> u128 {
    if count == 128 { u128::MAX } else { (1 << count) - 1 }
}

fn mapped(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.to_ipv4_mapped().is_some())
}

/// As Go's `netip` reads an address: with its zone, if it has one.
fn parse_address(text: &str) -> Result<(IpAddr, Option<&str>), String> {
    let (plain, zone) = text.split_once('%').map_or((text, None), |(plain, zone)| (plain, Some(zone)));
    let invalid = |why: &str| format!("ParseAddr({text:?}): {why}");
    let address: IpAddr = plain.parse().map_err(|_| match zone {
        Some(_) if !plain.contains(['.', ':']) => invalid("missing IPv6 address"),
        _ => invalid(&why_no_address(plain)),
    })?;
    match zone {
        Some("") => Err(invalid("zone must be a non-empty string")),
        Some(_) if address.is_ipv4() => Err(invalid("IPv4 addresses cannot have a zone")),
        zone => Ok((address, zone)),
    }
}

fn parse_ip(text: &str) -> Result<Address, EvalError> {
    let (address, zone) = parse_address(text).map_err(|why| {
        EvalError::failed(format!("IP Address {text:?} parse error during conversion from string: {why}"))
    })?;
    if zone.is_some() {
        return Err(EvalError::failed(format!("IP address {text:?} with zone value is not allowed")));
    }
    if mapped(address) {
        return Err(EvalError::failed(format!("IPv4-mapped IPv6 address {text:?} is not allowed")));
    }
    Ok(Address(address))
}

/// What is wrong with an address, in the words of Go's `netip`.
fn why_no_address(text: &str) -> String {
    match text.find(['.', ':']) {
        Some(at) if text[at..].starts_with('.') => why_no_ipv4(text),
        Some(_) => why_no_ipv6(text),
        None => "unable to parse IP".into(),
    }
}

fn why_no_ipv4(text: &str) -> String {
    let (mut value, mut digits, mut fields) = (0_u32, 0, 0);
    let mut before = '.';
    for (at, c) in text.char_indices() {
        let at_rest = || format!("(at {:?})", &text[at..]);
        if let Some(digit) = c.to_digit(10) {
            if digits == 1 && value == 0 {
                return "IPv4 field has octet with leading zero".into();
            }
            value = value * 10 + digit;
            digits += 1;
            if value > 255 {
                return "IPv4 field has value >255".into();
            }
        } else if c == '.' {
            if at == 0 || at + 1 == text.len() || before == '.' {
                return format!("IPv4 field must have at least one digit {}", at_rest());
            }
            if fields == 3 {
                return "IPv4 address too long".into();
            }
            (value, digits) = (0, 0);
            fields += 1;
        } else {
            return format!("unexpected character {}", at_rest());
        }
        before = c;
    }
    "IPv4 address too short".into()
}

fn why_no_ipv6(text: &str) -> String {
    let mut rest = text;
    let mut ellipsis = false;
    if let Some(after) = rest.strip_prefix("::") {
        ellipsis = true;
        rest = after;
    }
    let mut fields = 0;
    while fields < 8 && !rest.is_empty() {
        let at_rest = |why: &str| format!("{why} (at {rest:?})");
        let digits = rest.bytes().take_while(u8::is_ascii_hexdigit).count();
        if digits > 4 {
            return at_rest("each group must have 4 or less digits");
        }
        if digits == 0 {
            return at_rest("each colon-separated field must have at least one digit");
        }
        let after = &rest[digits..];
        if after.starts_with('.') {
            if !ellipsis && fields != 6 {
                return at_rest("embedded IPv4 address must replace the final 2 fields of the address");
            }
            if fields > 6 {
                return at_rest("too many hex fields to fit an embedded IPv4 at the end of the address");
            }
            return why_no_ipv4(rest);
        }
        fields += 1;
        rest = after;
        if rest.is_empty() {
            break;
        }
        let at_rest = |why: &str| format!("{why} (at {rest:?})");
        let Some(after) = rest.strip_prefix(':') else { return at_rest("unexpected character, want colon") };
        if after.is_empty() {
            return at_rest("colon must be followed by more characters");
        }
        rest = after;
        if let Some(after) = rest.strip_prefix(':') {
            if ellipsis {
                return format!("multiple :: in address (at {rest:?})");
            }
            ellipsis = true;
            rest = after;
        }
    }
    if !rest.is_empty() {
        format!("trailing garbage after address (at {rest:?})")
    } else if ellipsis {
        "the :: must expand to at least one field of zeros".into()
    } else {
        "address string too short".into()
    }
}

fn parse_cidr(text: &str) -> Result<Network, EvalError> {
    let invalid = |why: &str| {
        EvalError::failed(format!(
            "network address parse error during conversion from string: network address parse error during \
             conversion from string: netip.ParsePrefix({text:?}): {why}"
        ))
    };
    let (address, bits) = text.rsplit_once('/').ok_or_else(|| invalid("no '/'"))?;
    let (address, zone) = parse_address(address).map_err(|why| invalid(&why))?;
    if zone.is_some() {
        return Err(invalid("IPv6 zones cannot be present in a prefix"));
    }
    let plain = bits.bytes().all(|byte| byte.is_ascii_digit()) && (bits == "0" || !bits.starts_with('0'));
    let bits: u8 = match bits.parse() {
        Ok(bits) if plain => bits,
        _ => return Err(invalid(&format!("bad bits after slash: {bits:?}"))),
    };
    if bits > width(address) {
        return Err(invalid("prefix length out of range"));
    }
    if mapped(address) {
        return Err(EvalError::failed(format!(
            "network address parse error during conversion from string: IPv4-mapped IPv6 address {text:?} is not allowed"
        )));
    }
    Ok(Network { address, bits })
}

fn ip<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    match args {
        [Value::String(text)] => parse_ip(text).map(Value::opaque),
        _ => never(args),
    }
}

fn is_ip<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    match args {
        [Value::String(text)] => Ok(Value::Bool(parse_ip(text).is_ok())),
        _ => never(args),
    }
}

fn is_canonical<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    match args {
        [Value::String(text)] => Ok(Value::Bool(parse_ip(text)?.0.to_string() == **text)),
        _ => never(args),
    }
}

fn address(args: &[Value<'_>]) -> Result<IpAddr, EvalError> {
    args[0].downcast::<Address>().map(|address| address.0).ok_or(EvalError::NoSuchOverload)
}

fn family<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    Ok(Value::Int(if address(args)?.is_ipv4() { 4 } else { 6 }))
}

fn is_unspecified<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    Ok(Value::Bool(address(args)?.is_unspecified()))
}

fn is_loopback<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    Ok(Value::Bool(address(args)?.is_loopback()))
}

fn link_local_unicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.segments()[0] & 0xffc0 == 0xfe80,
    }
}

fn is_link_local_unicast<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    Ok(Value::Bool(link_local_unicast(address(args)?)))
}

fn is_link_local_multicast<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    Ok(Value::Bool(match address(args)? {
        IpAddr::V4(address) => address.octets()[..3] == [224, 0, 0],
        IpAddr::V6(address) => address.segments()[0] & 0xff0f == 0xff02,
    }))
}

fn is_global_unicast<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    let address = address(args)?;
    let broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    Ok(Value::Bool(
        !(broadcast
            || address.is_unspecified()
            || address.is_loopback()
            || address.is_multicast()
            || link_local_unicast(address)),
    ))
}

fn to_string<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    if let Some(network) = args[0].downcast::<Network>() {
        return Ok(Value::string(format!("{}/{}", network.address, network.bits)));
    }
    Ok(Value::string(address(args)?.to_string()))
}

fn cidr<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    match args {
        [Value::String(text)] => parse_cidr(text).map(Value::opaque),
        _ => never(args),
    }
}

fn is_cidr<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    match args {
        [Value::String(text)] => Ok(Value::Bool(parse_cidr(text).is_ok())),
        _ => never(args),
    }
}

fn network(value: &Value<'_>) -> Result<Network, EvalError> {
    value.downcast::<Network>().copied().ok_or(EvalError::NoSuchOverload)
}

fn contains_ip<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    let own = network(&args[0])?;
    let other = match &args[1] {
        // Unlike of a network that is none, upstream says no more of it.
        // Upstream calls its own conversion, which says no more than this.
        Value::String(text) => parse_ip(text).map_err(|_| EvalError::no_such_overload())?.0,
        other => address(std::slice::from_ref(other))?,
    };
    Ok(Value::Bool(own.contains(other)))
}

fn contains_cidr<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    let own = network(&args[0])?;
    let other = match &args[1] {
        Value::String(text) => parse_cidr(text)?,
        other => network(other)?,
    };
    Ok(Value::Bool(own.bits <= other.bits && own.contains(other.address)))
}

fn network_ip<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    Ok(Value::opaque(Address(network(&args[0])?.address)))
}

fn prefix_length<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    Ok(Value::Int(network(&args[0])?.bits.into()))
}

fn masked<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    let network = network(&args[0])?;
    let bits = number(network.address) & network.mask();
    let address = match network.address {
        // The upper bits of an IPv4 address' number are zero.
        IpAddr::V4(_) => IpAddr::V4((bits as u32).into()),
        IpAddr::V6(_) => IpAddr::V6(bits.into()),
    };
    Ok(Value::opaque(Network { address, ..network }))
}
