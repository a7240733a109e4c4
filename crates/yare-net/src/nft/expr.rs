//! Rules as lists of expressions over registers.
//!
//! There are sixteen registers of 32 bits; [`reg`] numbers them from 0. A concatenated key stands in
//! consecutive registers, each part starting a new one.

use super::{Family, GOTO, JUMP, verdict};
use crate::netlink::Message;

/// `NFT_REG32_00` and its followers.
const fn reg(number: u32) -> u32 {
    8 + number
}

/// A rule under construction.
#[derive(Default, Clone)]
pub struct Rule {
    expressions: Vec<Expression>,
}

#[derive(Clone)]
struct Expression {
    name: &'static str,
    attributes: Vec<Attribute>,
}

#[derive(Clone)]
enum Attribute {
    Number(u16, u32),
    /// `NFTA_*_DATA` with a value.
    Value(u16, Vec<u8>),
    Text(u16, String),
    Verdict(u16, i32, String),
    Long(u16, u64),
    Byte(u16, u8),
}

use Attribute::{Byte, Long, Number, Text, Value};

impl Rule {
    /// A rule that does nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    fn with(mut self, name: &'static str, attributes: Vec<Attribute>) -> Self {
        self.expressions.push(Expression { name, attributes });
        self
    }

    /// Loads the destination address of the packet.
    pub fn load_destination(self, to: u32, family: Family) -> Self {
        let (offset, length) = match family {
            Family::V4 => (16, 4),
            Family::V6 => (24, 16),
        };
        self.payload(to, 1, offset, length)
    }

    /// Loads the source address of the packet.
    pub fn load_source(self, to: u32, family: Family) -> Self {
        let (offset, length) = match family {
            Family::V4 => (12, 4),
            Family::V6 => (8, 16),
        };
        self.payload(to, 1, offset, length)
    }

    /// Loads the destination port.
    pub fn load_destination_port(self, to: u32) -> Self {
        self.payload(to, 2, 2, 2)
    }

    fn payload(self, to: u32, base: u32, offset: u32, length: u32) -> Self {
        let attributes = vec![Number(1, reg(to)), Number(2, base), Number(3, offset), Number(4, length)];
        self.with("payload", attributes)
    }

    /// Loads the transport protocol.
    pub fn load_protocol(self, to: u32) -> Self {
        self.with("meta", vec![Number(1, reg(to)), Number(2, 16)])
    }

    /// Loads a constant.
    pub fn load(self, to: u32, value: &[u8]) -> Self {
        self.with("immediate", vec![Number(1, reg(to)), Value(2, value.to_vec())])
    }

    /// Loads a random number of `count` from `first` on, in the machine's order.
    pub fn load_random(self, to: u32, count: u32, first: u32) -> Self {
        self.with("numgen", vec![Number(1, reg(to)), Number(2, count), Number(3, 1), Number(4, first)])
    }

    /// Goes on only if the register's first bytes equal (`equal`) or differ from `value`.
    pub fn compare(self, register: u32, equal: bool, value: &[u8]) -> Self {
        let operation = if equal { 0 } else { 1 };
        self.with("cmp", vec![Number(1, reg(register)), Number(2, operation), Value(3, value.to_vec())])
    }

    /// Masks a register in place.
    pub fn mask(self, register: u32, mask: &[u8]) -> Self {
        self.bitwise(register, mask, &vec![0; mask.len()])
    }

    fn bitwise(self, register: u32, mask: &[u8], xor: &[u8]) -> Self {
        self.with(
            "bitwise",
            vec![
                Number(1, reg(register)),
                Number(2, reg(register)),
                Number(3, mask.len() as u32),
                Value(4, mask.to_vec()),
                Value(5, xor.to_vec()),
            ],
        )
    }

    /// Goes on only for packets whose destination is an address of this machine.
    pub fn to_this_machine(self) -> Self {
        const DESTINATION: u32 = 2;
        self.of_this_machine(DESTINATION)
    }

    /// Goes on only for packets whose source is an address of this machine.
    pub fn from_this_machine(self) -> Self {
        const SOURCE: u32 = 1;
        self.of_this_machine(SOURCE)
    }

    fn of_this_machine(self, side: u32) -> Self {
        const ADDRESS_TYPE: u32 = 3;
        self.with("fib", vec![Number(1, reg(15)), Number(2, ADDRESS_TYPE), Number(3, side)]).compare(
            15,
            true,
            &u32::from(libc::RTN_LOCAL).to_ne_bytes(),
        )
    }

    /// Goes on only for packets of connections that are not known yet.
    pub fn new_connection(self) -> Self {
        const STATE: u32 = 0;
        const NEW: u32 = 1 << 3;
        let bit = NEW.to_ne_bytes();
        self.with("ct", vec![Number(1, reg(15)), Number(2, STATE)]).mask(15, &bit).compare(15, true, &bit)
    }

    /// Goes on only for connections whose destination was translated.
    pub fn translated(self) -> Self {
        const STATUS: u32 = 2;
        const DESTINATION_TRANSLATED: u32 = 1 << 5;
        let bit = DESTINATION_TRANSLATED.to_ne_bytes();
        self.with("ct", vec![Number(1, reg(15)), Number(2, STATUS)]).mask(15, &bit).compare(15, true, &bit)
    }

    /// Sets bits of the packet's mark.
    pub fn set_mark(self, bits: u32) -> Self {
        const MARK: u32 = 3;
        self.with("meta", vec![Number(1, reg(15)), Number(2, MARK)])
            .bitwise(15, &(!bits).to_ne_bytes(), &bits.to_ne_bytes())
            .with("meta", vec![Number(3, reg(15)), Number(2, MARK)])
    }

    /// Goes on only for packets with these bits in their mark.
    pub fn marked(self, bits: u32) -> Self {
        let bytes = bits.to_ne_bytes();
        self.with("meta", vec![Number(1, reg(15)), Number(2, 3)]).mask(15, &bytes).compare(15, true, &bytes)
    }

    /// Goes on only if the key in the registers from `key` is in the set.
    pub fn is_in(self, set: &str, key: u32) -> Self {
        self.with("lookup", vec![Text(1, set.into()), Number(2, reg(key))])
    }

    /// Goes on only if the key in the registers from `key` is not in the set.
    pub fn is_not_in(self, set: &str, key: u32) -> Self {
        const INVERTED: u32 = 1;
        self.with("lookup", vec![Text(1, set.into()), Number(2, reg(key)), Number(5, INVERTED)])
    }

    /// Takes the chain that the map holds for the key; goes on if there is none.
    pub fn by_map(self, map: &str, key: u32) -> Self {
        const VERDICT: u32 = 0;
        self.with("lookup", vec![Text(1, map.into()), Number(2, reg(key)), Number(3, VERDICT)])
    }

    /// Loads what the map holds for the key; ends the rule if there is nothing.
    pub fn load_from_map(self, map: &str, key: u32, to: u32) -> Self {
        self.with("lookup", vec![Text(1, map.into()), Number(2, reg(key)), Number(3, reg(to))])
    }

    /// Puts key and value into a dynamic map, for `timeout_ms` from now.
    pub fn remember(self, map: &str, key: u32, value: u32, timeout_ms: u64) -> Self {
        const UPDATE: u32 = 1;
        let attributes = vec![
            Text(1, map.into()),
            Number(3, UPDATE),
            Number(4, reg(key)),
            Number(5, reg(value)),
            Long(6, timeout_ms),
        ];
        self.with("dynset", attributes)
    }

    /// Sends the connection to the address in register `address` and the port in `port`.
    pub fn send_to(self, family: Family, address: u32, port: u32) -> Self {
        const DESTINATION: u32 = 1;
        let attributes = vec![
            Number(1, DESTINATION),
            Number(2, u32::from(family.number())),
            Number(3, reg(address)),
            Number(5, reg(port)),
        ];
        self.with("nat", attributes)
    }

    /// Gives the connection this machine's source address, with a random port.
    pub fn masquerade(self) -> Self {
        const RANDOM_FULLY: u32 = 1 << 4;
        self.with("masq", vec![Number(1, RANDOM_FULLY)])
    }

    /// Answers with "port unreachable" of the family.
    pub fn unreachable(self, family: Family) -> Self {
        // ICMP code 3 and ICMPv6 code 4.
        let code: u8 = if family == Family::V4 { 3 } else { 4 };
        self.with("reject", vec![Number(1, 0), Byte(2, code)])
    }

    /// Resets the TCP connection.
    pub fn reset(self) -> Self {
        self.with("reject", vec![Number(1, 1), Byte(2, 0)])
    }

    /// Drops the packet.
    pub fn drop(self) -> Self {
        self.with("immediate", vec![Number(1, 0), Attribute::Verdict(2, 0, String::new())])
    }

    /// Goes through `chain` and comes back.
    pub fn jump(self, chain: &str) -> Self {
        self.with("immediate", vec![Number(1, 0), Attribute::Verdict(2, JUMP, chain.into())])
    }

    /// Goes on in `chain`.
    pub fn goto(self, chain: &str) -> Self {
        self.with("immediate", vec![Number(1, 0), Attribute::Verdict(2, GOTO, chain.into())])
    }

    pub(super) fn write(self, mut message: Message) -> Message {
        for expression in self.expressions {
            message = message.nest(1, |m| {
                m.str(1, expression.name).nest(2, |mut m| {
                    for attribute in expression.attributes {
                        m = attribute.write(m);
                    }
                    m
                })
            });
        }
        message
    }
}

impl Attribute {
    fn write(self, m: Message) -> Message {
        match self {
            Self::Number(kind, value) => m.be32(kind, value),
            Self::Value(kind, value) => m.nest(kind, |m| m.attr(1, &value)),
            Self::Text(kind, text) => m.str(kind, &text),
            Self::Verdict(kind, code, chain) if chain.is_empty() => {
                m.nest(kind, |m| m.nest(2, |m| m.be32(1, code as u32)))
            }
            Self::Verdict(kind, code, chain) => m.nest(kind, |m| verdict(m, code, &chain)),
            Self::Byte(kind, value) => m.attr(kind, &[value]),
            Self::Long(kind, value) => m.attr(kind, &value.to_be_bytes()),
        }
    }
}
