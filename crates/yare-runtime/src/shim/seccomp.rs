//! System call filters: profiles (our default, or Docker's JSON format) compiled to BPF.
//!
//! The numbers of a profile become sorted ranges with one outcome each, and those a binary search: about ten
//! comparisons per call, where a list would take hundreds.

use std::collections::BTreeMap;
use std::path::Path;

use libc::sock_filter;
use serde::Deserialize;

use super::caps;

const DEFAULT_PROFILE: &str = include_str!("seccomp/default.txt");
const SYSCALLS: &str = include_str!("seccomp/syscalls.txt");

const RET_KILL_PROCESS: u32 = 0x8000_0000;
const RET_KILL_THREAD: u32 = 0;
const RET_TRAP: u32 = 0x0003_0000;
const RET_ERRNO: u32 = 0x0005_0000;
const RET_TRACE: u32 = 0x7ff0_0000;
const RET_LOG: u32 = 0x7ffc_0000;
const RET_ALLOW: u32 = 0x7fff_0000;

const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
const AUDIT_ARCH_I386: u32 = 0x4000_0003;
const AUDIT_ARCH_AARCH64: u32 = 0xc000_00b7;
/// x32's numbers start here; we allow none of them.
const X32_BIT: u32 = 0x4000_0000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Masked,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Arg {
    index: u8,
    op: Op,
    /// The value to compare with, or the mask.
    value: u64,
    /// What must remain under the mask.
    datum: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    action: u32,
    names: Vec<String>,
    args: Vec<Arg>,
}

/// A profile whose conditions on capabilities and machine are decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Profile {
    default: u32,
    rules: Vec<Rule>,
}

impl Profile {
    /// The default profile for a container with these capabilities.
    pub(crate) fn runtime_default(capabilities: u64) -> Result<Self, String> {
        let mut rules = Vec::new();
        for line in DEFAULT_PROFILE.lines().filter(|l| !l.starts_with('#') && !l.is_empty()) {
            let (head, names) = line.split_once(':').ok_or_else(|| format!("rule {line:?}"))?;
            let mut words = head.split_whitespace();
            let mut action = RET_ALLOW;
            let mut args = Vec::new();
            let mut applies = true;
            while let Some(word) = words.next() {
                let has = |name: &str| caps::bit(name).is_some_and(|b| capabilities & b != 0);
                if let Some(number) = word.strip_prefix("errno=") {
                    action = RET_ERRNO | number.parse::<u32>().map_err(|e| e.to_string())?;
                } else if let Some(name) = word.strip_prefix("cap=") {
                    applies &= has(name);
                } else if let Some(name) = word.strip_prefix("nocap=") {
                    applies &= !has(name);
                } else if word == "arg" {
                    let mut next = || words.next().ok_or_else(|| format!("rule {line:?}"));
                    let index = next()?.parse().map_err(|_| format!("rule {line:?}"))?;
                    let op = match next()? {
                        "eq" => Op::Eq,
                        "ne" => Op::Ne,
                        "masked" => Op::Masked,
                        _ => return Err(format!("rule {line:?}")),
                    };
                    let value = next()?.parse().map_err(|_| format!("rule {line:?}"))?;
                    args.push(Arg { index, op, value, datum: 0 });
                }
            }
            if applies {
                rules.push(Rule {
                    action,
                    names: names.split_whitespace().map(str::to_owned).collect(),
                    args,
                });
            }
        }
        Ok(Self { default: RET_ERRNO | libc::EPERM as u32, rules })
    }

    /// A profile file in Docker's (and the OCI's) JSON format.
    pub(crate) fn from_file(path: &Path, capabilities: u64) -> Result<Self, String> {
        let text = std::fs::read(path).map_err(|e| format!("seccomp profile {}: {e}", path.display()))?;
        Self::from_json(&text, capabilities).map_err(|e| format!("seccomp profile {}: {e}", path.display()))
    }

