//! Whether a front end really shares the memory that it hands over.
//!
//! With `share=off` QEMU still has a file to hand over, but maps it privately: what the guest
//! writes goes into copies of the pages, and the file stays as empty as it was. On the wire nothing
//! tells the difference, and a switch that knows no better waits for frames for ever. The kernel
//! knows: it lists each mapping of a process as shared or private.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use rustix::fs::{fcntl_get_seals, fstat, major, minor};
use wire::vhost_user::FrontEndRequest;

use crate::connection::Message;

/// How long to ask the kernel whether a front end's memory is really shared.
pub const LIMIT: Duration = Duration::from_millis(500);
/// Most of a process's list of mappings that is read.
const LIST_MAX: u64 = 4 << 20;

/// Files of memory that `message` hands over, to ask [`is_private`] about.
pub fn shared_files(message: &Message) -> Vec<OwnedFd> {
    use FrontEndRequest::{AddMemReg, SetMemTable};
    let hands_over = [SetMemTable, AddMemReg].map(FrontEndRequest::number);
    if !hands_over.contains(&message.header.request) {
        return Vec::new();
    }
    message.descriptors.iter().filter_map(memory_file).collect()
}

/// [`is_private`], for a thread that may wait a moment. False when the kernel has no answer by then.
pub(super) fn is_found_private(process: i32, files: Vec<OwnedFd>) -> bool {
    let (answer, answered) = channel();
    let ask = move || {
        let _ = answer.send(is_private(process, files));
    };
    let asks = thread::Builder::new().name("sharing".to_owned()).spawn(ask);
    // No answer is no reason to refuse anybody.
    asks.is_ok() && answered.recv_timeout(LIMIT).unwrap_or(false)
}

/// A file of memory, to ask about. None for any other file: even to ask for its name might mean to
/// wait for whoever serves it.
fn memory_file(file: impl AsFd) -> Option<OwnedFd> {
    let file = file.as_fd();
    fcntl_get_seals(file).ok()?;
    file.try_clone_to_owned().ok()
}

/// Whether `process` has one of these files mapped, and only for itself. False when that cannot be
/// told: the process is another user's, or the memory that of yet another process.
///
/// Call it from a thread that may wait: to answer, the kernel takes a lock of the front end's.
pub fn is_private(process: i32, files: Vec<OwnedFd>) -> bool {
    let Ok(list) = File::open(format!("/proc/{process}/maps")) else { return false };
    let mut mappings = String::new();
    if list.take(LIST_MAX).read_to_string(&mut mappings).is_err() {
        return false;
    }
    files.iter().filter_map(|file| fstat(file).ok()).any(|file| {
        is_mapped_privately(&mappings, (major(file.st_dev), minor(file.st_dev)), file.st_ino)
    })
}

/// Whether a file is mapped writable in `mappings` (proc_pid_maps(5)), but never shared.
fn is_mapped_privately(mappings: &str, device: (u32, u32), inode: u64) -> bool {
    let device = format!("{:02x}:{:02x}", device.0, device.1);
    let inode = inode.to_string();
    let mut private = false;
    for line in mappings.lines() {
        // The addresses, the permissions, the offset, the device, the inode, and its path.
        let mut fields = line.split_ascii_whitespace().skip(1);
        let permissions = fields.next().unwrap_or_default();
        if fields.nth(1) != Some(&device) || fields.next() != Some(&inode) {
            continue;
        }
        if permissions.ends_with('s') {
            return false;
        }
        private |= permissions.contains('w');
    }
    private
}

#[cfg(test)]
mod tests {
    use memory::SharedMemory;

    use super::*;

    const PRIVATE: &str =
        "7f0000000000-7f0010000000 rw-p 00000000 00:01 4242   /memfd:ram (deleted)\n";
    const SHARED: &str =
        "7f2000000000-7f2010000000 rw-s 00000000 00:01 4242   /memfd:ram (deleted)\n";
    const OTHER: &str =
        "7f4000000000-7f4000001000 rw-p 00000000 00:01 4243\n7f5-7f6 r--p 0 00:01 4242\n";

    #[test]
    fn only_a_file_that_is_never_shared_is_private() {
        for (mappings, private) in [
            (String::new(), false),
            (PRIVATE.to_owned(), true),
            (SHARED.to_owned(), false),
            (PRIVATE.to_owned() + SHARED, false),
            (OTHER.to_owned(), false),
            (OTHER.to_owned() + PRIVATE, true),
        ] {
            assert_eq!(is_mapped_privately(&mappings, (0, 1), 4242), private, "{mappings}");
        }
        assert!(!is_mapped_privately(PRIVATE, (8, 1), 4242), "another device");
    }

    #[test]
    fn a_file_that_nobody_has_mapped_is_not_private() {
        let memory = SharedMemory::create("ram", 4096).unwrap();
        let file = || vec![memory_file(&memory).unwrap()];
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(!is_private(own, file()));
        assert!(!is_private(-1, file()), "no such process");
        assert!(memory_file(File::open("/proc/self/exe").unwrap()).is_none());
    }
}
