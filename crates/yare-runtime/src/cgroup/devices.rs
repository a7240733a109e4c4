//! Device limits: v1's rule lines, and for v2 the same rules compiled into a small BPF program.
#![allow(unsafe_code)]

use std::fmt;
use std::fs;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

/// One thing a container may do with devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DeviceRule {
    /// `c`, `b`, or `a` for both.
    pub kind: char,
    /// Absent: any.
    pub major: Option<u32>,
    /// Absent: any.
    pub minor: Option<u32>,
    /// Read, write, make node.
    pub access: Access,
}

/// `rwm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Access {
    pub read: bool,
    pub write: bool,
    pub mknod: bool,
}

impl Access {
    pub const ALL: Self = Self { read: true, write: true, mknod: true };
    pub const MKNOD: Self = Self { read: false, write: false, mknod: true };

    pub fn parse(text: &str) -> Self {
        Self { read: text.contains('r'), write: text.contains('w'), mknod: text.contains('m') }
    }

    /// The kernel's bits: mknod 1, read 2, write 4.
    fn bits(self) -> i32 {
        i32::from(self.mknod) | i32::from(self.read) << 1 | i32::from(self.write) << 2
    }
}

impl DeviceRule {
    pub const fn new(kind: char, major: Option<u32>, minor: Option<u32>, access: Access) -> Self {
        Self { kind, major, minor, access }
    }

    /// What every container may do: make any node, use the harmless ones and terminals.
    pub fn defaults() -> Vec<Self> {
        let c = |major, minor| Self::new('c', Some(major), minor, Access::ALL);
        vec![
            Self::new('c', None, None, Access::MKNOD),
            Self::new('b', None, None, Access::MKNOD),
            c(1, Some(3)),
            c(1, Some(5)),
            c(1, Some(7)),
            c(1, Some(8)),
            c(1, Some(9)),
            c(5, Some(0)),
            c(5, Some(1)),
            c(5, Some(2)),
            c(136, None),
        ]
    }

    pub fn everything() -> Vec<Self> {
        vec![Self::new('a', None, None, Access::ALL)]
    }
}

/// As v1's `devices.allow` takes it.
impl fmt::Display for DeviceRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |n: Option<u32>| n.map_or_else(|| "*".to_owned(), |n| n.to_string());
        write!(f, "{} {}:{} ", self.kind, number(self.major), number(self.minor))?;
        for (on, letter) in [(self.access.read, 'r'), (self.access.write, 'w'), (self.access.mknod, 'm')] {
            if on {
                write!(f, "{letter}")?;
            }
        }
        Ok(())
    }
}