    fn from_json(text: &[u8], capabilities: u64) -> Result<Self, String> {
        let file: JsonProfile = serde_json::from_slice(text).map_err(|e| e.to_string())?;
        let default = action(&file.default_action, file.default_errno_ret)?;
        let mut rules = Vec::new();
        for s in file.syscalls {
            let has =
                |list: &[String]| list.iter().any(|c| caps::bit(c).is_some_and(|b| capabilities & b != 0));
            let arch = |list: &[String]| list.iter().any(|a| a == ARCH_NAME);
            let wanted = (s.includes.caps.is_empty() || has(&s.includes.caps))
                && (s.includes.arches.is_empty() || arch(&s.includes.arches))
                && !has(&s.excludes.caps)
                && !arch(&s.excludes.arches);
            if !wanted {
                continue;
            }
            let mut args = Vec::new();
            for a in s.args.unwrap_or_default() {
                let op = match a.op.as_str() {
                    "SCMP_CMP_EQ" => Op::Eq,
                    "SCMP_CMP_NE" => Op::Ne,
                    "SCMP_CMP_LT" => Op::Lt,
                    "SCMP_CMP_LE" => Op::Le,
                    "SCMP_CMP_GT" => Op::Gt,
                    "SCMP_CMP_GE" => Op::Ge,
                    "SCMP_CMP_MASKED_EQ" => Op::Masked,
                    other => return Err(format!("unknown operator {other:?}")),
                };
                if a.index > 5 {
                    return Err(format!("argument {} of a system call", a.index));
                }
                args.push(Arg { index: a.index, op, value: a.value, datum: a.value_two });
            }
            let mut names = s.names;
            names.extend(s.name);
            rules.push(Rule { action: action(&s.action, s.errno_ret)?, names, args });
        }
        Ok(Self { default, rules })
    }

    /// The BPF program.
    pub(crate) fn compile(&self) -> Result<Vec<sock_filter>, String> {
        let native = self.machine(NATIVE_COLUMN, cfg!(target_arch = "x86_64"))?;
        let mut code = vec![load(4)];
        if cfg!(target_arch = "x86_64") {
            let compat = self.machine(I386_COLUMN, false)?;
            // Long jumps, because the blocks are longer than a conditional jump reaches.
            code.push(jump(JEQ, AUDIT_ARCH_X86_64, 0, 1));
            code.push(always(3));
            code.push(jump(JEQ, AUDIT_ARCH_I386, 0, 1));
            code.push(always(native.len() as u32 + 1));
            code.push(ret(RET_KILL_PROCESS));
            code.extend(native);
            code.extend(compat);
        } else {
            code.push(jump(JEQ, AUDIT_ARCH_AARCH64, 1, 0));
            code.push(ret(RET_KILL_PROCESS));
            code.extend(native);
        }
        if code.len() > 4096 {
            return Err(format!("the seccomp profile is too large: {} instructions", code.len()));
        }
        Ok(code)
    }

