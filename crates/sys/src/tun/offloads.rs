//! What the kernel may leave undone in frames that we read (TUNSETOFFLOAD).

use std::io;

/// What the kernel may leave undone in frames that we read. Each has those before it, in the order in
/// which kernels learnt them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Offloads {
    /// Nothing: each frame is complete.
    None,
    /// Checksums.
    Checksum,
    /// The segmentation of TCP over IPv4 and IPv6.
    Tcp,
    /// That of TCP with ECN.
    TcpEcn,
    /// That of UDP, over both (Linux 6.2). A kernel that has it also takes such frames from us.
    Udp,
}

impl Offloads {
    /// All there are.
    pub const ALL: Self = Self::Udp;

    /// The argument of TUNSETOFFLOAD.
    pub(super) const fn flags(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Checksum => libc::TUN_F_CSUM,
            Self::Tcp => Self::Checksum.flags() | libc::TUN_F_TSO4 | libc::TUN_F_TSO6,
            Self::TcpEcn => Self::Tcp.flags() | libc::TUN_F_TSO_ECN,
            // The kernel takes both of these or none.
            Self::Udp => Self::TcpEcn.flags() | libc::TUN_F_USO4 | libc::TUN_F_USO6,
        }
    }

    /// The next to try, when the kernel does not know these.
    const fn fewer(self) -> Option<Self> {
        match self {
            Self::None => None,
            Self::Checksum => Some(Self::None),
            Self::Tcp => Some(Self::Checksum),
            Self::TcpEcn => Some(Self::Tcp),
            Self::Udp => Some(Self::TcpEcn),
        }
    }

    /// Sets these, or as many of them as the kernel knows: it answers EINVAL to a set in which there
    /// is something that it does not know, and sets none of it.
    pub(super) fn first_known(
        self,
        mut set: impl FnMut(Self) -> io::Result<()>,
    ) -> io::Result<Self> {
        let mut offloads = self;
        loop {
            match (set(offloads), offloads.fewer()) {
                (Ok(()), _) => return Ok(offloads),
                (Err(error), Some(fewer)) if error.raw_os_error() == Some(libc::EINVAL) => {
                    offloads = fewer;
                }
                (Err(error), _) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Offloads::{Checksum, None, Tcp, TcpEcn, Udp};
    use super::*;

    /// What a kernel answers that knows no more than these.
    fn old_kernel(known: Offloads, asked: Offloads) -> io::Result<()> {
        let unknown = asked.flags() & !known.flags();
        if unknown == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EINVAL)) }
    }

    #[test]
    fn a_kernel_is_asked_for_no_more_than_it_knows() {
        for known in [None, Checksum, Tcp, TcpEcn, Udp] {
            for most in [None, Checksum, Tcp, TcpEcn, Udp] {
                let set = most.first_known(|asked| old_kernel(known, asked));
                assert_eq!(set.unwrap(), known.min(most));
            }
        }
        // Anything else that goes wrong is not about what the kernel knows.
        let gone = Udp.first_known(|asked| match asked {
            Udp => Err(io::Error::from_raw_os_error(libc::EBADFD)),
            _ => Ok(()),
        });
        assert_eq!(gone.unwrap_err().raw_os_error(), Some(libc::EBADFD));
        let nothing = Udp.first_known(|_| Err(io::Error::from_raw_os_error(libc::EINVAL)));
        assert_eq!(nothing.unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }
}
