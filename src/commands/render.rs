//! `coffer render FILE`: what a SecretProviderClass would put where, from which requests, as whom.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Args;
use coffer_provider::{Caller, ErrorKind, Forwarded, IdentifiedBy, Pod, ServiceAccount, Sharing};

use crate::cache::Given;
use crate::catalog::Catalog;
use crate::class::{SecretProviderClass, read_documents};
#[cfg(feature = "aws")]
use crate::config::AwsArgs;
use crate::config::{Patience, VaultArgs};
use crate::driver;
use crate::payload::{Limits, Payload};
use crate::spec::{VolumeSource, VolumeSpec};

/// The flags of `coffer render`.
#[derive(Args, Clone, Debug)]
pub struct RenderArgs {
    /// YAML file with SecretProviderClasses
    pub file: PathBuf,

    /// Folder of the file provider: its classes are then read for real, with values masked
    #[arg(long)]
    pub file_root: Option<PathBuf>,

    /// What the driver has for classes of Vault and OpenBao
    #[command(flatten)]
    pub vault: VaultArgs,

    /// What the driver has for classes of AWS
    #[cfg(feature = "aws")]
    #[command(flatten)]
    pub aws: AwsArgs,
}

/// Prints every class of the file. Nothing is mounted and nothing is written.
///
/// # Errors
/// After the last class, when one of them would fail.
pub fn run(args: &RenderArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (text, failures) = runtime.block_on(render(args))?;
    std::io::stdout().lock().write_all(text.as_bytes())?;
    match failures {
        0 => Ok(()),
        1 => bail!("1 class would not be mounted"),
        _ => bail!("{failures} classes would not be mounted"),
    }
}

async fn render(args: &RenderArgs) -> anyhow::Result<(String, usize)> {
    let file = args.file.display();
    let text = fs::read_to_string(&args.file).with_context(|| format!("cannot read {file}"))?;
    let documents = read_documents(&text).with_context(|| format!("cannot read {file}"))?;
    if documents.is_empty() {
        bail!("{file} has no SecretProviderClass in it");
    }
    let (catalog, scratch) = catalog(args)?;
    let mut out = String::new();
    let mut failures = 0;
    for document in documents {
        let rendered = match document.class {
            Ok(class) => render_class(Arc::new(class), &catalog, scratch.is_none()).await,
            Err(error) => Err(error.into()),
        };
        writeln!(out, "SecretProviderClass {}", document.name)?;
        match rendered {
            Ok(rendered) => out.push_str(&rendered),
            Err(error) => {
                writeln!(out, "  would not be mounted: {error:#}")?;
                failures += 1;
            }
        }
    }
    Ok((out, failures))
}

/// Without a root, the file provider gets an empty one: its requests can be shown all the same.
fn catalog(args: &RenderArgs) -> anyhow::Result<(Catalog, Option<tempfile::TempDir>)> {
    let (root, scratch) = match &args.file_root {
        Some(root) => (root.clone(), None),
        None => {
            let scratch = tempfile::tempdir().context("cannot make a folder")?;
            (scratch.path().to_owned(), Some(scratch))
        }
    };
    let root = root
        .canonicalize()
        .with_context(|| format!("cannot read {}", root.display()))?;
    let catalog = driver::catalog(
        Some(&root),
        &args.vault,
        &Limits::default(),
        Patience::default(),
    )?;
    #[cfg(feature = "aws")]
    let catalog = {
        let nobody = driver::Place::Folder(PathBuf::new());
        driver::with_aws(catalog, &args.aws, Patience::default(), nobody)?
    };
    Ok((catalog, scratch))
}

