use anyhow::Result;
use ringway_tests::*;
use testbed::traffic;
use testbed::{Network, Nic, Program, Shell};
use testbed::process::bound_command;
use std::time::Duration;

fn cpu(pid: u32) -> u64 {
    let s = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let f: Vec<&str> = s.rsplit(')').next().unwrap().split_whitespace().collect();
    f[11].parse::<u64>().unwrap() + f[12].parse::<u64>().unwrap()
}

#[test]
fn modes() -> Result<()> {
    let network = Network::new()?;
    network.bridge("br0")?;
    let dir = tempfile::tempdir()?;
    let flavours: Vec<Vec<&str>> = vec![
        vec!["--mode", "adaptive"],
        vec!["--mode", "interrupt"],
        vec!["--idle-spin", "5us"],
        vec!["--mode", "poll"],
    ];
    let mut switches = Vec::new();
    for (i, flags) in flavours.iter().enumerate() {
        let mut c = bound_command(binary()?);
        c.args(["run", "--log", "info"]).args(flags).current_dir(dir.path());
        c.args(["--port", &format!("vm1=vhost-user:{i}-1.sock"), "--port", &format!("vm2=vhost-user:{i}-2.sock")]);
        let p = Program::start("host", "ringway", c)?;
        p.job().wait_for("ready", Duration::from_secs(10))?;
        if i == 3 { p.signal(rustix::process::Signal::STOP)?; p.signal(rustix::process::Signal::CONT)?; }
        switches.push(p);
    }
    let make = |n: u8| {
        let tap = format!("tap{n}");
        network.tap(&tap)?;
        network.attach(&tap, "br0")?;
        let baseline = Nic::tap(&tap).mac(&format!("52:54:00:00:01:0{n}"));
        let mut b = guest(n, baseline)?.network(&network);
        for i in 0..flavours.len() {
            b = b.nic(Nic::vhost_user(dir.path().join(format!("{i}-{n}.sock"))).mac(&format!("52:54:00:00:1{i}:0{n}")));
        }
        Ok::<_, anyhow::Error>(b)
    };
    let [one, two] = boot([make(1)?, make(2)?])?;
    for (guest, n) in [(&one, 1), (&two, 2)] {
        for i in 0..=flavours.len() {
            guest.run(&format!("ip addr add 10.0.{i}.{n}/24 dev eth{i} && ip link set eth{i} up"))?;
        }
    }
    // the polling one must not disturb the others
    switches[3].signal(rustix::process::Signal::STOP)?;
    let rounds: usize = std::env::var("ROUNDS").ok().and_then(|s| s.parse().ok()).unwrap_or(4);
    let mut sums = vec![Vec::new(); flavours.len() + 1];
    for _ in 0..rounds {
        for i in 0..=flavours.len() {
            if i == 4 { switches[3].signal(rustix::process::Signal::CONT)?; }
            let before = if i > 0 { cpu(switches[i - 1].pid()) } else { 0 };
            let run = traffic::iperf(&one, &two, format!("10.0.{i}.2").parse()?, 4, "")?;
            let after = if i > 0 { cpu(switches[i - 1].pid()) } else { 0 };
            if i == 4 { switches[3].signal(rustix::process::Signal::STOP)?; }
            let name = if i == 0 { "tap".to_owned() } else { flavours[i - 1].join(" ") };
            println!("{name}: {:.3} Gbit/s retr {} cpu {}%", run.bits_per_second / 1e9, run.retransmits, (after - before) as f64 / 4.0);
            sums[i].push(run.bits_per_second / 1e9);
        }
    }
    for (i, s) in sums.iter_mut().enumerate() {
        s.sort_by(f64::total_cmp);
        println!("{i}: median {:.3} {s:?}", s[s.len() / 2]);
    }
    switches[3].signal(rustix::process::Signal::CONT)?;
    for s in &switches { s.signal(rustix::process::Signal::TERM)?; }
    for s in switches { println!("{}", String::from_utf8_lossy(&s.into_job().wait(Duration::from_secs(2))?.bytes)); }
    Ok(())
}
