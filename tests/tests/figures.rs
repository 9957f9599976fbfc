//! What the switch costs, and how fast it is. These tests measure, so they run alone: `.config/nextest.toml` sees to it.

use anyhow::Result;
use ringway_tests::*;
use testbed::traffic::{self, Iperf};
use testbed::{Network, Nic, Shell};

/// Runs of iperf3 on each side, taken in turns; medians are compared, so that one disturbance counts for nothing.
const ROUNDS: usize = 3;
const ROUND_SECONDS: u32 = 5;
/// Retransmissions in one run that say nothing: slow start may lose a segment or two anywhere.
const HANDFUL: u64 = 10;

#[test]
fn iperf_against_taps_and_a_bridge() -> Result<()> {
    let network = Network::new()?;
    network.bridge("br0")?;
    let switch = Switch::start(&["vm1=vhost-user:vm1.sock", "vm2=vhost-user:vm2.sock"])?;
    let with_tap = |n: u8| {
        let tap = format!("tap{n}");
        network.tap(&tap)?;
        network.attach(&tap, "br0")?;
        let baseline = Nic::tap(&tap).mac(&format!("52:54:00:00:01:0{n}"));
        Ok::<_, anyhow::Error>(guest(n, nic(&switch, n))?.nic(baseline).network(&network))
    };
    let [one, two] = boot([with_tap(1)?, with_tap(2)?])?;
    for (guest, n) in [(&one, 1), (&two, 2)] {
        plug_in(guest, n)?;
        guest.run(&format!("ip addr add 10.0.1.{n}/24 dev eth1 && ip link set eth1 up"))?;
    }
    println!("{}", one.run("ethtool -k eth0 | grep -v fixed; ethtool -k eth1 | grep -v fixed")?);

    let (mut ours, mut baseline) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        for (address, runs) in [("10.0.0.2", &mut ours), ("10.0.1.2", &mut baseline)] {
            let run = traffic::iperf(&one, &two, address.parse()?, ROUND_SECONDS, "")?;
            println!("{address}: {run:?}");
            runs.push(run);
        }
    }
    let rate = |runs: &[Iperf]| median(runs.iter().map(|run| run.bits_per_second));
    let retransmits = |runs: &[Iperf]| median(runs.iter().map(|run| run.retransmits as f64)) as u64;
    let ratio = rate(&ours) / rate(&baseline);
    println!(
        "iperf3: {:.2} Gbit/s, taps and bridge {:.2} Gbit/s, ratio {ratio:.2}; Retr {} and {}",
        rate(&ours) / 1e9,
        rate(&baseline) / 1e9,
        retransmits(&ours),
        retransmits(&baseline)
    );
    println!("{}", switch.stop()?);
    assert!(ratio >= 1.0, "slower than taps and a bridge");
    assert!(retransmits(&ours) <= retransmits(&baseline).max(HANDFUL), "frames are lost");
    Ok(())
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
