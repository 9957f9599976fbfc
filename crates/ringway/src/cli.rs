//! The command line. What the values of `run` mean is in [`config`].

use std::path::PathBuf;

use anyhow::bail;
use clap::{Args, Parser, Subcommand};

use crate::bench;
use crate::config::{self, Config, Draft, Faults};
use crate::stats;
use crate::vapp::cli::Vapp;

const EXAMPLES: &str = "\
Examples:
  See it work, without a virtual machine:
      ringway demo

  Give two virtual machines a network that also reaches the host:
      ringway run --port vm1=vhost-user:/run/vm1.sock --port vm2=vhost-user:/run/vm2.sock \\
          --port host=tap:rw0

  The same from a file:
      ringway run --config ringway.toml

`ringway run --help` has every type of port and its keys.";

const RUN_EXAMPLES: &str = "\
Examples:
  Two virtual machines; QEMU's group may open the sockets:
      ringway run --port vm1=vhost-user:/run/vm1.sock,socket-group=kvm \\
          --port vm2=vhost-user:/run/vm2.sock,socket-group=kvm

  A QEMU that listens, and the host:
      ringway run --port vm1=vhost-user:/run/vm1.sock,connect=on --port host=tap:rw0

  A file says the same with the same keys, and TARGET has a key of its own:
      ringway run --config ringway.toml

      mode = \"adaptive\"
      idle-spin = \"50us\"

      [port.vm1]
      type = \"vhost-user\"
      path = \"/run/vm1.sock\"
      socket-group = \"kvm\"

      [port.host]
      type = \"tap\"
      interface = \"rw0\"

Flags replace the settings of the file; ports of both are added together.";

/// A userspace Ethernet switch for virtual machines.
#[derive(Debug, Parser)]
#[command(name = "ringway", version, after_help = EXAMPLES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the program can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a switch with the given ports until SIGTERM or SIGINT
    Run(Run),
    /// Look at a configuration without running it
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Have a running switch read its file again, and change what is different: nothing else is touched
    Reload(Reload),
    /// Show what a running switch counts: load, ports, and why frames were dropped
    Stats(stats::Flags),
    /// Watch two embedded guests talk through a real switch, without a virtual machine
    Demo(Demo),
    /// The reference pair: the smallest back end and the smallest front end, to try others with
    Vapp(Vapp),
    /// Load a vhost-user back end with frames, and measure what comes of it
    Bench(bench::Options),
    /// Judge a vhost-user net back end: numbered cases, each citing the rule that it tests
    Check(crate::check::Flags),
}

/// The flags of `ringway run`.
///
/// Values are kept as text here: the configuration reads them together with the file's, so that
/// both have the same rules and all faults are reported at once.
#[derive(Debug, Args)]
#[command(after_help = format!("{}\n{RUN_EXAMPLES}", config::help()))]
pub struct Run {
    /// Add a port, once for each; types and keys are below
    #[arg(long = "port", value_name = "NAME=TYPE:TARGET[,KEY=VALUE...]")]
    pub ports: Vec<String>,
    /// Read settings and ports from a TOML file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// How a worker waits for frames: adaptive, poll or interrupt [default: adaptive]
    #[arg(long, value_name = "MODE")]
    pub mode: Option<String>,
    /// Threads that move frames, 1 to 64; the queue pairs of the ports are spread over them
    /// [default: 1]
    #[arg(long, value_name = "N")]
    pub workers: Option<String>,
    /// CPUs the workers may run on, as 2 or 0-3,8: at least one for each [default: any]
    #[arg(long, value_name = "LIST")]
    pub cpus: Option<String>,
    /// What to log to stderr: off, error, warn, info, debug or trace [default: warn]
    #[arg(long, value_name = "LEVEL")]
    pub log: Option<String>,
    /// How long an adaptive worker polls without work before it sleeps [default: 50us]
    #[arg(long, value_name = "DURATION")]
    pub idle_spin: Option<String>,
    /// The socket at which `ringway stats` and `ringway reload` find this switch, or off
    /// [default: $XDG_RUNTIME_DIR/ringway.sock or /run/ringway.sock, where it can be made; none if
    /// another switch is there]
    #[arg(long, value_name = "PATH")]
    pub control: Option<String>,
}

impl Run {
    /// The configuration that these flags and their file describe, or everything wrong with it.
    pub fn config(&self) -> Result<Config, Faults> {
        self.draft().finish()
    }

    /// The same again, as the file is now.
    pub fn config_again(&self) -> anyhow::Result<Config> {
        if self.config.is_none() {
            bail!(
                "this switch was started without a file (`ringway run --config FILE`): there is nothing to read again"
            );
        }
        Ok(self.config()?)
    }

