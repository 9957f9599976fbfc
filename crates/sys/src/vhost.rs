//! The kernel's vhost-net (linux/vhost.h, drivers/vhost/net.c): a thread of the kernel's that is the device
//! of two virtio rings, and moves frames between them and a tap interface.
//!
//! It is told three kinds of addresses once: of the memory that descriptors speak of, of the rings, and of
//! the eventfds by which both sides wake each other, and by which it says that it could not go on. From then on it reads and writes that memory by
//! itself, whatever this process does. So a [`VhostNet`] keeps the memory mapped, by the [`Words`] that
//! cover all of it; and when it goes, the kernel lets go of the rings first, and of the memory afterwards.

use std::fmt;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicU64;

use libc::{_IO, _IOR, _IOW, Ioctl};
use memory::{GuestAddress, Words};
use rustix::fs::{Mode, OFlags, open};
use wire::split::{available_ring_size, descriptor_table_size, used_ring_size};
use wire::virtio::Features;

/// Where the kernel's device is.
const PATH: &str = "/dev/vhost-net";

/// What we would have of the device. Of what else there is, some would have it use memory that it was not
/// given here: LOG_ALL a log, ACCESS_PLATFORM whatever is written to the descriptor.
const WANTED: Features = Features::VERSION_1.union(Features::MRG_RXBUF).union(Features::EVENT_IDX);

/// What a device has to know: rings of modern virtio, and frames in more than one buffer (Linux 4.0).
const REQUIRED: Features = Features::VERSION_1.union(Features::MRG_RXBUF);

/// `VHOST_VIRTIO`, the group of all these requests.
const GROUP: u32 = 0xaf;
const GET_FEATURES: Ioctl = _IOR::<u64>(GROUP, 0x00);
const SET_FEATURES: Ioctl = _IOW::<u64>(GROUP, 0x00);
const SET_OWNER: Ioctl = _IO(GROUP, 0x01);
/// Its argument ends in an array that the number does not count.
const SET_MEM_TABLE: Ioctl = _IOW::<[u32; 2]>(GROUP, 0x03);
const SET_VRING_NUM: Ioctl = _IOW::<VringState>(GROUP, 0x10);
const SET_VRING_ADDR: Ioctl = _IOW::<VringAddresses>(GROUP, 0x11);
const SET_VRING_BASE: Ioctl = _IOW::<VringState>(GROUP, 0x12);
const SET_VRING_KICK: Ioctl = _IOW::<VringFile>(GROUP, 0x20);
const SET_VRING_CALL: Ioctl = _IOW::<VringFile>(GROUP, 0x21);
const SET_VRING_ERR: Ioctl = _IOW::<VringFile>(GROUP, 0x22);
const SET_BACKEND: Ioctl = _IOW::<VringFile>(GROUP, 0x30);

/// `struct vhost_memory` with one `struct vhost_memory_region`.
#[repr(C)]
struct MemoryTable {
    regions: u32,
    padding: u32,
    guest: u64,
    size: u64,
    user: u64,
    flags: u64,
}

/// `struct vhost_vring_state`.
#[repr(C)]
struct VringState {
    ring: u32,
    number: u32,
}

/// `struct vhost_vring_file`.
#[repr(C)]
struct VringFile {
    ring: u32,
    descriptor: libc::c_int,
}

/// `struct vhost_vring_addr`.
#[repr(C)]
struct VringAddresses {
    ring: u32,
    flags: u32,
    descriptors: u64,
    used: u64,
    available: u64,
    log: u64,
}

