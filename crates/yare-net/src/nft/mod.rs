//! nftables by netlink: tables, chains, sets and rules as messages.
//!
//! Only what the service proxy needs, with the kernel's own names
//! (`include/uapi/linux/netfilter/nf_tables.h`).

pub mod expr;

use crate::netlink::{Error, Message, NETFILTER, Socket};

pub use expr::Rule;

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEWTABLE: u16 = 0;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const NEWRULE: u16 = 6;
const NEWSET: u16 = 9;
const NEWSETELEM: u16 = 12;
const GETTABLE: u16 = 1;
const GETSETELEM: u16 = 13;
const DELSETELEM: u16 = 14;
const GETGEN: u16 = 16;

const CREATE: u16 = libc::NLM_F_CREATE as u16;
const APPEND: u16 = (libc::NLM_F_CREATE | libc::NLM_F_APPEND) as u16;

const SET_INTERVAL: u32 = 0x4;
const SET_MAP: u32 = 0x8;
const SET_TIMEOUT: u32 = 0x10;
const SET_EVAL: u32 = 0x20;
const SET_CONCAT: u32 = 0x80;
const TYPE_VERDICT: u32 = 0xffff_ff00;
const GOTO: i32 = -4;
const JUMP: i32 = -3;

/// IPv4 or IPv6: a table of each holds the same rules.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

impl Family {
    /// `NFPROTO_*`
    pub fn number(self) -> u8 {
        match self {
            Self::V4 => libc::NFPROTO_IPV4 as u8,
            Self::V6 => libc::NFPROTO_IPV6 as u8,
        }
    }

    /// 32-bit words of an address.
    pub fn words(self) -> u32 {
        match self {
            Self::V4 => 1,
            Self::V6 => 4,
        }
    }
}

/// Where a base chain hooks in.
#[derive(Clone, Copy, Debug)]
pub struct Hook {
    /// `nat` or `filter`
    pub kind: &'static str,
    /// `NF_INET_*`
    pub number: u32,
    /// Lower comes first.
    pub priority: i32,
}

/// `NF_INET_PRE_ROUTING` and its siblings.
pub mod hooks {
    /// Before routing.
    pub const PREROUTING: u32 = 0;
    /// To this machine.
    pub const INPUT: u32 = 1;
    /// Through this machine.
    pub const FORWARD: u32 = 2;
    /// From this machine.
    pub const OUTPUT: u32 = 3;
    /// After routing.
    pub const POSTROUTING: u32 = 4;
}

/// One part of a concatenated key, as `nft list` shows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// An address of the table's family.
    Address,
    /// `tcp`, `udp`, …
    Protocol,
    /// A port.
    Port,
    /// A number in the machine's order.
    Number,
}

impl Part {
    fn type_id(self, family: Family) -> u32 {
        match (self, family) {
            (Self::Address, Family::V4) => 7,
            (Self::Address, Family::V6) => 8,
            (Self::Protocol, _) => 12,
            (Self::Port, _) => 13,
            (Self::Number, _) => 19,
        }
    }

    fn bytes(self, family: Family) -> u32 {
        if self == Self::Address { family.words() * 4 } else { 4 }
    }
}

fn type_of(parts: &[Part], family: Family) -> u32 {
    parts.iter().fold(0, |id, part| (id << 6) | part.type_id(family))
}

fn length_of(parts: &[Part], family: Family) -> u32 {
    parts.iter().map(|p| p.bytes(family)).sum()
}