    fn machine(&self, column: usize, x32: bool) -> Result<Vec<sock_filter>, String> {
        let numbers = numbers(column);
        // Number → what happens: unconditional rules win over those with arguments.
        let mut outcome: BTreeMap<u32, Leaf> = BTreeMap::new();
        for rule in &self.rules {
            for name in &rule.names {
                let Some(number) = numbers.get(name.as_str()) else { continue };
                let leaf =
                    outcome.entry(*number).or_insert_with(|| Leaf { tests: Vec::new(), last: self.default });
                if rule.args.is_empty() {
                    leaf.tests.clear();
                    leaf.last = rule.action;
                } else if leaf.last == self.default {
                    leaf.tests.push((rule.args.clone(), rule.action));
                }
            }
        }
        let default = Leaf { tests: Vec::new(), last: self.default };
        let mut ranges: Vec<(u32, Leaf)> = vec![(0, default.clone())];
        let mut next = 0;
        for (number, leaf) in outcome {
            if number > next && ranges.last().is_some_and(|(_, l)| *l != default) {
                ranges.push((next, default.clone()));
            }
            if ranges.last().is_some_and(|(_, l)| *l != leaf) {
                if ranges.last().is_some_and(|(start, _)| *start == number) {
                    ranges.pop();
                }
                if ranges.last().is_none_or(|(_, l)| *l != leaf) {
                    ranges.push((number, leaf));
                }
            }
            next = number + 1;
        }
        if ranges.last().is_some_and(|(_, l)| *l != default) {
            ranges.push((next, default));
        }
        let mut code = vec![load(0)];
        if x32 {
            code.push(jump(JGE, X32_BIT, 0, 1));
            code.push(ret(self.default));
        }
        code.extend(tree(&ranges)?);
        Ok(code)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Leaf {
    tests: Vec<(Vec<Arg>, u32)>,
    last: u32,
}

#[cfg(target_arch = "x86_64")]
const ARCH_NAME: &str = "amd64";
#[cfg(target_arch = "x86_64")]
const NATIVE_COLUMN: usize = 1;
#[cfg(target_arch = "aarch64")]
const ARCH_NAME: &str = "arm64";
#[cfg(target_arch = "aarch64")]
const NATIVE_COLUMN: usize = 3;
const I386_COLUMN: usize = 2;

fn numbers(column: usize) -> BTreeMap<&'static str, u32> {
    SYSCALLS
        .lines()
        .filter(|l| !l.starts_with('#'))
        .filter_map(|l| {
            let mut fields = l.split(' ');
            let name = fields.next()?;
            fields.nth(column - 1)?.parse().ok().map(|n| (name, n))
        })
        .collect()
}

fn action(name: &str, errno: Option<u32>) -> Result<u32, String> {
    let data = errno.unwrap_or(libc::EPERM as u32) & 0xffff;
    Ok(match name {
        "SCMP_ACT_ALLOW" => RET_ALLOW,
        "SCMP_ACT_ERRNO" => RET_ERRNO | data,
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => RET_KILL_THREAD,
        "SCMP_ACT_KILL_PROCESS" => RET_KILL_PROCESS,
        "SCMP_ACT_TRAP" => RET_TRAP,
        "SCMP_ACT_TRACE" => RET_TRACE | data,
        "SCMP_ACT_LOG" => RET_LOG,
        other => return Err(format!("unknown action {other:?}")),
    })
}

const JEQ: u16 = 0x15;
const JGT: u16 = 0x25;
const JGE: u16 = 0x35;

fn load(offset: u32) -> sock_filter {
    sock_filter { code: 0x20, jt: 0, jf: 0, k: offset }
}

fn and(mask: u32) -> sock_filter {
    sock_filter { code: 0x54, jt: 0, jf: 0, k: mask }
}

fn jump(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

fn always(offset: u32) -> sock_filter {
    sock_filter { code: 0x05, jt: 0, jf: 0, k: offset }
}

fn ret(value: u32) -> sock_filter {
    sock_filter { code: 0x06, jt: 0, jf: 0, k: value }
}

/// Binary search over ranges; the number is in the accumulator.
fn tree(ranges: &[(u32, Leaf)]) -> Result<Vec<sock_filter>, String> {
    if let [(_, leaf)] = ranges {
        return leaf_code(leaf);
    }
    let (low, high) = ranges.split_at(ranges.len() / 2);
    let pivot = high.first().map_or(0, |(n, _)| *n);
    let left = tree(low)?;
    let right = tree(high)?;
    let mut code = Vec::with_capacity(left.len() + right.len() + 2);
    match u8::try_from(left.len()) {
        Ok(distance) => code.push(jump(JGE, pivot, distance, 0)),
        Err(_) => {
            code.push(jump(JGE, pivot, 0, 1));
            code.push(always(left.len() as u32));
        }
    }
    code.extend(left);
    code.extend(right);
    Ok(code)
}

fn leaf_code(leaf: &Leaf) -> Result<Vec<sock_filter>, String> {
    let mut code = Vec::new();
    for (args, action) in &leaf.tests {
        let mut block = Vec::new();
        for arg in args {
            test(arg, &mut block);
        }
        // A failed test goes behind the block's `ret`.
        let end = block.len() + 1;
        for (at, (instruction, fail)) in block.into_iter().enumerate() {
            let mut instruction: sock_filter = instruction;
            let distance =
                u8::try_from(end - at - 1).map_err(|_| "too many arguments in a rule".to_owned())?;
            match fail {
                Fail::Never => {}
                Fail::IfTrue => instruction.jt = distance,
                Fail::IfFalse => instruction.jf = distance,
            }
            code.push(instruction);
        }
        code.push(ret(*action));
    }
    code.push(ret(leaf.last));
    Ok(code)
}

#[derive(Clone, Copy)]
enum Fail {
    Never,
    IfTrue,
    IfFalse,
}

/// Tests one 64-bit argument, high half first. Falling through means success.
fn test(arg: &Arg, block: &mut Vec<(sock_filter, Fail)>) {
    let low = 16 + 8 * u32::from(arg.index);
    let high = low + 4;
    let (v_high, v_low) = ((arg.value >> 32) as u32, arg.value as u32);
    let mut push = |i, f| block.push((i, f));
    match arg.op {
        Op::Eq => {
            push(load(high), Fail::Never);
            push(jump(JEQ, v_high, 0, 0), Fail::IfFalse);
            push(load(low), Fail::Never);
            push(jump(JEQ, v_low, 0, 0), Fail::IfFalse);
        }
        Op::Masked => {
            push(load(high), Fail::Never);
            push(and(v_high), Fail::Never);
            push(jump(JEQ, (arg.datum >> 32) as u32, 0, 0), Fail::IfFalse);
            push(load(low), Fail::Never);
            push(and(v_low), Fail::Never);
            push(jump(JEQ, arg.datum as u32, 0, 0), Fail::IfFalse);
        }
        Op::Ne => {
            push(load(high), Fail::Never);
            push(jump(JEQ, v_high, 0, 2), Fail::Never);
            push(load(low), Fail::Never);
            push(jump(JEQ, v_low, 0, 0), Fail::IfTrue);
        }
        Op::Gt | Op::Ge => {
            push(load(high), Fail::Never);
            push(jump(JGT, v_high, 3, 0), Fail::Never);
            push(jump(JEQ, v_high, 0, 0), Fail::IfFalse);
            push(load(low), Fail::Never);
            push(jump(if arg.op == Op::Gt { JGT } else { JGE }, v_low, 0, 0), Fail::IfFalse);
        }
        Op::Lt | Op::Le => {
            push(load(high), Fail::Never);
            push(jump(JGT, v_high, 0, 0), Fail::IfTrue);
            push(jump(JEQ, v_high, 0, 2), Fail::Never);
            push(load(low), Fail::Never);
            push(jump(if arg.op == Op::Le { JGT } else { JGE }, v_low, 0, 0), Fail::IfTrue);
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonProfile {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    syscalls: Vec<JsonSyscall>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonSyscall {
    #[serde(default)]
    names: Vec<String>,
    name: Option<String>,
    action: String,
    errno_ret: Option<u32>,
    args: Option<Vec<JsonArg>>,
    #[serde(default)]
    includes: JsonFilter,
    #[serde(default)]
    excludes: JsonFilter,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonArg {
    index: u8,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

#[derive(Deserialize, Default)]
struct JsonFilter {
    #[serde(default)]
    caps: Vec<String>,
    #[serde(default)]
    arches: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Interprets the few instructions we use.
    fn run(code: &[sock_filter], arch: u32, nr: u32, args: &[u64]) -> u32 {
        let mut data = [0u32; 16];
        data[0] = nr;
        data[1] = arch;
        for (i, a) in args.iter().enumerate() {
            data[4 + 2 * i] = *a as u32;
            data[5 + 2 * i] = (*a >> 32) as u32;
        }
        let (mut pc, mut a) = (0, 0u32);
        loop {
            let i = code[pc];
            pc += 1;
            let mut branch = |yes: bool| pc += usize::from(if yes { i.jt } else { i.jf });
            match i.code {
                0x20 => a = data[i.k as usize / 4],
                0x54 => a &= i.k,
                0x05 => pc += i.k as usize,
                0x06 => return i.k,
                JEQ => branch(a == i.k),
                JGT => branch(a > i.k),
                JGE => branch(a >= i.k),
                other => panic!("{other}"),
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn every_number_has_the_outcome_its_rules_say() {
        let caps = caps::resolve(false, &[], &[]).unwrap();
        let profile = Profile::runtime_default(caps).unwrap();
        let code = profile.compile().unwrap();
        for (column, arch) in [(1, AUDIT_ARCH_X86_64), (2, AUDIT_ARCH_I386)] {
            let table = numbers(column);
            let allowed: std::collections::BTreeSet<u32> = profile
                .rules
                .iter()
                .filter(|r| r.args.is_empty() && r.action == RET_ALLOW)
                .flat_map(|r| r.names.iter().filter_map(|n| table.get(n.as_str()).copied()))
                .collect();
            let special: Vec<u32> = ["socket", "personality", "clone", "clone3"]
                .iter()
                .filter_map(|n| table.get(n).copied())
                .collect();
            for nr in (0..600).filter(|n| !special.contains(n)) {
                let expect = if allowed.contains(&nr) { RET_ALLOW } else { RET_ERRNO | 1 };
                assert_eq!(run(&code, arch, nr, &[]), expect, "{arch:x} {nr}");
            }
        }
        let t = numbers(1);
        let call = |name: &str, args: &[u64]| run(&code, AUDIT_ARCH_X86_64, t[name], args);
        assert_eq!(call("socket", &[2]), RET_ALLOW);
        assert_eq!(call("socket", &[40]), RET_ERRNO | 1, "vsock");
        assert_eq!(call("personality", &[0xffff_ffff]), RET_ALLOW);
        assert_eq!(call("personality", &[1]), RET_ERRNO | 1);
        assert_eq!(call("clone", &[0x11]), RET_ALLOW);
        assert_eq!(call("clone", &[0x1000_0011]), RET_ERRNO | 1, "a user namespace");
        assert_eq!(call("clone3", &[]), RET_ERRNO | 38);
        assert_eq!(run(&code, AUDIT_ARCH_X86_64, X32_BIT | 1, &[]), RET_ERRNO | 1);
        assert_eq!(run(&code, 0x1234, 1, &[]), RET_KILL_PROCESS);
        let admin = Profile::runtime_default(caps::ALL).unwrap().compile().unwrap();
        assert_eq!(run(&admin, AUDIT_ARCH_X86_64, t["clone"], &[0x1000_0011]), RET_ALLOW);
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn argument_comparisons_are_64_bits_wide() {
        let t = numbers(1);
        for (op, value, yes, no) in [
            ("SCMP_CMP_EQ", 1u64 << 33, vec![1u64 << 33], vec![0, 1, (1 << 33) + 1]),
            ("SCMP_CMP_NE", 5, vec![4, 5 | 1 << 40], vec![5]),
            ("SCMP_CMP_GT", 1 << 32, vec![(1 << 32) + 1, 1 << 33], vec![1 << 32, 7]),
            ("SCMP_CMP_GE", 1 << 32, vec![1 << 32, 1 << 33], vec![7]),
            ("SCMP_CMP_LT", 1 << 32, vec![7], vec![1 << 32, 1 << 33]),
            ("SCMP_CMP_LE", 1 << 32, vec![7, 1 << 32], vec![(1 << 32) + 1, 1 << 33]),
        ] {
            let json = format!(
                r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{{"names":["kill"],"action":"SCMP_ACT_ALLOW","args":[{{"index":1,"value":{value},"op":"{op}"}}]}}]}}"#
            );
            let code = Profile::from_json(json.as_bytes(), 0).unwrap().compile().unwrap();
            for v in yes {
                assert_eq!(run(&code, AUDIT_ARCH_X86_64, t["kill"], &[0, v]), RET_ALLOW, "{op} {value} {v}");
            }
            for v in no {
                assert_eq!(
                    run(&code, AUDIT_ARCH_X86_64, t["kill"], &[0, v]),
                    RET_ERRNO | 1,
                    "{op} {value} {v}"
                );
            }
        }
    }
}