async fn render_class(
    class: Arc<SecretProviderClass>,
    catalog: &Catalog,
    read: bool,
) -> anyhow::Result<String> {
    let caller = Caller {
        pod: Pod {
            name: "any".into(),
            namespace: class.name.namespace.clone(),
            uid: "any".into(),
            service_account: ServiceAccount {
                name: "any".into(),
                uid: None,
            },
        },
        token: None,
        further_tokens: BTreeMap::new(),
        sharing: class.sharing.unwrap_or(Sharing::ServiceAccount),
        secrets: BTreeMap::new(),
        forwarded: Forwarded::default(),
    };
    let spec = catalog.resolve(class.clone(), &BTreeMap::new())?;
    let mut out = String::new();
    let mut answers = Vec::new();
    for source in spec.sources() {
        let name = if source.name.is_empty() {
            ""
        } else {
            &format!(" ({})", source.name)
        };
        writeln!(
            out,
            "  provider {}{name}, as {}",
            source.provider,
            identity(source, &class)
        )?;
        for object in &source.objects {
            let name = if object.name.is_empty() {
                "everything"
            } else {
                &object.name
            };
            writeln!(out, "    reads {name}")?;
        }
        let by_namespace = matches!(source.source.identified_by(), IdentifiedBy::Namespace);
        if read && by_namespace {
            let fetched = source.source.fetch(&caller, &source.objects).await;
            let given = source.objects.iter().zip(fetched);
            let given = given.map(|(object, answer)| match answer {
                Err(error) if source.can_lack(object) && error.kind() == ErrorKind::NotFound => {
                    Ok(None)
                }
                answer => answer.map(Some),
            });
            answers.push(given.collect::<Result<Vec<Given>, _>>()?);
        }
    }
    match answers.len() == spec.sources().len() {
        true => write_files(&mut out, &spec, &answers)?,
        false => write_items(&mut out, &spec)?,
    }
    write_secrets(&mut out, &class)?;
    Ok(out)
}

/// The Kubernetes Secrets that are made of the files.
fn write_secrets(out: &mut String, class: &SecretProviderClass) -> anyhow::Result<()> {
    if !class.secret_objects.is_empty() {
        writeln!(out, "  Secrets, with syncSecret.enabled in the chart")?;
    }
    for (at, object) in class.secret_objects.iter().enumerate() {
        match object {
            Ok(object) => writeln!(out, "    {:<32} {}", object.name, object.kind)?,
            Err(error) => writeln!(out, "    would not be made: secretObjects[{at}].{error}")?,
        }
    }
    Ok(())
}

fn identity(source: &VolumeSource, class: &SecretProviderClass) -> String {
    match source.source.identified_by() {
        IdentifiedBy::Namespace => format!("the Namespace {}", class.name.namespace),
        IdentifiedBy::Pod => "the pod".to_owned(),
        IdentifiedBy::Token {
            audience,
            store,
            role,
        } => {
            format!("the pod's ServiceAccount (audience {audience}) in the role {role} at {store}")
        }
    }
}

/// What was read, laid out as it would be in a volume.
fn write_files(out: &mut String, spec: &VolumeSpec, answers: &[Vec<Given>]) -> anyhow::Result<()> {
    let payload = Payload::project(spec, answers, None, &Limits::default())?;
    writeln!(out, "  files")?;
    for (path, file) in payload.files() {
        let (mode, size) = (file.mode.bits(), file.bytes.len());
        writeln!(out, "    {path:<32} {mode:04o}  {size:>7} bytes  ********")?;
    }
    Ok(())
}

/// What the class says by itself, where its store was not asked.
fn write_items(out: &mut String, spec: &VolumeSpec) -> anyhow::Result<()> {
    writeln!(out, "  files")?;
    for item in spec.items() {
        let mode = item.mode.unwrap_or(spec.default_mode()).bits();
        let key = item
            .key
            .as_ref()
            .map(|key| format!(", key {key}"))
            .unwrap_or_default();
        let encoding = item
            .encoding
            .map(|encoding| format!(", written as {}", encoding.as_str()))
            .unwrap_or_default();
        let optional = match item.optional || spec.optional() {
            true => ", if it is there",
            false => "",
        };
        writeln!(
            out,
            "    {:<32} {mode:04o}  from {}{key}{encoding}{optional}",
            item.path.as_str(),
            item.object
        )?;
    }
    if spec.items().is_empty() {
        let mode = spec.default_mode().bits();
        writeln!(out, "    everything that is read, mode {mode:04o}")?;
    }
    Ok(())
}