/// Why the kernel's vhost-net cannot be used.
#[derive(Debug)]
pub enum VhostError {
    /// The device could not be opened.
    Open(io::Error),
    /// The device is too old.
    Lacks(Features),
    /// A ring that is not all in the memory.
    Outside {
        /// Which part of which ring.
        area: &'static str,
        /// 0 is where frames are received, 1 where they are transmitted.
        ring: u32,
    },
    /// The kernel refused a request.
    Refused(&'static str, io::Error),
}

impl fmt::Display for VhostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open(error) => match error.raw_os_error() {
                Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => write!(
                    f,
                    "there is no {PATH}: the kernel's module vhost_net is not loaded (modprobe vhost_net), \
                     or the device was not let into this container"
                ),
                Some(libc::EACCES | libc::EPERM) => write!(
                    f,
                    "{PATH} may not be opened by this user: its owner, root, or a member of its group may \
                     (ls -l {PATH})"
                ),
                _ => write!(f, "cannot open {PATH}: {error}"),
            },
            Self::Lacks(features) => {
                write!(f, "{PATH} lacks {features}: it takes Linux 4.0 or later")
            }
            Self::Outside { area, ring } => {
                write!(f, "the {area} of ring {ring} is not inside of the memory")
            }
            Self::Refused(what, error) => write!(f, "{what} on {PATH} failed: {error}"),
        }
    }
}

// The texts have what there is to say: no source, which would say it twice.
impl std::error::Error for VhostError {}

/// The kernel's device, before it is started.
#[derive(Debug)]
pub struct Device {
    descriptor: OwnedFd,
    features: Features,
}

/// The memory that descriptors speak of.
pub struct DeviceMemory {
    /// What descriptors call its first byte.
    pub start: GuestAddress,
    /// All of it.
    pub words: Words<AtomicU64>,
}

impl DeviceMemory {
    /// Where this process sees `size` bytes at `address`, which have to be inside.
    fn user_address(&self, address: GuestAddress, size: u64) -> Option<u64> {
        let offset = address.0.checked_sub(self.start.0)?;
        let end = offset.checked_add(size)?;
        (end <= size_of_val(&*self.words) as u64).then(|| self.base() + offset)
    }

    /// Where this process sees the first byte.
    fn base(&self) -> u64 {
        self.words.as_ptr().addr() as u64
    }
}

/// A split ring of which nothing was used yet.
#[derive(Clone, Copy, Debug)]
pub struct Ring<'d> {
    /// Entries: a power of two.
    pub size: u16,
    /// The descriptor table.
    pub descriptors: GuestAddress,
    /// The available ring.
    pub available: GuestAddress,
    /// The used ring.
    pub used: GuestAddress,
    /// The eventfd by which we wake the kernel.
    pub kick: BorrowedFd<'d>,
    /// The eventfd by which it wakes us.
    pub call: BorrowedFd<'d>,
    /// The eventfd by which it says that it found an error: it has let the ring stand then.
    pub error: BorrowedFd<'d>,
}

impl Device {
    /// Opens the device, which gets a thread of the kernel's.
    pub fn open() -> Result<Self, VhostError> {
        let descriptor = open(PATH, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| VhostError::Open(error.into()))?;
        let mut device = Self { descriptor, features: Features::NONE };
        // SAFETY: SET_OWNER takes no argument.
        let owned = unsafe { libc::ioctl(device.descriptor.as_raw_fd(), SET_OWNER) };
        if owned < 0 {
            return Err(VhostError::Refused("VHOST_SET_OWNER", io::Error::last_os_error()));
        }
        let mut features = 0u64;
        // SAFETY: GET_FEATURES writes a u64.
        unsafe { device.request("VHOST_GET_FEATURES", GET_FEATURES, &mut features) }?;
        device.features = Features(features) & WANTED;
        let lacks = REQUIRED.without(device.features);
        if lacks.is_empty() { Ok(device) } else { Err(VhostError::Lacks(lacks)) }
    }

    /// The virtio features that it will have: VERSION_1 and MRG_RXBUF in any case, and EVENT_IDX where the
    /// kernel knows it.
    pub fn features(&self) -> Features {
        self.features
    }