    /// What these flags and their file say.
    fn draft(&self) -> Draft {
        let mut draft = Draft::default();
        if let Some(path) = &self.config {
            draft.read_file(path);
        }
        let settings = [
            ("mode", &self.mode),
            ("workers", &self.workers),
            ("cpus", &self.cpus),
            ("log", &self.log),
            ("idle-spin", &self.idle_spin),
            ("control", &self.control),
        ];
        for (key, value) in settings {
            if let Some(value) = value {
                draft.add_flag(key, value);
            }
        }
        for port in &self.ports {
            draft.add_port(port);
        }
        draft
    }
}

/// The flags of `ringway reload`.
#[derive(Debug, Args)]
pub struct Reload {
    /// Print what would be changed, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// The control socket of the switch, as its `--control`
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
}

/// What can be done with a configuration.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check a configuration, and print it as one file
    Show(Show),
}

/// The flags of `ringway config show`.
#[derive(Debug, Args)]
pub struct Show {
    /// Print it with all apps and links written out that its ports and their keys stand for
    #[arg(long)]
    pub expanded: bool,
    /// Print a drawing of these apps and links for Graphviz, as for `| dot -Tsvg`
    #[arg(long, conflicts_with = "expanded")]
    pub dot: bool,
    /// What to run
    #[command(flatten)]
    pub run: Run,
}

impl Show {
    /// What to print, or everything that is wrong with the configuration.
    pub fn text(&self) -> Result<String, Faults> {
        let draft = self.run.draft();
        let config = draft.finish()?;
        Ok(match (self.expanded, self.dot) {
            (true, _) => draft.to_expanded_toml(&config),
            (_, true) => config.network().to_dot(),
            _ => draft.to_toml(),
        })
    }
}

/// The flags of `ringway demo`.
#[derive(Debug, Args)]
pub struct Demo {
    /// How long the traffic runs in all
    #[arg(long, value_name = "N", default_value_t = 6,
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub seconds: u64,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Cli {
        Cli::try_parse_from(line.split_whitespace())
            .unwrap_or_else(|error| panic!("{line:?} does not parse: {error}"))
    }