/// What a set's elements lead to.
#[derive(Clone, Copy, Debug)]
pub enum Leads {
    /// Nothing: a plain set.
    Nowhere,
    /// A chain.
    Chain,
    /// A value.
    Value(&'static [Part]),
}

/// A named set or map.
#[derive(Clone, Copy, Debug)]
pub struct Set {
    /// Its name.
    pub name: &'static str,
    /// Its key.
    pub key: &'static [Part],
    /// What its elements lead to.
    pub leads: Leads,
    /// Filled by rules, with a timeout per element.
    pub dynamic: bool,
    /// Its elements are ranges ([`Data::Until`]).
    pub ranges: bool,
}

/// What an element leads to.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Data {
    /// Nothing.
    None,
    /// Nothing; the element is all keys up to this one, part by part.
    Until(Vec<u8>),
    /// `goto` the chain.
    Goto(String),
    /// A value.
    Value(Vec<u8>),
}

/// One element of a set.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Element {
    /// The set.
    pub set: &'static str,
    /// The key, each part padded to four bytes.
    pub key: Vec<u8>,
    /// What it leads to.
    pub data: Data,
}

/// Messages that take effect together.
pub struct Batch {
    family: Family,
    table: &'static str,
    messages: Vec<Message>,
}

impl Batch {
    /// Nothing yet, for `table`.
    pub fn new(family: Family, table: &'static str) -> Self {
        Self { family, table, messages: Vec::new() }
    }

    fn message(&self, kind: u16, flags: u16) -> Message {
        // `struct nfgenmsg`: family, version, resource.
        Message::new((SUBSYSTEM << 8) | kind, flags).raw(&[self.family.number(), 0, 0, 0])
    }

    /// Empties the table: removes it if it is there and makes it anew.
    pub fn reset_table(&mut self) {
        for (kind, flags) in [(NEWTABLE, CREATE), (DELTABLE, 0), (NEWTABLE, CREATE)] {
            let message = self.message(kind, flags).str(1, self.table);
            self.messages.push(message);
        }
    }

    /// Removes the table; it must be there.
    pub fn delete_table(&mut self) {
        let message = self.message(DELTABLE, 0).str(1, self.table);
        self.messages.push(message);
    }

    /// Adds a chain.
    pub fn add_chain(&mut self, name: &str, hook: Option<Hook>) {
        let mut message = self.message(NEWCHAIN, CREATE).str(1, self.table).str(3, name);
        if let Some(hook) = hook {
            message =
                message.nest(4, |m| m.be32(1, hook.number).be32(2, hook.priority as u32)).str(7, hook.kind);
        }
        self.messages.push(message);
    }

    /// Adds a set.
    pub fn add_set(&mut self, set: &Set) {
        let family = self.family;
        let mut flags = if set.key.len() > 1 { SET_CONCAT } else { 0 };
        if !matches!(set.leads, Leads::Nowhere) {
            flags |= SET_MAP;
        }
        if set.ranges {
            flags |= SET_INTERVAL;
        }
        if set.dynamic {
            flags |= SET_TIMEOUT | SET_EVAL;
        }
        // Sets are told apart within a transaction by a number; its value does not matter.
        let id = self.messages.len() as u32 + 1;
        let mut message = self
            .message(NEWSET, CREATE)
            .str(1, self.table)
            .str(2, set.name)
            .be32(3, flags)
            .be32(4, type_of(set.key, family))
            .be32(5, length_of(set.key, family))
            .be32(10, id);
        message = match set.leads {
            Leads::Nowhere => message,
            Leads::Chain => message.be32(6, TYPE_VERDICT).be32(7, 0),
            Leads::Value(parts) => message.be32(6, type_of(parts, family)).be32(7, length_of(parts, family)),
        };
        if set.key.len() > 1 {
            let size = set.dynamic.then_some(MAX_DYNAMIC);
            message = message.nest(9, |mut m| {
                if let Some(size) = size {
                    m = m.be32(1, size);
                }
                m.nest(2, |mut m| {
                    for part in set.key {
                        m = m.nest(1, |m| m.be32(1, part.bytes(family)));
                    }
                    m
                })
            });
        }
        self.messages.push(message);
    }

    /// Appends a rule to a chain.
    pub fn add_rule(&mut self, chain: &str, rule: Rule) {
        let message =
            self.message(NEWRULE, APPEND).str(1, self.table).str(2, chain).nest(4, |m| rule.write(m));
        self.messages.push(message);
    }

