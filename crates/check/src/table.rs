//! The documentation of all cases, printed from the cases.

use std::fmt::Write;

use crate::case::{Topic, cases};

/// All cases as Markdown tables, one for each topic.
pub fn table() -> String {
    let mut text = String::new();
    for topic in Topic::ALL {
        // Writing to a string does not fail.
        let _ = write!(
            text,
            "### {}. {topic}\n\n| no | the back end | source |\n| --- | --- | --- |\n",
            topic.number()
        );
        for case in cases().into_iter().filter(|case| case.topic == *topic) {
            let mark = if case.hostile { " (hostile)" } else { "" };
            let _ = writeln!(text, "| {} | {}{mark} | {} |", case.id(), case.expects, case.cites);
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/check.md");
    const MARK: &str = "<!-- cases -->\n";

    #[test]
    fn the_documentation_has_the_cases() {
        let text = fs::read_to_string(FILE).expect("the documentation is there");
        let (before, found) = text.split_once(MARK).expect("it has a place for the cases");
        let expected = format!("\n{}", table().trim_end().to_owned() + "\n");
        if std::env::var_os("UPDATE").is_some() {
            fs::write(FILE, format!("{before}{MARK}{expected}")).expect("it can be written");
        } else {
            assert!(
                found == expected,
                "docs/check.md is out of date: UPDATE=1 cargo test -p ringway-check \
                 the_documentation writes it anew"
            );
        }
    }
}
