//! Tap and tun interfaces (the kernel's Documentation/networking/tuntap.rst).
//!
//! Each descriptor of /dev/net/tun is one queue of one interface. Those of one interface are opened
//! together by a [`Request`], or inherited and then [adopted](adopt). The first one that is opened
//! creates the interface if there is none.

mod error;
mod offloads;

use std::fmt;
use std::io;
use std::mem::zeroed;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl, fstat, open, stat};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

pub use error::TunError;
pub use offloads::Offloads;

/// The ioctl that opens the network namespace of an interface, which libc lacks: `_IO('T', 227)`.
const TUNGETDEVNETNS: libc::Ioctl = 0x54e3;

/// Longest name of an interface, in bytes.
pub const NAME_MAX: usize = libc::IFNAMSIZ - 1;

/// What the frames of an interface are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Ethernet.
    Tap,
    /// IP.
    Tun,
}

impl Kind {
    const fn flag(self) -> libc::c_int {
        match self {
            Self::Tap => libc::IFF_TAP,
            Self::Tun => libc::IFF_TUN,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tap => "tap",
            Self::Tun => "tun",
        })
    }
}

/// An interface to attach to, or to create.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// Its name. In one that the kernel is to complete, `%d` stands for a number: `tap%d`.
    pub name: &'a str,
    /// What its frames are.
    pub kind: Kind,
    /// How many queues to open, at least 1. An interface with a single queue and one for several are
    /// different things, also when only one is in use: 2 and more ask for the latter.
    pub queues: u16,
    /// Whether it is to be one for several, though one is enough.
    pub several: bool,
    /// The user who may attach to it without privilege; as it is, if `None`.
    pub owner: Option<u32>,
    /// The group that may; as it is, if `None`.
    pub group: Option<u32>,
    /// Bytes of virtio-net header before each frame, which is little-endian.
    pub header_size: usize,
    /// What the kernel may leave undone at most: as much of that as it knows.
    pub most: Offloads,
}

impl<'a> Request<'a> {
    /// For an interface with a single queue, all offloads, and what else it has as it is.
    pub fn new(name: &'a str, kind: Kind, header_size: usize) -> Self {
        Self {
            name,
            kind,
            queues: 1,
            several: false,
            owner: None,
            group: None,
            header_size,
            most: Offloads::ALL,
        }
    }

    /// Opens all queues. Reads do not block. When it fails, what it created is gone.
    pub fn open(&self) -> Result<Vec<Queue>, TunError> {
        check_name(self.name)?;
        let mut queues: Vec<Queue> = Vec::with_capacity(self.queues.into());
        for _ in 0..self.queues.max(1) {
            // The kernel completes a name once.
            let name = queues.first().map_or(self.name, |first| &first.name);
            queues.push(self.attach(name)?);
        }
        let Some(first) = queues.first() else { return Ok(queues) };
        let set = |name, request, value| {
            // SAFETY: the two requests below take a number.
            unsafe { ioctl_value(&first.descriptor, request, value) }
                .map(drop)
                .map_err(|error| TunError::Setup(name, error))
        };
        if let Some(owner) = self.owner {
            set("TUNSETOWNER", libc::TUNSETOWNER, owner.into())?;
        }
        if let Some(group) = self.group {
            set("TUNSETGROUP", libc::TUNSETGROUP, group.into())?;
        }
        Ok(queues)
    }

