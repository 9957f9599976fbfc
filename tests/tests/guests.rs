//! Two stock QEMU guests talk through the switch.

use anyhow::Result;
use ringway_tests::*;

#[test]
fn ping() -> Result<()> {
    let switch = Switch::start(&["vm1=vhost-user:vm1.sock", "vm2=vhost-user:vm2.sock"])?;
    let [one, two] = two_guests(&switch)?;
    ping_all(&one, "10.0.0.2", 5)?;
    ping_all(&two, "10.0.0.1", 5)?;
    println!("{}", switch.stop()?);
    Ok(())
}
