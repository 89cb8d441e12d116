//! What the driver and the providers are told by their variables and arguments, and whom they talk to with it.

use std::process::Command;

use clap::{ArgAction, Parser};
use coffer::config::{Config, NodeArgs, ProviderArgs, VaultArgs};
use serde_json::{Value, json};

use crate::helm::{NEW, Objects, SETS, list, text, variable};

#[derive(Parser)]
struct Node {
    #[command(flatten)]
    node: NodeArgs,
}

#[derive(Parser)]
struct Provider {
    #[command(flatten)]
    provider: ProviderArgs,
}

/// What the driver makes of its container's arguments and variables.
pub(crate) fn config(release: &Objects) -> Config {
    let typed: Node = typed(release.container("secrets-store"));
    Config::try_from(typed.node).expect("settings that hold")
}

/// The same, of a provider for another driver.
pub(crate) fn provider(container: &Value) -> ProviderArgs {
    typed::<Provider>(container).provider
}

/// The first argument is the name of the command. A variable is typed as the flag that has it; what the chart sets
/// and no flag has is none of the driver's. Those that only the kubelet can fill are left out, but the node's name.
fn typed<Of: Parser>(container: &Value) -> Of {
    let mut typed: Vec<_> = list(&container["args"])
        .iter()
        .map(text)
        .map(str::to_owned)
        .collect();
    let command = Of::command();
    for variable in list(&container["env"]) {
        let name = text(&variable["name"]);
        let value = match (name, variable["value"].as_str()) {
            ("COFFER_NODE_ID", None) => "n1",
            (_, None) => continue,
            (_, Some(value)) => value,
        };
        if !name.starts_with("COFFER_") && name != "CSI_ENDPOINT" {
            continue;
        }
        let mut flags = command.get_arguments();
        let flag = flags.find(|flag| flag.get_env().is_some_and(|env| env == name));
        let flag = flag.unwrap_or_else(|| panic!("no flag has {name}"));
        let long = flag.get_long().expect("a long flag");
        typed.push(match flag.get_action() {
            ArgAction::SetTrue => {
                assert_eq!(value, "true", "{name}");
                format!("--{long}")
            }
            _ => format!("--{long}={value}"),
        });
    }
    Of::try_parse_from(typed).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
#[ignore = "needs helm: cargo xtask test"]
fn the_driver_knows_every_variable_that_the_chart_gives_it() {
    for set in SETS {
        let release = Objects::of(set, NEW, &[]);
        let config = config(&release);
        assert_eq!(
            config.driver_name,
            text(&release.one("CSIDriver")["metadata"]["name"]),
            "{set}"
        );
        let pods = list(&release.pod()["volumes"])
            .iter()
            .find(|volume| volume["name"] == "pods");
        let pods = &pods.expect("the pods folder")["hostPath"]["path"];
        assert_eq!(config.rules.pods.to_str(), pods.as_str(), "{set}");
        assert!(config.rules.conformance_root.is_none(), "{set}");
        let driver = release.container("secrets-store");
        assert_eq!(driver["args"], json!(["node"]), "{set}");
        let node = variable(driver, "COFFER_NODE_ID").expect("the node's name");
        assert_eq!(
            node["valueFrom"]["fieldRef"]["fieldPath"], "spec.nodeName",
            "{set}"
        );
    }
    let full = config(&Objects::of("full", NEW, &[]));
    assert_eq!(full.metrics.expect("on").to_string(), "0.0.0.0:9095");
    assert_eq!(full.file_root.as_deref(), Some("/srv/secrets".as_ref()));
    assert_eq!(full.bounds.node_budget, 1 << 30);
    assert_eq!(full.bounds.intervals.default.as_secs(), 300);
    let given = Objects::of("default", NEW, &["nodeBudget=100Mi"]);
    assert_eq!(config(&given).bounds.node_budget, 100 << 20);
}

/// What is run in the driver's container, as `coffer doctor`, has its variables and none of its arguments.
#[test]
#[ignore = "needs helm: cargo xtask test"]
fn the_doctor_that_is_run_beside_the_driver_sees_its_settings() {
    // Nobody serves there.
    let given = [
        "linux.metricsAddr=:1",
        "linux.env[0].name=COFFER_VAULT_ADDR",
        "linux.env[0].value=http://127.0.0.1:2",
    ];
    for set in SETS {
        let release = Objects::of(set, NEW, &given);
        let mut doctor = Command::new(env!("CARGO_BIN_EXE_coffer"));
        doctor.arg("doctor").env_clear().env("COFFER_NODE_ID", "n1");
        for variable in list(&release.container("secrets-store")["env"]) {
            if let Some(value) = variable["value"].as_str() {
                doctor.env(text(&variable["name"]), value);
            }
        }
        let output = doctor.output().expect("it can be started");
        let said = String::from_utf8_lossy(&output.stdout);
        let complaint = String::from_utf8_lossy(&output.stderr);
        for line in [
            "no metrics are served at 127.0.0.1:1\n",
            "http://127.0.0.1:2 cannot be reached",
        ] {
            assert!(said.contains(line), "{set}: {said}{complaint}");
        }
    }
}

#[test]
#[ignore = "needs helm: cargo xtask test"]
fn a_variable_of_the_administrator_wins_and_none_is_there_twice() {
    let given = [
        "linux.env[0].name=COFFER_LOG_LEVEL",
        "linux.env[0].value=debug",
        "linux.env[1].name=COFFER_NODE_ADDRESSES",
        "linux.env[1].value=10.0.0.1",
    ];
    for providers in ["asProviders=null", "asProviders={vault}"] {
        let release = Objects::of("default", NEW, &[&given[..], &[providers]].concat());
        let env = list(&release.pod()["containers"][0]["env"]);
        let names = env.iter().map(|variable| text(&variable["name"]));
        let mut unique: Vec<_> = names.collect();
        let [.., level, addresses] = env else {
            panic!("{providers}: {env:?}");
        };
        assert_eq!(
            level,
            &json!({"name": "COFFER_LOG_LEVEL", "value": "debug"})
        );
        assert_eq!(addresses["value"], "10.0.0.1", "{providers}");
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), env.len(), "{providers}: {env:?}");
    }
}