    fn attach(&self, name: &str) -> Result<Queue, TunError> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let descriptor = open("/dev/net/tun", flags, Mode::empty())
            .map_err(|error| TunError::device(error.into()))?;
        let several = if self.is_for_several() { libc::IFF_MULTI_QUEUE } else { 0 };
        let flags = self.kind.flag() | libc::IFF_NO_PI | libc::IFF_VNET_HDR | several;
        let mut request = named(name);
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        // SAFETY: TUNSETIFF takes an ifreq.
        unsafe { ioctl(&descriptor, libc::TUNSETIFF, &mut request) }
            .map_err(|error| self.explain(name, error))?;
        Queue::new(descriptor, name_of(&request), self.header_size, self.most)
    }

    fn is_for_several(&self) -> bool {
        self.several || self.queues > 1
    }

    /// Why the kernel does not let us attach.
    fn explain(&self, name: &str, error: io::Error) -> TunError {
        let wanted = self.kind;
        match error.raw_os_error() {
            Some(libc::EPERM) => TunError::NotPermitted(wanted),
            Some(libc::EBUSY) => TunError::InUse,
            Some(libc::E2BIG) => TunError::TooManyQueues,
            Some(libc::EINVAL) => match driver(name) {
                // It is of this kind, and so there is but one thing left in which it can differ.
                Ok(found) if found == wanted.to_string() && self.is_for_several() => {
                    TunError::SingleQueue(wanted)
                }
                Ok(found) if found == wanted.to_string() => TunError::MultiQueue(wanted),
                Ok(found) => TunError::WrongKind { wanted, found: Some(found) },
                Err(problem) if problem.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                    TunError::WrongKind { wanted, found: None }
                }
                Err(_) => TunError::Attach(error),
            },
            _ => TunError::Attach(error),
        }
    }
}

/// Why an inherited descriptor cannot be used.
#[derive(Debug)]
pub struct AdoptError {
    /// Which of those that were given.
    pub index: usize,
    /// Why.
    pub error: TunError,
}

/// Takes over descriptors that were inherited, if they are what [`interface_of`] asks for. None of this
/// needs privilege. Reads do not block from then on, whoever else has the descriptor.
pub fn adopt(
    descriptors: Vec<OwnedFd>,
    kind: Kind,
    header_size: usize,
    most: Offloads,
) -> Result<Vec<Queue>, AdoptError> {
    let name = interface_of(&descriptors, kind)?;
    let adopt_one = |(index, descriptor): (usize, OwnedFd)| {
        let prepared = fcntl_getfl(&descriptor)
            .and_then(|flags| fcntl_setfl(&descriptor, flags | OFlags::NONBLOCK))
            .and_then(|()| fcntl_setfd(&descriptor, FdFlags::CLOEXEC));
        prepared
            .map_err(|error| TunError::Setup("fcntl", error.into()))
            .and_then(|()| Queue::new(descriptor, name.clone(), header_size, most))
            .map_err(|error| AdoptError { index, error })
    };
    descriptors.into_iter().enumerate().map(adopt_one).collect()
}

/// The name of the interface that these descriptors are queues of, if they are all of one of this kind, with a
/// virtio-net header; of none, if there are none. Changes nothing.
///
/// That they were opened with IFF_NO_PI cannot be seen by them: the kernel answers with the same bit for
/// something else (IFF_NOFILTER). Rtnetlink says it of the interface.
pub fn interface_of(descriptors: &[OwnedFd], kind: Kind) -> Result<String, AdoptError> {
    let mut name = String::new();
    for (index, descriptor) in descriptors.iter().enumerate() {
        let found = look(descriptor, kind).map_err(|error| AdoptError { index, error })?;
        if index > 0 && found != name {
            return Err(AdoptError { index, error: TunError::Different(found, name) });
        }
        name = found;
    }
    Ok(name)
}

/// The name of the interface that a descriptor is a queue of, if that is of this kind, with a virtio-net header.
fn look(descriptor: &OwnedFd, kind: Kind) -> Result<String, TunError> {
    let (name, flags) = flags(descriptor).map_err(TunError::NotQueue)?;
    if flags & kind.flag() == 0 {
        let found = if kind == Kind::Tap { Kind::Tun } else { Kind::Tap };
        return Err(TunError::WrongKind { wanted: kind, found: Some(found.to_string()) });
    }
    if flags & libc::IFF_VNET_HDR == 0 {
        return Err(TunError::NoHeader);
    }
    Ok(name)
}

