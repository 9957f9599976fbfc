//! Traffic between any two shells: guests, or a guest and the host.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::shell::Shell;

/// A server listens within this time.
const LISTEN_LIMIT: Duration = Duration::from_secs(20);
/// Beyond the traffic's own time: an emulated guest starts a program slowly.
const SLACK: Duration = Duration::from_secs(30);
/// Slower than this is stuck.
const SLOWEST_BYTES_PER_SECOND: u64 = 1 << 20;

/// What ping saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ping {
    /// Requests sent.
    pub sent: u32,
    /// Answers received, duplicates not counted.
    pub received: u32,
}

/// Pings an address (IPv4 or IPv6, `%interface` after a link-local one), five times a second.
///
/// # Errors
///
/// Ping says nothing of use: no route, no such interface. Lost answers are no error; look at the result.
pub fn ping(from: &dyn Shell, to: &str, count: u32) -> Result<Ping> {
    let limit = Duration::from_millis(200) * count + SLACK;
    let output = from.output_within(&format!("busybox ping -c {count} -i 0.2 -W 5 {to}"), limit)?;
    let text = output.text();
    parse_ping(&text).with_context(|| format!("{}: ping {to}:\n{text}", from.name()))
}

fn parse_ping(text: &str) -> Option<Ping> {
    let line = text.lines().find(|line| line.contains("packets transmitted"))?;
    let mut numbers = line.split(", ").filter_map(|part| part.split(' ').next()?.parse().ok());
    Some(Ping { sent: numbers.next()?, received: numbers.next()? })
}

/// How a checked stream went.
#[derive(Clone, Debug, PartialEq)]
pub struct Stream {
    /// SHA-256 of what was sent and of what arrived, in hexadecimal.
    pub sha256: String,
    /// From the sender's start to the receiver's end.
    pub time: Duration,
}

/// Sends `bytes` of noise over one TCP connection from `from` to `to`, which listens on `address`.
///
/// # Errors
///
/// The stream broke, or the digests at its two ends differ.
pub fn tcp_stream(
    from: &dyn Shell,
    to: &dyn Shell,
    address: SocketAddr,
    bytes: u64,
) -> Result<Stream> {
    let limit = Duration::from_secs(bytes / SLOWEST_BYTES_PER_SECOND) + SLACK;
    let receiver = to.start(&format!("exec $TOOL tcp-receive {address}"))?;
    receiver.wait_for("listening\n", LISTEN_LIMIT)?;
    let start = Instant::now();
    let sent = from.run_within(&format!("exec $TOOL tcp-send {address} {bytes} 1"), limit)?;
    let received = receiver.wait(SLACK)?;
    let time = start.elapsed();
    let text = received.text();
    let received = text.strip_prefix("listening\n").unwrap_or(&text);
    if received != sent {
        bail!("{} sent {sent}{} received {received}", from.name(), to.name());
    }
    let sha256 = sent.split_whitespace().nth(1).unwrap_or_default().to_owned();
    Ok(Stream { sha256, time })
}

/// Sends one UDP datagram of each payload size from `from` to `to`, which echoes on `address`, and checks every byte
/// that comes back. The largest size that fits one frame is the MTU less 28 (IPv4) or 48 (IPv6).
///
/// # Errors
///
/// An echo did not come, or was not what was sent; the error names the sizes.
pub fn udp_sweep(
    from: &dyn Shell,
    to: &dyn Shell,
    address: SocketAddr,
    sizes: RangeInclusive<u16>,
) -> Result<()> {
    let echo = to.start(&format!("exec $TOOL udp-echo {address}"))?;
    echo.wait_for("listening\n", LISTEN_LIMIT)?;
    let (first, last) = (sizes.start(), sizes.end());
    // Lost echoes cost the tool 2 s each, and it gives up after a few.
    from.run_within(&format!("exec $TOOL udp-sweep {address} {first} {last}"), SLACK * 2)?;
    Ok(())
}

/// What iperf3 measured over TCP.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Iperf {
    /// Payload received, bits a second.
    pub bits_per_second: f64,
    /// Segments sent again.
    pub retransmits: u64,
}

/// Runs iperf3 over TCP from `from` to the server it starts in `to` at `address`. `options` are more options for the
/// client, such as `-R`.
///
/// # Errors
///
/// iperf3 failed, at either end.
pub fn iperf(
    from: &dyn Shell,
    to: &dyn Shell,
    address: IpAddr,
    seconds: u32,
    options: &str,
) -> Result<Iperf> {
    let server = to.start("exec iperf3 --server --one-off --forceflush")?;
    server.wait_for("Server listening", LISTEN_LIMIT)?;
    let script = format!("exec iperf3 --client {address} --time {seconds} --json {options}");
    let limit = Duration::from_secs(seconds.into()) + SLACK;
    let output = from.output_within(&script, limit)?;
    let text = output.text();
    parse_iperf(&text).with_context(|| format!("{}: `{script}`:\n{text}", from.name()))
}

fn parse_iperf(text: &str) -> Result<Iperf> {
    let report: Value = serde_json::from_str(text)?;
    if let Some(error) = report.get("error") {
        bail!("{error}");
    }
    let number = |pointer| report.pointer(pointer).with_context(|| format!("no {pointer}"));
    let bits_per_second = number("/end/sum_received/bits_per_second")?;
    let retransmits = number("/end/sum_sent/retransmits")?;
    Ok(Iperf {
        bits_per_second: bits_per_second.as_f64().context("a rate that is no number")?,
        retransmits: retransmits.as_u64().context("a count that is no number")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ping_counts() {
        let text = "PING 10.0.0.2 (10.0.0.2): 56 data bytes\n\n--- 10.0.0.2 ping statistics ---\n\
                    5 packets transmitted, 4 packets received, 20% packet loss\n";
        assert_eq!(parse_ping(text), Some(Ping { sent: 5, received: 4 }));
        assert_eq!(parse_ping("ping: sendto: Network unreachable"), None);
    }

    #[test]
    fn iperf_report() -> Result<()> {
        let text = r#"{"end": {"sum_sent": {"bits_per_second": 2e9, "retransmits": 3},
                       "sum_received": {"bits_per_second": 1.5e9}}}"#;
        let expected = Iperf { bits_per_second: 1.5e9, retransmits: 3 };
        assert_eq!(parse_iperf(text)?, expected);
        let error = parse_iperf(r#"{"error": "unable to connect"}"#).err();
        assert!(error.is_some_and(|error| error.to_string().contains("unable to connect")));
        Ok(())
    }
}
