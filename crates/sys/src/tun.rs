//! TAP interfaces (the kernel's Documentation/networking/tuntap.rst).

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, open};

/// Longest name of an interface, in bytes.
pub const NAME_MAX: usize = libc::IFNAMSIZ - 1;

/// Why there is no TAP interface.
#[derive(Debug)]
pub enum TapError {
    /// The name is empty, too long, or holds what the kernel would not take or would expand.
    Name,
    /// /dev/net/tun could not be opened.
    Device(io::Error),
    /// The interface could not be created or attached to.
    Attach(io::Error),
    /// The interface is there, but lacks what we need.
    Setup(&'static str, io::Error),
}

impl fmt::Display for TapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name => {
                write!(f, "an interface name has 1 to {NAME_MAX} bytes, without '/', '%' or blanks")
            }
            Self::Device(error) => write!(f, "cannot open /dev/net/tun: {error}"),
            Self::Attach(error) => match error.raw_os_error() {
                Some(libc::EPERM) => write!(
                    f,
                    "not permitted: it needs CAP_NET_ADMIN, or an interface made for this user \
                     (ip tuntap add NAME mode tap vnet_hdr user USER)"
                ),
                Some(libc::EBUSY) => write!(f, "in use by another program"),
                Some(libc::EINVAL) => write!(
                    f,
                    "exists, but is no TAP interface with a single queue \
                     (ip tuntap add NAME mode tap makes one)"
                ),
                _ => write!(f, "cannot create or attach to it: {error}"),
            },
            Self::Setup(what, error) => write!(f, "{what} failed: {error}"),
        }
    }
}

// The texts have what there is to say: no source, which would say it twice.
impl std::error::Error for TapError {}

/// What the kernel may leave undone in frames that we read (TUNSETOFFLOAD). Each has those before
/// it, in the order in which kernels learnt them.
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
    const fn flags(self) -> u32 {
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
}

/// One queue of a TAP interface, whose frames have a virtio-net header before them.
#[derive(Debug)]
pub struct Tap {
    descriptor: OwnedFd,
    offloads: Offloads,
}

impl Tap {
    /// Attaches to the interface `name`, which is created when it does not exist, and then goes
    /// with this queue. Frames carry a little-endian header of `header_size` bytes; reads do not
    /// block. Offloads are those of `most` that the kernel knows.
    pub fn open(name: &str, header_size: usize, most: Offloads) -> Result<Self, TapError> {
        let bad = |byte: u8| byte == b'/' || byte == b'%' || !byte.is_ascii_graphic();
        if name.is_empty() || name.len() > NAME_MAX || name.bytes().any(bad) {
            return Err(TapError::Name);
        }
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let descriptor = open("/dev/net/tun", flags, Mode::empty())
            .map_err(|error| TapError::Device(error.into()))?;
        let mut tap = Self { descriptor, offloads: most };

        // SAFETY: ifreq is plain data, valid as all zeros.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags =
            (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
        tap.ioctl(libc::TUNSETIFF, &mut request).map_err(TapError::Attach)?;

        let mut size = header_size as libc::c_int;
        tap.ioctl(libc::TUNSETVNETHDRSZ, &mut size)
            .map_err(|error| TapError::Setup("TUNSETVNETHDRSZ", error))?;
        let mut little_endian: libc::c_int = 1;
        tap.ioctl(libc::TUNSETVNETLE, &mut little_endian)
            .map_err(|error| TapError::Setup("TUNSETVNETLE", error))?;
        tap.offloads = first_known(most, |offloads| tap.set_offloads(offloads))
            .map_err(|error| TapError::Setup("TUNSETOFFLOAD", error))?;
        Ok(tap)
    }

    /// What the kernel may leave undone.
    pub fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        let flags = libc::c_ulong::from(offloads.flags());
        // This one takes its argument by value.
        // SAFETY: TUNSETOFFLOAD reads no memory.
        let result =
            unsafe { libc::ioctl(self.descriptor.as_raw_fd(), libc::TUNSETOFFLOAD, flags) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// An ioctl whose argument is a pointer to `T`.
    fn ioctl<T>(&self, request: libc::Ioctl, argument: &mut T) -> io::Result<()> {
        // SAFETY: called above with the type that each request documents, which outlives the call.
        let result = unsafe {
            libc::ioctl(self.descriptor.as_raw_fd(), request, std::ptr::from_mut(argument))
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// Offers `most`, and then fewer and fewer: the kernel answers EINVAL to a set in which there is
/// something that it does not know, and sets none of it.
fn first_known(
    most: Offloads,
    mut set: impl FnMut(Offloads) -> io::Result<()>,
) -> io::Result<Offloads> {
    let mut offloads = most;
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

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_before_the_kernel_sees_them() {
        for name in ["", "a/b", "a b", "tap%d", "0123456789abcdef", "tab\t"] {
            assert!(matches!(Tap::open(name, 12, Offloads::ALL), Err(TapError::Name)), "{name:?}");
        }
    }

    #[test]
    fn an_interface_in_use_and_one_of_another_kind_say_so() {
        let name = format!("rwt{}", std::process::id() % 1_000_000);
        let _tap = Tap::open(&name, 12, Offloads::ALL).expect("this test needs CAP_NET_ADMIN");
        let again = Tap::open(&name, 12, Offloads::ALL).unwrap_err();
        assert_eq!(again.to_string(), "in use by another program");
        let loopback = Tap::open("lo", 12, Offloads::ALL).unwrap_err();
        assert!(loopback.to_string().starts_with("exists, but is no TAP interface"), "{loopback}");
    }

    /// What a kernel answers that knows no more than these.
    fn old_kernel(known: Offloads, asked: Offloads) -> io::Result<()> {
        let unknown = asked.flags() & !known.flags();
        if unknown == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EINVAL)) }
    }

    #[test]
    fn a_kernel_is_asked_for_no_more_than_it_knows() {
        use Offloads::{Checksum, None, Tcp, TcpEcn, Udp};
        for known in [None, Checksum, Tcp, TcpEcn, Udp] {
            for most in [None, Checksum, Tcp, TcpEcn, Udp] {
                let set = first_known(most, |asked| old_kernel(known, asked));
                assert_eq!(set.unwrap(), known.min(most));
            }
        }
        // Anything else that goes wrong is not about what the kernel knows.
        let gone = first_known(Udp, |asked| match asked {
            Udp => Err(io::Error::from_raw_os_error(libc::EBADFD)),
            _ => Ok(()),
        });
        assert_eq!(gone.unwrap_err().raw_os_error(), Some(libc::EBADFD));
        let nothing = first_known(Udp, |_| Err(io::Error::from_raw_os_error(libc::EINVAL)));
        assert_eq!(nothing.unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }

    #[test]
    fn the_kernel_takes_each_set_of_offloads() {
        use Offloads::{Checksum, None, Tcp, TcpEcn, Udp};
        let name = format!("rwo{}", std::process::id() % 1_000_000);
        let tap = Tap::open(&name, 12, TcpEcn).expect("this test needs CAP_NET_ADMIN");
        assert_eq!(tap.offloads(), TcpEcn);
        for offloads in [None, Checksum, Tcp, TcpEcn, Udp] {
            tap.set_offloads(offloads).unwrap_or_else(|error| {
                panic!("{offloads:?}: {error}; UDP needs Linux 6.2 or later")
            });
        }
    }
}
