//! TCP from an emulated guest to the host: by a tap port, and by QEMU's own tap without vhost. Both guests are there all
//! the time, and take turns.

use std::net::Ipv4Addr;

use anyhow::Result;
use ringway_tests::{Switch, boot, guest, mac, nic};
use testbed::{Network, Nic, Shell, traffic};

use super::Row;
use crate::interrupt;
use crate::measure::LEAST_IPERF_SECONDS;

pub fn measure(rounds: u32, seconds: f64) -> Result<Row> {
    let network = Network::new()?;
    let switch = Switch::start_in(&network, &["vm1=vhost-user:vm1.sock", "host=tap:rw0"])?;
    network.tap("tap0")?;
    network.ip(&["link", "set", "rw0", "up"])?;
    network.address("rw0", "10.0.1.254/24")?;
    network.address("tap0", "10.0.2.254/24")?;
    eprintln!("guests boot");
    let guests = boot([
        guest(1, nic(&switch, 1))?.network(&network),
        guest(2, Nic::tap("tap0").mac(&mac(2)))?.network(&network),
    ])?;
    for (guest, n) in guests.iter().zip(1..) {
        guest.run(&format!("ip addr add 10.0.{n}.1/24 dev eth0 && ip link set eth0 up"))?;
    }
    let seconds = seconds.max(LEAST_IPERF_SECONDS).ceil() as u32;
    let mut pairs = Vec::new();
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}: an emulated guest, TCP");
        let mut rates = [0.0; 2];
        for ((guest, n), rate) in guests.iter().zip(1..).zip(&mut rates) {
            interrupt::check()?;
            let address = Ipv4Addr::new(10, 0, n, 254).into();
            *rate = traffic::iperf(guest, &network, address, seconds, "")?.bits_per_second / 1e9;
        }
        pairs.push(rates.into());
    }
    drop(guests);
    switch.stop()?;
    Ok(Row { name: "to the host, emulated, TCP".to_owned(), unit: "Gbit/s", pairs })
}
