//! The command line of `ringway vapp`.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use wire::virtio::Features;

use super::frame::{DEFAULT_SIZE, Kind, MIN_SIZE};
use super::server::Work;

const EXAMPLES: &str = "\
Examples:
  A back end that sends every frame back, and a front end that counts what comes back:
      ringway vapp server --socket-path /tmp/vapp.sock
      ringway vapp client /tmp/vapp.sock --verify

  Watch all of their conversation in words, and one frame:
      ringway vapp client /tmp/vapp.sock --dump --count 1

  A QEMU that listens at a socket (-chardev socket,path=/tmp/vm.sock,server=on):
      ringway vapp server --connect /tmp/vm.sock --sink";

const USAGE: &str = "\
ringway vapp server <--socket-path PATH|--connect PATH|--fd N> [OPTIONS]
       ringway vapp client PATH [OPTIONS]
       ringway vapp <-s PATH|-c PATH|-q PATH>";

/// The value of `--arp` where it has none: whom the first program of this name asked for.
const ARP_TARGET: &str = "192.168.0.1";

/// The flags of `ringway vapp`.
#[derive(Debug, Args)]
#[command(override_usage = USAGE, after_help = EXAMPLES, arg_required_else_help = true, args_conflicts_with_subcommands = true)]
pub struct Vapp {
    #[command(subcommand)]
    role: Option<Role>,
    #[command(flatten)]
    old: Old,
}

/// The options of the first program of this name.
#[derive(Debug, Args)]
#[group(multiple = false)]
struct Old {
    /// The same as `server --socket-path PATH --dump`
    #[arg(short = 's', value_name = "PATH")]
    server: Option<PathBuf>,
    /// The same as `server --connect PATH --dump`
    #[arg(short = 'c', value_name = "PATH")]
    connect: Option<PathBuf>,
    /// The same as `client PATH --arp --rate 1 --dump`
    #[arg(short = 'q', value_name = "PATH")]
    client: Option<PathBuf>,
}

/// Which end to be.
#[derive(Debug, Subcommand)]
pub enum Role {
    /// Be a back end: serve a virtio-net device that sends every frame back
    Server(Server),
    /// Be a front end: send frames through a back end, and check what comes back
    Client(Client),
}

impl Vapp {
    /// Which end to be, and how.
    pub fn role(self) -> Option<Role> {
        let Old { server, connect, client } = self.old;
        let is_server = server.is_some() || connect.is_some();
        let old_server = is_server.then_some(Role::Server(Server {
            place: Place { socket_path: server, connect, fd: None },
            sink: false,
            source: false,
            dump: true,
            #[cfg(feature = "faults")]
            fault: None,
        }));
        let old_client = client.map(|path| {
            Role::Client(Client {
                path,
                count: None,
                size: DEFAULT_SIZE,
                arp: ARP_TARGET.parse().ok(),
                rate: Some(1),
                packed: false,
                verify: false,
                dump: true,
            })
        });
        self.role.or(old_server).or(old_client)
    }
}

/// The flags of `ringway vapp server`.
#[derive(Debug, Args)]
pub struct Server {
    #[command(flatten)]
    pub place: Place,
    /// Count frames instead of sending them back
    #[arg(long, conflicts_with = "source")]
    sink: bool,
    /// Count frames, and send as many of our own as the guest takes
    #[arg(long)]
    source: bool,
    /// Print every message and every frame, in words
    #[arg(long)]
    pub dump: bool,
    /// Do one thing wrong, for the tests of `ringway check`; `list` names all that there is
    #[cfg(feature = "faults")]
    #[arg(long, value_name = "NAME", value_parser = fault, requires = "socket_path",
          conflicts_with_all = ["sink", "source", "dump"])]
    pub fault: Option<&'static check::faults::Fault>,
}

/// Where front ends are.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct Place {
    /// Listen at this path, and serve one front end after the other until SIGTERM or SIGINT
    #[arg(long, value_name = "PATH")]
    pub socket_path: Option<PathBuf>,
    /// Connect to a front end that listens at this path, and serve it until it goes away
    #[arg(long, value_name = "PATH")]
    pub connect: Option<PathBuf>,
    /// Serve the front end at the other end of this inherited descriptor, a connected Unix socket,
    /// until it goes away
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..))]
    pub fd: Option<i32>,
}

impl Server {
    /// What to do with frames.
    pub fn work(&self) -> Work {
        match (self.sink, self.source) {
            (true, _) => Work::Sink,
            (_, true) => Work::Source,
            _ => Work::Echo,
        }
    }
}