    fn run_help() -> String {
        let mut command = Cli::command();
        let run = command.find_subcommand_mut("run").expect("run exists");
        run.render_long_help().to_string()
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_of_run_reaches_the_configuration() {
        let Command::Run(run) = parse(
            "ringway run --port host=tap:rw0 --mode poll --workers 2 --cpus 1,3 --log info \
             --idle-spin 1ms --control off --port other=tap:rw1",
        )
        .command
        else {
            panic!("`run` is parsed as Run");
        };
        let config = run.config().expect("the flags are valid");
        assert_eq!(config.mode, engine::Mode::Poll);
        assert_eq!(config.workers, 2);
        assert_eq!(config.cpus, [1, 3]);
        assert_eq!(config.log, tracing::level_filters::LevelFilter::INFO);
        assert_eq!(config.control, config::ControlSocket::Off);
        assert_eq!(config.idle_spin, std::time::Duration::from_millis(1));
        let names: Vec<&str> = config.ports.iter().map(|port| port.name.as_str()).collect();
        assert_eq!(names, ["host", "other"]);
    }

    #[test]
    fn the_file_of_run_is_read() {
        let Command::Run(run) = parse("ringway run --config /nonexistent/ringway.toml").command
        else {
            panic!("`run` is parsed as Run");
        };
        let faults = run.config().expect_err("there is no such file");
        assert!(faults.to_string().starts_with("/nonexistent/ringway.toml: cannot read"));
    }

    fn show(line: &str) -> String {
        let Command::Config(ConfigCommand::Show(show)) = parse(line).command else {
            panic!("`config show` is parsed as Show");
        };
        show.text().unwrap_or_else(|faults| panic!("{line}: {faults}"))
    }

    #[test]
    fn a_configuration_is_shown_as_a_file_as_apps_and_as_a_drawing() {
        let ports = "--mode poll --workers 2 \
                     --port vm1=vhost-user:/run/vm1.sock,mtu=9000,rate-to=1Gbit,allow-ips=10.0.0.1 \
                     --port host.1=tap:rw0";
        assert_eq!(
            show(&format!("ringway config show {ports}")),
            "mode = \"poll\"\nworkers = \"2\"\n\n[port.vm1]\ntype = \"vhost-user\"\npath = \"/run/vm1.sock\"\n\
             mtu = \"9000\"\nrate-to = \"1Gbit\"\nallow-ips = \"10.0.0.1\"\n\n[port.\"host.1\"]\ntype = \"tap\"\n\
             interface = \"rw0\"\n"
        );
        assert_eq!(
            show(&format!("ringway config show --expanded {ports}")),
            "mode = \"poll\"\nworkers = \"2\"\nlinks = [\n    \"vm1.tx -> vm1.anti-spoof.port\",\n    \
             \"vm1.anti-spoof.port -> vm1.rx\",\n    \"vm1.anti-spoof.network -> vm1.police.port\",\n    \
             \"vm1.police.port -> vm1.anti-spoof.network\",\n    \"vm1.police.network -> bridge.vm1\",\n    \
             \"bridge.vm1 -> vm1.police.network\",\n    \"host.1.tx -> bridge.host.1\",\n    \
             \"bridge.host.1 -> host.1.rx\",\n]\n\n[app.bridge]\ntype = \"bridge\"\n\n\
             [port.vm1]\ntype = \"vhost-user\"\npath = \"/run/vm1.sock\"\nmtu = \"9000\"\n\n\
             [app.\"vm1.anti-spoof\"]\ntype = \"anti-spoof\"\nallow-ips = \"10.0.0.1\"\n\n\
             [app.\"vm1.police\"]\ntype = \"police\"\nrate-to = \"1Gbit\"\n\n\
             [port.\"host.1\"]\ntype = \"tap\"\ninterface = \"rw0\"\n"
        );
        assert_eq!(
            show(&format!("ringway config show --dot {ports},mirror-to=vm1")),
            "digraph ringway {\n    rankdir = LR;\n    node [shape = box];\n    \"bridge\" [label = \"bridge\"];\n    \
             \"vm1\" [label = \"vm1\\nvhost-user\"];\n    \
             \"vm1.anti-spoof\" [label = \"vm1.anti-spoof\\nanti-spoof\"];\n    \
             \"vm1.police\" [label = \"vm1.police\\npolice\"];\n    \"host.1\" [label = \"host.1\\ntap\"];\n    \
             \"host.1.mirror\" [label = \"host.1.mirror\\nmirror\"];\n    \
             \"vm1\" -> \"vm1.anti-spoof\" [dir = both];\n    \"vm1.anti-spoof\" -> \"vm1.police\" [dir = both];\n    \
             \"host.1\" -> \"host.1.mirror\" [dir = both];\n    \"host.1.mirror\" -> \"vm1.police\";\n    \
             \"host.1.mirror\" -> \"bridge\" [dir = both];\n}\n"
        );
    }

    #[test]
    fn demo_seconds_are_bounded() {
        let Command::Demo(demo) = parse("ringway demo --seconds 3").command else {
            panic!("`demo` is parsed as Demo");
        };
        assert_eq!(demo.seconds, 3);
        for wrong in ["0", "3601", "-1", "x"] {
            assert!(
                Cli::try_parse_from(["ringway", "demo", "--seconds", wrong]).is_err(),
                "--seconds {wrong}"
            );
        }
    }

    /// The examples of the help are run as far as they can be without a system.
    #[test]
    fn the_examples_of_the_help_are_valid() {
        let help = format!("{EXAMPLES}\n{RUN_EXAMPLES}").replace("\\\n", " ");
        let mut checked = 0;
        for line in help.lines().filter(|line| line.starts_with("      ringway ")) {
            if let Command::Run(run) = parse(line).command
                && run.config.is_none()
            {
                run.config().unwrap_or_else(|faults| panic!("{line}: {faults}"));
            }
            checked += 1;
        }
        assert_eq!(checked, 6, "examples in the help");

        let file: String = RUN_EXAMPLES
            .lines()
            .skip_while(|line| !line.contains("mode = "))
            .take_while(|line| line.is_empty() || line.starts_with("      "))
            .map(|line| format!("{line}\n"))
            .collect();
        let mut draft = Draft::default();
        draft.add_file(std::path::Path::new("ringway.toml"), &file);
        let config = draft.finish().unwrap_or_else(|faults| panic!("{faults}"));
        assert_eq!(config.ports.len(), 2);
    }

    #[test]
    fn the_help_of_run_has_every_type_of_port_and_its_keys() {
        let help = run_help();
        for word in [
            "vhost-user:PATH",
            "connect=on|off",
            "socket-mode=OCTAL",
            "socket-group=GROUP",
            "mtu=68..65535",
            "queue-pairs=1..128",
            "features=NAME+...",
            "-ring_packed",
            " host_tso4 ",
            "tap:INTERFACE",
        ] {
            assert!(help.contains(word), "no {word} in {help}");
        }
    }
}
