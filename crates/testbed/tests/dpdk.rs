//! testpmd's prompt, without a port. Real ones are in the end-to-end tests.

use std::time::Duration;

use anyhow::{Context, Result};
use testbed::dpdk::{Testpmd, VirtioUser};

const LIMIT: Duration = Duration::from_secs(10);

#[test]
fn commands_are_done_or_refused() -> Result<()> {
    let mut testpmd = Testpmd::builder().argument("--forward-mode=mac").start()?;
    let said = testpmd.command("show config fwd")?;
    assert!(said.contains("mac packet forwarding - ports=0"), "{said}");
    testpmd.wait_for_log("mac packet forwarding", 2, LIMIT)?;

    let error = testpmd.command("show me").err().context("it shows what there is not")?;
    assert!(error.to_string().contains("testpmd does not take `show me`"), "{error}");
    let error = testpmd.halt().err().context("it stops what does not run")?;
    assert!(error.to_string().contains("testpmd did not forward"), "{error}");
    let error = testpmd.statistics(0).err().context("a port that is not there counts")?;
    assert!(error.to_string().contains("port 0 does not count rx_good_packets"), "{error}");
    assert!(testpmd.driver(0).is_err());
    testpmd.quit()
}

#[test]
fn a_port_without_a_back_end_does_not_come_up() -> Result<()> {
    let port = VirtioUser::new("/nowhere/there.sock", "52:54:00:00:00:01");
    let error = Testpmd::builder().port(port).start().err().context("it came up")?;
    assert!(error.to_string().contains("connect error"), "{error}");
    Ok(())
}