    /// Starts the device on this memory: by ring 0 we receive, by ring 1 we transmit, what `tap` sends and
    /// receives. `tap` is a queue of a tap interface whose frames have a header of virtio-net's before them,
    /// as long as VERSION_1 has it.
    pub fn start(
        self,
        memory: DeviceMemory,
        rings: [Ring<'_>; 2],
        tap: impl AsFd,
    ) -> Result<VhostNet, VhostError> {
        let device = VhostNet { device: self, memory: ManuallyDrop::new(memory) };
        device.set_up(&rings, tap.as_fd())?;
        Ok(device)
    }

    /// A request whose argument is a `T`.
    ///
    /// # Safety
    ///
    /// `T` is what the request reads or writes, and no address in it is used that is not kept mapped for
    /// as long as the kernel may use it.
    unsafe fn request<T>(
        &self,
        name: &'static str,
        request: Ioctl,
        argument: &mut T,
    ) -> Result<(), VhostError> {
        // SAFETY: the argument outlives the call, and is what the request takes, by the caller's word.
        let result = unsafe {
            libc::ioctl(self.descriptor.as_raw_fd(), request, std::ptr::from_mut(argument))
        };
        if result < 0 {
            return Err(VhostError::Refused(name, io::Error::last_os_error()));
        }
        Ok(())
    }

    /// Gives the ring this tap, or takes from it what it has.
    fn set_backend(&self, ring: u32, tap: Option<BorrowedFd<'_>>) -> Result<(), VhostError> {
        let descriptor = tap.map_or(-1, |tap| tap.as_raw_fd());
        let mut file = VringFile { ring, descriptor };
        // SAFETY: the request reads a vhost_vring_file. What memory the ring uses from then on was set
        // before.
        unsafe { self.request("VHOST_NET_SET_BACKEND", SET_BACKEND, &mut file) }
    }
}

/// The kernel's device at work. Dropping it stops it.
pub struct VhostNet {
    device: Device,
    /// What the kernel reads and writes. Dropped when it does not any more.
    memory: ManuallyDrop<DeviceMemory>,
}

impl VhostNet {
    fn set_up(&self, rings: &[Ring<'_>; 2], tap: BorrowedFd<'_>) -> Result<(), VhostError> {
        let device = &self.device;
        let mut features = device.features.0;
        // SAFETY: the request reads a u64.
        unsafe { device.request("VHOST_SET_FEATURES", SET_FEATURES, &mut features) }?;
        let mut table = MemoryTable {
            regions: 1,
            padding: 0,
            guest: self.memory.start.0,
            size: size_of_val(&*self.memory.words) as u64,
            user: self.memory.base(),
            flags: 0,
        };
        // SAFETY: the request reads a vhost_memory and as many regions as it says. The one region is all
        // that `memory` covers, which keeps it mapped until the device has let go of it: see `drop`.
        unsafe { device.request("VHOST_SET_MEM_TABLE", SET_MEM_TABLE, &mut table) }?;
        for (number, ring) in (0..).zip(rings) {
            self.set_up_ring(number, ring)?;
        }
        // Only now, when nothing can fail any more but this.
        for number in 0..2 {
            device.set_backend(number, Some(tap))?;
        }
        Ok(())
    }

    fn set_up_ring(&self, number: u32, ring: &Ring<'_>) -> Result<(), VhostError> {
        let device = &self.device;
        let state = |value| VringState { ring: number, number: value };
        let file = |file: BorrowedFd<'_>| VringFile { ring: number, descriptor: file.as_raw_fd() };
        let place = |area, address, size| {
            let outside = VhostError::Outside { area, ring: number };
            self.memory.user_address(address, size).ok_or(outside)
        };
        let size = ring.size;
        let mut addresses = VringAddresses {
            ring: number,
            flags: 0,
            descriptors: place("descriptor table", ring.descriptors, descriptor_table_size(size))?,
            used: place("used ring", ring.used, used_ring_size(size))?,
            available: place("available ring", ring.available, available_ring_size(size))?,
            log: 0,
        };
        let states = [
            ("VHOST_SET_VRING_NUM", SET_VRING_NUM, size.into()),
            ("VHOST_SET_VRING_BASE", SET_VRING_BASE, 0),
        ];
        for (name, request, number) in states {
            // SAFETY: both requests read a vhost_vring_state, which is two numbers.
            unsafe { device.request(name, request, &mut state(number)) }?;
        }
        // SAFETY: the request reads a vhost_vring_addr. The addresses are of areas inside of the memory, which
        // is kept mapped until the device has let go of it.
        unsafe { device.request("VHOST_SET_VRING_ADDR", SET_VRING_ADDR, &mut addresses) }?;
        let files = [
            ("VHOST_SET_VRING_KICK", SET_VRING_KICK, ring.kick),
            ("VHOST_SET_VRING_CALL", SET_VRING_CALL, ring.call),
            ("VHOST_SET_VRING_ERR", SET_VRING_ERR, ring.error),
        ];
        for (name, request, descriptor) in files {
            // SAFETY: all of these requests read a vhost_vring_file. The kernel holds the file itself.
            unsafe { device.request(name, request, &mut file(descriptor)) }?;
        }
        Ok(())
    }
}

impl Drop for VhostNet {
    fn drop(&mut self) {
        // The kernel's thread is through with a ring when this comes back. Closing the device would stop it
        // too, but only if no other process had inherited it.
        let stopped = [0, 1].map(|ring| self.device.set_backend(ring, None).is_ok());
        if stopped == [true; 2] {
            // SAFETY: it is not used again: this is the end of `self`.
            unsafe { ManuallyDrop::drop(&mut self.memory) };
        }
        // If not, and it is not known why that could be, the memory stays mapped for good.
    }
}

#[cfg(test)]
mod tests {
    use memory::{FrontEndAddress, GuestMemory, RegionRequest, SharedMemory};

