//! What the end-to-end tests share: a real `ringway run`, and stock QEMU guests and embedded ones on it.
//!
//! Guest number `n` has the MAC address `52:54:00:00:00:0n` and, once [`plug_in`] was called for it, 10.0.0.n/24 and
//! fd00::n/64 on `eth0`.

mod capture;
mod processors;
mod station;
mod switch;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use testbed::traffic::{self, Ping};
use testbed::{Builder, Guest, Image, Network, Nic, Shell};

pub use capture::{Capture, captured};
pub use processors::{bind, let_first, two_processors};
pub use station::{Station, exchange, exchange_until, numbered, udp};
pub use switch::{NOBODY, Switch, Totals, binary, ringway, ringway_in};

/// The network card of guest number `n` on the switch's socket `vm<n>.sock`.
pub fn nic(switch: &Switch, n: u8) -> Nic {
    Nic::vhost_user(switch.path(&format!("vm{n}.sock"))).mac(&mac(n))
}

/// The MAC address of guest number `n`.
pub fn mac(n: u8) -> String {
    format!("52:54:00:00:00:0{n}")
}

/// The IPv4 address of guest number `n`.
pub fn v4(n: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, n).into()
}

/// The IPv6 address of guest number `n`.
pub fn v6(n: u8) -> IpAddr {
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n.into()).into()
}

/// A guest to be, numbered `n`, with this card.
///
/// # Errors
///
/// The image cannot be built.
pub fn guest(n: u8, nic: Nic) -> Result<Builder> {
    Ok(Guest::builder(&Image::build()?, &format!("vm{n}")).nic(nic))
}

/// Boots guests, all at once.
///
/// # Errors
///
/// One does not boot.
pub fn boot<const N: usize>(guests: [Builder; N]) -> Result<[Guest; N]> {
    let booted: Result<Vec<Guest>> = thread::scope(|scope| {
        let threads = guests.map(|guest| scope.spawn(|| guest.boot()));
        let booted = threads
            .into_iter()
            .map(|thread| thread.join().ok().context("the thread that boots a guest panicked")?);
        booted.collect()
    });
    booted?.try_into().ok().context("as many guests as there were")
}

/// Sets up `eth0` of guest number `n`.
///
/// # Errors
///
/// What the guest says.
pub fn plug_in(guest: &Guest, n: u8) -> Result<()> {
    let (v4, v6) = (v4(n), v6(n));
    guest.run(&format!(
        "ip addr add {v4}/24 dev eth0 && ip addr add {v6}/64 dev eth0 nodad && ip link set eth0 up"
    ))?;
    Ok(())
}

/// Two guests on `vm1.sock` and `vm2.sock`, set up.
///
/// # Errors
///
/// One does not boot.
pub fn two_guests(switch: &Switch) -> Result<[Guest; 2]> {
    let guests = boot([guest(1, nic(switch, 1))?, guest(2, nic(switch, 2))?])?;
    for (guest, n) in guests.iter().zip(1..) {
        plug_in(guest, n)?;
    }
    Ok(guests)
}

/// Pings from one place to another and expects every answer.
///
/// # Errors
///
/// An answer is lost.
pub fn ping_all(from: &dyn Shell, to: &str, count: u32) -> Result<()> {
    let Ping { sent, received } = traffic::ping(from, to, count)?;
    ensure!(
        (sent, received) == (count, count),
        "{}: {received} of {count} pings to {to} were answered",
        from.name()
    );
    Ok(())
}

/// Packets, or frames, and bytes that crossed a tun or tap one way.
pub type Count = (u64, u64);

/// What came out of a tun or tap into the host, and what the host sent into it.
///
/// # Errors
///
/// There is no such interface.
pub fn crossed(network: &Network, interface: &str) -> Result<[Count; 2]> {
    let files = "rx_packets rx_bytes tx_packets tx_bytes";
    let text = network.run(&format!("cd /sys/class/net/{interface}/statistics && cat {files}"))?;
    let numbers = text.lines().map(str::parse).collect::<Result<Vec<u64>, _>>()?;
    match numbers[..] {
        [rx_packets, rx_bytes, tx_packets, tx_bytes] => {
            Ok([(rx_packets, rx_bytes), (tx_packets, tx_bytes)])
        }
        _ => bail!("{text}"),
    }
}

/// Bytes of a packet that crossed between two counts.
pub fn mean_size(before: Count, after: Count) -> u64 {
    (after.1 - before.1) / (after.0 - before.0).max(1)
}
