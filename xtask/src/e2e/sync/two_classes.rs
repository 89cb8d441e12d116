//! Upstream's case C14: two classes in two volumes of one pod that nobody owns.

use anyhow::{Result, ensure};

use super::super::SOON;
use super::super::driver::Driver;
use super::{class, is_gone, owners, pod_spec, print, secret, variable, volume};

pub(in super::super) fn run(driver: &Driver<'_>) -> Result<()> {
    let namespace = driver.namespace("sync-two")?;
    for name in ["zero", "one"] {
        driver.store(&namespace, name, &format!("value of {name}"))?;
        let secret = secret(&format!("secret-{name}"), name, "username");
        namespace.apply(&class(name, &[name], &format!("[{secret}]")))?;
    }
    let environment = format!(
        r#""env": [{}, {}],"#,
        variable("ZERO", "secret-zero", "username"),
        variable("ONE", "secret-one", "username")
    );
    let spec = pod_spec("zero", &environment)
        .replace(
            r#""volumeMounts": ["#,
            r#""volumeMounts": [{"name": "more", "mountPath": "/more", "readOnly": true}, "#,
        )
        .replace(
            r#""volumes": ["#,
            &format!(r#""volumes": [{{"name": "more", {}}}, "#, volume("one")),
        );
    namespace.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: reader}}\nspec: {spec}\n"
    ))?;
    namespace.wait_for_pod("reader", SOON)?;
    for (file, variable, name) in [
        ("/secrets/zero", "ZERO", "zero"),
        ("/more/one", "ONE", "one"),
    ] {
        let value = format!("value of {name}");
        ensure!(namespace.exec("reader", &["cat", file])? == value);
        ensure!(namespace.exec("reader", &print(variable))?.trim() == value);
        ensure!(owners(&namespace, &format!("secret-{name}"))? == 1);
    }
    namespace.delete_pod("reader")?;
    driver
        .cluster()
        .wait_until("the Secrets go with the pod", SOON, || {
            Ok(is_gone(&namespace, "secret-zero")? && is_gone(&namespace, "secret-one")?)
        })
}
