//! The kubelet asks again and again for a volume that is there, and hears OK whatever has become of its class, its
//! store or its secrets: kubelets up to 1.36 take a pod's volume away otherwise (kubernetes#121271).

use anyhow::{Result, ensure};

use super::SOON;
use super::driver::{Driver, failed_mounts};
use super::manifests::{class, reader};

pub(super) fn run(driver: &Driver<'_>) -> Result<()> {
    let namespace = driver.namespace("republish")?;
    driver.store(&namespace, "password", "first")?;
    namespace.apply(&class("shop", &["password"]))?;
    namespace.apply(&reader("reader", "shop"))?;
    namespace.wait_for_pod("reader", SOON)?;
    let volume = driver.volume(&namespace, "reader", "secrets")?;
    let (mount, generation) = (volume.mount_id()?, volume.generation()?);
    let failed = failed_mounts(&namespace, "reader")?;

    let patch = |patch: &str| {
        let name = "secretproviderclass/shop";
        namespace.kubectl(&["patch", name, "--type=merge", "--patch", patch])
    };
    type Break<'a> = &'a dyn Fn() -> Result<String>;
    let breaks: [(&str, Break<'_>); 5] = [
        ("ProviderNotFound", &|| {
            patch(r#"{"spec": {"provider": "nobody"}}"#)
        }),
        ("InvalidClass", &|| {
            patch(r#"{"spec": {"provider": "file", "parameters": {"objects": "[../x]"}}}"#)
        }),
        ("SecretNotFound", &|| {
            patch(r#"{"spec": {"parameters": {"objects": "[none]"}}}"#)
        }),
        ("TooLarge", &|| {
            let large = "/var/lib/coffer/republish/large";
            driver
                .cluster()
                .on_node(&["truncate", "--size=5M", large])?;
            patch(r#"{"spec": {"parameters": {"objects": "[large]"}}}"#)
        }),
        ("ClassNotFound", &|| {
            namespace.kubectl(&["delete", "secretproviderclass", "shop"])
        }),
    ];
    for (reason, break_it) in breaks {
        break_it()?;
        let reason_field = format!("reason=\"{reason}\"");
        driver.wait_for_log(&[&volume.id, "volume not rotated", &reason_field])?;
        driver.wait_for_more_log(&[&volume.id, "volume republished"])?;
        ensure!(volume.mount_id()? == mount, "{reason}: it was mounted anew");
        ensure!(
            volume.generation()? == generation,
            "{reason}: it was written"
        );
        ensure!(namespace.exec("reader", &["cat", "/secrets/password"])? == "first");
    }
    let now = failed_mounts(&namespace, "reader")?;
    ensure!(now == failed, "{now}");

    namespace.apply(&class("shop", &["password"]))?;
    driver.store(&namespace, "password", "second")?;
    driver.wait_for_value(&namespace, "reader", "/secrets/password", "second")?;
    namespace.delete_pod("reader")?;
    volume.wait_until_gone()
}