/// The flags of `ringway vapp client`.
#[derive(Debug, Args)]
pub struct Client {
    /// The socket at which the back end listens
    #[arg(value_name = "PATH")]
    pub path: PathBuf,
    /// Stop after so many frames [default: go on until SIGTERM or SIGINT]
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,
    /// Bytes of each frame, without the Ethernet checksum
    #[arg(long, value_name = "BYTES", default_value_t = DEFAULT_SIZE, value_parser = size)]
    size: usize,
    /// Send ARP requests for this address; an answer counts as well as the request itself
    #[arg(long, value_name = "ADDRESS", num_args = 0..=1, require_equals = true,
          default_missing_value = ARP_TARGET, conflicts_with = "size")]
    arp: Option<Ipv4Addr>,
    /// Send so many frames a second [default: as many as come back, 64 on their way at a time]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub rate: Option<u32>,
    /// Use packed rings, if the back end offers them
    #[arg(long)]
    packed: bool,
    /// Exit with status 1 if a frame is lost, damaged, out of order or there twice
    #[arg(long)]
    pub verify: bool,
    /// Print every message and every frame, in words
    #[arg(long)]
    pub dump: bool,
}

impl Client {
    /// What the guest wants of the back end.
    pub fn features(&self) -> Features {
        let ring = if self.packed { Features::RING_PACKED } else { Features::NONE };
        guest::Options::default().features | ring
    }

    /// What to send.
    pub fn kind(&self) -> Kind {
        match self.arp {
            Some(target) => Kind::Arp { target },
            None => Kind::Numbered { size: self.size },
        }
    }
}

/// The fault of this name. For `list`, prints all names and the cases that catch them, and ends: there need
/// be no socket for that.
#[cfg(feature = "faults")]
fn fault(name: &str) -> Result<&'static check::faults::Fault, String> {
    if name == "list" {
        for fault in check::faults::all() {
            println!("{:<40} {}", fault.name, fault.caught.join(" "));
        }
        std::process::exit(0);
    }
    check::faults::find(name).ok_or_else(|| "there is no such fault; `list` names all".to_owned())
}

/// What the embedded guest's transmit buffers take.
const MAX_SIZE: usize = 16 * 1024 - wire::virtio::NetHeader::SIZE;

fn size(text: &str) -> Result<usize, String> {
    let size = text.parse().ok().filter(|size| (MIN_SIZE..=MAX_SIZE).contains(size));
    size.ok_or_else(|| format!("expected a number of bytes from {MIN_SIZE} to {MAX_SIZE}"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Alone {
        #[command(flatten)]
        vapp: Vapp,
    }

    fn parse(line: &str) -> Result<Role, clap::Error> {
        let alone = Alone::try_parse_from(line.split_whitespace())?;
        Ok(alone.vapp.role().expect("one or the other"))
    }

    #[test]
    fn the_old_names_mean_what_they_meant() {
        for (line, listens) in [("vapp -s /x", true), ("vapp -c /x", false)] {
            let Role::Server(server) = parse(line).unwrap() else { panic!("{line}") };
            let path = if listens { server.place.socket_path } else { server.place.connect };
            assert_eq!(path, Some("/x".into()), "{line}");
            assert!(server.dump && !server.sink && !server.source);
        }
        let Role::Client(client) = parse("vapp -q /x").unwrap() else { panic!("a client") };
        assert_eq!(client.kind(), Kind::Arp { target: Ipv4Addr::new(192, 168, 0, 1) });
        assert_eq!((client.path, client.rate, client.dump), ("/x".into(), Some(1), true));
    }

    #[test]
    fn flags_of_the_client() {
        let Role::Client(client) =
            parse("vapp client /x --count 5 --size 1514 --rate 100 --verify").unwrap()
        else {
            panic!("a client");
        };
        assert_eq!(client.kind(), Kind::Numbered { size: 1514 });
        assert_eq!((client.count, client.rate, client.verify), (Some(5), Some(100), true));
        assert!(!client.features().contains(Features::RING_PACKED));
        let Role::Client(client) = parse("vapp client --arp=10.0.0.7 --packed /x").unwrap() else {
            panic!("a client");
        };
        assert_eq!(client.kind(), Kind::Arp { target: Ipv4Addr::new(10, 0, 0, 7) });
        assert_eq!(client.kind().size(), 60);
        assert!(client.features().contains(Features::RING_PACKED | Features::MRG_RXBUF));
    }

    #[test]
    fn flags_of_the_server() {
        for (flag, work) in [("", Work::Echo), ("--sink", Work::Sink), ("--source", Work::Source)] {
            let Role::Server(server) = parse(&format!("vapp server --fd 3 {flag}")).unwrap() else {
                panic!("a server");
            };
            assert_eq!((server.work(), server.place.fd), (work, Some(3)));
        }
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        for line in [
            "vapp",
            "vapp -s /x -q /x",
            "vapp -s /x client /x",
            "vapp server",
            "vapp server --socket-path /x --fd 3",
            "vapp server --fd -1",
            "vapp server --fd 3 --sink --source",
            "vapp client",
            "vapp client /x --size 59",
            "vapp client /x --size 16373",
            "vapp client /x --rate 0",
            "vapp client /x --arp --size 64",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
