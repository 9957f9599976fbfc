//! Traffic whose content is checked: a TCP stream with a digest at both ends, and UDP of every size with an echo.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use crate::sha256::Sha256;

/// How long an echo may take before its datagram counts as lost.
const ECHO_LIMIT: Duration = Duration::from_secs(2);
/// Lost sizes after which a sweep gives up: the path is dead, not lossy.
const LOST_LIMIT: usize = 8;

/// Bytes that depend on `seed` alone (xorshift64*).
struct Noise(u64);

impl Noise {
    fn new(seed: u64) -> Noise {
        // The generator's one fixed point is zero.
        Noise(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn fill(&mut self, buffer: &mut [u8]) {
        for bytes in buffer.chunks_mut(8) {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            let word = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes();
            bytes.copy_from_slice(&word[..bytes.len()]);
        }
    }
}

/// Accepts one connection, reads it to its end, prints how much came and its digest.
pub fn tcp_receive(address: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    println!("listening");
    let (mut stream, _) = listener.accept()?;
    let mut buffer = vec![0; 256 << 10];
    let (mut sha, mut total) = (Sha256::new(), 0);
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        sha.update(&buffer[..count]);
        total += count as u64;
    }
    println!("{total} {}", sha.finish());
    Ok(())
}

/// Sends `total` bytes of noise, prints how much went and its digest.
pub fn tcp_send(address: SocketAddr, total: u64, seed: u64) -> io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    let mut buffer = vec![0; 256 << 10];
    let (mut sha, mut noise) = (Sha256::new(), Noise::new(seed));
    let mut left = total;
    while left > 0 {
        let count = left.min(buffer.len() as u64) as usize;
        noise.fill(&mut buffer[..count]);
        sha.update(&buffer[..count]);
        stream.write_all(&buffer[..count])?;
        left -= count as u64;
    }
    println!("{total} {}", sha.finish());
    Ok(())
}

/// Sends each datagram back where it came from, until killed.
pub fn udp_echo(address: SocketAddr) -> io::Result<()> {
    let socket = UdpSocket::bind(address)?;
    println!("listening");
    let mut buffer = vec![0; 1 << 16];
    loop {
        let (count, from) = socket.recv_from(&mut buffer)?;
        socket.send_to(&buffer[..count], from)?;
    }
}

/// Sends one datagram of each payload size from `first` to `last` and awaits its echo before the next.
pub fn udp_sweep(address: SocketAddr, first: usize, last: usize) -> io::Result<()> {
    let any: SocketAddr = match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(address)?;
    let mut sent = vec![0; last];
    let mut echo = vec![0; 1 << 16];
    let mut lost = Vec::new();
    for size in first..=last {
        let sent = &mut sent[..size];
        Noise::new(size as u64).fill(sent);
        socket.send(sent)?;
        let deadline = Instant::now() + ECHO_LIMIT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // A zero timeout would mean "for ever".
            socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            match socket.recv(&mut echo) {
                Ok(count) if &echo[..count] == sent => break,
                // The late echo of a smaller size that was given up.
                Ok(count) if count < size && lost.contains(&count) => {}
                Ok(count) => {
                    let text = format!("{size} bytes went, {count} other bytes came back");
                    return Err(io::Error::other(text));
                }
                Err(error) if is_timeout(&error) => {
                    lost.push(size);
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        if lost.len() >= LOST_LIMIT {
            break;
        }
    }
    if !lost.is_empty() {
        return Err(io::Error::other(format!("no echo of these sizes: {lost:?}")));
    }
    println!("{} sizes", last + 1 - first);
    Ok(())
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}
