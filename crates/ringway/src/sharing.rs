//! Whether a front end really shares the memory that it hands over.
//!
//! With `share=off` QEMU still has a file to hand over, but maps it privately: what the guest
//! writes goes into copies of the pages, and the file stays as empty as it was. On the wire nothing
//! tells the difference, and a switch that knows no better waits for frames for ever. The kernel
//! knows: it lists each mapping of a process as shared or private.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{fstat, major, minor};

/// Whether `process` has one of these files mapped, and only for itself. False when that cannot be
/// told: the process is another user's, or the memory that of yet another process.
pub fn is_private<'a>(process: i32, files: impl IntoIterator<Item = BorrowedFd<'a>>) -> bool {
    let Ok(mappings) = fs::read_to_string(format!("/proc/{process}/maps")) else { return false };
    let is_private = |file: BorrowedFd<'_>| {
        let Ok(file) = fstat(file) else { return false };
        let device = (major(file.st_dev), minor(file.st_dev));
        is_mapped_privately(&mappings, device, file.st_ino)
    };
    files.into_iter().any(|file| is_private(file.as_fd()))
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
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(!is_private(own, [memory.as_fd()]));
        assert!(!is_private(-1, [memory.as_fd()]), "no such process");
    }
}
