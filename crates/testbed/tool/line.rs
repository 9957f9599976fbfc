//! The lines of the command channel between a test and the agent in its guest.
//!
//! The channel is a byte stream that a guest's reset may cut anywhere. So a message is one line: words, then
//! bytes of any kind in which `\`, newline and CAN are escaped. Whoever starts anew first sends CAN and a newline; a
//! line that ends in CAN is the torn rest of an older message and is dropped. (CAN, "cancel", is what ASCII has it for.)
//!
//! | line                   | direction   | meaning                                                    |
//! | ---------------------- | ----------- | ---------------------------------------------------------- |
//! | `run BOOT JOB script`  | to guest    | run the script as job JOB, unless this is another boot     |
//! | `kill BOOT JOB`        | to guest    | kill the job's process group                               |
//! | `hello BOOT`           | from guest  | the agent is ready; BOOT is new with each boot             |
//! | `output JOB bytes`     | from guest  | the job printed this                                       |
//! | `exit JOB STATUS`      | from guest  | the job ended, and all its output has been sent            |

/// "Cancel": the line it ends is void.
pub const CAN: u8 = 0x18;

/// One line: `words`, a space, `bytes` escaped, a newline.
pub fn encode(words: &str, bytes: &[u8]) -> Vec<u8> {
    let mut line = Vec::with_capacity(words.len() + bytes.len() + 8);
    line.extend_from_slice(words.as_bytes());
    line.push(b' ');
    for &byte in bytes {
        match byte {
            b'\\' => line.extend_from_slice(b"\\\\"),
            b'\n' => line.extend_from_slice(b"\\n"),
            CAN => line.extend_from_slice(b"\\c"),
            _ => line.push(byte),
        }
    }
    line.push(b'\n');
    line
}

/// Splits a line (with or without its newline) into `words` words and the bytes after them, or `None` if it is void
/// or not of this form.
pub fn decode<const WORDS: usize>(line: &[u8]) -> Option<([&str; WORDS], Vec<u8>)> {
    let mut rest = line.strip_suffix(b"\n").unwrap_or(line);
    if rest.last() == Some(&CAN) {
        return None;
    }
    let mut words = [""; WORDS];
    for word in &mut words {
        let end = rest.iter().position(|&byte| byte == b' ')?;
        *word = std::str::from_utf8(&rest[..end]).ok()?;
        rest = &rest[end + 1..];
    }
    let mut bytes = Vec::with_capacity(rest.len());
    let mut escaped = false;
    for &byte in rest {
        match (escaped, byte) {
            (false, b'\\') => {
                escaped = true;
                continue;
            }
            (false, byte) => bytes.push(byte),
            (true, b'\\') => bytes.push(b'\\'),
            (true, b'n') => bytes.push(b'\n'),
            (true, b'c') => bytes.push(CAN),
            (true, _) => return None,
        }
        escaped = false;
    }
    (!escaped).then_some((words, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_returns_as_it_was() {
        let bytes: Vec<u8> = (0..=255).chain([b'\\', b'n', CAN]).collect();
        let line = encode("output 7", &bytes);
        assert_eq!(line.iter().filter(|&&byte| byte == b'\n').count(), 1);
        assert_eq!(decode(&line), Some((["output", "7"], bytes)));
    }

    #[test]
    fn torn_lines_are_dropped() {
        let mut line = encode("output 7", b"some text");
        line.truncate(12);
        line.extend_from_slice(&[CAN, b'\n']);
        assert_eq!(decode::<2>(&line), None);
        assert_eq!(decode::<2>(b"output 7 text\\"), None);
        assert_eq!(decode::<2>(b"exit"), None);
    }
}