/// One instruction: opcode, destination and source register, offset, immediate.
fn insn(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> u64 {
    u64::from(code)
        | u64::from(dst | src << 4) << 8
        | u64::from(off as u16) << 16
        | u64::from(imm as u32) << 32
}

const LDX_W: u8 = 0x61;
const AND32_K: u8 = 0x54;
const RSH32_K: u8 = 0x74;
const MOV32_X: u8 = 0xbc;
const MOV64_K: u8 = 0xb7;
const JNE_K: u8 = 0x55;
const JNE_X: u8 = 0x5d;
const EXIT: u8 = 0x95;

/// The program: `struct bpf_cgroup_dev_ctx { u32 access_type; u32 major; u32 minor; }`, where `access_type` is
/// access << 16 | kind. Answers 1 if any rule allows all that is asked for.
pub(super) fn program(rules: &[DeviceRule]) -> Vec<u64> {
    // r2 kind, r3 access, r4 major, r5 minor
    let mut code = vec![
        insn(LDX_W, 2, 1, 0, 0),
        insn(AND32_K, 2, 0, 0, 0xffff),
        insn(LDX_W, 3, 1, 0, 0),
        insn(RSH32_K, 3, 0, 0, 16),
        insn(LDX_W, 4, 1, 4, 0),
        insn(LDX_W, 5, 1, 8, 0),
    ];
    for rule in rules {
        // Each test that fails jumps over the rest of its rule; offsets are filled in when the length is known.
        let mut block = Vec::new();
        let mut jumps = Vec::new();
        let kind = match rule.kind {
            'b' => Some(1),
            'c' => Some(2),
            _ => None,
        };
        if let Some(kind) = kind {
            jumps.push(block.len());
            block.push(insn(JNE_K, 2, 0, 0, kind));
        }
        if rule.access != Access::ALL {
            block.push(insn(MOV32_X, 1, 3, 0, 0));
            block.push(insn(AND32_K, 1, 0, 0, rule.access.bits()));
            jumps.push(block.len());
            block.push(insn(JNE_X, 1, 3, 0, 0));
        }
        for (register, number) in [(4, rule.major), (5, rule.minor)] {
            if let Some(number) = number {
                jumps.push(block.len());
                block.push(insn(JNE_K, register, 0, 0, number as i32));
            }
        }
        block.push(insn(MOV64_K, 0, 0, 0, 1));
        block.push(insn(EXIT, 0, 0, 0, 0));
        let end = block.len();
        for at in jumps {
            block[at] |= u64::from((end - at - 1) as u16) << 16;
        }
        code.extend(block);
    }
    code.push(insn(MOV64_K, 0, 0, 0, 0));
    code.push(insn(EXIT, 0, 0, 0, 0));
    code
}

#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct AttachAttr {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

fn bpf<T>(command: i32, attr: &T) -> io::Result<i64> {
    // SAFETY: `attr` has the layout of the command's part of `union bpf_attr`; its size is passed.
    let r = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), mem::size_of::<T>()) };
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(r) }
}

/// Attaches the rules to a v2 group. The program lives as long as the group.
pub(super) fn attach_program(dir: &Path, rules: &[DeviceRule]) -> io::Result<()> {
    const BPF_PROG_LOAD: i32 = 5;
    const BPF_PROG_ATTACH: i32 = 8;
    const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
    const BPF_CGROUP_DEVICE: u32 = 6;
    const BPF_F_ALLOW_MULTI: u32 = 2;
    let code = program(rules);
    let license = c"Apache-2.0";
    let load = LoadAttr {
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: code.len() as u32,
        insns: code.as_ptr() as u64,
        license: license.as_ptr() as u64,
        ..LoadAttr::default()
    };
    let fd = bpf(BPF_PROG_LOAD, &load)?;
    // SAFETY: a new descriptor that is ours.
    let program = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let group = fs::File::open(dir)?;
    let attach = AttachAttr {
        target_fd: group.as_raw_fd() as u32,
        attach_bpf_fd: program.as_raw_fd() as u32,
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: BPF_F_ALLOW_MULTI,
    };
    bpf(BPF_PROG_ATTACH, &attach)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_print_as_v1_wants_them() {
        assert_eq!(DeviceRule::defaults()[0].to_string(), "c *:* m");
        assert_eq!(DeviceRule::new('c', Some(136), None, Access::parse("rw")).to_string(), "c 136:* rw");
        assert_eq!(DeviceRule::everything()[0].to_string(), "a *:* rwm");
    }

    #[test]
    fn the_kernel_accepts_the_program_for_v2() {
        let code = program(&DeviceRule::defaults());
        assert!(code.len() < 120);
        let load = LoadAttr {
            prog_type: 15,
            insn_cnt: code.len() as u32,
            insns: code.as_ptr() as u64,
            license: c"Apache-2.0".as_ptr() as u64,
            ..LoadAttr::default()
        };
        match bpf(5, &load) {
            Ok(fd) => {
                // SAFETY: ours; closed by the drop.
                drop(unsafe { OwnedFd::from_raw_fd(fd as i32) });
            }
            Err(e) => assert_eq!(e.kind(), io::ErrorKind::PermissionDenied, "{e}"),
        }
    }
}