/// Kubelets before 1.29 know one address of their node, and may be three versions behind the API server.
#[test]
#[ignore = "needs helm: cargo xtask test"]
fn whoever_talks_to_vault_knows_the_addresses_of_the_node() {
    for (kubernetes, field) in [
        ("1.31.9", "status.hostIP"),
        ("1.32.0", "status.hostIPs"),
        ("v1.36.1-gke.1", "status.hostIPs"),
    ] {
        for (providers, asked) in [
            ("asProviders=null", &["secrets-store"][..]),
            (
                "asProviders={vault,openbao,aws,file}",
                &["vault", "openbao"],
            ),
        ] {
            let release = Objects::of("default", kubernetes, &[providers]);
            for container in list(&release.pod()["containers"]) {
                let addresses = variable(container, "COFFER_NODE_ADDRESSES");
                let path = addresses.map(|of| text(&of["valueFrom"]["fieldRef"]["fieldPath"]));
                let name = text(&container["name"]);
                let expected = asked.contains(&name).then_some(field);
                assert_eq!(path, expected, "{kubernetes} {name}");
            }
        }
    }
}

#[test]
#[ignore = "needs helm: cargo xtask test"]
fn whoever_talks_to_vault_has_the_ca_and_the_version_key_of_the_objects_that_are_named() {
    let given = [
        "providers.vault.caConfigMap.name=corporate-ca",
        "providers.vault.caConfigMap.key=root.pem",
        "providers.vault.versionKeySecret.name=vault-csi-provider-hmac-key",
    ];
    let release = Objects::of("default", NEW, &given);
    let driver = release.container("secrets-store");
    has_both(release.pod(), driver, config(&release).vault);

    let providers = ["asProviders={vault,openbao,file}"];
    let release = Objects::of("default", NEW, &[&given[..], &providers].concat());
    for name in ["vault", "openbao"] {
        let container = release.container(name);
        has_both(release.pod(), container, provider(container).vault);
    }
    for mount in list(&release.container("file")["volumeMounts"]) {
        assert!(!text(&mount["name"]).starts_with("vault"), "{mount}");
    }
}

fn has_both(pod: &Value, container: &Value, vault: VaultArgs) {
    for (volume, kind, field, name, key, file) in [
        (
            "vault-ca",
            "configMap",
            "name",
            "corporate-ca",
            "root.pem",
            vault.vault_tls_ca_cert,
        ),
        (
            "vault-version-key",
            "secret",
            "secretName",
            "vault-csi-provider-hmac-key",
            "key",
            vault.vault_version_key_file,
        ),
    ] {
        let find = |list: &'_ [Value]| list.iter().find(|one| one["name"] == volume).cloned();
        let mount = find(list(&container["volumeMounts"])).expect("a mount");
        assert_eq!(mount["readOnly"], true, "{volume}");
        let source = &find(list(&pod["volumes"])).expect("a volume")[kind];
        assert_eq!(source[field], name);
        let item = &source["items"][0];
        assert_eq!(item["key"], key);
        let path = format!("{}/{}", text(&mount["mountPath"]), text(&item["path"]));
        assert_eq!(file.as_deref(), Some(path.as_ref()), "{volume}");
    }
}