    /// Adds elements.
    pub fn add_elements<'a>(&mut self, elements: impl IntoIterator<Item = &'a Element>) {
        self.elements(NEWSETELEM, CREATE, elements);
    }

    /// Removes elements, which must be there.
    pub fn delete_elements<'a>(&mut self, elements: impl IntoIterator<Item = &'a Element>) {
        self.elements(DELSETELEM, 0, elements);
    }

    fn elements<'a>(&mut self, kind: u16, flags: u16, elements: impl IntoIterator<Item = &'a Element>) {
        for element in elements {
            let message = self.message(kind, flags).str(1, self.table).str(2, element.set).nest(3, |m| {
                m.nest(1, |m| {
                    let m = m.nest(1, |m| m.attr(1, &element.key));
                    match &element.data {
                        Data::None => m,
                        Data::Until(end) => m.nest(10, |m| m.attr(1, end)),
                        Data::Goto(chain) => m.nest(2, |m| verdict(m, GOTO, chain)),
                        Data::Value(value) => m.nest(2, |m| m.attr(1, value)),
                    }
                })
            });
            self.messages.push(message);
        }
    }

    /// Whether there is anything to do.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Makes it so: all of it, or nothing.
    pub fn commit(self, socket: &mut Socket) -> Result<(), Error> {
        if self.messages.is_empty() {
            return Ok(());
        }
        let frame = |kind| Message::new(kind, 0).raw(&[0, 0, 0, SUBSYSTEM as u8]);
        socket.transaction(frame(BATCH_BEGIN), self.messages, frame(BATCH_END))
    }
}

/// The most elements a dynamic set takes.
const MAX_DYNAMIC: u32 = 65_536;

fn verdict(message: Message, code: i32, chain: &str) -> Message {
    message.nest(2, |m| m.be32(1, code as u32).str(2, chain))
}

/// Key and value of an element; the value is empty in a plain set.
pub type KeyValue = (Vec<u8>, Vec<u8>);

/// The elements of a set.
pub fn elements(socket: &mut Socket, family: Family, table: &str, set: &str) -> Result<Vec<KeyValue>, Error> {
    use crate::netlink::Attributes;
    let message = Message::new((SUBSYSTEM << 8) | GETSETELEM, 0)
        .raw(&[family.number(), 0, 0, 0])
        .str(1, table)
        .str(2, set);
    let mut out = Vec::new();
    socket.dump(message, |_, body| {
        let Some(list) = body.get(4..).and_then(|b| Attributes(b).find(3)) else { return };
        for (_, element) in Attributes(list) {
            let value = |kind| Attributes(element).find(kind).and_then(|v| Attributes(v).find(1));
            if let Some(key) = value(1) {
                out.push((key.to_vec(), value(2).unwrap_or_default().to_vec()));
            }
        }
    })?;
    Ok(out)
}

/// Whether the table is there.
pub fn has_table(socket: &mut Socket, family: Family, table: &str) -> Result<bool, Error> {
    let message = Message::new((SUBSYSTEM << 8) | GETTABLE, 0).raw(&[family.number(), 0, 0, 0]).str(1, table);
    match socket.get(message, |_, _| {}) {
        Err(error) if error.errno() == Some(nix::errno::Errno::ENOENT) => Ok(false),
        answered => answered.map(|()| true),
    }
}

/// Asks the kernel's nftables for their generation, which loads them where they are a module; an error where
/// there are none.
pub fn check() -> Result<(), Error> {
    let message = Message::new((SUBSYSTEM << 8) | GETGEN, 0).raw(&[0, 0, 0, 0]);
    socket()?.get(message, |_, _| {})
}

/// A netfilter socket in this network namespace.
pub fn socket() -> Result<Socket, Error> {
    Socket::open(NETFILTER)
}
