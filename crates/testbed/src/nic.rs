//! A guest's network card and what it is plugged into.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::qemu::Qemu;

/// One network card. The first is `eth0` in the guest, the second `eth1`.
#[derive(Clone, Debug)]
pub struct Nic {
    peer: Peer,
    model: String,
    device: Vec<String>,
    netdev: Vec<String>,
}

#[derive(Clone, Debug)]
enum Peer {
    VhostUser { socket: PathBuf, listen: bool, reconnect: Option<u32> },
    Tap(String),
}

impl Nic {
    /// A card served over the vhost-user socket at a path, to which QEMU connects.
    pub fn vhost_user(socket: impl AsRef<Path>) -> Nic {
        let socket = socket.as_ref().to_owned();
        Nic::new(Peer::VhostUser { socket, listen: false, reconnect: None })
    }

    /// A card on an existing tap, served by QEMU's own device model: the baseline.
    pub fn tap(name: &str) -> Nic {
        Nic::new(Peer::Tap(name.to_owned()))
    }

    fn new(peer: Peer) -> Nic {
        // No boot ROM: nobody boots from this card, and loading one takes time.
        let device = vec!["romfile=".to_owned()];
        Nic { peer, model: "virtio-net-pci".to_owned(), device, netdev: Vec::new() }
    }

    /// QEMU listens on the vhost-user socket and waits for the back end before the guest starts: boot such a guest from a
    /// thread of its own.
    #[must_use]
    pub fn listen(mut self) -> Nic {
        if let Peer::VhostUser { listen, .. } = &mut self.peer {
            *listen = true;
        }
        self
    }

    /// QEMU connects to the vhost-user socket again, this long after losing it. Older versions take whole seconds only.
    #[must_use]
    pub fn reconnect_ms(mut self, milliseconds: u32) -> Nic {
        if let Peer::VhostUser { reconnect, .. } = &mut self.peer {
            *reconnect = Some(milliseconds);
        }
        self
    }

    /// The card's address, as `52:54:00:00:00:01`. Without it every guest's card has the same one.
    #[must_use]
    pub fn mac(self, address: &str) -> Nic {
        self.option(&format!("mac={address}"))
    }

    /// Another device model, such as `virtio-net-pci-transitional`.
    #[must_use]
    pub fn model(mut self, model: &str) -> Nic {
        self.model = model.to_owned();
        self
    }

    /// One more property of the device, such as `mrg_rxbuf=off`.
    #[must_use]
    pub fn option(mut self, option: &str) -> Nic {
        self.device.push(option.to_owned());
        self
    }

    /// One more property of QEMU's network back end (`-netdev`), such as `queues=2`.
    #[must_use]
    pub fn netdev(mut self, option: &str) -> Nic {
        self.netdev.push(option.to_owned());
        self
    }

    /// QEMU's arguments for this card, the guest's `index`th.
    pub(crate) fn arguments(&self, index: usize, qemu: &Qemu) -> Result<Vec<String>> {
        let mut arguments = Vec::new();
        let mut netdev = match &self.peer {
            Peer::Tap(name) => {
                vec![format!("tap,ifname={name},script=no,downscript=no,vhost=off")]
            }
            Peer::VhostUser { socket, listen, reconnect } => {
                let path = socket.to_str().context("a socket path that is not UTF-8")?;
                // A comma in a value is written twice.
                let mut chardev =
                    format!("socket,id=nic{index}-socket,path={}", path.replace(',', ",,"));
                if *listen {
                    chardev.push_str(",server=on,wait=on");
                }
                if let Some(milliseconds) = reconnect {
                    chardev.push(',');
                    chardev.push_str(&qemu.reconnect(*milliseconds)?);
                }
                arguments.extend(["-chardev".to_owned(), chardev]);
                vec![format!("vhost-user,chardev=nic{index}-socket")]
            }
        };
        netdev.push(format!("id=nic{index}"));
        netdev.extend_from_slice(&self.netdev);
        let mut device = vec![self.model.clone(), format!("netdev=nic{index}")];
        if matches!(self.peer, Peer::VhostUser { .. }) && qemu.fails_with_msix() {
            // Plain PCI interrupts, then. The test's own options follow, and the last of a name counts.
            device.push("vectors=0".to_owned());
        }
        device.extend_from_slice(&self.device);
        let pairs = [("-netdev", netdev), ("-device", device)];
        arguments
            .extend(pairs.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value.join(",")]));
        Ok(arguments)
    }
}