/// One queue of an interface, whose frames have a virtio-net header before them.
#[derive(Debug)]
pub struct Queue {
    descriptor: OwnedFd,
    name: String,
    offloads: Offloads,
}

impl Queue {
    /// Of a descriptor that is attached. What is set here, an interface has once, and not for each
    /// queue.
    fn new(
        descriptor: OwnedFd,
        name: String,
        header_size: usize,
        most: Offloads,
    ) -> Result<Self, TunError> {
        let mut size = header_size as libc::c_int;
        // SAFETY: TUNSETVNETHDRSZ takes an int.
        unsafe { ioctl(&descriptor, libc::TUNSETVNETHDRSZ, &mut size) }
            .map_err(|error| TunError::Setup("TUNSETVNETHDRSZ", error))?;
        let mut little_endian: libc::c_int = 1;
        // SAFETY: TUNSETVNETLE takes an int.
        unsafe { ioctl(&descriptor, libc::TUNSETVNETLE, &mut little_endian) }
            .map_err(|error| TunError::Setup("TUNSETVNETLE", error))?;
        let offloads = most
            .first_known(|offloads| set_offloads(&descriptor, offloads))
            .map_err(|error| TunError::Setup("TUNSETOFFLOAD", error))?;
        Ok(Self { descriptor, name, offloads })
    }

    /// The name of the interface, when it was opened.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the kernel may leave undone.
    pub fn offloads(&self) -> Offloads {
        self.offloads
    }

    /// Whether it still is a queue of an interface. It is not any more when that was deleted.
    pub fn is_attached(&self) -> bool {
        flags(&self.descriptor).is_ok()
    }

    /// Whether its interface is one for several queues.
    pub fn is_of_several(&self) -> io::Result<bool> {
        Ok(flags(&self.descriptor)?.1 & libc::IFF_MULTI_QUEUE != 0)
    }

    /// Whether its interface is in the network namespace of this thread. It needs CAP_NET_ADMIN where the
    /// interface is, and Linux 5.7.
    pub fn is_here(&self) -> io::Result<bool> {
        // SAFETY: TUNGETDEVNETNS takes nothing.
        let number = unsafe { ioctl_value(&self.descriptor, TUNGETDEVNETNS, 0) }?;
        // SAFETY: the kernel has opened it for this call, and nobody else knows of it.
        let there = fstat(unsafe { OwnedFd::from_raw_fd(number) })?;
        let here = stat("/proc/thread-self/ns/net")?;
        Ok((there.st_dev, there.st_ino) == (here.st_dev, here.st_ino))
    }

    /// To decide, later, whether the interface stays when nobody has it open. A new one goes.
    pub fn persistence(&self) -> io::Result<Persistence> {
        Ok(Persistence(self.descriptor.try_clone()?))
    }

    /// The hardware address that the host has on the interface, in whichever network namespace that
    /// is. Of a tap.
    pub fn host_address(&self) -> io::Result<[u8; 6]> {
        let mut request = named("");
        // SAFETY: SIOCGIFHWADDR takes an ifreq.
        unsafe { ioctl(&self.descriptor, libc::SIOCGIFHWADDR, &mut request) }?;
        // SAFETY: SIOCGIFHWADDR fills in an address, and all bytes of the union are initialised anyway.
        let [a, b, c, d, e, f, ..] = unsafe { request.ifr_ifru.ifru_hwaddr }.sa_data;
        Ok([a, b, c, d, e, f].map(|byte| byte as u8))
    }
}

/// What decides whether an interface stays. While there is this, somebody has it open.
#[derive(Debug)]
pub struct Persistence(OwnedFd);