    use super::*;

    /// As linux/vhost.h has them, on the architectures that we know.
    #[test]
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
    fn requests_have_the_kernels_numbers() {
        assert_eq!(GET_FEATURES, 0x8008_af00);
        assert_eq!(SET_FEATURES, 0x4008_af00);
        assert_eq!(SET_OWNER, 0xaf01);
        assert_eq!(SET_MEM_TABLE, 0x4008_af03);
        assert_eq!(SET_VRING_NUM, 0x4008_af10);
        assert_eq!(SET_VRING_ADDR, 0x4028_af11);
        assert_eq!(SET_VRING_BASE, 0x4008_af12);
        assert_eq!(SET_VRING_KICK, 0x4008_af20);
        assert_eq!(SET_VRING_CALL, 0x4008_af21);
        assert_eq!(SET_VRING_ERR, 0x4008_af22);
        assert_eq!(SET_BACKEND, 0x4008_af30);
    }

    #[test]
    fn only_what_is_inside_of_the_memory_has_an_address() {
        let start = GuestAddress(0x4000_0000);
        let shared = SharedMemory::create("vhost", 8192).unwrap();
        let memory = GuestMemory::map([RegionRequest {
            guest: start,
            size: 8192,
            front_end: FrontEndAddress(0),
            offset: 0,
            file: shared.as_fd().try_clone_to_owned().unwrap(),
        }])
        .unwrap();
        let memory = DeviceMemory { start, words: memory.words(start, 1024).unwrap() };
        let base = memory.words.as_ptr().addr() as u64;
        let place = |address, size| memory.user_address(GuestAddress(address), size);
        assert_eq!(place(start.0, 8192), Some(base));
        assert_eq!(place(start.0 + 8000, 192), Some(base + 8000));
        for (address, size) in
            [(start.0 + 8000, 193), (start.0 - 1, 2), (0, 1), (u64::MAX, 1), (start.0, u64::MAX)]
        {
            assert_eq!(place(address, size), None, "{size} at {address:#x}");
        }
    }

    #[test]
    fn what_is_missing_is_said_with_what_to_do() {
        let said = |code| VhostError::Open(io::Error::from_raw_os_error(code)).to_string();
        assert!(said(libc::ENOENT).contains("modprobe vhost_net"));
        assert!(said(libc::ENXIO).contains("modprobe vhost_net"));
        assert!(said(libc::EACCES).contains("may not be opened by this user"));
        assert!(said(libc::EMFILE).contains("Too many open files"));
    }
}
