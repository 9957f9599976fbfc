//! The "newc" cpio archive, which is what the kernel unpacks as its first file system.

use std::collections::BTreeSet;
use std::path::Path;

/// An archive in the making. Parent directories come by themselves.
#[derive(Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    directories: BTreeSet<String>,
    /// The kernel takes two entries of one inode number for hard links.
    inodes: u32,
}

const FILE: u32 = 0o100_755;
const DIRECTORY: u32 = 0o040_755;
const SYMLINK: u32 = 0o120_777;

impl Archive {
    pub(crate) fn file(&mut self, path: &str, content: &[u8]) {
        self.parents(path);
        self.entry(path, FILE, content);
    }

    pub(crate) fn symlink(&mut self, path: &str, target: &str) {
        self.parents(path);
        self.entry(path, SYMLINK, target.as_bytes());
    }

    pub(crate) fn directory(&mut self, path: &str) {
        self.parents(path);
        if self.directories.insert(path.to_owned()) {
            self.entry(path, DIRECTORY, b"");
        }
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, b"");
        self.bytes
    }

    fn parents(&mut self, path: &str) {
        if let Some(parent) = Path::new(path).parent().and_then(Path::to_str)
            && !matches!(parent, "" | "/")
        {
            self.directory(parent);
        }
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        let path = path.trim_start_matches('/');
        self.inodes += 1;
        // magic, inode, mode, uid, gid, links, mtime, size, device and special device (major, minor), name size, check
        let header = format!(
            "070701{:08x}{mode:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}",
            self.inodes,
            0,
            0,
            1,
            0,
            content.len(),
            0,
            0,
            0,
            0,
            path.len() + 1,
            0
        );
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_of_one_file() {
        let mut archive = Archive::default();
        archive.file("/a/b", b"hello");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        // The directory: a header of 110 bytes, "a" and its zero, to a multiple of 4.
        assert_eq!(&bytes[..14], b"07070100000001");
        assert_eq!(&bytes[110..112], b"a\0");
        let file = &bytes[112..];
        assert_eq!(&file[14..22], b"000081ed", "mode 0100755");
        assert_eq!(&file[54..62], b"00000005", "size");
        assert_eq!(&file[94..102], b"00000004", "name size");
        assert_eq!(&file[110..114], b"a/b\0");
        assert_eq!(&file[116..121], b"hello");
        assert_eq!(&file[124..130], b"070701");
    }
}
