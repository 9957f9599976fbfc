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
