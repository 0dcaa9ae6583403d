//! A system call that was refused: which it was, and by which of the kernel's interfaces.

use crate::confine::{AUDIT_ARCH_X86_64, X32_BIT};

/// `AUDIT_ARCH_I386` of linux/audit.h.
const AUDIT_ARCH_I386: u32 = 0x4000_0003;
/// From here on numbers of the x32 interface are its own; below they are those of x86-64.
const X32_OWN: u32 = 512;

/// Which of the kernel's interfaces was called. Each has numbers of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abi {
    /// `syscall`.
    X86_64,
    /// `syscall` with bit 30 set in the number.
    X32,
    /// `int 0x80`, `sysenter`.
    I386,
}

/// A system call that code asked for and did not get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SystemCall {
    /// Which interface.
    pub abi: Abi,
    /// Its number there; without bit 30 for [`Abi::X32`].
    pub number: u32,
}

impl SystemCall {
    /// From what the kernel tells with a SIGSYS: `si_arch` and `si_syscall`.
    pub(super) fn from_signal(arch: u32, number: i32) -> SystemCall {
        let number = number as u32;
        match arch {
            AUDIT_ARCH_I386 => SystemCall { abi: Abi::I386, number },
            // Negative numbers have the bit too, and are nobody's.
            AUDIT_ARCH_X86_64 if number & (X32_BIT | 1 << 31) == X32_BIT => {
                SystemCall { abi: Abi::X32, number: number & !X32_BIT }
            }
            _ => SystemCall { abi: Abi::X86_64, number },
        }
    }

    /// Its name, such as "getpid"; `None` where the number has none that is known.
    pub fn name(&self) -> Option<&'static str> {
        let number = self.number as usize;
        match self.abi {
            Abi::X32 if self.number >= X32_OWN => None,
            Abi::X86_64 | Abi::X32 => syscalls::x86_64::Sysno::new(number).map(|it| it.name()),
            Abi::I386 => syscalls::x86::Sysno::new(number).map(|it| it.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(arch: u32, number: i32) -> (Abi, u32, Option<&'static str>) {
        let call = SystemCall::from_signal(arch, number);
        (call.abi, call.number, call.name())
    }

    #[test]
    fn each_interface_has_numbers_of_its_own() {
        assert_eq!(told(AUDIT_ARCH_X86_64, 39), (Abi::X86_64, 39, Some("getpid")));
        assert_eq!(told(AUDIT_ARCH_I386, 20), (Abi::I386, 20, Some("getpid")));
        assert_eq!(told(AUDIT_ARCH_X86_64, 0x4000_0000 | 39), (Abi::X32, 39, Some("getpid")));
    }

    #[test]
    fn numbers_that_nobody_has_are_told_without_a_name() {
        assert_eq!(told(AUDIT_ARCH_X86_64, -1), (Abi::X86_64, u32::MAX, None));
        assert_eq!(told(AUDIT_ARCH_X86_64, 0x4000_0000 | 520), (Abi::X32, 520, None));
        assert_eq!(told(AUDIT_ARCH_I386, i32::MAX), (Abi::I386, i32::MAX as u32, None));
    }
}