impl Persistence {
    /// Decides it.
    pub fn set(self, stays: bool) -> io::Result<()> {
        // SAFETY: TUNSETPERSIST takes a number.
        unsafe { ioctl_value(&self.0, libc::TUNSETPERSIST, stays.into()) }.map(drop)
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// The name of the interface that a descriptor is a queue of, and how it was opened.
fn flags(descriptor: &OwnedFd) -> io::Result<(String, libc::c_int)> {
    let mut request = named("");
    // SAFETY: TUNGETIFF takes an ifreq.
    unsafe { ioctl(descriptor, libc::TUNGETIFF, &mut request) }?;
    // SAFETY: TUNGETIFF fills in the flags, and all bytes of the union are initialised anyway.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Ok((name_of(&request), flags.into()))
}

fn set_offloads(descriptor: &OwnedFd, offloads: Offloads) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes flags.
    unsafe { ioctl_value(descriptor, libc::TUNSETOFFLOAD, offloads.flags().into()) }.map(drop)
}

/// What the kernel would refuse by EINVAL, which it says of much else too.
fn check_name(name: &str) -> Result<(), TunError> {
    let bad = |byte: u8| matches!(byte, b'/' | b':') || !byte.is_ascii_graphic();
    let is_pattern = name
        .split_once('%')
        .is_none_or(|(_, rest)| rest.strip_prefix('d').is_some_and(|rest| !rest.contains('%')));
    let is_short = (1..=NAME_MAX).contains(&name.len());
    if !is_short || !is_pattern || matches!(name, "." | "..") || name.bytes().any(bad) {
        return Err(TunError::Name);
    }
    Ok(())
}

/// A request about the interface of this name, which is short enough.
pub(crate) fn named(name: &str) -> libc::ifreq {
    // SAFETY: ifreq is plain data, valid as all zeros.
    let mut request: libc::ifreq = unsafe { zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(NAME_MAX)) {
        *to = from as libc::c_char;
    }
    request
}

/// The name that the kernel wrote into a request.
fn name_of(request: &libc::ifreq) -> String {
    text(&request.ifr_name.map(|byte| byte as u8))
}

/// The kernel's `struct ethtool_drvinfo`.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    version: [u8; 32],
    firmware: [u8; 32],
    bus: [u8; 32],
    rom: [u8; 32],
    reserved: [u8; 12],
    counts: [u32; 5],
}

/// The driver of an interface, and for this one which kind it is: "tap" or "tun".
fn driver(name: &str) -> io::Result<String> {
    const ETHTOOL_GDRVINFO: u32 = 3;
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let mut info = DriverInfo {
        command: ETHTOOL_GDRVINFO,
        driver: [0; 32],
        version: [0; 32],
        firmware: [0; 32],
        bus: [0; 32],
        rom: [0; 32],
        reserved: [0; 12],
        counts: [0; 5],
    };
    let mut request = named(name);
    request.ifr_ifru.ifru_data = std::ptr::from_mut(&mut info).cast();
    // SAFETY: SIOCETHTOOL takes an ifreq, and this command of it fills in `info`, which outlives the call.
    unsafe { ioctl(&socket, libc::SIOCETHTOOL, &mut request) }?;
    let of_tun = info.driver.starts_with(b"tun\0");
    Ok(text(if of_tun { &info.bus } else { &info.driver }))
}

/// Text that the kernel wrote, up to the first zero.
fn text(bytes: &[u8]) -> String {
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

/// An ioctl whose argument is a pointer to `T`.
///
/// # Safety
///
/// `T` is what the request documents, and so is what it points to.
unsafe fn ioctl<T>(descriptor: &OwnedFd, request: libc::Ioctl, argument: &mut T) -> io::Result<()> {
    // SAFETY: as the caller says; and the argument outlives the call.
    let result =
        unsafe { libc::ioctl(descriptor.as_raw_fd(), request, std::ptr::from_mut(argument)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// An ioctl whose argument is a number. Returns what it returned.
///
/// # Safety
///
/// The request takes no pointer.
unsafe fn ioctl_value(
    descriptor: &OwnedFd,
    request: libc::Ioctl,
    argument: libc::c_ulong,
) -> io::Result<libc::c_int> {
    // SAFETY: as the caller says.
    let result = unsafe { libc::ioctl(descriptor.as_raw_fd(), request, argument) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests;
