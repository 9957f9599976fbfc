//! QEMU guests for the tests: Debian's own kernel under software emulation, a small initramfs, host networks to plug
//! guests into, and a shell in each guest. And DPDK, which is a guest without a virtual machine, or a back end, as Open
//! vSwitch is.
//!
//! ```no_run
//! use testbed::{Guest, Image, Nic, Shell};
//!
//! # fn main() -> anyhow::Result<()> {
//! let image = Image::build()?;
//! let guest = Guest::builder(&image, "vm1")
//!     .nic(Nic::vhost_user("/run/vm1.sock").mac("52:54:00:00:00:01"))
//!     .boot()?;
//! guest.run("ip addr add 10.0.0.1/24 dev eth0; ip link set eth0 up")?;
//! println!("{}", guest.run("ping -c 3 10.0.0.2")?);
//! # Ok(())
//! # }
//! ```
//!
//! | module        | what it holds                                                                         |
//! | ------------- | ------------------------------------------------------------------------------------- |
//! | [`image`]     | kernel and initramfs, made once in a process                                          |
//! | [`qemu`]      | which QEMU, and what it understands                                                   |
//! | [`nic`]       | a guest's network card: vhost-user or QEMU's own tap                                  |
//! | [`guest`]     | a running guest: scripts, reboot, restart, monitor, console                           |
//! | [`shell`]     | running scripts and waiting for them, the same in a guest and on the host             |
//! | [`network`]   | bridges, taps and addresses on the host, in a network namespace of their own          |
//! | [`process`]   | programs on the host that never outlive the test                                      |
//! | [`dpdk`]      | a running `dpdk-testpmd`: commands, statistics, what its driver chose                 |
//! | [`ovs`]       | a running Open vSwitch with DPDK                                                      |
//! | [`hugepages`] | hugepages, borrowed from the kernel                                                   |
//! | [`traffic`]   | ping, checked TCP and UDP, iperf3, between any two shells                             |
//!
//! Nothing outlives the test: dropping a value ends what it stands for, and the kernel ends the processes of a test
//! that was killed.

mod channel;
mod cpio;
pub mod dpdk;
pub mod guest;
pub mod hugepages;
pub mod image;
#[path = "../tool/line.rs"]
mod line;
mod monitor;
pub mod network;
pub mod nic;
pub mod ovs;
pub mod process;
pub mod qemu;
pub mod shell;
pub mod traffic;

pub use guest::{Builder, Guest};
pub use image::Image;
pub use network::Network;
pub use nic::Nic;
pub use process::Program;
pub use qemu::Qemu;
pub use shell::{Job, Output, Shell};
