//! The rights of the running driver, read back from the kernel for every thread.

#[path = "../privileges/assert_shed.rs"]
mod assert_shed;

use crate::harness::Node;

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn the_driver_has_shed_its_rights_in_every_thread() {
    let node = Node::start().await;
    assert_shed::assert_shed(node.pid());
}
